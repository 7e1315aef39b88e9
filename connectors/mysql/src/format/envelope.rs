//! Row changes to records: the envelope, the key, tombstones, and the three records that a changed key takes.

use trunkline_connector::json::write_string;
use trunkline_connector::{Batch, Reason, SourceBatch, headers};

use crate::config::Envelope;
use crate::decode::{Malformed, Value};
use crate::format::json::Encoder;
use crate::format::table::{DATABASE, Table};
use crate::format::transaction_metadata::{MarkerStyle, Marks};

/// The key that a row has from now on, on the record that deletes the old one.
const NEW_KEY: &str = "__debezium.newkey";
/// The key that a row had before, on the record that creates the new one.
const OLD_KEY: &str = "__debezium.oldkey";

/// Most records that one change of a row becomes.
pub(crate) const MOST_RECORDS: usize = 3;

/// Where changes come from: what the `source` of all records of one event has in common.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// When the transaction was committed, in milliseconds.
    pub(crate) committed_at: i64,
}

/// What an [`Origin`] is made of.
pub(crate) struct OriginParts<'a> {
    pub(crate) name: &'a str,
    pub(crate) committed_at: i64,
    pub(crate) snapshot: bool,
    pub(crate) server_id: u32,
    pub(crate) gtid: Option<&'a str>,
    pub(crate) file: &'a str,
    pub(crate) pos: u64,
    pub(crate) thread: Option<u32>,
    /// The statement, if it is told.
    pub(crate) query: Option<&'a str>,
}

impl Origin {
    pub(crate) fn new(parts: &OriginParts<'_>, table: &Table) -> Self {
        Self::of(parts, &table.source_json, table.style.query)
    }

    /// The same, with database and table as JSON members.
    pub(crate) fn of(parts: &OriginParts<'_>, source_json: &[u8], with_query: bool) -> Self {
        let head = concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"connector\":\"mysql\",\"name\":");
        let mut bytes = head.as_bytes().to_vec();
        write_string(&mut bytes, parts.name);
        bytes.extend_from_slice(
            format!(",\"ts_ms\":{},\"snapshot\":\"{}\",", parts.committed_at, parts.snapshot).as_bytes(),
        );
        bytes.extend_from_slice(source_json);
        bytes.extend_from_slice(format!(",\"server_id\":{},\"gtid\":", parts.server_id).as_bytes());
        match parts.gtid {
            Some(gtid) => write_string(&mut bytes, gtid),
            None => bytes.extend_from_slice(b"null"),
        }
        bytes.extend_from_slice(b",\"file\":");
        write_string(&mut bytes, parts.file);
        bytes.extend_from_slice(format!(",\"pos\":{},\"row\":", parts.pos).as_bytes());
        let thread = parts.thread.map_or("null".to_owned(), |thread| thread.to_string());
        let mut tail = format!(",\"thread\":{thread}").into_bytes();
        if with_query {
            tail.extend_from_slice(b",\"query\":");
            match parts.query {
                Some(query) => write_string(&mut tail, query),
                None => tail.extend_from_slice(b"null"),
            }
        }
        tail.push(b'}');
        Self { head: bytes, tail, committed_at: parts.committed_at }
    }

    /// Appends the `source` of a row.
    fn write(&self, out: &mut Vec<u8>, row: u64) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(itoa::Buffer::new().format(row).as_bytes());
        out.extend_from_slice(&self.tail);
    }
}

/// What happened to a row. Debezium's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Create,
    Update,
    Delete,
    Truncate,
}

impl Op {
    fn letter(self) -> u8 {
        match self {
            Self::Read => b'r',
            Self::Create => b'c',
            Self::Update => b'u',
            Self::Delete => b'd',
            Self::Truncate => b't',
        }
    }
}

/// What one record is made of.
struct Parts<'a, 'v> {
    table: &'a Table,
    origin: &'a Origin,
    change: Change<'a, 'v>,
    key: &'a [u8],
    /// A header with the row's other key.
    other_key: Option<(&'a str, &'a [u8])>,
}

/// Writes records.
pub(crate) struct Emitter {
    encoder: Encoder,
    tombstones: bool,
    /// Milliseconds since the Unix epoch: when the records of this batch were made.
    now: i64,
    before_key: Vec<u8>,
    after_key: Vec<u8>,
    /// The transaction whose rows are handed out, if there are markers.
    pub(crate) marks: Option<Marks>,
    marker_style: Option<MarkerStyle>,
}

