//! Turns row changes into records: the envelope, the key, tombstones, and the three records of a
//! changed key.

use trunkline_connector::batch::write_header;
use trunkline_connector::json::write_string;
use trunkline_connector::{Batch, Reason, SourceBatch, headers};

use super::json::Encoder;
use super::options::Envelope;
use super::table::{DATABASE, Table};
use super::transaction_metadata::{MarkerFormat, TransactionMetadata};
use crate::decode::{Malformed, Value};
use crate::position::file_number;

/// Header with the new key, on the record that deletes the old key.
const NEW_KEY: &str = "__debezium.newkey";
/// Header with the old key, on the record that creates the new key.
const OLD_KEY: &str = "__debezium.oldkey";

/// The maximum number of records per change of a row.
pub(crate) const MAX_RECORDS_PER_CHANGE: usize = 3;

/// The `source` block that all records of one event have in common.
#[derive(Debug, Default)]
pub(crate) struct SourceBlock {
    head: Vec<u8>,
    tail: Vec<u8>,
    file_number: u64,
    pos: u64,
    /// The time of the commit, in milliseconds since the Unix epoch.
    pub(crate) committed_at: i64,
}

/// The fields of a [`SourceBlock`].
pub(crate) struct SourceFields<'a> {
    pub(crate) name: &'a str,
    pub(crate) committed_at: i64,
    pub(crate) snapshot: bool,
    pub(crate) server_id: u32,
    pub(crate) gtid: Option<&'a str>,
    pub(crate) file: &'a str,
    pub(crate) pos: u64,
    pub(crate) thread: Option<u32>,
    /// The statement that made the change, if known.
    pub(crate) query: Option<&'a str>,
}

impl SourceBlock {
    pub(crate) fn new(parts: &SourceFields<'_>, table: &Table) -> Self {
        Self::of(parts, &table.source_json, table.format.query)
    }

    /// As [`new`](SourceBlock::new), with database and table as JSON members.
    pub(crate) fn of(parts: &SourceFields<'_>, source_json: &[u8], with_query: bool) -> Self {
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
        let (file_number, pos) = (file_number(parts.file), parts.pos);
        Self { head: bytes, tail, file_number, pos, committed_at: parts.committed_at }
    }

    /// Appends the `source` of a row.
    fn write(&self, out: &mut Vec<u8>, row: u64) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(itoa::Buffer::new().format(row).as_bytes());
        out.extend_from_slice(&self.tail);
    }
}

/// The operation of a change, with Debezium's letters.
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

/// The parts of a record.
struct Parts<'a, 'v> {
    table: &'a Table,
    source_block: &'a SourceBlock,
    change: Change<'a, 'v>,
    key: &'a [u8],
    /// A header with the row's other key.
    other_key: Option<(&'a str, &'a [u8])>,
}

/// Writes records.
pub(crate) struct Emitter {
    encoder: Encoder,
    tombstones: bool,
    /// The number of the history that is followed.
    epoch: u64,
    /// The header with the epoch, as a batch encodes it.
    epoch_header: Vec<u8>,
    /// The time at which the records of this batch were made, in milliseconds since the Unix epoch.
    now: i64,
    before_key: Vec<u8>,
    after_key: Vec<u8>,
    /// Of the transaction whose rows are being emitted, if `transaction_markers` is set.
    pub(crate) transaction: Option<TransactionMetadata>,
    marker_format: Option<MarkerFormat>,
}

/// A schema change.
#[derive(Clone, Copy)]
pub(crate) struct DefinitionRecord<'a> {
    pub(crate) database: &'a str,
    pub(crate) text: &'a str,
    /// The output port and the id of the schema.
    pub(crate) port: u16,
    pub(crate) schema: &'a str,
}

/// A row before and after a change, and its number among the rows of its position.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a, 'v> {
    pub(crate) op: Op,
    pub(crate) before: Option<&'a [Value<'v>]>,
    pub(crate) after: Option<&'a [Value<'v>]>,
    pub(crate) row: u64,
}

impl Emitter {
    pub(crate) fn new(tombstones: bool, epoch: u64) -> Self {
        let mut epoch_header = Vec::new();
        write_header(&mut epoch_header, headers::EPOCH, Some(epoch.to_string().as_bytes()));
        Self {
            encoder: Encoder::default(),
            tombstones,
            epoch,
            epoch_header,
            now: 0,
            before_key: Vec::new(),
            after_key: Vec::new(),
            transaction: None,
            marker_format: None,
        }
    }

