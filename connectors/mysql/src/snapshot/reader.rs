//! Reading of rows, beside the binlog and on connections of their own.
//!
//! **Tables with a key** are read in chunks, without any lock (DBLog's way). Before a chunk is read, the server is asked to wait until everything
//! that the follower has seen is committed: the binlog has a transaction a moment before a query can see it, and a row read in
//! that moment would be older than its change that was handed out already. After the chunk the end of the binlog is noted; everything that
//! the query could see is before it.
//!
//! MariaDB says it the other way round: which place of the binlog a consistent snapshot shows. One is taken until it shows that much.
//!
//! **Tables without a key** are read whole, from one consistent snapshot whose place in the binlog is known exactly, because the table is
//! locked against writers for the moment in which the snapshot is taken.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::mpsc;
use trunkline_connector::{Error, MemoryBudget, Reservation, Result, SourceBatch};

use super::{describe, select};
use crate::charset::Charsets;
use crate::config::MysqlOptions;
use crate::connect::{close, execute, is_server_error, query, query_connection, query_error, query_one, server};
use crate::decode::{Malformed, Value, protocol};
use crate::emit::{Change, Emitter, Op, Origin, OriginParts};
use crate::gtid::{Domains, GtidSet};
use crate::position::{Place, StreamPosition};
use crate::server::{Gtids, binlog_end};
use crate::table::Table;

/// Seconds that a transaction may take from the binlog to being visible.
const BARRIER_SECONDS: u32 = 30;
/// Seconds that a lock is waited for: others wait behind it.
const LOCK_SECONDS: u32 = 3;
/// No such table, no such column, another definition than a moment ago.
const CHANGED: [u16; 3] = [1146, 1054, 1412];
/// Rows of a table without a key that are handed over at once.
const PORTION: usize = 1024;

/// What a reader works with.
pub(crate) struct Reader {
    pub(crate) options: Arc<MysqlOptions>,
    pub(crate) charsets: Arc<Charsets>,
    pub(crate) budget: MemoryBudget,
    pub(crate) server_id: u32,
    pub(crate) gtids: Gtids,
    /// A place in MariaDB's binlog: a query that sees everything up to here sees everything that was handed out before the source opened.
    pub(crate) visible: Mutex<Option<Place>>,
}

/// What is to be read.
pub(crate) struct Request {
    pub(crate) table: Arc<Table>,
    /// The key after which a chunk begins.
    pub(crate) after: Option<Vec<String>>,
    /// Everything up to here has been handed out.
    pub(crate) position: StreamPosition,
    /// The last transaction of this server that was, ends here.
    pub(crate) ended: Place,
    pub(crate) limit: usize,
}

/// Rows that were read.
pub(crate) enum Rows {
    Chunk(Chunk),
    Whole(Whole),
    /// The table is gone.
    Dropped(Arc<Table>),
    /// Its definition changed meanwhile: it has to be asked for once more.
    Changed,
}

/// Rows of a table with a key.
pub(crate) struct Chunk {
    pub(crate) table: Arc<Table>,
    pub(crate) rows: ReadRows,
    /// What the query could see is before this place of the binlog.
    pub(crate) before: Place,
    /// The table has no more rows.
    pub(crate) last: bool,
    pub(crate) _reservation: Reservation,
}

/// Rows of a table without one, as they are read.
pub(crate) struct Whole {
    pub(crate) table: Arc<Table>,
    /// The snapshot holds exactly what is before this place.
    pub(crate) at: Place,
    pub(crate) portions: mpsc::Receiver<Result<SourceBatch>>,
    /// What is being handed out.
    pub(crate) portion: Option<Portion>,
    /// All portions have come.
    pub(crate) ended: bool,
}

/// Some rows of a table without key.
pub(crate) struct Portion {
    rows: SourceBatch,
    record: usize,
    rejection: usize,
}

impl Portion {
    pub(crate) fn new(rows: SourceBatch) -> Self {
        Self { rows, record: 0, rejection: 0 }
    }

