//! Parses packed verdicts and builds the new record table of a batch.
//!
//! A guest wrote the bytes, so every length, port, part and header block is validated before use.
//! Malformed bytes cause a [`VerdictError`], never a panic. A passed record costs only its entry.
//! Changed parts are not copied: they point into the verdicts, which are appended to the batch's
//! arena. The layout is format 1 of `wit/transform.wit`.

use std::ops::{AddAssign, Range};

use trunkline_connector::batch::{ENTRY_BYTES, write_header};
use trunkline_connector::{Batch, Entry, Reason, RecordRef, headers};

use crate::schema_fits::{SchemaFits, SchemaHeader};

const MAGIC: u32 = u32::from_le_bytes(*b"TLV1");
const FORMAT: u32 = 1;
const KEY_PART: u8 = 1;
const VALUE_PART: u8 = 2;
const HEADERS_PART: u8 = 4;
const TIMESTAMP_PART: u8 = 8;
/// A rejection's code and message are truncated to these lengths.
const MAX_CODE_BYTES: usize = 128;
const MAX_MESSAGE_BYTES: usize = 4096;

/// Outcomes of records: `records_in + extra = out + dropped + rejected` (I3).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Records passed to the plugin.
    pub records_in: u64,
    /// Output records.
    pub out: u64,
    /// Records dropped by a verdict.
    pub dropped: u64,
    /// Records rejected by a verdict or because the plugin crashed on them.
    pub rejected: u64,
    /// Records emitted in addition to one per input record.
    pub extra: u64,
    /// Records that the plugin passed unchanged to the default port.
    pub unchanged: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.records_in += other.records_in;
        self.out += other.out;
        self.dropped += other.dropped;
        self.rejected += other.rejected;
        self.extra += other.extra;
        self.unchanged += other.unchanged;
    }
}

/// Verdicts that cannot be applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VerdictError {
    /// They violate the layout of the WIT file.
    Protocol(String),
    /// They exceed the output limit of a call.
    OutputLimit(String),
    /// The batch would exceed the maximum size of its arena.
    ArenaFull,
}

/// Constraints on the verdicts of a call.
pub(crate) struct Rules {
    /// Number of ports, including the default port.
    pub(crate) ports: usize,
    pub(crate) keeps_schema: bool,
    /// Maximum bytes of the verdicts and entries of one call.
    pub(crate) output_bytes: usize,
    /// The call that returns the verdicts.
    pub(crate) call: Call,
    /// Bytes of the arena that the output is appended to, if it is not that of the input.
    pub(crate) arena_bytes: Option<usize>,
}

/// A call that returns verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// `process` with records: all verdicts are allowed.
    Records,
    /// `process` with timers: they can emit records, be dropped or rejected.
    Timers,
    /// `flush`: it can emit records.
    Flush,
}

/// The outcome of a batch, collected call by call. Positions in `entries` assume that `bytes`
/// follow the arena of the batch.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) entries: Vec<Entry>,
    /// Bytes to append to the arena.
    pub(crate) bytes: Vec<u8>,
    /// Index in the batch and reason of each rejected record.
    pub(crate) rejections: Vec<(usize, Reason)>,
    pub(crate) counts: Counts,
}