    /// Turns on transaction metadata.
    pub(crate) fn enable_transaction_markers(&mut self, format: MarkerFormat) {
        self.marker_format = Some(format);
    }

    pub(crate) fn has_transaction_markers(&self) -> bool {
        self.marker_format.is_some()
    }

    /// Ends the current transaction.
    pub(crate) fn end_transaction(&mut self, out: &mut SourceBatch) {
        if let (Some(transaction), Some(format)) = (self.transaction.take(), &self.marker_format) {
            transaction.end(&mut out.side_outputs, format);
        }
    }

    /// Adds the record of a schema change, in Debezium's format.
    pub(crate) fn definition(
        &self,
        out: &mut SourceBatch,
        source_block: &SourceBlock,
        definition: &DefinitionRecord<'_>,
    ) {
        let DefinitionRecord { database, text, port, schema } = *definition;
        let mut quoted = Vec::new();
        write_string(&mut quoted, database);
        let mut record = out.side_outputs.record();
        record.key(&[b"{\"databaseName\":", quoted.as_slice(), b"}"].concat());
        record.value_with(|arena| {
            arena.extend_from_slice(b"{\"source\":");
            source_block.write(arena, 0);
            arena.extend_from_slice(format!(",\"ts_ms\":{},\"databaseName\":", self.now).as_bytes());
            arena.extend_from_slice(&quoted);
            arena.extend_from_slice(b",\"schemaName\":null,\"ddl\":");
            write_string(arena, text);
            arena.extend_from_slice(b",\"tableChanges\":[]}");
        });
        record.timestamp(source_block.committed_at).port(port);
        record.header(DATABASE, Some(database.as_bytes())).header(headers::SCHEMA, Some(schema.as_bytes()));
        record.finish();
    }

    pub(crate) fn set_now(&mut self, now: i64) {
        self.now = now;
    }

