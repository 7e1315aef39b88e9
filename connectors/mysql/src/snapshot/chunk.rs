//! Chunks: some rows of a table with a key, read without a lock (DBLog's algorithm).
//!
//! Before the query, the reader waits until the server has committed everything that the follower
//! has seen: the binlog contains a transaction a moment before a query sees it, and a row read in
//! that moment would be older than its emitted change. After the query, the end of the binlog is
//! the high watermark: everything that the query could see is before it.
//!
//! MariaDB cannot be asked to wait, but reports the binlog position of a consistent snapshot. The
//! reader starts one repeatedly until its position is late enough.
//!
//! Several readers read chunks of one table at the same time. Each chunk has an upper bound then:
//! see [plan](super::plan).

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use trunkline_connector::{Error, Reservation, Result, failpoint};

use super::condition::try_on_server;
use super::describe::TableDescription;
use super::pages::{PageLimits, RowEncoder, RowPage, key_literals};
use super::reader::{ReadResult, Reader, START_SNAPSHOT, condition_error, is_schema_change, malformed_row};
use super::reads::ChunkSize;
use super::select::{self, KeyRange};
use super::tracker::TableRequest;
use crate::connection::binlog_state::binlog_end;
use crate::connection::protocol::ProtocolError;
use crate::connection::query::QueryConnection;
use crate::connection::quote::string_literal;
use crate::connection::session::LOCK_WAIT_TIMEOUT_SECONDS;
use crate::decode::Malformed;
use crate::format::table::Table;
use crate::gtid::{Domains, GtidSet};
use crate::position::{BinlogPosition, KeyPosition, StreamPosition};

/// How long the server may take to commit a transaction of the binlog, in seconds.
const BARRIER_TIMEOUT_SECONDS: u32 = 30;
/// How long a description of a table is valid while the stream reports no schema change. The limit
/// reveals changes that were kept out of the binlog.
const DESCRIPTION_TTL: Duration = Duration::from_secs(1);

/// A request for some rows of a table with a key.
pub(super) struct ChunkRequest {
    pub(super) request: TableRequest,
    /// The position of the stream.
    pub(super) position: StreamPosition,
    /// The end of the last transaction since the source opened.
    pub(super) last_end: BinlogPosition,
    /// The description of the table, unless the schema changed since.
    pub(super) described: Option<Described>,
    pub(super) upper_bound: UpperBound,
    pub(super) max_rows: usize,
    pub(super) size: ChunkSize,
    pub(super) page: PageLimits,
}

/// The end of a chunk.
pub(super) enum UpperBound {
    /// It has `max_rows` rows, or those until the end of the table.
    Rows,
    /// This key, even if no row has it.
    Key(KeyPosition),
    /// The key of the row that is now the chunk's last one, which the reader sends before it reads
    /// the rows. The table may end before.
    LookUp(oneshot::Sender<KeyPosition>),
}

/// Rows of a table with a key.
pub(super) struct Chunk {
    pub(super) described: Described,
    pub(super) pages: VecDeque<RowPage>,
    /// Everything that the query could see is before this position.
    pub(super) high_watermark: BinlogPosition,
    /// The table has no more rows.
    pub(super) is_last: bool,
    /// The chunk ends before its upper bound: rows were inserted, or are large.
    pub(super) is_cut: bool,
    upper_bound: Option<KeyPosition>,
    /// The maximum number of rows of the request.
    pub(super) max_rows: usize,
    _reservation: Reservation,
}

/// A description of a table, and its time.
#[derive(Clone)]
pub(super) struct Described {
    pub(super) description: Arc<TableDescription>,
    at: Instant,
}

impl Chunk {
    pub(super) fn table(&self) -> &Arc<Table> {
        &self.described.description.table
    }

    /// The position in the order of the chunk's key.
    pub(super) fn position(&self, literals: Vec<String>) -> KeyPosition {
        KeyPosition { literals, columns: Some(self.described.description.key.clone()) }
    }