impl Outcome {
    /// Clears the outcome and keeps its allocations.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.rejections.clear();
        self.counts = Counts::default();
    }

    /// Rejects a record.
    pub(crate) fn reject(&mut self, index: usize, reason: Reason) {
        self.rejections.push((index, reason));
        self.counts.rejected += 1;
    }

    /// Applies the verdicts on `records` of `batch`. After an error, the outcome is unchanged.
    pub(crate) fn apply(
        &mut self,
        verdicts: Vec<u8>,
        batch: &Batch,
        records: Range<usize>,
        rules: &Rules,
        fits: &mut SchemaFits,
    ) -> Result<(), VerdictError> {
        let (entries, rejections, counts) = (self.entries.len(), self.rejections.len(), self.counts);
        let result = self.read(verdicts, batch, records, rules, fits);
        if result.is_err() {
            self.entries.truncate(entries);
            self.rejections.truncate(rejections);
            self.counts = counts;
        }
        result
    }

    fn read(
        &mut self,
        verdicts: Vec<u8>,
        batch: &Batch,
        records: Range<usize>,
        rules: &Rules,
        fits: &mut SchemaFits,
    ) -> Result<(), VerdictError> {
        if verdicts.len() > rules.output_bytes {
            return Err(output_limit_exceeded(rules));
        }
        let arena_bytes = rules.arena_bytes.unwrap_or(batch.arena_bytes());
        let verdicts_at = arena_bytes + self.bytes.len();
        // rewritten headers (the ids of schemas have one length) are at most as long as those of
        // batch and verdicts
        if verdicts_at + 2 * verdicts.len() + arena_bytes > Batch::MAX_BYTES {
            return Err(VerdictError::ArenaFull);
        }
        let entries_before = self.entries.len();
        let mut reader = Reader {
            bytes: &verdicts,
            at: 0,
            verdicts_at,
            rules,
            fits,
            rewritten_headers: Vec::new(),
            verdicts_referenced: false,
        };
        let count = reader.header(records.len())?;
        for index in records.take(count) {
            self.read_one(&mut reader, batch.get(index), index)?;
            if (self.entries.len() - entries_before) * ENTRY_BYTES + verdicts.len() > rules.output_bytes {
                return Err(output_limit_exceeded(rules));
            }
        }
        if reader.at != verdicts.len() {
            return Err(reader.protocol("bytes follow the last verdict"));
        }
        let Reader { rewritten_headers, verdicts_referenced, .. } = reader;
        if verdicts_referenced && self.bytes.is_empty() {
            self.bytes = verdicts;
        } else if verdicts_referenced {
            self.bytes.extend_from_slice(&verdicts);
        }
        self.bytes.extend_from_slice(&rewritten_headers);
        Ok(())
    }

    fn read_one(&mut self, reader: &mut Reader<'_>, record: RecordRef<'_>, index: usize) -> Result<(), VerdictError> {
        self.counts.records_in += 1;
        let header = reader.verdict_header()?;
        match reader.rules.call {
            Call::Flush if !matches!(header.kind, DROP | EMIT) => {
                return Err(reader.protocol("`flush` may return only `emit` or `drop`"));
            }
            Call::Timers if !matches!(header.kind, DROP | EMIT | REJECT) => {
                return Err(reader.protocol("the verdict on a timer is `emit`, `drop` or `reject`"));
            }
            _ => {}
        }
        let entry = record.entry();
        match header.kind {
            PASS if header.parts == 0 => {
                self.counts.unchanged += u64::from(header.port == 0);
                self.push_output(Entry { port: header.port, ..*entry });
            }
            DROP if header.parts == 0 && header.port == 0 => self.counts.dropped += 1,
            VALUE if header.parts == 0 => {
                let changed = reader.parts(VALUE_PART, header.port, record, Origin::Changed)?;
                self.push_output(changed);
            }
            REPLACE => {
                let changed = reader.parts(header.parts, header.port, record, Origin::Changed)?;
                self.push_output(changed);
            }
            EMIT if header.parts == 0 && header.port == 0 => self.emit(reader, record)?,
            REJECT if header.parts == 0 && header.port == 0 => {
                let code = reader.text(MAX_CODE_BYTES)?;
                let message = reader.text(MAX_MESSAGE_BYTES)?;
                let code = if code.is_empty() { "plugin.rejected".to_owned() } else { code };
                self.reject(index, Reason::new(code, message));
            }
            _ => return Err(reader.protocol(&format!("unknown verdict {header:?}"))),
        }
        Ok(())
    }

    fn emit(&mut self, reader: &mut Reader<'_>, record: RecordRef<'_>) -> Result<(), VerdictError> {
        let count = reader.u32()?;
        if (count as usize).saturating_mul(ENTRY_BYTES) > reader.rules.output_bytes {
            return Err(output_limit_exceeded(reader.rules));
        }
        for _ in 0..count {
            let header = reader.verdict_header()?;
            if header.kind != REPLACE {
                return Err(reader.protocol(&format!("expected an emitted record, found {header:?}")));
            }
            let emitted = reader.parts(header.parts, header.port, record, Origin::Emitted)?;
            self.push_output(emitted);
        }
        match count {
            0 => self.counts.dropped += 1,
            _ => self.counts.extra += u64::from(count) - 1,
        }
        Ok(())
    }

    fn push_output(&mut self, entry: Entry) {
        self.entries.push(entry);
        self.counts.out += 1;
    }
}