/// A change of definitions.
#[derive(Clone, Copy)]
pub(crate) struct DefinitionRecord<'a> {
    pub(crate) database: &'a str,
    pub(crate) text: &'a str,
    /// The output port that it leaves by, and the id of its schema.
    pub(crate) port: u16,
    pub(crate) schema: &'a str,
}

/// A row before and after a change, and which row of its transaction's event it is.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a, 'v> {
    pub(crate) op: Op,
    pub(crate) before: Option<&'a [Value<'v>]>,
    pub(crate) after: Option<&'a [Value<'v>]>,
    pub(crate) row: u64,
}

impl Emitter {
    pub(crate) fn new(tombstones: bool) -> Self {
        Self {
            encoder: Encoder::default(),
            tombstones,
            now: 0,
            before_key: Vec::new(),
            after_key: Vec::new(),
            marks: None,
            marker_style: None,
        }
    }

    /// From now on there are markers of transactions.
    pub(crate) fn mark_transactions(&mut self, style: MarkerStyle) {
        self.marker_style = Some(style);
    }

    pub(crate) fn marks_transactions(&self) -> bool {
        self.marker_style.is_some()
    }

    /// The end of the transaction.
    pub(crate) fn end_transaction(&mut self, out: &mut SourceBatch) {
        if let (Some(marks), Some(style)) = (self.marks.take(), &self.marker_style) {
            marks.end(&mut out.side_outputs, style);
        }
    }

    /// Adds the record of a change of definitions, after Debezium's.
    pub(crate) fn definition(&self, out: &mut SourceBatch, origin: &Origin, definition: &DefinitionRecord<'_>) {
        let DefinitionRecord { database, text, port, schema } = *definition;
        let mut quoted = Vec::new();
        write_string(&mut quoted, database);
        let mut record = out.side_outputs.record();
        record.key(&[b"{\"databaseName\":", quoted.as_slice(), b"}"].concat());
        record.value_with(|arena| {
            arena.extend_from_slice(b"{\"source\":");
            origin.write(arena, 0);
            arena.extend_from_slice(format!(",\"ts_ms\":{},\"databaseName\":", self.now).as_bytes());
            arena.extend_from_slice(&quoted);
            arena.extend_from_slice(b",\"schemaName\":null,\"ddl\":");
            write_string(arena, text);
            arena.extend_from_slice(b",\"tableChanges\":[]}");
        });
        record.timestamp(origin.committed_at).port(port);
        record.header(DATABASE, Some(database.as_bytes())).header(headers::SCHEMA, Some(schema.as_bytes()));
        record.finish();
    }

    pub(crate) fn set_now(&mut self, now: i64) {
        self.now = now;
    }

    /// Adds the records of a change. `touched` is told the keys that it concerns.
    pub(crate) fn change(
        &mut self,
        out: &mut SourceBatch,
        table: &Table,
        origin: &Origin,
        change: Change<'_, '_>,
        mut touched: impl FnMut(&[u8]),
    ) -> Result<(), Malformed> {
        let mut before_key = std::mem::take(&mut self.before_key);
        let mut after_key = std::mem::take(&mut self.after_key);
        before_key.clear();
        after_key.clear();
        if !table.key.is_empty() {
            if let Some(before) = change.before {
                self.encoder.key(&mut before_key, table, before)?;
                touched(&before_key);
            }
            if let Some(after) = change.after {
                self.encoder.key(&mut after_key, table, after)?;
                if change.before.is_none() || before_key != after_key {
                    touched(&after_key);
                }
            }
        }
        let result = self.records(out, table, origin, change, &before_key, &after_key);
        (self.before_key, self.after_key) = (before_key, after_key);
        result
    }

    fn records(
        &mut self,
        out: &mut SourceBatch,
        table: &Table,
        origin: &Origin,
        change: Change<'_, '_>,
        before_key: &[u8],
        after_key: &[u8],
    ) -> Result<(), Malformed> {
        let keyed = !table.key.is_empty();
        if change.op == Op::Update && before_key != after_key {
            let delete = Change { op: Op::Delete, after: None, ..change };
            let other_key = Some((NEW_KEY, after_key));
            self.record(out, &Parts { table, origin, change: delete, key: before_key, other_key })?;
            self.tombstone(out, table, origin, before_key);
            let create = Change { op: Op::Create, before: None, ..change };
            let other_key = Some((OLD_KEY, before_key));
            return self.record(out, &Parts { table, origin, change: create, key: after_key, other_key });
        }
        let key = if change.after.is_some() { after_key } else { before_key };
        self.record(out, &Parts { table, origin, change, key, other_key: None })?;
        if change.op == Op::Delete && keyed {
            self.tombstone(out, table, origin, key);
        }
        Ok(())
    }