    pub(super) fn rows(&self) -> usize {
        self.pages.iter().map(RowPage::rows).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages.iter().map(RowPage::bytes).sum()
    }

    /// The key after which the next chunk starts; `None` if the chunk is empty.
    pub(super) fn end_key(&self) -> Option<KeyPosition> {
        match &self.upper_bound {
            Some(bound) if !self.is_cut => Some(bound.clone()),
            _ => self.pages.back().and_then(RowPage::last_key).map(|literals| self.position(literals)),
        }
    }
}

/// The reason why a chunk could not be read.
enum ReadFailure {
    Stopped(Error),
    Rows(ReadError),
}

/// The reason why rows could not be read.
enum ReadError {
    /// The server rejected the query, or the connection broke.
    Query(ProtocolError),
    Malformed(Malformed),
}

impl Reader {
    pub(super) async fn read_chunk(
        &self,
        mut chunk: ChunkRequest,
        connection: &mut QueryConnection,
    ) -> Result<ReadResult> {
        self.wait_for_commits(&chunk, connection).await?;
        let described = match chunk.described.take().filter(|described| described.at.elapsed() < DESCRIPTION_TTL) {
            Some(described) => described,
            None => match self.describe(&chunk.request.table.name, connection).await? {
                Some(description) => Described { description, at: Instant::now() },
                None => return Ok(ReadResult::Dropped(chunk.request.table.name.clone())),
            },
        };
        let description = &described.description;
        // The literals of a position are meaningless in another order.
        if chunk.request.after.as_ref().is_some_and(|after| !after.is_valid_for(&description.key)) {
            return Ok(ReadResult::KeyChanged(Arc::clone(description)));
        }
        if !description.has_chunks() {
            return Ok(ReadResult::WithoutChunks(Arc::clone(description)));
        }
        connection.set_application_session(description.has_virtual_columns).await?;
        let read = self.read_rows(&mut chunk, description, connection).await;
        let (upper_bound, mut encoder, is_too_large) = match read {
            Ok(read) => read,
            Err(ReadFailure::Stopped(error)) => return Err(error),
            Err(ReadFailure::Rows(error)) => {
                return self
                    .read_failed(error, &description.table, chunk.request.condition.as_deref(), connection)
                    .await;
            }
        };
        if encoder.has_malformed && self.has_changed(&description.table, connection).await? {
            return Ok(ReadResult::Changed);
        }
        let (high_watermark, _) = binlog_end(connection).await?;
        failpoint!("mysql.chunk.after")?;
        let is_full = is_too_large || encoder.count() >= chunk.max_rows;
        let pages = encoder.finish();
        let mut reservation = self.budget.empty();
        reservation.resize(pages.iter().map(RowPage::bytes).sum::<usize>().min(chunk.size.reserved));
        let is_at = |bound: &KeyPosition| {
            pages.back().and_then(RowPage::last_key).is_some_and(|literals| literals == bound.literals)
        };
        Ok(ReadResult::Chunk(Chunk {
            is_last: upper_bound.is_none() && !is_full,
            is_cut: is_full && upper_bound.as_ref().is_some_and(|bound| !is_at(bound)),
            upper_bound,
            pages,
            high_watermark,
            max_rows: chunk.max_rows,
            described,
            _reservation: reservation,
        }))
    }

