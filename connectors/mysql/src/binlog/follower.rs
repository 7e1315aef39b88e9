//! From events to records, one transaction after the other.
//!
//! The position moves in two ways: at the end of a transaction, which then is *done*, and within one, by counting its rows events and the
//! rows of the one that is open. A batch may end anywhere; after a restart the server sends the open transaction again, and what was
//! handed out of it is passed over.
//!
//! A distributed transaction (XA) comes in two: its rows when it is prepared, and later whether they count. They are held until then, and the
//! prepared half does not become done before: after a restart the server sends it again. Without GTIDs that cannot be said to it, so there a
//! prepared transaction stops the source.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use trunkline_connector::{Error, Result, SourceBatch, json};

use super::ddl::{self, Definition};
use super::event::Event;
use super::events::{Begins, Meaning, Query, RowsKind, Statement};
use super::tables::{Mapped, Tables, Taken};
use crate::charset::Charsets;
use crate::columns::Shown;
use crate::config::{DDL_PORT, MysqlOptions, Snapshot as When, TRANSACTION_PORT};
use crate::connect;
use crate::decode::rows::{RowsHead, read_changed_row, read_row};
use crate::decode::{Bytes, Malformed, Value};
use crate::emit::{Change, DefinitionRecord, Emitter, MOST_RECORDS, Op, Origin, OriginParts};
use crate::gtid::Gtid;
use crate::marks::{self, MarkerStyle, Marks};
use crate::position::{Part, Place, StreamPosition};
use crate::server::{Gtids, Server};
use crate::snapshot::progress::{Progress, Watch};
use crate::table::{Column, Style, Table, definition_schema};

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
    /// A compressed transaction has come, and none of its events yet.
    packed: bool,
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
            packed: false,
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
        let from_outside = matches!(meaning, Meaning::Rotate(..) | Meaning::Heartbeat(_) | Meaning::Begins(_));
        if self.packed && from_outside {
            // The library tells nobody that it could not unpack one; then nothing of it comes.
            return Err(self.stop(
                "mysql.payload",
                "a compressed transaction cannot be unpacked: its bytes are broken, or there is not enough memory for it. If it stays so, \
                 SET PERSIST binlog_transaction_compression = OFF, and begin anew with a source of another name",
            ));
        }
        self.packed = matches!(meaning, Meaning::Payload);
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

    fn query(&mut self, query: &Query<'_>, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        let statement = Statement::of(query.text);
        if let Some(transaction) = &mut self.transaction {
            transaction.thread = Some(query.thread);
        }
        let begun = self.transaction.as_ref().is_some_and(|transaction| transaction.begun);
        if statement == Statement::CreateWithRows || !begun && statement.defines() {
            self.defined(query, out);
        }
        match statement {
            Statement::Begin | Statement::CreateWithRows => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = true;
                }
            }
            Statement::Commit => self.commit(out),
            Statement::Within => {}
            Statement::XaStart(id) => {
                self.held.insert(id.clone(), Held { gtid: None, rows: Vec::new() });
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = true;
                    transaction.xa = Some(id);
                }
            }
            Statement::XaCommit(id) => {
                let held = self.held.remove(&id).ok_or_else(|| {
                    self.stop(
                        "mysql.xa",
                        "a distributed transaction is committed that was prepared before this source began: its rows are not known. Begin anew with a \
                         source of another name",
                    )
                })?;
                self.release(held, out);
            }
            Statement::XaRollback(id) => {
                self.also_done.extend(self.held.remove(&id).and_then(|held| held.gtid));
                self.commit(out);
            }
            Statement::Truncate(database, table) => {
                progress.definition_changed();
                let database = database.as_deref().unwrap_or(query.database);
                self.truncated(database, &table, out, progress)?;
                self.commit(out);
            }
            Statement::Create if begun => {}
            Statement::Definition if begun && !progress.concerns(&self.options.tables, query.database, query.text) => {}
            Statement::Definition if begun => {
                let message = "a change is in the binlog as a statement, not as rows (some session set binlog_format). SET PERSIST binlog_format = 'ROW', \
                     and begin anew with a source of another name";
                return Err(self.stop("mysql.statement", message));
            }
            Statement::Create => self.commit(out),
            Statement::Definition => {
                progress.definition_changed();
                self.commit(out);
            }
        }
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

    fn open_rows(&mut self, event: Event, kind: RowsKind) -> Result<()> {
        let images = if kind.op == Op::Update { 2 } else { 1 };
        let head = RowsHead::read(event.data(), images, kind.extra);
        let head = head.map_err(|error| self.malformed("a rows event", &error))?;
        let Some(mapped) = self.tables.get(head.table_id).cloned() else {
            let error = Malformed(format!("no table map for the number {}", head.table_id));
            return Err(self.malformed("a rows event", &error));
        };
        if let Some(taken) = &mapped.taken {
            self.check(&head, taken)?;
        }
        let Some(transaction) = &mut self.transaction else {
            return Err(self.stop("mysql.lost_events", "rows outside of a transaction"));
        };
        let index = transaction.events;
        transaction.events += 1;
        if mapped.taken.is_none() {
            return Ok(());
        }
        let query = transaction.query.clone();
        let open = OpenRows { event, mapped, kind, query, index, at: head.rows_at, row: 0, origin: None };
        match transaction.xa.as_ref().and_then(|id| self.held.get_mut(id)) {
            Some(held) => held.rows.push(open),
            None => self.rows.push_back(open),
        }
        Ok(())
    }

    /// Refuses images that do not hold the whole row: what is missing in them is nowhere else in the binlog.
    fn check(&self, head: &RowsHead, taken: &Taken) -> Result<()> {
        let name = taken.table.full_name();
        if head.columns != taken.storage.len() {
            let error =
                Malformed(format!("{name}: {} columns, {} in its table map", head.columns, taken.storage.len()));
            return Err(self.malformed("a rows event", &error));
        }
        if !head.full {
            let message = format!(
                "a change of {name} does not hold the whole row (some session set binlog_row_image to MINIMAL or NOBLOB). SET PERSIST binlog_row_image = \
                 'FULL', keep sessions from changing it, and begin anew with a source of another name"
            );
            return Err(self.stop("mysql.row_image", &message));
        }
        Ok(())
    }

    /// Hands out rows of the open events until there are none or the batch is full.
    pub(crate) fn hand_out(&mut self, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        while let Some(mut open) = self.rows.pop_front() {
            let result = self.hand_out_of(&mut open, out, progress);
            match result {
                Ok(true) => {}
                Ok(false) => {
                    self.rows.push_front(open);
                    return Ok(());
                }
                Err(error) => return Err(self.malformed("a row", &error)),
            }
        }
        if self.ends {
            self.commit(out);
        }
        Ok(())
    }

    /// Hands out rows of one event; says whether it was all of them.
    fn hand_out_of(
        &mut self,
        open: &mut OpenRows,
        out: &mut SourceBatch,
        progress: &mut Progress,
    ) -> Result<bool, Malformed> {
        let (Some(taken), Some(transaction)) = (&open.mapped.taken, &self.transaction) else { return Ok(true) };
        let table = &taken.table;
        let full_name = table.full_name();
        let watch = progress.watch(&full_name);
        if let Some(marks) = &mut self.emitter.marks {
            marks.turn_to(&full_name);
        }
        let skipped = self.options.skips(open.kind.op);
        let pass_over = match &transaction.skip {
            Some(part) if open.index < part.events => u64::MAX,
            Some(part) if open.index == part.events => part.rows,
            _ => 0,
        };
        if open.origin.is_none() {
            let parts = OriginParts {
                name: &self.options.name,
                committed_at: transaction.committed_at,
                snapshot: false,
                server_id: open.event.header().server_id(),
                gtid: transaction.gtid_text.as_deref(),
                file: &self.reached.file,
                pos: self.reached.pos,
                thread: transaction.thread,
                query: open.query.as_deref(),
            };
            open.origin = Some(Origin::new(&parts, table));
        }
        let Some(origin) = &open.origin else { return Ok(true) };
        let mut bytes = Bytes::new(&open.event.data()[open.at..]);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let first = open.row;
        let whole = loop {
            if bytes.is_empty() || pass_over == u64::MAX {
                break Ok(true);
            }
            let records = out.records.len() + out.rejected.len();
            if out.is_full() || (records > 0 && records + MOST_RECORDS > out.max_records) {
                break Ok(false);
            }
            let mut rest = bytes;
            let mut read = Ok(());
            if open.kind.op != Op::Create {
                read = read_row(&mut rest, &taken.storage, &mut before);
            }
            if open.kind.op != Op::Delete {
                read = read.and_then(|()| {
                    if open.kind.partial {
                        read_changed_row(&mut rest, &taken.storage, &before, &mut after)
                    } else {
                        read_row(&mut rest, &taken.storage, &mut after)
                    }
                });
            }
            let left_out = skipped
                || self.options.skip_unchanged && open.kind.op == Op::Update && is_unchanged(table, &before, &after);
            if open.row >= pass_over && watch != Watch::Suppress && left_out && read.is_ok() {
                // Its key is not noted either: the row of a chunk is then all that comes of it.
                out.dropped += 1;
            } else if open.row >= pass_over && watch != Watch::Suppress {
                let change = Change {
                    op: open.kind.op,
                    before: (open.kind.op != Op::Create).then_some(before.as_slice()),
                    after: (open.kind.op != Op::Delete).then_some(after.as_slice()),
                    row: open.row,
                };
                let touched = |key: &[u8]| {
                    if watch == Watch::Record {
                        progress.touched(key);
                    }
                };
                read = read.and_then(|()| self.emitter.change(out, table, origin, change, touched));
            }
            if let Err(error) = read {
                break Err(error);
            }
            if rest.rest().len() == bytes.rest().len() {
                // Of a table without columns, which does not exist: there would be no end of them.
                break Err(Malformed::new("a row of no bytes"));
            }
            bytes = rest;
            open.row += 1;
        };
        open.at = open.event.data().len() - bytes.rest().len();
        // After an error too: what was handed out before it is kept.
        if open.row > first && open.row >= pass_over {
            let (events, rows) = if whole == Ok(true) { (open.index + 1, 0) } else { (open.index, open.row) };
            let counts = self.emitter.marks.as_mut().map(Marks::counts);
            self.position.part = Some(Part { gtid: transaction.gtid_text.clone(), events, rows, counts });
        }
        whole
    }

    /// Hands out a change of definitions, if it is of a kind and a database that are taken.
    fn defined(&mut self, query: &Query<'_>, out: &mut SourceBatch) {
        let Some((port, schema)) = &self.ddl else { return };
        // It comes before all else of its transaction: what follows a part of one has seen it handed out.
        if self.transaction.as_ref().is_some_and(|transaction| transaction.skip.is_some()) {
            return;
        }
        let Some(definition) = Definition::of(query.text) else { return };
        let status = query.status();
        let takes = |database: &str| self.options.tables.may_take_of(database);
        let Some((database, tables)) = definition.concerning(query.database, &status.databases, takes) else { return };
        let charset = status.collation.and_then(|collation| self.server.charsets.by_collation(collation));
        let text = match charset {
            Some(charset) => charset.decode(query.text),
            None => String::from_utf8_lossy(query.text),
        };
        if ddl::may_hold_secret(&text) {
            out.dropped += 1;
            return;
        }
        let mut source_json = b"\"db\":".to_vec();
        json::write_string(&mut source_json, database);
        source_json.extend_from_slice(b",\"table\":");
        match tables.is_empty() {
            true => source_json.extend_from_slice(b"null"),
            false => json::write_string(&mut source_json, &tables.join(",")),
        }
        let transaction = self.transaction.as_ref();
        let parts = OriginParts {
            name: &self.options.name,
            committed_at: transaction.map_or(0, |transaction| transaction.committed_at),
            snapshot: false,
            server_id: self.server.server_id,
            gtid: transaction.and_then(|transaction| transaction.gtid_text.as_deref()),
            file: &self.reached.file,
            pos: self.reached.pos,
            thread: transaction.and_then(|transaction| transaction.thread),
            query: None,
        };
        let record = DefinitionRecord { database, text: &text, port: *port, schema };
        self.emitter.definition(out, &Origin::of(&parts, &source_json, false), &record);
        if let Some(transaction) = &self.transaction {
            // Rows may follow: of CREATE TABLE .. SELECT.
            let counts = self.emitter.marks.as_mut().map(Marks::counts);
            self.position.part = Some(Part { gtid: transaction.gtid_text.clone(), events: 0, rows: 0, counts });
        }
    }

    fn truncated(&mut self, database: &str, name: &str, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        let full_name = format!("{database}.{name}");
        if !self.options.tables.takes(database, name) || progress.watch(&full_name) == Watch::Suppress {
            return Ok(());
        }
        // What is not known now was not there when the source opened, and no row of it has come since: there is nothing to take away.
        let Some(table) = progress.known(&full_name) else { return Ok(()) };
        if self.options.skips(Op::Truncate) {
            out.dropped += 1;
            return Ok(());
        }
        let transaction = self.transaction.as_ref();
        let parts = OriginParts {
            name: &self.options.name,
            committed_at: transaction.map_or(0, |transaction| transaction.committed_at),
            snapshot: false,
            server_id: self.server.server_id,
            gtid: transaction.and_then(|transaction| transaction.gtid_text.as_deref()),
            file: &self.reached.file,
            pos: self.reached.pos,
            thread: transaction.and_then(|transaction| transaction.thread),
            query: None,
        };
        let origin = Origin::new(&parts, &table);
        out.schemas.push(Arc::clone(&table.schema));
        let change = Change { op: Op::Truncate, before: None, after: None, row: 0 };
        self.emitter.change(out, &table, &origin, change, |_| {}).map_err(|error| self.malformed("a TRUNCATE", &error))
    }
}

/// Is nothing that is written of a row different?
fn is_unchanged(table: &Table, before: &[Value<'_>], after: &[Value<'_>]) -> bool {
    let columns = table.columns.iter().zip(before.iter().zip(after));
    // JSON given as differences has some: it is not the same as what it is made of.
    columns.filter(|(column, _)| column.shown != Shown::LeftOut).all(|(_, (before, after))| before == after)
}
