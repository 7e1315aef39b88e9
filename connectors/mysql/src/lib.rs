//! The source connector `mysql`: the rows of tables in MySQL and MariaDB, and their changes from
//! the binlog.
//!
//! It emits every committed change of a row once and in order, and every existing row once, in its
//! newest state, across restarts of worker and server at any moment. The modules explain how:
//! `position` (what is stored), `binlog::follower` (how transactions are emitted in parts) and
//! `snapshot` (how existing rows and changes are combined).
//!
//! The folder's README documents the options. Modules import only modules below them:
//!
//! | layer | modules |
//! |---|---|
//! | 1 | `preflight`, `source`, `moves` |
//! | 2 | `binlog` |
//! | 3 | `replication`, `snapshot`, `retention` |
//! | 4 | `config` |
//! | 5 | `connection` |
//! | 6 | `position` |
//! | 7 | `format` |
//! | 8 | `decode` |
//! | 9 | `schema`, `gtid` |

mod binlog;
mod config;
mod connection;
mod decode;
mod format;
#[cfg(test)]
mod fuzz;
mod gtid;
mod moves;
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
    Batch, IncrementalSnapshots, Placement, PositionChange, PositionMoves, PreflightIssue, RecordRef, Result, Schema,
    SnapshotRequest, Source, SourceConnector, SourceContext, SourceSpec,
};

use self::config::MysqlOptions;

/// The connector, as the runtime's registry lists it.
pub struct MysqlConnector;

impl SourceConnector for MysqlConnector {
    fn name(&self) -> &'static str {
        "mysql"
    }

    fn summary(&self) -> &'static str {
        "Rows of MySQL and MariaDB tables, and all changes of them"
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

    fn named_data_sets(&self) -> Vec<Vec<(&'static str, String)>> {
        self.options.tables.named().into_iter().map(format::deletes::headers).collect()
    }

    fn placement(&self) -> Placement {
        Placement::Anywhere
    }

    fn preflight(&self, task: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        runtime.block_on(preflight::check(&self.options, task))
    }

    /// The schemas of the output ports. A batch has the schema of a table with the first record
    /// that uses it.
    fn schemas(&self) -> Vec<Arc<Schema>> {
        let definitions = self.options.ddl.then(format::schemas::definition_schema);
        let markers = self.options.format.transaction_block.then(format::schemas::marker_schema);
        // An error is reported when the source opens.
        definitions.into_iter().chain(markers).flatten().map(Arc::new).collect()
    }

    fn snapshots(&self) -> Option<&dyn IncrementalSnapshots> {
        Some(self)
    }

    fn position_moves(&self) -> Option<&dyn PositionMoves> {
        Some(self)
    }

    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(source::MysqlSource::open(Arc::clone(&self.options), context)?))
    }
}

impl IncrementalSnapshots for MysqlSpec {
    fn request(&self, request: &SnapshotRequest<'_>, position: &[(String, Vec<u8>)]) -> Result<Vec<PositionChange>> {
        snapshot::incremental::request_snapshot(&self.options, request, position)
    }

    fn check_condition(&self, position_keys: &[&str], condition: &str, runtime: &tokio::runtime::Handle) -> Result<()> {
        runtime.block_on(snapshot::incremental::check_condition(&self.options, position_keys, condition))
    }

    fn record_headers(&self, position_key: &str) -> Vec<(&'static str, String)> {
        position::table_of(position_key).map(format::deletes::headers).unwrap_or_default()
    }

    fn delete(&self, last: RecordRef<'_>, now: i64, out: &mut Batch) {
        format::deletes::delete(last, now, self.options.format.envelope, self.options.tombstones, out);
    }
}

impl PositionMoves for MysqlSpec {
    fn forms(&self) -> &'static str {
        moves::FORMS
    }

    fn move_to(
        &self,
        to: &str,
        position: &[(String, Vec<u8>)],
        runtime: &tokio::runtime::Handle,
    ) -> Result<Vec<PositionChange>> {
        runtime.block_on(moves::move_to(&self.options, to, position))
    }

    fn describe(&self, key: &str, value: &[u8]) -> Option<(String, String)> {
        moves::describe(key, value)
    }

    fn after_reset(&self) -> &'static str {
        "The source starts as if it had never run, with a snapshot if `snapshot` asks for one. Rows that were deleted since its last \
         record stay in the topics."
    }
}