    /// Reads the rows of a chunk. Returns its upper bound, the rows, and whether the chunk was too
    /// large and ended early.
    async fn read_rows(
        &self,
        chunk: &mut ChunkRequest,
        description: &TableDescription,
        connection: &mut QueryConnection,
    ) -> std::result::Result<(Option<KeyPosition>, RowEncoder, bool), ReadFailure> {
        let TableRequest { condition, after, .. } = &chunk.request;
        let after = after.as_ref().map(|after| after.literals.as_slice());
        let upper_bound = match std::mem::replace(&mut chunk.upper_bound, UpperBound::Rows) {
            UpperBound::Rows => None,
            UpperBound::Key(bound) => Some(bound),
            UpperBound::LookUp(sender) => {
                let sql = select::key_at(description, after, chunk.max_rows - 1);
                let literals = look_up_key(&sql, description, connection).await.map_err(ReadFailure::Rows)?;
                let bound = literals.map(|literals| KeyPosition { literals, columns: Some(description.key.clone()) });
                if let Some(bound) = bound.clone() {
                    // The snapshot may be over.
                    let _ = sender.send(bound);
                }
                bound
            }
        };
        failpoint!("mysql.chunk.before").map_err(ReadFailure::Stopped)?;
        let until = upper_bound.as_ref().map(|bound| bound.literals.as_slice());
        let range = KeyRange { after, until };
        let sql = select::rows(description, condition.as_deref(), range, Some(chunk.max_rows));
        let mut encoder = self.encoder(description, &chunk.position.end, chunk.page);
        // The first chunk of a table is small: most tables have no other one.
        if after.is_some() {
            encoder = encoder.expecting(chunk.size.target);
        }
        let is_complete = encode_rows(&sql, &description.table, &mut encoder, chunk.size.most, connection).await;
        let is_complete = is_complete.map_err(ReadFailure::Rows)?;
        Ok((upper_bound, encoder, !is_complete))
    }

    /// The result of a failed query.
    async fn read_failed(
        &self,
        error: ReadError,
        table: &Arc<Table>,
        condition: Option<&str>,
        connection: &mut QueryConnection,
    ) -> Result<ReadResult> {
        let error = match error {
            // The type of a column may have changed since its description. (Values that could be
            // decoded nevertheless are not emitted: the change is in the binlog before the high
            // watermark.)
            ReadError::Malformed(error) => {
                return match self.has_changed(table, connection).await? {
                    true => Ok(ReadResult::Changed),
                    false => Err(malformed_row(connection, &table.name, &error)),
                };
            }
            ReadError::Query(error) => error,
        };
        if let Some(condition) = condition
            && let Some(why) = rejection(table, condition, &error, connection).await?
        {
            return Ok(ReadResult::ConditionRejected(table.name.clone(), why));
        }
        if is_schema_change(&error) {
            return Ok(ReadResult::Changed);
        }
        Err(connection.error(&format!("read {}", table.name), error))
    }

    /// Returns when a query sees everything that the follower has seen.
    async fn wait_for_commits(&self, chunk: &ChunkRequest, connection: &mut QueryConnection) -> Result<()> {
        let processed = match &chunk.position.processed {
            Some(GtidSet::MySql(processed)) => processed,
            Some(GtidSet::MariaDb(processed)) => {
                return start_mariadb_snapshot(self, chunk, processed, connection).await;
            }
            None => {
                // A transaction holds locks on its tables until it is visible, so a lock waits for
                // it.
                self.lock(&[&chunk.request.table.name], connection).await?;
                connection.execute("UNLOCK TABLES").await?;
                let reset = format!("SET SESSION lock_wait_timeout = {LOCK_WAIT_TIMEOUT_SECONDS}");
                return connection.execute(&reset).await;
            }
        };
        let sql = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{processed}', {BARRIER_TIMEOUT_SECONDS})");
        match connection.query_one(&sql).await?.as_deref() {
            Some("0") => Ok(()),
            _ => Err(not_committed(connection)),
        }
    }

    /// Whether a snapshot at this position sees everything that was processed before the source
    /// opened. The server reads its binlog for the answer, so the reader asks until the first yes
    /// only.
    async fn sees_processed(
        &self,
        position: &BinlogPosition,
        processed: &Domains,
        connection: &mut QueryConnection,
    ) -> Result<bool> {
        let visible_from = self.visible_from.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if visible_from.is_some_and(|visible_from| *position >= visible_from) {
            return Ok(true);
        }
        let sql = format!("SELECT BINLOG_GTID_POS({}, {})", string_literal(&position.file), position.pos);
        let text = connection.query_one(&sql).await?;
        let sees = text.and_then(|text| Domains::parse(&text)).is_some_and(|seen| seen.contains_all(processed));
        if sees {
            *self.visible_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(position.clone());
        }
        Ok(sees)
    }
}

