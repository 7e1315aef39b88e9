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
//! locked against writers for the moment in which the snapshot is taken. With `snapshot_mode = "exact"` all tables are read so, together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;
use tokio::sync::mpsc;
use trunkline_connector::{Error, MemoryBudget, Reservation, Result, failpoint};

use super::rows::{Maker, Portion};
use super::tracker::Wanted;
use super::{describe, select};
use crate::config::MysqlOptions;
use crate::connection::connect::{
    close, execute, is_server_error, query, query_connection, query_error, query_one, server,
};
use crate::connection::server_info::{Gtids, binlog_end};
use crate::decode::Malformed;
use crate::format::envelope::{Emitter, Origin, OriginParts};
use crate::format::table::Table;
use crate::gtid::{Domains, GtidSet};
use crate::position::{Place, StreamPosition};
use crate::schema::charset::Charsets;
use crate::snapshot::incremental::try_condition;

/// Seconds that a transaction may take from the binlog to being visible.
const BARRIER_SECONDS: u32 = 30;
/// Seconds that a lock is waited for: others wait behind it.
const LOCK_SECONDS: u32 = 3;
/// No such table, no such column, another definition than a moment ago.
const CHANGED: [u16; 3] = [1146, 1054, 1412];
/// How long a table's description is good for, while the binlog tells of no change of definitions: one that was kept out of it has to be seen too.
const DESCRIBED: Duration = Duration::from_secs(1);

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
pub(crate) enum Request {
    Chunk(Box<ChunkRequest>),
    /// Whole tables, as of one moment, in portions of so many bytes or rows.
    Whole(Vec<Wanted>, (usize, usize)),
}

/// Some rows of a table with a key.
pub(crate) struct ChunkRequest {
    pub(crate) wanted: Wanted,
    /// Everything up to here has been handed out.
    pub(crate) position: StreamPosition,
    /// The last transaction of this server that was, ends here.
    pub(crate) ended: Place,
    /// When the table was described, if no definition has changed since.
    pub(crate) described: Option<Instant>,
    /// Rows, and bytes and rows of a portion of them.
    pub(crate) limit: usize,
    pub(crate) portion: (usize, usize),
}

/// Rows that were read.
pub(crate) enum Rows {
    Chunk(Chunk),
    Whole(Whole),
    /// The table is gone.
    Dropped(Arc<Table>),
    /// Its definition changed meanwhile: it has to be asked for once more.
    Changed,
    /// The condition cannot be had; why.
    Refused(Arc<Table>, String),
}

/// Rows of a table with a key.
pub(crate) struct Chunk {
    pub(crate) table: Arc<Table>,
    pub(crate) condition: Option<String>,
    /// When the table was described.
    pub(crate) described: Instant,
    pub(crate) portions: VecDeque<Portion>,
    /// What the query could see is before this place of the binlog.
    pub(crate) before: Place,
    /// The table has no more rows.
    pub(crate) last: bool,
    pub(crate) _reservation: Reservation,
}

/// Rows of tables that are read whole, as they come.
pub(crate) struct Whole {
    /// Those that were asked for.
    pub(crate) names: Vec<String>,
    /// Those that are there.
    pub(crate) tables: Vec<Arc<Table>>,
    /// They have been handed out, as what their rows look like.
    pub(crate) told: bool,
    /// Those whose condition cannot be had, and why.
    pub(crate) refused: Vec<(String, String)>,
    /// The snapshot holds exactly what is before this place.
    pub(crate) at: Place,
    pub(crate) portions: mpsc::Receiver<Result<Sent>>,
    /// What is being handed out.
    pub(crate) portion: Option<Box<Portion>>,
    /// All portions have come.
    pub(crate) ended: bool,
}

