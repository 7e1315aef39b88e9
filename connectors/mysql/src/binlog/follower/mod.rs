//! From events to records, one transaction after the other.
//!
//! The position moves in two ways: at the end of a transaction, which then is *done*, and within one, by counting its rows events and the
//! rows of the one that is open. A batch may end anywhere; after a restart the server sends the open transaction again, and what was
//! handed out of it is passed over.
//!
//! A distributed transaction (XA) comes in two: its rows when it is prepared, and later whether they count. They are held until then, and the
//! prepared half does not become done before: after a restart the server sends it again. Without GTIDs that cannot be said to it, so there a
//! prepared transaction stops the source.

mod rows;
mod statements;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use trunkline_connector::{Error, Result, SourceBatch};

use crate::binlog::parse::{Begins, Meaning, RowsKind, Statement};
use crate::binlog::table_cache::{Mapped, Tables};
use crate::config::{DDL_PORT, MysqlOptions, Snapshot as When, TRANSACTION_PORT};
use crate::connection::connect;
use crate::connection::server_info::{Gtids, Server};
use crate::decode::Malformed;
use crate::format::envelope::{Emitter, Origin};
use crate::format::table::{Column, Style, definition_schema};
use crate::format::transaction_metadata::{self as marks, MarkerStyle, Marks};
use crate::gtid::Gtid;
use crate::position::{Part, Place, StreamPosition};
use crate::replication::event_frame::Event;
use crate::schema::charset::Charsets;
use crate::snapshot::tracker::Progress;

/// Follows the binlog.
pub(crate) struct Follower {
    options: Arc<MysqlOptions>,
    server: Server,
    tables: Tables,
    pub(crate) emitter: Emitter,
    pub(crate) position: StreamPosition,
    /// How far the binlog has been read: the end of the last event.
    reached: Place,
    /// The end of the last transaction that came from this server since the source opened.
    pub(crate) ended: Place,
    transaction: Option<Transaction>,
    /// Rows to be handed out before the next event is looked at.
    rows: VecDeque<OpenRows>,
    /// The transaction is over when they are handed out.
    ends: bool,
    /// GTIDs that are done with it: of the prepared half of a distributed transaction.
    also_done: Vec<Gtid>,
    /// Prepared transactions by their id.
    held: HashMap<Vec<u8>, Held>,
    /// The output port of changes of definitions and the id of their schema, if they are handed out.
    ddl: Option<(u16, String)>,
    /// When the transaction was written that was read last, until somebody asks (microseconds since the Unix epoch).
    pub(crate) written_at: Option<u64>,
}

struct Transaction {
    gtid: Option<Gtid>,
    gtid_text: Option<String>,
    /// Milliseconds since the Unix epoch.
    committed_at: i64,
    thread: Option<u32>,
    /// The statement whose rows come, if it is told.
    query: Option<Arc<str>>,
    /// Its BEGIN has come.
    begun: bool,
    /// All of it was handed out before a restart.
    comes_again: bool,
    /// Rows events so far.
    events: u64,
    /// What is to be passed over: it was handed out before a restart.
    skip: Option<Part>,
    /// Its id, while it is the first half of a distributed one.
    xa: Option<Vec<u8>>,
}

/// A rows event that is being handed out.
struct OpenRows {
    event: Event,
    mapped: Arc<Mapped>,
    kind: RowsKind,
    query: Option<Arc<str>>,
    /// Which rows event of its transaction.
    index: u64,
    /// Where the next row begins.
    at: usize,
    /// Rows before it.
    row: u64,
    origin: Option<Origin>,
}

struct Held {
    gtid: Option<Gtid>,
    rows: Vec<OpenRows>,
}

impl Follower {
    pub(crate) fn new(options: Arc<MysqlOptions>, server: Server, position: StreamPosition) -> Result<Self> {
        let mut emitter = Emitter::new(options.tombstones);
        if let Some(port) = options.port(TRANSACTION_PORT) {
            emitter.mark_transactions(MarkerStyle { port, schema: marks::schema()?.id().to_string() });
        }
        let ddl = match options.port(DDL_PORT) {
            Some(port) => Some((port, definition_schema()?.id().to_string())),
            None => None,
        };
        Ok(Self {
            tables: Tables::new(Style::of(&options), server.gtids == Gtids::MariaDb),
            emitter,
            ddl,
            reached: Place::default(),
            ended: Place::default(),
            position,
            server,
            options,
            transaction: None,
            rows: VecDeque::new(),
            ends: false,
            also_done: Vec::new(),
            held: HashMap::new(),
            written_at: None,
        })
    }

