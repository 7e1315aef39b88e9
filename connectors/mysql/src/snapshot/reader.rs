//! [`Reader`]: reads rows on separate connections, while the source follows the binlog.
//!
//! Tables with a key are read in [chunks](super::chunk), without a lock. Tables without a key, and
//! all tables with `snapshot_mode = "exact"`, are read in a [consistent
//! read](super::consistent_read).

use std::sync::{Arc, Mutex};

use trunkline_connector::{Error, MemoryBudget, Result};

use super::chunk::{Chunk, ChunkRequest};
use super::consistent_read::ConsistentRead;
use super::describe::{self, TableDescription};
use super::pages::{PageLimits, RowEncoder};
use super::select::quoted_table;
use super::tracker::TableRequest;
use crate::config::MysqlOptions;
use crate::connection::dialect::{Dialect, ServerFlavor};
use crate::connection::protocol::ProtocolError;
use crate::connection::query::{NO_CONNECTION, QueryConnection};
use crate::decode::Malformed;
use crate::format::envelope::{Emitter, SourceBlock, SourceFields};
use crate::format::table::Table;
use crate::position::BinlogPosition;
use crate::schema::charset::Charsets;
use crate::schema::table_name::TableName;

/// How long a lock may wait, in seconds: statements of others wait behind it.
const LOCK_TIMEOUT_SECONDS: u32 = 3;
/// Errors of a schema change: no such table, no such column, changed definition.
const SCHEMA_CHANGED: [u16; 3] = [1146, 1054, 1412];

/// Starts a transaction that sees the committed rows of this moment.
pub(super) const START_SNAPSHOT: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// The shared state of all reads.
pub(crate) struct Reader {
    pub(crate) options: Arc<MysqlOptions>,
    pub(crate) charsets: Arc<Charsets>,
    pub(crate) budget: MemoryBudget,
    pub(crate) server_id: u32,
    /// The number of the history that the source follows.
    pub(crate) epoch: u64,
    pub(crate) flavor: ServerFlavor,
    /// A position in MariaDB's binlog. A query that sees everything before it sees everything that
    /// was processed before the source opened.
    pub(crate) visible_from: Mutex<Option<BinlogPosition>>,
}

/// A read.
pub(super) enum ReadRequest {
    Chunk(Box<ChunkRequest>),
    /// Whole tables, as of one point in time.
    Consistent(Vec<TableRequest>, PageLimits),
}

/// The result of a read.
pub(super) enum ReadResult {
    Chunk(Chunk),
    Consistent(ConsistentRead),
    /// The table was dropped.
    Dropped(TableName),
    /// The order of the table's key is not the one of the stored position.
    KeyChanged(Arc<TableDescription>),
    /// The table has a key, but cannot be read in chunks.
    WithoutChunks(Arc<TableDescription>),
    /// The table changed during the read, which has to be repeated.
    Changed,
    /// The server rejects the condition for the table; the reason.
    ConditionRejected(TableName, String),
    /// The server accepts no more connections.
    Refused(Error),
}