    /// The key of a row, if it can be decoded.
    pub(crate) fn key(&mut self, table: &Table, row: &[Value<'_>]) -> Option<Vec<u8>> {
        let mut key = Vec::new();
        self.encoder.key(&mut key, table, row).ok()?;
        (!table.key.is_empty()).then_some(key)
    }

    /// Adds the records of a change. `on_key` receives the keys that the change affects.
    pub(crate) fn change(
        &mut self,
        out: &mut SourceBatch,
        table: &Table,
        source_block: &SourceBlock,
        change: Change<'_, '_>,
        mut on_key: impl FnMut(&[u8]),
    ) -> Result<(), Malformed> {
        let mut before_key = std::mem::take(&mut self.before_key);
        let mut after_key = std::mem::take(&mut self.after_key);
        before_key.clear();
        after_key.clear();
        if !table.key.is_empty() {
            if let Some(before) = change.before {
                self.encoder.key(&mut before_key, table, before)?;
                on_key(&before_key);
            }
            if let Some(after) = change.after {
                self.encoder.key(&mut after_key, table, after)?;
                if change.before.is_none() || before_key != after_key {
                    on_key(&after_key);
                }
            }
        }
        let result = self.records(out, table, source_block, change, &before_key, &after_key);
        (self.before_key, self.after_key) = (before_key, after_key);
        result
    }

    fn records(
        &mut self,
        out: &mut SourceBatch,
        table: &Table,
        source_block: &SourceBlock,
        change: Change<'_, '_>,
        before_key: &[u8],
        after_key: &[u8],
    ) -> Result<(), Malformed> {
        let keyed = !table.key.is_empty();
        if change.op == Op::Update && before_key != after_key {
            let delete = Change { op: Op::Delete, after: None, ..change };
            let other_key = Some((NEW_KEY, after_key));
            self.record(out, &Parts { table, source_block, change: delete, key: before_key, other_key })?;
            self.tombstone(out, table, source_block, before_key, change.row);
            let create = Change { op: Op::Create, before: None, ..change };
            let other_key = Some((OLD_KEY, before_key));
            return self.record(out, &Parts { table, source_block, change: create, key: after_key, other_key });
        }
        let key = if change.after.is_some() { after_key } else { before_key };
        self.record(out, &Parts { table, source_block, change, key, other_key: None })?;
        if change.op == Op::Delete && keyed {
            self.tombstone(out, table, source_block, key, change.row);
        }
        Ok(())
    }

    /// With `envelope = "row"`, a delete is only its tombstone; a delete without a key and a
    /// TRUNCATE have no record.
    fn record(&mut self, out: &mut SourceBatch, parts: &Parts<'_, '_>) -> Result<(), Malformed> {
        let Parts { table, change, .. } = *parts;
        if table.format.envelope == Envelope::Row && change.after.is_none() {
            if table.key.is_empty() || change.op == Op::Truncate {
                out.dropped += 1;
            }
            return Ok(());
        }
        if let (Some(transaction), Some(format)) = (&mut self.transaction, &self.marker_format)
            && change.op != Op::Truncate
        {
            transaction.count(&mut out.side_outputs, format);
        }
        self.encoder.refused = None;
        if self.write(&mut out.records, parts, false)? {
            return Ok(());
        }
        let column = self.encoder.refused.take().unwrap_or_default();
        let message = format!(
            "{}: column `{column}` holds a date that does not exist; set `zero_dates` to \"null\" or \"string\" to accept it",
            table.name
        );
        // The rejected record has null in place of the date.
        let mut aside = Batch::default();
        self.write(&mut aside, parts, true)?;
        out.rejected.push(aside.get(0), Reason::new("mysql.zero_date", message));
        Ok(())
    }

    /// Adds the record unless it holds a value that the format refuses. Returns whether it added
    /// the record.
    fn write(&mut self, records: &mut Batch, parts: &Parts<'_, '_>, include_refused: bool) -> Result<bool, Malformed> {
        let Parts { table, source_block, change, key, other_key } = *parts;
        let mut record = records.record();
        if !table.key.is_empty() && change.op != Op::Truncate {
            record.key(key);
        }
        let mut written = Ok(());
        record.value_with(|arena| written = self.value(arena, table, source_block, change));
        written?;
        if self.encoder.refused.is_some() && !include_refused {
            return Ok(false);
        }
        record.timestamp(source_block.committed_at).ordering_key(table.ordering_key).header_block(&table.headers);
        match table.format.envelope {
            // The rest of the order is in `source`.
            Envelope::Debezium => record.header_block(&self.epoch_header),
            Envelope::Row => record.header(headers::ORDER, Some(&self.order(source_block, change.row))),
        };
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
        source_block: &SourceBlock,
        change: Change<'_, '_>,
    ) -> Result<(), Malformed> {
        let mut image = |arena: &mut Vec<u8>, row: Option<&[Value<'_>]>| match row {
            Some(row) => self.encoder.row(arena, table, row),
            None => {
                arena.extend_from_slice(b"null");
                Ok(())
            }
        };
        if table.format.envelope == Envelope::Row {
            return image(arena, change.after);
        }
        arena.extend_from_slice(b"{\"before\":");
        image(arena, change.before)?;
        arena.extend_from_slice(b",\"after\":");
        image(arena, change.after)?;
        arena.extend_from_slice(b",\"source\":");
        source_block.write(arena, change.row);
        arena.extend_from_slice(b",\"op\":\"");
        arena.push(change.op.letter());
        arena.extend_from_slice(b"\",\"ts_ms\":");
        arena.extend_from_slice(itoa::Buffer::new().format(self.now).as_bytes());
        if table.format.transaction_block {
            arena.extend_from_slice(b",\"transaction\":");
            match &self.transaction {
                Some(transaction) if change.op != Op::Truncate => transaction.write_block(arena),
                _ => arena.extend_from_slice(b"null"),
            }
        }
        arena.push(b'}');
        Ok(())
    }

    /// The order of a change whose record has no `source`.
    fn order(&self, source_block: &SourceBlock, row: u64) -> Vec<u8> {
        let mut order = Vec::with_capacity(40);
        for number in [self.epoch, source_block.file_number, source_block.pos, row] {
            if !order.is_empty() {
                order.push(b'.');
            }
            order.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        }
        order
    }

    fn tombstone(&self, out: &mut SourceBatch, table: &Table, source_block: &SourceBlock, key: &[u8], row: u64) {
        // With `envelope = "row"`, the tombstone is the only record of a delete.
        if self.tombstones || table.format.envelope == Envelope::Row {
            let mut record = out.records.record();
            record
                .key(key)
                .timestamp(source_block.committed_at)
                .ordering_key(table.ordering_key)
                .header_block(&table.tombstone_headers)
                .header(headers::ORDER, Some(&self.order(source_block, row)));
            record.finish();
        }
    }
}