/// What comes of tables that are read whole.
pub(crate) enum Sent {
    Rows(Box<Portion>),
    /// No more of this table: its condition cannot be had; why.
    Refused(String, String),
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
        match request {
            Request::Whole(tables, portion) => self.whole(tables, portion, connection).await,
            Request::Chunk(request) => {
                let rows = self.chunk(&request, &mut connection).await?;
                if self.gtids == Gtids::MariaDb {
                    execute(&self.options, &mut connection, "COMMIT").await?;
                }
                *kept = Some(connection);
                Ok(rows)
            }
        }
    }

    async fn describe(&self, table: &Table, connection: &mut MySqlConnection) -> Result<Option<Arc<Table>>> {
        let name = Some((table.database.as_str(), table.name.as_str()));
        Ok(describe::tables(&self.options, connection, &self.charsets, name).await?.pop())
    }

    async fn chunk(&self, request: &ChunkRequest, connection: &mut MySqlConnection) -> Result<Rows> {
        self.barrier(request, connection).await?;
        let wanted = &request.wanted;
        let (table, described) = match request.described.filter(|described| described.elapsed() < DESCRIBED) {
            Some(described) => (Arc::clone(&wanted.table), described),
            None => match self.describe(&wanted.table, connection).await? {
                Some(table) => (table, Instant::now()),
                None => return Ok(Rows::Dropped(Arc::clone(&wanted.table))),
            },
        };
        // By name: a column that comes or goes in front of the key moves it.
        if !table.key_names().eq(wanted.table.key_names()) {
            let name = table.full_name();
            return Err(Error::external(
                "mysql.key_changed",
                format!("the primary key of {name} changed while its rows were read"),
            ));
        }
        failpoint!("mysql.chunk.before")?;
        let sql = select::rows(&table, wanted.condition.as_deref(), wanted.after.as_deref(), Some(request.limit));
        let mut made = self.maker(&table, &request.position.place, request.portion);
        match read_rows(&sql, &table, &mut made, connection).await {
            Ok(()) => {}
            Err(Unread::Refused(error)) => {
                if let Some(condition) = &wanted.condition
                    && let Some(why) = self.refused(&table, condition, &error, connection).await?
                {
                    return Ok(Rows::Refused(table, why));
                }
                if CHANGED.iter().any(|number| is_server_error(&error, *number)) {
                    return Ok(Rows::Changed);
                }
                return Err(query_error(&self.options, &format!("read {}", table.full_name()), &error));
            }
            // A column may have got another type since it was described. (Values that could be read nevertheless are not taken either: the
            // change is in the binlog before `before`.)
            Err(Unread::Malformed(error)) => {
                return match self.describe(&table, connection).await? {
                    Some(now) if now.columns == table.columns => Err(self.malformed(&table, &error)),
                    _ => Ok(Rows::Changed),
                };
            }
        }
        let (before, _) = binlog_end(&self.options, connection).await?;
        failpoint!("mysql.chunk.after")?;
        let last = made.count() < request.limit;
        let portions = made.finish();
        let mut reservation = self.budget.empty();
        reservation.resize(portions.iter().map(Portion::bytes).sum());
        let condition = wanted.condition.clone();
        Ok(Rows::Chunk(Chunk { table, condition, described, portions, before, last, _reservation: reservation }))
    }

    /// Is an error the condition's fault? If so, what the server says of it.
    async fn refused(
        &self,
        table: &Table,
        condition: &str,
        error: &sqlx::Error,
        connection: &mut MySqlConnection,
    ) -> Result<Option<String>> {
        if let Some(why) = blames_the_values(error) {
            return Ok(Some(why));
        }
        if error.as_database_error().is_none() {
            return Ok(None);
        }
        Ok(try_condition(&self.options, connection, &table.database, &table.name, condition).await?.err())
    }

    fn malformed(&self, table: &Table, error: &Malformed) -> Error {
        let server = server(&self.options);
        Error::data(
            "mysql.malformed",
            format!("{server}: a row of {}: {error} (please report this)", table.full_name()),
        )
    }

    /// Returns when a query sees everything that the follower has seen.
    async fn barrier(&self, request: &ChunkRequest, connection: &mut MySqlConnection) -> Result<()> {
        let done = match &request.position.done {
            Some(GtidSet::MySql(done)) => done,
            Some(GtidSet::MariaDb(done)) => return self.mariadb_barrier(request, done, connection).await,
            None => {
                // A transaction holds on to its tables until it is visible: whoever gets a lock has waited for it.
                self.lock(&[&request.wanted.table], connection).await?;
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
    async fn mariadb_barrier(
        &self,
        request: &ChunkRequest,
        done: &Domains,
        connection: &mut MySqlConnection,
    ) -> Result<()> {
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

    async fn lock(&self, tables: &[&Table], connection: &mut MySqlConnection) -> Result<()> {
        const LOCK_WAIT_TIMEOUT: u16 = 1205;
        execute(&self.options, connection, &format!("SET SESSION lock_wait_timeout = {LOCK_SECONDS}")).await?;
        let locks: Vec<String> = tables.iter().map(|table| format!("{} READ", select::quoted_table(table))).collect();
        let sql = format!("LOCK TABLES {}", locks.join(", "));
        let locked = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await;
        match locked {
            Ok(_) => Ok(()),
            Err(error) if is_server_error(&error, LOCK_WAIT_TIMEOUT) => Err(Error::external(
                "mysql.lock",
                format!(
                    "{}: {} written to by a transaction that does not end; the rows are read when a lock can be had",
                    server(&self.options),
                    match tables {
                        [table] => format!("{} is", table.full_name()),
                        several => format!("one of {} tables is", several.len()),
                    }
                ),
            )),
            Err(error) => Err(query_error(&self.options, &sql, &error)),
        }
    }

    async fn whole(
        &self,
        wanted: Vec<Wanted>,
        portion: (usize, usize),
        mut connection: MySqlConnection,
    ) -> Result<Rows> {
        let mut refused = Vec::new();
        for Wanted { table, condition, .. } in &wanted {
            if let Some(condition) = condition
                && let Err(why) =
                    try_condition(&self.options, &mut connection, &table.database, &table.name, condition).await?
            {
                refused.push((table.full_name(), why));
            }
        }
        let names: Vec<String> = wanted.iter().map(|wanted| wanted.table.full_name()).collect();
        let is_refused = |table: &Table| refused.iter().any(|(name, _)| *name == table.full_name());
        let wanted: Vec<Wanted> = wanted.into_iter().filter(|wanted| !is_refused(&wanted.table)).collect();
        let (sender, portions) = mpsc::channel(2);
        let mut whole = Whole {
            names,
            tables: Vec::new(),
            told: false,
            refused,
            at: Place::default(),
            portions,
            portion: None,
            ended: wanted.is_empty(),
        };
        if wanted.is_empty() {
            return Ok(Rows::Whole(whole));
        }
        let mut locking = query_connection(&self.options).await?;
        let locked: Vec<&Table> = wanted.iter().map(|wanted| &*wanted.table).collect();
        self.lock(&locked, &mut locking).await?;
        let begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        execute(&self.options, &mut connection, begin).await?;
        let described = match wanted.as_slice() {
            [wanted] => self.describe(&wanted.table, &mut connection).await?.into_iter().collect(),
            _ => describe::tables(&self.options, &mut connection, &self.charsets, None).await?,
        };
        (whole.at, _) = binlog_end(&self.options, &mut locking).await?;
        execute(&self.options, &mut locking, "UNLOCK TABLES").await?;
        close(locking).await;
        let mut reading = Vec::new();
        for Wanted { table, condition, .. } in wanted {
            let now = described.iter().find(|now| now.database == table.database && now.name == table.name);
            if let Some(now) = now {
                reading.push((Arc::clone(now), condition, self.maker(now, &whole.at, portion)));
                whole.tables.push(Arc::clone(now));
            }
        }
        let options = Arc::clone(&self.options);
        tokio::spawn(async move {
            for (table, condition, maker) in reading {
                let condition = condition.as_deref();
                if let Err(error) = send_portions(&options, &mut connection, &table, condition, maker, &sender).await {
                    // Whoever reads may be gone.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
        });
        Ok(Rows::Whole(whole))
    }

    fn maker(&self, table: &Table, place: &Place, portion: (usize, usize)) -> Maker {
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
            query: None,
        };
        let mut emitter = Emitter::new(self.options.tombstones);
        emitter.set_now(now);
        Maker::new(emitter, Origin::new(&parts, table), portion)
    }
}

/// Why rows could not be read.
enum Unread {
    /// By the server, or on the way from it.
    Refused(sqlx::Error),
    Malformed(Malformed),
}

/// Makes records of rows while the server sends more of them.
async fn read_rows(
    sql: &str,
    table: &Table,
    maker: &mut Maker,
    connection: &mut MySqlConnection,
) -> std::result::Result<(), Unread> {
    let mut rows = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).fetch(connection);
    while let Some(row) = std::future::poll_fn(|context| rows.as_mut().poll_next(context)).await {
        maker.add(table, &row.map_err(Unread::Refused)?).map_err(Unread::Malformed)?;
    }
    Ok(())
}

async fn send_portions(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    table: &Arc<Table>,
    condition: Option<&str>,
    mut maker: Maker,
    sender: &mpsc::Sender<Result<Sent>>,
) -> Result<()> {
    let doing = format!("read {}", table.full_name());
    let sql = select::rows(table, condition, None, None);
    let mut rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(connection);
    loop {
        let row = std::future::poll_fn(|context| rows.as_mut().poll_next(context)).await;
        let mut end = row.is_none();
        let mut refused = None;
        match row {
            Some(Err(error)) => {
                refused = condition.and_then(|_| blames_the_values(&error));
                if refused.is_none() {
                    return Err(query_error(options, &doing, &error));
                }
                end = true;
            }
            Some(Ok(row)) => maker.add(table, &row).map_err(|error| {
                Error::data("mysql.malformed", format!("{}: a row of {}: {error}", server(options), table.full_name()))
            })?,
            None => {}
        }
        let rest = if end { maker.finish() } else { maker.next_full().into_iter().collect() };
        for portion in rest {
            if sender.send(Ok(Sent::Rows(Box::new(portion)))).await.is_err() {
                return Ok(());
            }
        }
        if let Some(why) = refused
            && sender.send(Ok(Sent::Refused(table.full_name(), why))).await.is_err()
        {
            return Ok(());
        }
        if end {
            return Ok(());
        }
    }
}

/// What the server says, if it refuses a query for its text or for the values it met, and would again.
fn blames_the_values(error: &sqlx::Error) -> Option<String> {
    // Of SQLSTATE: cardinality (a subquery of several rows), data, syntax and names. Names also change with the table: see `CHANGED`.
    const CLASSES: [&str; 3] = ["21", "22", "42"];
    let error_of_server = error.as_database_error()?;
    let is_change = CHANGED.iter().any(|number| is_server_error(error, *number));
    let state = error_of_server.code()?;
    let blamed = !is_change && CLASSES.iter().any(|class| state.starts_with(class));
    blamed.then(|| error_of_server.message().to_owned())
}