impl Reader {
    /// Reads. The connection is kept for the next request.
    pub(super) async fn read(
        self: &Arc<Self>,
        request: ReadRequest,
        kept: &mut Option<QueryConnection>,
    ) -> Result<ReadResult> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match (self.connect().await, &request) {
                (Err(error), ReadRequest::Chunk(_)) if error.code == NO_CONNECTION => {
                    return Ok(ReadResult::Refused(error));
                }
                (connection, _) => connection?,
            },
        };
        match request {
            ReadRequest::Consistent(tables, page) => self.start_consistent_read(tables, page, connection).await,
            ReadRequest::Chunk(request) => {
                let result = self.read_chunk(*request, &mut connection).await?;
                if self.flavor.dialect() == Dialect::MariaDb {
                    connection.execute("COMMIT").await?;
                }
                *kept = Some(connection);
                Ok(result)
            }
        }
    }

    /// A connection that returns text in the columns' character sets.
    async fn connect(&self) -> Result<QueryConnection> {
        let mut connection = QueryConnection::open(&self.options.connection).await?;
        connection.execute("SET SESSION character_set_results = NULL").await?;
        Ok(connection)
    }

    /// The current definition of a table.
    pub(super) async fn describe(
        &self,
        name: &TableName,
        connection: &mut QueryConnection,
    ) -> Result<Option<Arc<TableDescription>>> {
        Ok(describe::tables(&self.options, connection, &self.charsets, Some(name)).await?.pop())
    }

    /// Whether the columns of a table changed since its description: a row that cannot be decoded
    /// may have other columns.
    pub(super) async fn has_changed(&self, table: &Table, connection: &mut QueryConnection) -> Result<bool> {
        let now = self.describe(&table.name, connection).await?;
        Ok(now.is_none_or(|now| now.table.columns != table.columns))
    }

    /// Locks tables against writers.
    pub(super) async fn lock(&self, tables: &[&TableName], connection: &mut QueryConnection) -> Result<()> {
        const LOCK_WAIT_TIMEOUT: u16 = 1205;
        connection.execute(&format!("SET SESSION lock_wait_timeout = {LOCK_TIMEOUT_SECONDS}")).await?;
        let locks: Vec<String> = tables.iter().map(|table| format!("{} READ", quoted_table(table))).collect();
        let sql = format!("LOCK TABLES {}", locks.join(", "));
        match connection.try_execute(&sql).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_server_error(LOCK_WAIT_TIMEOUT) => {
                let server = connection.server_label();
                let tables = match tables {
                    [table] => table.to_string(),
                    several => format!("{} tables", several.len()),
                };
                let message = format!(
                    "{server}: could not lock {tables} within {LOCK_TIMEOUT_SECONDS} s, because a long transaction writes there; \
                     the source tries again"
                );
                Err(Error::external("mysql.lock", message))
            }
            Err(error) => Err(connection.error(&sql, error)),
        }
    }

    /// An encoder for rows as of this position.
    pub(super) fn encoder(
        &self,
        description: &TableDescription,
        position: &BinlogPosition,
        page: PageLimits,
    ) -> RowEncoder {
        let now = jiff::Timestamp::now().as_millisecond();
        let fields = SourceFields {
            name: &self.options.name,
            committed_at: now,
            snapshot: true,
            server_id: self.server_id,
            gtid: None,
            file: &position.file,
            pos: position.pos,
            thread: None,
            query: None,
        };
        let mut emitter = Emitter::new(self.options.tombstones, self.epoch);
        emitter.set_now(now);
        let source_block = SourceBlock::new(&fields, &description.table);
        let rejects_malformed = self.options.rejects_malformed();
        RowEncoder::new(emitter, source_block, position, rejects_malformed, (page, description.timestamps()))
    }
}

/// The error of a row that cannot be decoded.
pub(super) fn malformed_row(connection: &QueryConnection, table: &TableName, error: &Malformed) -> Error {
    let server = connection.server_label();
    Error::data("mysql.malformed", format!("{server}: a row of {table}: {error} (please report this)"))
}

/// Whether an error of the server results from a schema change.
pub(super) fn is_schema_change(error: &ProtocolError) -> bool {
    SCHEMA_CHANGED.iter().any(|number| error.is_server_error(*number))
}

/// The server's message, if it rejects the text or the values of a query, and would reject them
/// again.
pub(super) fn condition_error(error: &ProtocolError) -> Option<String> {
    // SQLSTATE classes: cardinality (a subquery with several rows), data, and syntax or names.
    // Names also change with the table.
    const CLASSES: [&str; 3] = ["21", "22", "42"];
    let server_error = error.server()?;
    let state = server_error.state.as_deref()?;
    let is_rejected = !is_schema_change(error) && CLASSES.iter().any(|class| state.starts_with(class));
    is_rejected.then(|| server_error.message.clone())
}
