//! The source connector `mysql`: the rows of tables, and every change of them, as MySQL's binlog tells it.
//!
//! What it promises: every committed change of a row once and in order, and every row that was there before, once, in its newest state; across
//! restarts of the worker and of the server at any moment. What that rests on is said in [`position`] (what is remembered), [`binlog::follower`] (how
//! transactions are handed out in parts) and [`snapshot`] (how rows and changes are brought together).
//!
//! The options are documented on [`MysqlOptions`] and in the folder's README.

mod binlog;
mod config;
mod connection;
mod decode;
mod format;
#[cfg(test)]
mod fuzz;
mod gtid;
mod position;
mod preflight;
mod replication;
mod retention;
mod schema;
mod snapshot;
mod source;
#[cfg(test)]
mod speed;

use std::sync::Arc;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    IncrementalSnapshots, Placement, PositionChange, PreflightIssue, Result, Schema, SnapshotRequest, Source,
    SourceConnector, SourceContext, SourceSpec,
};

pub use config::{
    BinaryAs, DecimalAs, Envelope, MysqlOptions, OnPurged, Skipped, Snapshot, SnapshotMode, TimesAs, Tls, ZeroDates,
};
pub use connection::address::Address;
pub use schema::column_filter::{Columns, Mask};
pub use schema::table_filter::Selection;

/// The connector, as the runtime's registry lists it.
pub struct MysqlConnector;

impl SourceConnector for MysqlConnector {
    fn name(&self) -> &'static str {
        "mysql"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>) -> Option<Box<dyn SourceSpec>> {
        let options = MysqlOptions::read(section)?;
        Some(Box::new(MysqlSpec { options: Arc::new(options) }))
    }
}

struct MysqlSpec {
    options: Arc<MysqlOptions>,
}

impl SourceSpec for MysqlSpec {
    fn template_variables(&self) -> &'static [&'static str] {
        &["database", "table"]
    }

    fn default_topic(&self) -> Option<&'static str> {
        Some("{@database}.{@table}")
    }

    fn ports(&self) -> Vec<&'static str> {
        self.options.ports()
    }

    fn placement(&self) -> Placement {
        Placement::Anywhere
    }

    fn preflight(&self, task: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        runtime.block_on(preflight::check(&self.options, task))
    }

    /// Those of tables are handed out with the first record that names them.
    fn schemas(&self) -> Vec<Arc<Schema>> {
        let definitions = self.options.ddl.then(format::table::definition_schema);
        let markers = self.options.transaction_markers.then(format::transaction_metadata::schema);
        // That they cannot be made is told when the source opens.
        definitions.into_iter().chain(markers).flatten().map(Arc::new).collect()
    }

    fn snapshots(&self) -> Option<&dyn IncrementalSnapshots> {
        Some(self)
    }

    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(source::MysqlSource::open(Arc::clone(&self.options), context)?))
    }
}

impl IncrementalSnapshots for MysqlSpec {
    fn request(&self, request: &SnapshotRequest<'_>, position: &[(String, Vec<u8>)]) -> Result<Vec<PositionChange>> {
        snapshot::incremental::read_again(&self.options, request, position)
    }

    fn check_condition(&self, position_keys: &[&str], condition: &str, runtime: &tokio::runtime::Handle) -> Result<()> {
        runtime.block_on(snapshot::incremental::check_condition(&self.options, position_keys, condition))
    }
}