    /// In the bare row's style a delete is its tombstone alone, and there is nothing to write for a delete without key or for a TRUNCATE.
    fn record(&mut self, out: &mut SourceBatch, parts: &Parts<'_, '_>) -> Result<(), Malformed> {
        let Parts { table, change, .. } = *parts;
        if table.style.envelope == Envelope::Row && change.after.is_none() {
            if table.key.is_empty() || change.op == Op::Truncate {
                out.dropped += 1;
            }
            return Ok(());
        }
        if let (Some(marks), Some(style)) = (&mut self.marks, &self.marker_style)
            && change.op != Op::Truncate
        {
            marks.count(&mut out.side_outputs, style);
        }
        self.encoder.refused = None;
        if self.write(&mut out.records, parts, false)? {
            return Ok(());
        }
        let column = self.encoder.refused.take().unwrap_or_default();
        let message = format!(
            "{}: column `{column}` holds a date that no calendar has; choose `zero_dates = \"null\"` or \"string\" to take it",
            table.full_name()
        );
        // Written once more, where it goes with its reason; the date is null in it.
        let mut aside = Batch::default();
        self.write(&mut aside, parts, true)?;
        out.rejected.push(aside.get(0), Reason::new("mysql.zero_date", message));
        Ok(())
    }

    /// Adds the record unless it holds something that the style refuses; says whether it did.
    fn write(&mut self, records: &mut Batch, parts: &Parts<'_, '_>, even_if_refused: bool) -> Result<bool, Malformed> {
        let Parts { table, origin, change, key, other_key } = *parts;
        let mut record = records.record();
        if !table.key.is_empty() && change.op != Op::Truncate {
            record.key(key);
        }
        let mut written = Ok(());
        record.value_with(|arena| written = self.value(arena, table, origin, change));
        written?;
        if self.encoder.refused.is_some() && !even_if_refused {
            return Ok(false);
        }
        record.timestamp(origin.committed_at).ordering_key(table.ordering_key).header_block(&table.headers);
        if let Some((name, key)) = other_key {
            record.header(name, Some(key));
        }
        record.finish();
        Ok(true)
    }

    fn value(
        &mut self,
        arena: &mut Vec<u8>,
        table: &Table,
        origin: &Origin,
        change: Change<'_, '_>,
    ) -> Result<(), Malformed> {
        let mut image = |arena: &mut Vec<u8>, row: Option<&[Value<'_>]>| match row {
            Some(row) => self.encoder.row(arena, table, row),
            None => {
                arena.extend_from_slice(b"null");
                Ok(())
            }
        };
        if table.style.envelope == Envelope::Row {
            return image(arena, change.after);
        }
        arena.extend_from_slice(b"{\"before\":");
        image(arena, change.before)?;
        arena.extend_from_slice(b",\"after\":");
        image(arena, change.after)?;
        arena.extend_from_slice(b",\"source\":");
        origin.write(arena, change.row);
        arena.extend_from_slice(b",\"op\":\"");
        arena.push(change.op.letter());
        arena.extend_from_slice(b"\",\"ts_ms\":");
        arena.extend_from_slice(itoa::Buffer::new().format(self.now).as_bytes());
        if table.style.transactions {
            arena.extend_from_slice(b",\"transaction\":");
            match &self.marks {
                Some(marks) if change.op != Op::Truncate => marks.write_block(arena),
                _ => arena.extend_from_slice(b"null"),
            }
        }
        arena.push(b'}');
        Ok(())
    }

    fn tombstone(&self, out: &mut SourceBatch, table: &Table, origin: &Origin, key: &[u8]) {
        // Of the bare row's style it is all that is left of a delete.
        if self.tombstones || table.style.envelope == Envelope::Row {
            let mut record = out.records.record();
            record
                .key(key)
                .timestamp(origin.committed_at)
                .ordering_key(table.ordering_key)
                .header_block(&table.tombstone_headers);
            record.finish();
        }
    }
}