const HEADER_BYTES: usize = 16;
const PASS: u8 = 0;
const DROP: u8 = 1;
const VALUE: u8 = 2;
const REPLACE: u8 = 3;
const EMIT: u8 = 4;
const REJECT: u8 = 5;

fn output_limit_exceeded(rules: &Rules) -> VerdictError {
    VerdictError::OutputLimit(format!(
        "the plugin returned more than its output limit of {} bytes per call",
        rules.output_bytes
    ))
}

#[derive(Debug)]
struct VerdictHeader {
    kind: u8,
    parts: u8,
    port: u16,
}

/// Where an output record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It is the input record with changes.
    Changed,
    /// The plugin emitted it: its value has nothing to do with the schema of the input.
    Emitted,
}

/// Parses verdicts. The positions that it returns assume that the verdicts are appended to the
/// arena at `verdicts_at`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    verdicts_at: usize,
    rules: &'a Rules,
    fits: &'a mut SchemaFits,
    /// Header blocks without the schema header, or with another one; they are appended after the
    /// verdicts.
    rewritten_headers: Vec<u8>,
    /// Whether an entry points into the verdicts or the rewritten headers.
    verdicts_referenced: bool,
}

impl<'a> Reader<'a> {
    fn header(&mut self, records: usize) -> Result<usize, VerdictError> {
        let (magic, format, count) = (self.u32()?, self.u32()?, self.u32()? as usize);
        self.take(HEADER_BYTES - 12)?;
        if magic != MAGIC || format != FORMAT {
            return Err(self.protocol("expected \"TLV1\" and format 1 at the start"));
        }
        let expected = if self.rules.call == Call::Flush && count == 0 { 0 } else { records };
        if count != expected {
            return Err(self.protocol(&format!("expected {records} verdicts for {records} records, found {count}")));
        }
        Ok(count)
    }

    fn protocol(&self, found: &str) -> VerdictError {
        VerdictError::Protocol(format!("the plugin's verdicts are malformed at byte {}: {found}", self.at))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], VerdictError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let Some(taken) = taken else {
            return Err(self.protocol(&format!("expected {len} more bytes, found {}", self.bytes.len() - self.at)));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], VerdictError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, VerdictError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn verdict_header(&mut self) -> Result<VerdictHeader, VerdictError> {
        let [kind, parts, low, high] = self.array()?;
        let port = u16::from_le_bytes([low, high]);
        if usize::from(port) >= self.rules.ports {
            return Err(self.protocol(&format!(
                "port {port} does not exist; the plugin declares {} ports (0 is the default port)",
                self.rules.ports
            )));
        }
        Ok(VerdictHeader { kind, parts, port })
    }

    fn text(&mut self, max_bytes: usize) -> Result<String, VerdictError> {
        let len = self.u32()? as usize;
        let bytes = self.take(len)?;
        Ok(String::from_utf8_lossy(&bytes[..len.min(max_bytes)]).into_owned())
    }

    /// Position and length of a part that is prefixed by its length; a length of -1 means null.
    fn nullable(&mut self) -> Result<(u32, i32), VerdictError> {
        let len = i32::from_le_bytes(self.array()?);
        if len == -1 {
            return Ok((0, -1));
        }
        let Ok(bytes) = usize::try_from(len) else {
            return Err(self.protocol(&format!("invalid length {len}")));
        };
        let at = (self.verdicts_at + self.at) as u32;
        self.take(bytes)?;
        self.verdicts_referenced = true;
        Ok((at, len))
    }

    fn parts(&mut self, parts: u8, port: u16, record: RecordRef<'_>, origin: Origin) -> Result<Entry, VerdictError> {
        if parts & !(KEY_PART | VALUE_PART | HEADERS_PART | TIMESTAMP_PART) != 0 {
            return Err(self.protocol(&format!("unknown part bits in {parts:#x}")));
        }
        let mut entry = Entry { port, ..*record.entry() };
        if parts & KEY_PART != 0 {
            (entry.key_at, entry.key_len) = self.nullable()?;
        }
        let mut value = None;
        if parts & VALUE_PART != 0 {
            let start = self.at + 4;
            (entry.value_at, entry.value_len) = self.nullable()?;
            value = self.bytes.get(start..self.at).filter(|_| entry.value_len >= 0);
        }
        let mut block = record.header_block();
        if parts & HEADERS_PART != 0 {
            let start = self.at + 4;
            (entry.headers_at, entry.headers_len) = self.nullable()?;
            block = self.bytes.get(start..self.at).unwrap_or_default();
            if !is_header_block(block) {
                return Err(self.protocol("invalid header block"));
            }
        }
        if parts & TIMESTAMP_PART != 0 {
            entry.timestamp = i64::from_le_bytes(self.array()?).max(-1);
        }
        if parts & VALUE_PART != 0 && !self.rules.keeps_schema {
            let value = value.filter(|_| origin == Origin::Changed);
            self.update_schema(&mut entry, block, value);
        }
        Ok(entry)
    }

