//! The base of every connector, and the data types that the runtime and the plugin host share:
//! [`Batch`] and record views, [`Schema`], [`Template`], reading of pipeline files ([`config`]),
//! the [`Source`] and [`Sink`] traits, errors, the byte budget, and the [`conformance`] suite that
//! every connector runs.
//!
//! Nothing here knows Kafka, a connector or the runtime.

#[cfg(feature = "aws")]
pub mod aws;
pub mod batch;
mod budget;
pub mod config;
pub mod conformance;
mod error;
pub mod failpoint;
mod host;
pub mod json;
mod position_moves;
mod rejection;
mod schema;
mod schema_fit;
mod sink;
mod source;
mod template;
pub mod tls;

pub use batch::{Batch, Entry, RecordRef, RecordWriter};
pub use budget::{MemoryBudget, Reservation};
pub use error::{Domain, Error, Result, Retry, io_error, root_cause, with_causes};
pub use host::host_name;
pub use position_moves::PositionMoves;
pub use rejection::{Reason, Rejections};
pub use schema::{Field, Schema, SchemaError, SchemaId, headers};
pub use schema_fit::Fit;
pub use sink::{
    Buffered, CommitPolicy, Contents, Delivery, EachContent, EachRow, ErasedTwoPhaseSink, IdempotentSink, InFlight,
    LIVE_AHEAD, NOT_REBUILT, OffsetRanges, OutputFile, OutputListing, PartitionRecords, PendingRecord, READ_AGAIN,
    RecordIndex, RecordSample, RowCount, RowCounts, SchemaLookup, Sink, SinkConnector, SinkContext, SinkReplay,
    SinkSpec, SinkWriter, Supersede, SwitchPlan, TopicPartition, TwoPhaseSink,
};
pub use source::{
    Fill, IncrementalSnapshots, Placement, PositionChange, PreflightIssue, Reparser, SnapshotRequest, Source,
    SourceBatch, SourceConnector, SourceContext, SourceLag, SourceSpec, SourceWaker,
};
pub use template::{Escape, RenderError, Template, TemplateError};
