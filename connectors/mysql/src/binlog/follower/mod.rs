//! Turns events into records, transaction by transaction.
//!
//! The position advances at the end of a transaction, which then is *processed*, and within a
//! transaction by a count of its rows events and of the rows of the current one. A batch may end
//! anywhere: after a restart the server sends the unfinished transaction again, and the follower
//! skips the processed part.
//!
//! An XA transaction has two halves: its rows when it is prepared, and later its outcome. The
//! follower holds the rows until the outcome, and the prepared half is not processed before it, so
//! the server sends it again after a restart. Without GTIDs the follower cannot request that, so a
//! prepared transaction stops the source.

mod rejected;
mod rows;
mod statements;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use trunkline_connector::{Error, Result, SourceBatch};

use super::parse::{ParsedEvent, RowsKind, Statement, TransactionStart};
use super::table_cache::{MappedTable, TableCache};
use crate::config::{DDL_PORT, MysqlOptions, TRANSACTION_PORT};
use crate::connection::dialect::Dialect;
use crate::connection::server_info::ServerInfo;
use crate::decode::Malformed;
use crate::decode::table_map::{TableMapName, collations_of};
use crate::format::envelope::{Emitter, SourceBlock};
use crate::format::schemas::{definition_schema, marker_schema};
use crate::format::table::Table;
use crate::format::transaction_metadata::{MarkerFormat, TransactionMetadata};
use crate::gtid::{Gtid, GtidSet};
use crate::position::{
    AnchorTransaction, BinlogAnchor, BinlogPosition, PartialTransaction, StreamPosition, StreamState,
};
use crate::replication::event_frame::Event;
use crate::schema::charset::{Charset, Charsets};
use crate::schema::table_name::TableName;
use crate::schema::types::Column;
use crate::snapshot::tracker::SnapshotTracker;

/// Follows the binlog.
pub(crate) struct Follower {
    options: Arc<MysqlOptions>,
    server: ServerInfo,
    tables: TableCache,
    pub(crate) emitter: Emitter,
    pub(crate) position: StreamPosition,
    /// The end of the last event.
    reached: BinlogPosition,
    /// The creation of the current file.
    file_created: Option<u32>,
    /// The end of the last transaction since the source opened.
    last_end: BinlogPosition,
    transaction: Option<Transaction>,
    /// Rows events to emit before the next event.
    rows: VecDeque<OpenRows>,
    /// The transaction ends when they are emitted.
    ends_after_rows: bool,
    /// GTIDs that become processed with the transaction: those of prepared halves.
    prepared_gtids: Vec<Gtid>,
    /// Prepared XA transactions by their id.
    prepared_xa: HashMap<Vec<u8>, PreparedXa>,
    /// The output port of schema changes and the id of their schema, with `ddl`.
    ddl: Option<(u16, String)>,
    /// The time of the last transaction that started, until the caller takes it (microseconds since
    /// the Unix epoch).
    pub(crate) written_at: Option<u64>,
}

struct Transaction {
    gtid: Option<Gtid>,
    gtid_text: Option<String>,
    /// Milliseconds since the Unix epoch.
    committed_at: i64,
    thread: Option<u32>,
    /// The statement of the next rows, if known.
    query: Option<Arc<str>>,
    /// BEGIN was read.
    has_begun: bool,
    /// The transaction was processed before a restart.
    already_processed: bool,
    /// The number of rows events so far.
    events: u64,
    /// The part that was processed before a restart.
    skip: Option<PartialTransaction>,
    /// The id of the XA transaction whose prepared half this is.
    xa: Option<Vec<u8>>,
    /// Its place in the binlog.
    anchor: AnchorTransaction,
    /// The position of the last event with rows, and the number of captured rows that events before
    /// the next one have at this position.
    numbered: (u64, u64),
}

/// A rows event whose rows are being emitted.
struct OpenRows {
    event: Event,
    mapped: Arc<MappedTable>,
    kind: RowsKind,
    query: Option<Arc<str>>,
    /// The number of rows events before it in the transaction.
    index: u64,
    /// The offset of the next row.
    at: usize,
    /// The number of rows before it in the event.
    row: u64,
    /// The number of the event's first row among all rows with the event's position. Events of a
    /// prepared or of a compressed transaction have one position.
    first_row: u64,
    source_block: Option<SourceBlock>,
}

struct PreparedXa {
    gtid: Option<Gtid>,
    rows: Vec<OpenRows>,
}