    /// How far the binlog has been read.
    pub(crate) fn reached(&self) -> &Place {
        &self.reached
    }

    /// How the server numbers transactions.
    pub(crate) fn gtids(&self) -> Gtids {
        self.server.gtids
    }

    /// Between two transactions, and nothing of any other is handed out in part.
    pub(crate) fn is_between(&self) -> bool {
        self.transaction.is_none() && self.position.part.is_none()
    }

    /// Are there rows to hand out before the next event?
    pub(crate) fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    fn malformed(&self, what: &str, error: &Malformed) -> Error {
        let Place { file, pos } = &self.reached;
        let server = connect::server(&self.options);
        Error::data("mysql.malformed", format!("{server}: {what} near {file}:{pos}: {error} (please report this)"))
    }

    fn stop(&self, code: &'static str, message: &str) -> Error {
        let Place { file, pos } = &self.reached;
        Error::data(code, format!("{} at {file}:{pos}: {message}", connect::server(&self.options)))
    }

    /// The database and name of a table that is to be described before this event is taken up.
    pub(crate) fn asks_for(&self, event: &Event) -> Option<(String, String)> {
        const TABLE_MAP: u8 = 19;
        let is_map = event.header().event_type_raw() == TABLE_MAP;
        if is_map { self.tables.asks_for(event.data(), &self.options, &self.server.charsets) } else { None }
    }

    /// The description that was asked for.
    pub(crate) fn told(&mut self, full_name: String, columns: &[Column]) {
        self.tables.told(full_name, columns);
    }

    pub(crate) fn charsets(&self) -> Arc<Charsets> {
        Arc::clone(&self.server.charsets)
    }

    /// Takes up an event; its rows are handed out by [`Follower::hand_out`].
    pub(crate) fn take(&mut self, event: Event, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        let meaning = Meaning::of(&event).map_err(|error| self.malformed("an event", &error))?;
        if !matches!(meaning, Meaning::Rotate(..) | Meaning::Heartbeat(_)) {
            self.advance(u64::from(event.header().log_pos()));
        }
        if self.transaction.as_ref().is_some_and(|transaction| transaction.comes_again) {
            self.pass_over(&meaning);
            return Ok(());
        }
        match meaning {
            Meaning::Rotate(file, pos) => self.reached = Place { file, pos },
            Meaning::Heartbeat(pos) => self.advance(pos.unwrap_or(0)),
            Meaning::Begins(begins) => self.begin(begins)?,
            Meaning::Query(query) => self.query(&query, out, progress)?,
            Meaning::Commit => self.commit(out),
            Meaning::TableMap => {
                let mapped = self.tables.map(event.data(), &self.options, &self.server.charsets)?;
                if let Some(taken) = mapped.as_ref().and_then(|mapped| mapped.taken.as_ref()) {
                    out.schemas.push(Arc::clone(&taken.table.schema));
                    progress.table_seen(&taken.table, self.options.snapshot != When::Never, out)?;
                }
            }
            Meaning::RowsQuery(text) => {
                if let Some(transaction) = self.transaction.as_mut().filter(|_| self.options.query) {
                    transaction.query = Some(String::from_utf8_lossy(text).into());
                }
            }
            Meaning::Rows(kind) => self.open_rows(event, kind)?,
            Meaning::XaPrepare { whole } => self.prepared(whole, out)?,
            Meaning::Incident => {
                return Err(self.stop(
                    "mysql.incident",
                    "the server says that events were lost here. Begin anew with a source of another name",
                ));
            }
            Meaning::Payload | Meaning::Nothing => {}
        }
        Ok(())
    }

    /// Passes over an event of a transaction that is done already; only where it ends matters.
    fn pass_over(&mut self, meaning: &Meaning<'_>) {
        let ends = match meaning {
            Meaning::Rotate(file, pos) => {
                self.reached = Place { file: file.clone(), pos: *pos };
                false
            }
            Meaning::Commit | Meaning::XaPrepare { .. } => true,
            Meaning::Query(query) => {
                let begun = self.transaction.as_ref().is_some_and(|transaction| transaction.begun);
                !begun || Statement::of(query.text) == Statement::Commit
            }
            _ => false,
        };
        if ends {
            self.transaction = None;
        }
    }

