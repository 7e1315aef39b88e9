//! What the sinks for warehouses share.
//!
//! A warehouse sink is a [two-phase sink](trunkline_connector::TwoPhaseSink). Records become
//! Parquet files in local scratch space; *prepare* uploads them into the [`Stage`]; *commit* loads
//! them in one transaction of the destination, which also advances a row of the sink's offsets
//! table. That row makes a repeated commit harmless, and fences older tasks in the destination.
//! A connector adds a [`Dialect`]: types, SQL texts and sessions of one warehouse. It reads
//! [`Options`] and the stage, and opens the sink with [`open_sink`].
//!
//! In the order in which a record passes them:
//!
//! | file | subject |
//! |---|---|
//! | `config` | the options that all warehouse sinks have |
//! | `sink` | the running sink: the phases |
//! | `change` | records as changes: envelope, row, tombstone |
//! | `order` | the order that changes have in their source |
//! | `write` | route, decode, fit, stage |
//! | `layouts` | the columns that rows are decoded with |
//! | `tables` | target tables: creation and evolution |
//! | `convert`, `geography` | values as values of the target's columns, each one checked |
//! | `buffer` | the open files of a topic partition |
//! | `intent` | the stored form of plans and committables |
//! | `stage`, `s3_stage` | where files wait |
//! | `offsets` | the sink's offsets table, with epochs |
//! | `takeover` | sessions of earlier tasks that hang and hold locks |
//! | `deletes` | the memory of deleted keys |
//! | `staging` | COPY into staging tables, before a load is prepared |
//! | `refused`, `bisect` | rows that the destination refuses; the search for them in a file |
//! | `load`, `apply` | the transaction; its statements |
//! | `preflight`, `fit` | what `validate --check` asks: rights and stage; tables that exist |
//! | `replay` | replays: counts of rows, and the transaction that replaces rows |
//! | `rebuild` | the part of it for rows that belong to keys |
//! | `read` | reads rows, to compare tables |
//! | `switch` | exchanges tables of a shadow with the live ones |
//! | `dialect`, `sessions` | what differs between warehouses |

mod apply;
mod bisect;
mod buffer;
mod change;
mod config;
mod convert;
mod deletes;
mod dialect;
mod fit;
mod geography;
mod intent;
mod layouts;
mod load;
mod offsets;
mod order;
mod preflight;
mod read;
mod rebuild;
mod refused;
mod replay;
mod s3_stage;
mod sessions;
mod sink;
mod stage;
mod staging;
mod switch;
mod tables;
mod takeover;
mod write;

pub use config::{OPTIONS, Options, read_stage};
pub use dialect::{Column, ColumnType, Dialect, Right, Session, StagingColumn};
pub use geography::is_geometry;
pub use preflight::{check, check_records};
pub use read::read_contents;
pub use refused::RefusedRows;
pub use replay::{count_rows, rows_in_the_way};
pub use s3_stage::{S3Location, S3Stage};
pub use sink::open_sink;
pub use stage::{Stage, StagedFile};
pub use switch::{finish_switch, plan_switch, switch};
pub use trunkline_objects::{AccessKey, BucketOptions};