    /// Hands out rows while there is room; says whether it was all of them.
    pub(crate) fn hand_out(&mut self, out: &mut SourceBatch) -> bool {
        while !out.is_full() {
            if self.rejection < self.rows.rejected.len() {
                let rejected = &self.rows.rejected;
                out.rejected.push(rejected.records.get(self.rejection), rejected.reasons[self.rejection].clone());
                self.rejection += 1;
            } else if self.record < self.rows.records.len() {
                out.records.push_copy(self.rows.records.get(self.record));
                self.record += 1;
            } else {
                return true;
            }
        }
        self.rejection == self.rows.rejected.len() && self.record == self.rows.records.len()
    }
}

/// Records of rows, in order.
#[derive(Default)]
pub(crate) struct ReadRows {
    pub(crate) records: SourceBatch,
    /// Per row whether it was set aside, and its key.
    pub(crate) marks: Vec<Mark>,
}

pub(crate) struct Mark {
    pub(crate) rejected: bool,
    pub(crate) key: Vec<String>,
}

impl Reader {
    /// A connection whose text comes in the columns' own character sets.
    async fn connect(&self) -> Result<MySqlConnection> {
        let mut connection = query_connection(&self.options).await?;
        execute(&self.options, &mut connection, "SET SESSION character_set_results = NULL").await?;
        let isolation = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";
        execute(&self.options, &mut connection, isolation).await?;
        Ok(connection)
    }