fn not_committed(connection: &QueryConnection) -> Error {
    let server = connection.server_label();
    let message = format!("{server} has not committed transactions of its binlog within {BARRIER_TIMEOUT_SECONDS} s");
    Error::external("mysql.barrier", message)
}

/// Starts a transaction that sees everything that the follower has seen.
async fn start_mariadb_snapshot(
    reader: &Reader,
    chunk: &ChunkRequest,
    processed: &Domains,
    connection: &mut QueryConnection,
) -> Result<()> {
    const RETRY_INTERVAL: Duration = Duration::from_millis(5);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(u64::from(BARRIER_TIMEOUT_SECONDS)) {
        connection.execute(START_SNAPSHOT).await?;
        let position = mariadb_snapshot_position(connection).await?;
        if position >= chunk.last_end && reader.sees_processed(&position, processed, connection).await? {
            return Ok(());
        }
        connection.execute("ROLLBACK").await?;
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    Err(not_committed(connection))
}

/// The binlog position of this connection's snapshot.
async fn mariadb_snapshot_position(connection: &mut QueryConnection) -> Result<BinlogPosition> {
    let rows = connection.query("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'").await?;
    let value = |name: &str| {
        let is_it = |row: &&Vec<Option<String>>| {
            row.first().and_then(Option::as_deref).is_some_and(|it| it.eq_ignore_ascii_case(name))
        };
        rows.iter().find(is_it)?.get(1)?.clone()
    };
    let pos = value("binlog_snapshot_position").and_then(|pos| pos.parse().ok());
    match (value("binlog_snapshot_file"), pos) {
        (Some(file), Some(pos)) if !file.is_empty() => Ok(BinlogPosition { file, pos }),
        _ => {
            let server = connection.server_label();
            Err(Error::external(
                "mysql.snapshot",
                format!("{server} does not report the binlog position of a snapshot"),
            ))
        }
    }
}

/// The server's message, if the condition caused the error.
async fn rejection(
    table: &Table,
    condition: &str,
    error: &ProtocolError,
    connection: &mut QueryConnection,
) -> Result<Option<String>> {
    if let Some(why) = condition_error(error) {
        return Ok(Some(why));
    }
    if error.server().is_none() {
        return Ok(None);
    }
    Ok(try_on_server(connection, &table.name, condition).await?.err())
}

/// Encodes rows while the server sends more of them. Returns false, and skips the rest, when they
/// are larger than `max_bytes`.
async fn encode_rows(
    sql: &str,
    table: &Table,
    encoder: &mut RowEncoder,
    max_bytes: usize,
    connection: &mut QueryConnection,
) -> std::result::Result<bool, ReadError> {
    connection.select(sql).await.map_err(ReadError::Query)?;
    while let Some(row) = connection.next_row().await.map_err(ReadError::Query)? {
        if encoder.bytes() >= max_bytes {
            connection.skip_rows().await.map_err(ReadError::Query)?;
            return Ok(false);
        }
        encoder.add(table, row).map_err(ReadError::Malformed)?;
    }
    Ok(true)
}

/// The key that a query for one key finds.
async fn look_up_key(
    sql: &str,
    description: &TableDescription,
    connection: &mut QueryConnection,
) -> std::result::Result<Option<Vec<String>>, ReadError> {
    connection.select(sql).await.map_err(ReadError::Query)?;
    let row = connection.next_row().await.map_err(ReadError::Query)?;
    row.map(|row| key_literals(description, row)).transpose().map_err(ReadError::Malformed)
}