impl Follower {
    pub(crate) fn new(options: Arc<MysqlOptions>, server: ServerInfo, position: StreamPosition) -> Result<Self> {
        let epoch = position.epoch.as_ref().map_or(0, |epoch| epoch.number);
        let mut emitter = Emitter::new(options.tombstones, epoch);
        if let Some(port) = options.port(TRANSACTION_PORT) {
            emitter.enable_transaction_markers(MarkerFormat { port, schema: marker_schema()?.id().to_string() });
        }
        let ddl = match options.port(DDL_PORT) {
            Some(port) => Some((port, definition_schema()?.id().to_string())),
            None => None,
        };
        Ok(Self {
            tables: TableCache::new(Arc::clone(&options), server.flavor.dialect()),
            emitter,
            ddl,
            reached: BinlogPosition::default(),
            file_created: None,
            last_end: BinlogPosition::default(),
            position,
            server,
            options,
            transaction: None,
            rows: VecDeque::new(),
            ends_after_rows: false,
            prepared_gtids: Vec::new(),
            prepared_xa: HashMap::new(),
            written_at: None,
        })
    }

    /// The end of the last event.
    pub(crate) fn reached(&self) -> &BinlogPosition {
        &self.reached
    }

    /// The state of the stream, as a snapshot needs it.
    pub(crate) fn state(&self) -> StreamState<'_> {
        StreamState {
            position: &self.position,
            reached: &self.reached,
            last_end: &self.last_end,
            is_between_transactions: self.is_between_transactions(),
        }
    }

    /// Whether no transaction is unfinished.
    pub(crate) fn is_between_transactions(&self) -> bool {
        self.transaction.is_none() && self.position.partial.is_none()
    }

    /// Whether rows are to be emitted before the next event.
    pub(crate) fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    fn dialect(&self) -> Dialect {
        self.server.flavor.dialect()
    }

    fn malformed(&self, what: &str, error: &Malformed) -> Error {
        let BinlogPosition { file, pos } = &self.reached;
        let server = self.options.connection.server_label();
        Error::data("mysql.malformed", format!("{server}: {what} near {file}:{pos}: {error} (please report this)"))
    }

    fn stop(&self, code: &'static str, message: &str) -> Error {
        let BinlogPosition { file, pos } = &self.reached;
        Error::data(code, format!("{} at {file}:{pos}: {message}", self.options.connection.server_label()))
    }

    /// The captured table of a table map.
    pub(crate) fn mapped_table(&self, event: &Event) -> Option<TableName> {
        const TABLE_MAP: u8 = 19;
        let is_map = event.header().event_type() == TABLE_MAP;
        if is_map { self.tables.new_table(event.data()) } else { None }
    }

    /// The charsets whose tables the follower needs before it processes this event.
    pub(crate) fn needs_charsets(&self, event: &Event) -> Vec<Arc<Charset>> {
        let charsets = &self.server.charsets;
        match ParsedEvent::parse(event) {
            Ok(ParsedEvent::TableMap) if self.mapped_table(event).is_some() => {
                let collations = TableMapName::read(event.data()).and_then(|name| collations_of(&name));
                charsets.unloaded(collations.unwrap_or_default())
            }
            // The text of a schema change has the charset of its client.
            Ok(ParsedEvent::Query(query)) if self.ddl.is_some() => charsets.unloaded(query.status().collation),
            _ => Vec::new(),
        }
    }

    /// Whether the follower needs the description of the table before it processes its table map.
    pub(crate) fn needs_description(&self, event: &Event) -> bool {
        self.tables.needs_description(event.data(), &self.server.charsets)
    }

    /// Sets the description of a table.
    pub(crate) fn set_description(&mut self, name: TableName, columns: &[Column], has_primary_key: bool) {
        self.tables.set_description(name, columns, has_primary_key);
    }

    pub(crate) fn charsets(&self) -> Arc<Charsets> {
        Arc::clone(&self.server.charsets)
    }

    /// Processes an event. [`emit_rows`](Follower::emit_rows) emits its rows.
    pub(crate) fn process(&mut self, event: Event, out: &mut SourceBatch, tracker: &mut SnapshotTracker) -> Result<()> {
        let parsed = ParsedEvent::parse(&event).map_err(|error| self.malformed("an event", &error))?;
        if !matches!(parsed, ParsedEvent::Rotate(..) | ParsedEvent::Heartbeat(_)) {
            self.advance(u64::from(event.header().log_pos()));
        }
        if self.transaction.as_ref().is_some_and(|transaction| transaction.already_processed) {
            self.skip_event(&parsed);
            return Ok(());
        }
        match parsed {
            ParsedEvent::Rotate(file, pos) => self.reached = BinlogPosition { file, pos },
            ParsedEvent::Heartbeat(pos) => self.advance(pos.unwrap_or(0)),
            ParsedEvent::Start(start) => self.start(start, event.header().size())?,
            ParsedEvent::Format(created) => self.start_file(created),
            ParsedEvent::Query(query) => self.query(&query, out, tracker)?,
            ParsedEvent::Commit => self.commit(out),
            ParsedEvent::TableMap => self.map_table(&event, out, tracker)?,
            ParsedEvent::RowsQuery(text) => {
                if let Some(transaction) = self.transaction.as_mut().filter(|_| self.options.format.query) {
                    transaction.query = Some(String::from_utf8_lossy(text).into());
                }
            }
            ParsedEvent::Rows(kind) => self.open_rows(event, kind, out)?,
            ParsedEvent::XaPrepare { one_phase } => self.prepare(one_phase, out)?,
            ParsedEvent::Incident => {
                let message = "the server lost events here; create a source with another name";
                return Err(self.stop("mysql.incident", message));
            }
            ParsedEvent::Payload | ParsedEvent::Other => {}
        }
        Ok(())
    }

    fn map_table(&mut self, event: &Event, out: &mut SourceBatch, tracker: &mut SnapshotTracker) -> Result<()> {
        let mapped = self.tables.add(event.data(), &self.server.charsets)?;
        if let Some(captured) = mapped.as_ref().and_then(|mapped| mapped.captured.as_ref()) {
            let table = &captured.table;
            if let Some(before) = tracker.known(&table.name).filter(|before| !before.key_names().eq(table.key_names()))
            {
                self.warn_changed_key(&before, table);
            }
            out.schemas.push(Arc::clone(&table.schema));
            tracker.define(table);
        }
        Ok(())
    }

    /// Warns that the records of a table have another key from here on.
    fn warn_changed_key(&self, before: &Table, now: &Table) {
        let names = |table: &Table| match table.key.is_empty() {
            true => "no key".to_owned(),
            false => format!("the key {}", table.key_names().collect::<Vec<_>>().join(", ")),
        };
        let BinlogPosition { file, pos } = &self.reached;
        tracing::warn!(
            source = self.options.name,
            code = "mysql.key_changed",
            "the records of {} have {} from {file}:{pos} on, and {} in the table's other records: its topic has both, and the order \
             of a row's records is kept only within each; `key` names the columns of a key that stays",
            now.name,
            names(now),
            names(before)
        );
    }

    /// Skips an event of a transaction that is processed already, up to its end.
    fn skip_event(&mut self, parsed: &ParsedEvent<'_>) {
        let ends = match parsed {
            ParsedEvent::Rotate(file, pos) => {
                self.reached = BinlogPosition { file: file.clone(), pos: *pos };
                false
            }
            ParsedEvent::Commit | ParsedEvent::XaPrepare { .. } => true,
            ParsedEvent::Query(query) => {
                let has_begun = self.transaction.as_ref().is_some_and(|transaction| transaction.has_begun);
                !has_begun || Statement::parse(query.text) == Statement::Commit
            }
            _ => false,
        };
        if ends {
            self.transaction = None;
        }
    }

    /// Advances to an offset within the file, of which 32 bits are known (0: unknown).
    fn advance(&mut self, pos: u64) {
        if pos == 0 {
            return;
        }
        // One large transaction can make a file longer than 4 GiB; its events have only the lower
        // half of their offset.
        const HALF: u64 = 1 << 32;
        let mut full = pos | (self.reached.pos & !(HALF - 1));
        if pos < HALF && full + HALF / 2 < self.reached.pos {
            full += HALF;
        }
        self.reached.pos = self.reached.pos.max(full);
    }

    /// Whether the position is a file and an offset, although the server may have GTIDs.
    pub(crate) fn lacks_gtids(&self) -> bool {
        self.position.processed.is_none()
    }

    /// Continues with GTIDs: all transactions before the current file, at whose start the follower
    /// is, are processed.
    pub(crate) fn adopt_gtids(&mut self, before_file: GtidSet) {
        self.position.processed = Some(before_file);
        self.position.end = self.reached.clone();
    }

    /// Notes the creation of the current file.
    fn start_file(&mut self, created: u32) {
        self.file_created = Some(created);
        if self.position.anchor.is_none() && self.position.end.file == self.reached.file {
            self.position.anchor = self.anchor(None);
        }
    }

    /// The anchor of a transaction in the current file.
    fn anchor(&self, transaction: Option<AnchorTransaction>) -> Option<BinlogAnchor> {
        let (server, file) = (self.server.identity.clone(), self.reached.file.clone());
        self.file_created.map(|created| BinlogAnchor { server, file, created, transaction })
    }

    /// Starts a transaction. `size` is the size of its first event.
    fn start(&mut self, start: TransactionStart, size: u32) -> Result<()> {
        if self.transaction.is_some() {
            let message = "a transaction starts before the previous one ended: the connection lost events";
            return Err(self.stop("mysql.lost_events", message));
        }
        if let (Some(processed), Some(gtid)) = (&self.position.processed, &start.gtid)
            && !processed.is_of_kind(gtid)
        {
            let error = Malformed(format!("the GTID {gtid} in the binlog of another vendor"));
            return Err(self.malformed("a transaction", &error));
        }
        self.written_at = Some(start.written_at);
        let gtid_text = start.gtid.as_ref().map(ToString::to_string);
        let already_processed = start.gtid.as_ref().is_some_and(|gtid| {
            self.position.processed.as_ref().is_some_and(|processed| processed.already_processed(gtid))
        });
        if let Some(id) = &start.xa
            && !already_processed
        {
            self.prepared_xa.insert(id.clone(), PreparedXa { gtid: None, rows: Vec::new() });
        }
        let partial = self.position.partial.clone();
        let skip = partial.filter(|partial| self.position.processed.is_none() || partial.gtid == gtid_text);
        let committed_at = (start.committed_at / 1000) as i64;
        self.emitter.transaction = None;
        if self.emitter.has_transaction_markers() {
            let BinlogPosition { file, pos } = &self.position.end;
            let id = gtid_text.clone().unwrap_or_else(|| format!("file={file},pos={pos}"));
            // A transaction whose first part was emitted without metadata stays without it.
            let counts = skip.as_ref().map_or(Some(BTreeMap::new()), |skip| skip.counts.clone());
            self.emitter.transaction = counts.map(|counts| TransactionMetadata::new(&id, committed_at, counts));
        }
        let pos = self.reached.pos.saturating_sub(u64::from(size));
        let anchor = AnchorTransaction { pos, gtid: gtid_text.clone(), written_at: start.written_at };
        self.transaction = Some(Transaction {
            gtid: start.gtid,
            gtid_text,
            committed_at,
            thread: None,
            query: None,
            has_begun: start.implies_begin,
            already_processed,
            events: 0,
            skip,
            xa: start.xa,
            anchor,
            numbered: (0, 0),
        });
        Ok(())
    }

    /// Ends the transaction, after its rows are emitted.
    fn commit(&mut self, out: &mut SourceBatch) {
        if !self.rows.is_empty() {
            self.ends_after_rows = true;
            return;
        }
        self.ends_after_rows = false;
        self.emitter.end_transaction(out);
        let (gtid, anchor) = match self.transaction.take() {
            Some(transaction) => (transaction.gtid, Some(transaction.anchor)),
            None => (None, None),
        };
        if anchor.is_some() {
            self.position.anchor = self.anchor(anchor);
        }
        if let Some(processed) = &mut self.position.processed {
            gtid.iter().chain(&self.prepared_gtids).for_each(|gtid| processed.add(gtid));
        }
        self.prepared_gtids.clear();
        self.position.end = self.reached.clone();
        self.last_end = self.reached.clone();
        self.position.partial = None;
    }

    /// Ends the prepared half of an XA transaction.
    fn prepare(&mut self, one_phase: bool, out: &mut SourceBatch) -> Result<()> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        let Some(id) = transaction.xa.take() else { return Ok(()) };
        if one_phase {
            if let Some(prepared) = self.prepared_xa.remove(&id) {
                self.release(prepared, out);
            }
            return Ok(());
        }
        if self.position.processed.is_none() {
            return Err(self.stop(
                "mysql.xa",
                "an XA transaction is prepared here, which the source can follow with GTIDs only; SET PERSIST gtid_mode = 'ON' (in \
                 the steps of MySQL's manual), and create a source with another name",
            ));
        }
        if let (Some(processed), Some(gtid)) = (&mut self.position.processed, &transaction.gtid) {
            processed.hold(gtid);
        }
        if let Some(prepared) = self.prepared_xa.get_mut(&id) {
            prepared.gtid = transaction.gtid.take();
        }
        self.transaction = None;
        Ok(())
    }

    /// Moves the rows of a prepared transaction to the one that commits it. Both become processed
    /// together.
    fn release(&mut self, prepared: PreparedXa, out: &mut SourceBatch) {
        self.rows.extend(prepared.rows);
        self.prepared_gtids.extend(prepared.gtid);
        self.commit(out);
    }
}