    /// Reads; the connection is kept for the next request.
    pub(crate) async fn read(&self, request: Request, kept: &mut Option<MySqlConnection>) -> Result<Rows> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        if request.table.key.is_empty() {
            return self.whole(&request.table, connection).await;
        }
        let rows = self.chunk(&request, &mut connection).await?;
        if self.gtids == Gtids::MariaDb {
            execute(&self.options, &mut connection, "COMMIT").await?;
        }
        *kept = Some(connection);
        Ok(rows)
    }

    async fn describe(&self, table: &Table, connection: &mut MySqlConnection) -> Result<Option<Arc<Table>>> {
        let name = Some((table.database.as_str(), table.name.as_str()));
        Ok(describe::tables(&self.options, connection, &self.charsets, name).await?.pop())
    }

    async fn chunk(&self, request: &Request, connection: &mut MySqlConnection) -> Result<Rows> {
        self.barrier(request, connection).await?;
        let Some(table) = self.describe(&request.table, connection).await? else {
            return Ok(Rows::Dropped(Arc::clone(&request.table)));
        };
        if table.key != request.table.key {
            let name = table.full_name();
            return Err(Error::external(
                "mysql.key_changed",
                format!("the primary key of {name} changed while its rows were read"),
            ));
        }
        let sql = select::rows(&table, request.after.as_deref(), Some(request.limit));
        let rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await;
        let rows = match rows {
            Err(error) if CHANGED.iter().any(|number| is_server_error(&error, *number)) => return Ok(Rows::Changed),
            rows => rows.map_err(|error| query_error(&self.options, &format!("read {}", table.full_name()), &error))?,
        };
        let (before, _) = binlog_end(&self.options, connection).await?;
        let mut made = self.maker(&table, &request.position.place);
        for row in &rows {
            if let Err(error) = made.add(&table, row) {
                // A column may have got another type since it was described. (Values that could be read nevertheless are not taken either:
                // the change is in the binlog before `before`.)
                return match self.describe(&table, connection).await? {
                    Some(now) if now.columns == table.columns => Err(self.malformed(&table, &error)),
                    _ => Ok(Rows::Changed),
                };
            }
        }
        let last = rows.len() < request.limit;
        let mut reservation = self.budget.empty();
        reservation.resize(made.rows.records.records.bytes() + made.rows.records.rejected.records.bytes());
        Ok(Rows::Chunk(Chunk { table, rows: made.rows, before, last, _reservation: reservation }))
    }

    fn malformed(&self, table: &Table, error: &Malformed) -> Error {
        let server = server(&self.options);
        Error::data(
            "mysql.malformed",
            format!("{server}: a row of {}: {error} (please report this)", table.full_name()),
        )
    }

    /// Returns when a query sees everything that the follower has seen.
    async fn barrier(&self, request: &Request, connection: &mut MySqlConnection) -> Result<()> {
        let done = match &request.position.done {
            Some(GtidSet::MySql(done)) => done,
            Some(GtidSet::MariaDb(done)) => return self.mariadb_barrier(request, done, connection).await,
            None => {
                // A transaction holds on to its tables until it is visible: whoever gets a lock has waited for it.
                self.lock(&request.table, connection).await?;
                return execute(&self.options, connection, "UNLOCK TABLES").await;
            }
        };
        let ask = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{done}', {BARRIER_SECONDS})");
        match query_one(&self.options, connection, &ask).await?.as_deref() {
            Some("0") => Ok(()),
            _ => Err(self.not_committed()),
        }
    }

    fn not_committed(&self) -> Error {
        let server = server(&self.options);
        let message = format!("{server} has not committed within {BARRIER_SECONDS} s what is in its binlog already");
        Error::external("mysql.barrier", message)
    }

    /// Begins a transaction that sees everything that the follower has seen. MariaDB can not be asked to wait for that, but says of a
    /// consistent snapshot which place of the binlog it shows.
    async fn mariadb_barrier(&self, request: &Request, done: &Domains, connection: &mut MySqlConnection) -> Result<()> {
        const ASK_AGAIN: Duration = Duration::from_millis(5);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(u64::from(BARRIER_SECONDS)) {
            let begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
            execute(&self.options, connection, begin).await?;
            let shown = self.shown_place(connection).await?;
            if shown >= request.ended && self.shows_the_past(&shown, done, connection).await? {
                return Ok(());
            }
            execute(&self.options, connection, "ROLLBACK").await?;
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Err(self.not_committed())
    }

    /// The place in the binlog that this connection's snapshot shows.
    async fn shown_place(&self, connection: &mut MySqlConnection) -> Result<Place> {
        let rows = query(&self.options, connection, "SHOW SESSION STATUS LIKE 'binlog_snapshot_%'").await?;
        let value = |name: &str| {
            let row = rows
                .iter()
                .find(|row| row.first().cloned().flatten().is_some_and(|it| it.eq_ignore_ascii_case(name)))?;
            row.get(1)?.clone()
        };
        let pos = value("binlog_snapshot_position").and_then(|pos| pos.parse().ok());
        match (value("binlog_snapshot_file"), pos) {
            (Some(file), Some(pos)) if !file.is_empty() => Ok(Place { file, pos }),
            _ => Err(Error::external(
                "mysql.snapshot",
                format!("{} does not say which place of its binlog a snapshot shows", server(&self.options)),
            )),
        }
    }

    /// Does a snapshot of this place show what was handed out before the source opened? The server reads its binlog to answer that, so it is
    /// asked until it is so, and not again.
    async fn shows_the_past(&self, shown: &Place, done: &Domains, connection: &mut MySqlConnection) -> Result<bool> {
        let visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if visible.is_some_and(|visible| *shown >= visible) {
            return Ok(true);
        }
        let ask = format!("SELECT BINLOG_GTID_POS({}, {})", select::literal(&shown.file), shown.pos);
        let text = query_one(&self.options, connection, &ask).await?;
        let shows = text.and_then(|text| Domains::parse(&text)).is_some_and(|shown| shown.contains_all(done));
        if shows {
            *self.visible.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown.clone());
        }
        Ok(shows)
    }

    async fn lock(&self, table: &Table, connection: &mut MySqlConnection) -> Result<()> {
        const LOCK_WAIT_TIMEOUT: u16 = 1205;
        execute(&self.options, connection, &format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}")).await?;
        let sql = format!("LOCK TABLES {} READ", select::quoted_table(table));
        let locked = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await;
        match locked {
            Ok(_) => Ok(()),
            Err(error) if is_server_error(&error, LOCK_WAIT_TIMEOUT) => Err(Error::external(
                "mysql.lock",
                format!(
                    "{}: {} is written to by a transaction that does not end; its rows are read when a lock can be had",
                    server(&self.options),
                    table.full_name()
                ),
            )),
            Err(error) => Err(query_error(&self.options, &sql, &error)),
        }
    }

    async fn whole(&self, table: &Table, mut connection: MySqlConnection) -> Result<Rows> {
        let mut locking = query_connection(&self.options).await?;
        self.lock(table, &mut locking).await?;
        let begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        execute(&self.options, &mut connection, begin).await?;
        let described = self.describe(table, &mut connection).await?;
        let (at, _) = binlog_end(&self.options, &mut locking).await?;
        execute(&self.options, &mut locking, "UNLOCK TABLES").await?;
        close(locking).await;
        let Some(table) = described else {
            return Err(Error::external("mysql.dropped", format!("{} is gone", table.full_name())));
        };
        let (sender, portions) = mpsc::channel(2);
        let maker = self.maker(&table, &at);
        let (options, of) = (Arc::clone(&self.options), Arc::clone(&table));
        tokio::spawn(async move {
            let outcome = send_portions(&options, connection, &of, maker, &sender).await;
            if let Err(error) = outcome {
                // Whoever reads may be gone.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Rows::Whole(Whole { table, at, portions, portion: None, ended: false }))
    }

    fn maker(&self, table: &Table, place: &Place) -> Maker {
        let now = jiff::Timestamp::now().as_millisecond();
        let parts = OriginParts {
            name: &self.options.name,
            committed_at: now,
            snapshot: true,
            server_id: self.server_id,
            gtid: None,
            file: &place.file,
            pos: place.pos,
            thread: None,
        };
        let mut emitter = Emitter::new(self.options.tombstones);
        emitter.set_now(now);
        Maker { emitter, origin: Origin::new(&parts, table), rows: ReadRows::default(), count: 0 }
    }
}

async fn send_portions(
    options: &MysqlOptions,
    mut connection: MySqlConnection,
    table: &Arc<Table>,
    mut maker: Maker,
    sender: &mpsc::Sender<Result<SourceBatch>>,
) -> Result<()> {
    let doing = format!("read {}", table.full_name());
    let sql = select::rows(table, None, None);
    let mut rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(&mut connection);
    loop {
        let row = std::future::poll_fn(|context| rows.as_mut().poll_next(context)).await;
        let end = row.is_none();
        if let Some(row) = row {
            let row = row.map_err(|error| query_error(options, &doing, &error))?;
            maker.add(table, &row).map_err(|error| {
                Error::data("mysql.malformed", format!("{}: a row of {}: {error}", server(options), table.full_name()))
            })?;
        }
        if end || maker.rows.marks.len() >= PORTION || maker.rows.records.records.bytes() >= 1 << 20 {
            let portion = std::mem::take(&mut maker.rows).records;
            if sender.send(Ok(portion)).await.is_err() || end {
                return Ok(());
            }
        }
    }
}

/// Makes records of rows.
struct Maker {
    emitter: Emitter,
    origin: Origin,
    rows: ReadRows,
    count: u64,
}

impl Maker {
    fn add(&mut self, table: &Table, row: &MySqlRow) -> Result<(), Malformed> {
        let mut values = Vec::with_capacity(table.columns.len());
        for (index, column) in table.columns.iter().enumerate() {
            let raw: Result<Option<&[u8]>, _> = raw_bytes(row, index);
            values.push(match raw.map_err(|error| Malformed(error.to_string()))? {
                Some(bytes) => protocol::read(&column.kind, bytes)
                    .map_err(|error| Malformed(format!("column `{}`: {error}", column.name)))?,
                None => Value::Null,
            });
        }
        let before = self.rows.records.rejected.len();
        let change = Change { op: Op::Read, before: None, after: Some(&values), row: self.count };
        self.emitter.change(&mut self.rows.records, table, &self.origin, change, |_| {})?;
        let rejected = self.rows.records.rejected.len() > before;
        let key = if table.key.is_empty() { Vec::new() } else { select::key_literals(table, &values)? };
        self.rows.marks.push(Mark { rejected, key });
        self.count += 1;
        Ok(())
    }
}

/// The bytes of a value as they came. sqlx takes a zero date for null; its bytes are there nevertheless.
fn raw_bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    Ok(<&[u8] as sqlx::Decode<'_, sqlx::MySql>>::decode(raw).ok())
}