    /// Changes or removes the schema header if the changed value does not fit the schema. `value`
    /// is `None` for values that have no schema.
    fn update_schema(&mut self, entry: &mut Entry, block: &[u8], value: Option<&[u8]>) {
        let all = || trunkline_connector::batch::Headers::over(block);
        let Some((_, id)) = all().find(|(name, _)| *name == headers::SCHEMA) else { return };
        let header = self.fits.header(id, value);
        if header == SchemaHeader::Keep {
            return;
        }
        entry.headers_at = (self.verdicts_at + self.bytes.len() + self.rewritten_headers.len()) as u32;
        let start = self.rewritten_headers.len();
        for (name, value) in all() {
            let value = match &header {
                SchemaHeader::Replace(id) if name == headers::SCHEMA => Some(id.as_bytes()),
                _ if name == headers::SCHEMA => continue,
                _ => value,
            };
            write_header(&mut self.rewritten_headers, name, value);
        }
        entry.headers_len = (self.rewritten_headers.len() - start) as i32;
        self.verdicts_referenced = true;
    }
}

/// Whether all bytes form a valid header block. [`trunkline_connector::batch::Headers`] would stop
/// at the first invalid byte and ignore the rest.
fn is_header_block(block: &[u8]) -> bool {
    let mut rest = block;
    while !rest.is_empty() {
        let Some(remaining) = skip_header(rest) else { return false };
        rest = remaining;
    }
    true
}