    /// Takes up a position of 32 bits (0: none) within the file.
    fn advance(&mut self, pos: u64) {
        if pos == 0 {
            return;
        }
        // A file passes 4 GiB when one transaction is that large; its events tell only the lower half.
        const HALF: u64 = 1 << 32;
        let mut full = pos | (self.reached.pos & !(HALF - 1));
        if pos < HALF && full + HALF / 2 < self.reached.pos {
            full += HALF;
        }
        self.reached.pos = self.reached.pos.max(full);
    }

    fn begin(&mut self, begins: Begins) -> Result<()> {
        if self.transaction.is_some() {
            let message = "a transaction begins before the end of the last one has come: events were lost on the way";
            return Err(self.stop("mysql.lost_events", message));
        }
        if let (Some(done), Some(gtid)) = (&self.position.done, &begins.gtid)
            && !done.is_of_kind(gtid)
        {
            return Err(
                self.malformed("a transaction", &Malformed(format!("{gtid} in the binlog of another kind of server")))
            );
        }
        self.written_at = Some(begins.written_at);
        let gtid_text = begins.gtid.as_ref().map(ToString::to_string);
        let comes_again = begins
            .gtid
            .as_ref()
            .is_some_and(|gtid| self.position.done.as_ref().is_some_and(|done| done.comes_again(gtid)));
        if let Some(id) = &begins.xa
            && !comes_again
        {
            self.held.insert(id.clone(), Held { gtid: None, rows: Vec::new() });
        }
        let skip = self.position.part.clone().filter(|part| self.position.done.is_none() || part.gtid == gtid_text);
        let committed_at = (begins.committed_at / 1000) as i64;
        self.emitter.marks = None;
        if self.emitter.marks_transactions() {
            let Place { file, pos } = &self.position.place;
            let id = gtid_text.clone().unwrap_or_else(|| format!("file={file},pos={pos}"));
            // Of what was handed out before there were markers nothing is known: then this transaction has none.
            let counts = skip.as_ref().map_or(Some(BTreeMap::new()), |part| part.counts.clone());
            self.emitter.marks = counts.map(|counts| Marks::new(&id, committed_at, counts));
        }
        self.transaction = Some(Transaction {
            gtid: begins.gtid,
            gtid_text,
            committed_at,
            thread: None,
            query: None,
            begun: begins.is_begun,
            comes_again,
            events: 0,
            skip,
            xa: begins.xa,
        });
        Ok(())
    }

    /// The end of the transaction, once its rows are handed out.
    fn commit(&mut self, out: &mut SourceBatch) {
        if !self.rows.is_empty() {
            self.ends = true;
            return;
        }
        self.ends = false;
        self.emitter.end_transaction(out);
        let gtid = self.transaction.take().and_then(|transaction| transaction.gtid);
        if let Some(done) = &mut self.position.done {
            gtid.iter().chain(&self.also_done).for_each(|gtid| done.add(gtid));
        }
        self.also_done.clear();
        self.position.place = self.reached.clone();
        self.ended = self.reached.clone();
        self.position.part = None;
    }

    fn prepared(&mut self, whole: bool, out: &mut SourceBatch) -> Result<()> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let Some(id) = transaction.xa.take() else { return Ok(()) };
        if whole {
            if let Some(held) = self.held.remove(&id) {
                self.release(held, out);
            }
            return Ok(());
        }
        if self.position.done.is_none() {
            return Err(self.stop(
                "mysql.xa",
                "a distributed transaction (XA) is prepared here, and the server has no GTIDs to come back to it by. SET PERSIST gtid_mode = 'ON' \
                 (in the steps of the manual), and begin anew with a source of another name",
            ));
        }
        if let (Some(done), Some(gtid)) = (&mut self.position.done, &transaction.gtid) {
            done.hold(gtid);
        }
        if let Some(held) = self.held.get_mut(&id) {
            held.gtid = transaction.gtid.take();
        }
        self.transaction = None;
        Ok(())
    }

    /// The held rows of a distributed transaction become those of the transaction that commits it, and both are done together.
    fn release(&mut self, held: Held, out: &mut SourceBatch) {
        self.rows.extend(held.rows);
        self.also_done.extend(held.gtid);
        self.commit(out);
    }
}