fn skip_header(bytes: &[u8]) -> Option<&[u8]> {
    let (name_len, rest) = bytes.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_len) as usize)?;
    std::str::from_utf8(name).ok()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    match i32::from_le_bytes(*value_len) {
        -1 => Some(rest),
        len => rest.get(usize::try_from(len).ok()?..),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch_of(records: usize) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..records {
            let mut record = batch.record();
            record.key(b"k").value(b"value").header(headers::SCHEMA, Some(b"s")).header("h", None);
            record.finish();
        }
        batch
    }

    /// A verdict that may be invalid.
    fn verdict() -> impl Strategy<Value = Vec<u8>> {
        let word = |kind: u8| {
            (0u8..17, 0u16..4).prop_map(move |(parts, port)| {
                let parts = if kind == REPLACE { parts } else { parts / 16 };
                let port = if matches!(kind, PASS | VALUE | REPLACE) { port } else { port / 3 };
                vec![kind, parts, port as u8, 0]
            })
        };
        let bytes = || {
            prop_oneof![
                9 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| [&(bytes.len() as u32).to_le_bytes(), bytes.as_slice()].concat()),
                1 => any::<i32>().prop_map(|length| length.to_le_bytes().to_vec()),
            ]
        };
        let headers = Just([12u32.to_le_bytes().as_slice(), &1u32.to_le_bytes(), b"n\x03\0\0\0abc"].concat());
        let parts = (bytes(), bytes(), headers, any::<i64>());
        let replace = (word(REPLACE), parts).prop_map(|(word, (key, value, headers, timestamp))| {
            let all = [key, value, headers, timestamp.to_le_bytes().to_vec()];
            let given = all.into_iter().enumerate().filter(|(index, _)| word[1] & (1 << index) != 0);
            given.fold(word.clone(), |written, (_, part)| [written, part].concat())
        });
        prop_oneof![
            word(PASS),
            word(DROP),
            (word(VALUE), bytes()).prop_map(|(word, value)| [word, value].concat()),
            replace.clone(),
            (word(EMIT), proptest::collection::vec(replace, 0..4)).prop_map(|(word, records)| {
                [word, (records.len() as u32).to_le_bytes().to_vec(), records.concat()].concat()
            }),
            (word(REJECT), bytes(), bytes()).prop_map(|(word, code, message)| [word, code, message].concat()),
        ]
    }

    fn packed(count: u32, verdicts: &[Vec<u8>]) -> Vec<u8> {
        [b"TLV1\x01\0\0\0", count.to_le_bytes().as_slice(), &[0; 4], &verdicts.concat()].concat()
    }

    fn rules(keeps_schema: bool) -> Rules {
        Rules { ports: 3, keeps_schema, output_bytes: 4096, call: Call::Records, arena_bytes: None }
    }

    /// Reads every part of the output; a position out of range panics.
    fn output_batch(mut batch: Batch, outcome: Outcome) -> Batch {
        batch.append(&outcome.bytes);
        batch.set_entries(outcome.entries);
        for record in batch.iter() {
            assert!(record.entry().port < 3);
            let _ = (record.key(), record.value(), record.timestamp());
            assert!(is_header_block(record.header_block()));
        }
        batch
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn verdicts_are_applied_completely_or_not_at_all(
            verdicts in proptest::collection::vec(verdict(), 0..6),
            count_is_off in 0u32..20,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            keeps_schema in any::<bool>(),
        ) {
            let records = verdicts.len();
            let mut bytes = packed(records as u32 + count_is_off / 19, &verdicts);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let batch = batch_of(records);
            let mut outcome = Outcome::default();
            // the outcome of an earlier call of the same batch
            outcome.apply(packed(1, &[vec![VALUE, 0, 0, 0, 1, 0, 0, 0, b'v']]), &batch_of(1), 0..1, &rules(true), &mut SchemaFits::default()).unwrap();
            outcome.bytes.resize(64, 0);
            let before = (outcome.entries.clone(), outcome.bytes.clone(), outcome.counts);
            match outcome.apply(bytes, &batch, 0..records, &rules(keeps_schema), &mut SchemaFits::default()) {
                Err(_) => prop_assert_eq!((outcome.entries, outcome.bytes, outcome.counts), before),
                Ok(()) => {
                    let counts = outcome.counts;
                    prop_assert_eq!(counts.records_in, 1 + records as u64);
                    prop_assert_eq!(counts.records_in + counts.extra, counts.out + counts.dropped + counts.rejected);
                    prop_assert_eq!(counts.out, outcome.entries.len() as u64);
                    prop_assert_eq!(counts.rejected, outcome.rejections.len() as u64);
                    outcome.entries.remove(0);
                    output_batch(batch, outcome);
                }
            }
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), records in 0usize..4) {
            let batch = batch_of(records);
            let with_header = [&packed(records as u32, &[]), bytes.as_slice()].concat();
            let _ = Outcome::default().apply(with_header, &batch, 0..records, &rules(false), &mut SchemaFits::default());
            let _ = Outcome::default().apply(bytes, &batch, 0..records, &rules(false), &mut SchemaFits::default());
        }
    }

    #[test]
    fn output_records_have_the_parts_of_the_verdict() {
        let batch = batch_of(3);
        let value = [vec![VALUE, 0, 2, 0], 3u32.to_le_bytes().to_vec(), b"new".to_vec()].concat();
        let all =
            [vec![REPLACE, 15, 0, 0], [1u32.to_le_bytes().as_slice(), b"K", &(-1i32).to_le_bytes()].concat()].concat();
        let block = [1u32.to_le_bytes().as_slice(), b"n", &1u32.to_le_bytes(), b"x"].concat();
        let all =
            [all, (block.len() as u32).to_le_bytes().to_vec(), block.clone(), (-9i64).to_le_bytes().to_vec()].concat();
        let mut outcome = Outcome::default();
        outcome
            .apply(
                packed(3, &[vec![PASS, 0, 1, 0], value, all]),
                &batch,
                0..3,
                &rules(false),
                &mut SchemaFits::default(),
            )
            .unwrap();
        let batch = output_batch(batch, outcome);
        let schema = |index: usize| batch.get(index).header(headers::SCHEMA);
        assert_eq!(
            (batch.get(0).entry().port, batch.get(0).value(), schema(0)),
            (1, Some(&b"value"[..]), Some(&b"s"[..]))
        );
        assert_eq!((batch.get(1).entry().port, batch.get(1).value(), schema(1)), (2, Some(&b"new"[..]), None));
        assert_eq!(batch.get(1).headers().collect::<Vec<_>>(), [("h", None)]);
        let last = batch.get(2);
        assert_eq!(
            (last.key(), last.value(), last.timestamp(), last.header_block()),
            (Some(&b"K"[..]), None, None, block.as_slice())
        );
    }
}
