//! Reading packed verdicts and turning them into a new table over the same batch.
//!
//! The bytes come from a guest, so nothing in them is believed: every length, port, part and header block is checked before it is used,
//! and whatever does not fit is a [`Fault`], never a panic. A record that passes costs its entry; changed parts are not copied one by
//! one but point into the verdicts, which go to the end of the batch's arena as they are. The layout is that of `wit/transform.wit`,
//! format 1.

use std::ops::{AddAssign, Range};

use trunkline_connector::batch::{ENTRY_BYTES, write_header};
use trunkline_connector::{Batch, Entry, Reason, RecordRef, headers};

const MAGIC: u32 = u32::from_le_bytes(*b"TLV1");
const FORMAT: u32 = 1;
const KEY_PART: u8 = 1;
const VALUE_PART: u8 = 2;
const HEADERS_PART: u8 = 4;
const TIMESTAMP_PART: u8 = 8;
/// What of a rejection's code and message is kept.
const CODE_BYTES: usize = 128;
const MESSAGE_BYTES: usize = 4096;

/// What became of records: `records_in + extra = out + dropped + rejected` (I3).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Records handed to the plugin.
    pub records_in: u64,
    /// Records that go on.
    pub out: u64,
    /// Records that a verdict ended.
    pub dropped: u64,
    /// Records that were rejected by a verdict, or set aside because the plugin did not survive them.
    pub rejected: u64,
    /// Records emitted beyond one for each record that came in.
    pub extra: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.records_in += other.records_in;
        self.out += other.out;
        self.dropped += other.dropped;
        self.rejected += other.rejected;
        self.extra += other.extra;
    }
}

/// Why verdicts were not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They are not what the WIT file describes.
    Protocol(String),
    /// They make more of the records than the cap on output allows.
    TooMuch(String),
    /// The batch cannot address more bytes.
    ArenaFull,
}

/// What verdicts are checked against.
pub(crate) struct Rules {
    /// Ports, the default one included.
    pub(crate) ports: usize,
    pub(crate) keeps_schema: bool,
    /// Cap on verdicts and entries of one call.
    pub(crate) output_bytes: usize,
    /// Only `emit` and `drop`: the reply of `flush`.
    pub(crate) only_emit: bool,
}

/// The outcome of a batch, gathered call by call. Positions in `entries` count `bytes` as lying behind the arena of the batch.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) entries: Vec<Entry>,
    /// What is to be appended to the arena.
    pub(crate) bytes: Vec<u8>,
    /// Index in the batch, and why.
    pub(crate) rejections: Vec<(usize, Reason)>,
    pub(crate) counts: Counts,
}

impl Outcome {
    /// Forgets all and keeps the memory of the table.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
        self.rejections.clear();
        self.counts = Counts::default();
    }

    /// Sets a record aside.
    pub(crate) fn reject(&mut self, index: usize, reason: Reason) {
        self.rejections.push((index, reason));
        self.counts.rejected += 1;
    }

    /// Applies the verdicts on `records` of `batch`. After a fault the outcome is what it was before.
    pub(crate) fn apply(
        &mut self,
        verdicts: Vec<u8>,
        batch: &Batch,
        records: Range<usize>,
        rules: &Rules,
    ) -> Result<(), Fault> {
        let (entries, rejections, counts) = (self.entries.len(), self.rejections.len(), self.counts);
        let result = self.read(verdicts, batch, records, rules);
        if result.is_err() {
            self.entries.truncate(entries);
            self.rejections.truncate(rejections);
            self.counts = counts;
        }
        result
    }

    fn read(&mut self, verdicts: Vec<u8>, batch: &Batch, records: Range<usize>, rules: &Rules) -> Result<(), Fault> {
        if verdicts.len() > rules.output_bytes {
            return Err(too_much(rules));
        }
        let appended_at = batch.arena_bytes() + self.bytes.len();
        // headers without the schema's name are written anew: at most those of the batch and of the verdicts
        if appended_at + 2 * verdicts.len() + batch.arena_bytes() > Batch::MAX_BYTES {
            return Err(Fault::ArenaFull);
        }
        let entries_before = self.entries.len();
        let mut reader = Reader { bytes: &verdicts, at: 0, appended_at, rules, stripped: Vec::new(), refers: false };
        let count = reader.header(records.len())?;
        for index in records.take(count) {
            self.read_one(&mut reader, batch.get(index), index)?;
            if (self.entries.len() - entries_before) * ENTRY_BYTES + verdicts.len() > rules.output_bytes {
                return Err(too_much(rules));
            }
        }
        if reader.at != verdicts.len() {
            return Err(reader.protocol("there are bytes behind the last one"));
        }
        let Reader { stripped, refers, .. } = reader;
        if refers && self.bytes.is_empty() {
            self.bytes = verdicts;
        } else if refers {
            self.bytes.extend_from_slice(&verdicts);
        }
        self.bytes.extend_from_slice(&stripped);
        Ok(())
    }

    fn read_one(&mut self, reader: &mut Reader<'_>, record: RecordRef<'_>, index: usize) -> Result<(), Fault> {
        self.counts.records_in += 1;
        let word = reader.word()?;
        if reader.rules.only_emit && !matches!(word.kind, DROP | EMIT) {
            return Err(reader.protocol("`flush` may only emit"));
        }
        let entry = record.entry();
        match word.kind {
            PASS if word.parts == 0 => self.out(Entry { port: word.port, ..*entry }),
            DROP if word.parts == 0 && word.port == 0 => self.counts.dropped += 1,
            VALUE if word.parts == 0 => {
                let changed = reader.parts(VALUE_PART, word.port, record)?;
                self.out(changed);
            }
            REPLACE => {
                let changed = reader.parts(word.parts, word.port, record)?;
                self.out(changed);
            }
            EMIT if word.parts == 0 && word.port == 0 => self.emit(reader, record)?,
            REJECT if word.parts == 0 && word.port == 0 => {
                let code = reader.text(CODE_BYTES)?;
                let message = reader.text(MESSAGE_BYTES)?;
                let code = if code.is_empty() { "plugin.rejected".to_owned() } else { code };
                self.reject(index, Reason::new(code, message));
            }
            _ => return Err(reader.protocol(&format!("{word:?} is no verdict"))),
        }
        Ok(())
    }

    fn emit(&mut self, reader: &mut Reader<'_>, record: RecordRef<'_>) -> Result<(), Fault> {
        let count = reader.u32()?;
        if (count as usize).saturating_mul(ENTRY_BYTES) > reader.rules.output_bytes {
            return Err(too_much(reader.rules));
        }
        for _ in 0..count {
            let word = reader.word()?;
            if word.kind != REPLACE {
                return Err(reader.protocol(&format!("{word:?} is no emitted record")));
            }
            let emitted = reader.parts(word.parts, word.port, record)?;
            self.out(emitted);
        }
        match count {
            0 => self.counts.dropped += 1,
            _ => self.counts.extra += u64::from(count) - 1,
        }
        Ok(())
    }

    fn out(&mut self, entry: Entry) {
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

fn too_much(rules: &Rules) -> Fault {
    Fault::TooMuch(format!(
        "the plugin returned more than the cap of {} bytes on the output of a call",
        rules.output_bytes
    ))
}

#[derive(Debug)]
struct Word {
    kind: u8,
    parts: u8,
    port: u16,
}

/// Walks the verdicts. Positions it gives are those after the verdicts were appended to the arena at `appended_at`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    appended_at: usize,
    rules: &'a Rules,
    /// Header blocks written anew; they come behind the verdicts.
    stripped: Vec<u8>,
    /// Some entry points into the verdicts or behind them.
    refers: bool,
}

impl<'a> Reader<'a> {
    fn header(&mut self, records: usize) -> Result<usize, Fault> {
        let (magic, format, count) = (self.u32()?, self.u32()?, self.u32()? as usize);
        self.take(HEADER_BYTES - 12)?;
        if magic != MAGIC || format != FORMAT {
            return Err(self.protocol("they do not begin with \"TLV1\" and format 1"));
        }
        let expected = if self.rules.only_emit && count == 0 { 0 } else { records };
        if count != expected {
            return Err(self.protocol(&format!("{count} for {records} records")));
        }
        Ok(count)
    }

    fn protocol(&self, found: &str) -> Fault {
        Fault::Protocol(format!("the plugin's verdicts are malformed at byte {}: {found}", self.at))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let Some(taken) = taken else {
            return Err(self.protocol(&format!("{len} bytes are to follow, there are {}", self.bytes.len() - self.at)));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn word(&mut self) -> Result<Word, Fault> {
        let [kind, parts, low, high] = self.array()?;
        let port = u16::from_le_bytes([low, high]);
        if usize::from(port) >= self.rules.ports {
            return Err(self.protocol(&format!(
                "port {port} is named, the plugin has {} (the default one is 0)",
                self.rules.ports
            )));
        }
        Ok(Word { kind, parts, port })
    }

    fn text(&mut self, keep: usize) -> Result<String, Fault> {
        let len = self.u32()? as usize;
        let bytes = self.take(len)?;
        Ok(String::from_utf8_lossy(&bytes[..len.min(keep)]).into_owned())
    }

    /// A part with its length before it, -1 = null: where it will lie.
    fn nullable(&mut self) -> Result<(u32, i32), Fault> {
        let len = i32::from_le_bytes(self.array()?);
        if len == -1 {
            return Ok((0, -1));
        }
        let Ok(bytes) = usize::try_from(len) else {
            return Err(self.protocol(&format!("{len} is no length")));
        };
        let at = (self.appended_at + self.at) as u32;
        self.take(bytes)?;
        self.refers = true;
        Ok((at, len))
    }

    fn parts(&mut self, parts: u8, port: u16, record: RecordRef<'_>) -> Result<Entry, Fault> {
        if parts & !(KEY_PART | VALUE_PART | HEADERS_PART | TIMESTAMP_PART) != 0 {
            return Err(self.protocol(&format!("{parts} names parts that no record has")));
        }
        let mut entry = Entry { port, ..*record.entry() };
        if parts & KEY_PART != 0 {
            (entry.key_at, entry.key_len) = self.nullable()?;
        }
        if parts & VALUE_PART != 0 {
            (entry.value_at, entry.value_len) = self.nullable()?;
        }
        let mut block = record.header_block();
        if parts & HEADERS_PART != 0 {
            let start = self.at + 4;
            (entry.headers_at, entry.headers_len) = self.nullable()?;
            block = self.bytes.get(start..self.at).unwrap_or_default();
            if !is_header_block(block) {
                return Err(self.protocol("the headers are no header block"));
            }
        }
        if parts & TIMESTAMP_PART != 0 {
            entry.timestamp = i64::from_le_bytes(self.array()?).max(-1);
        }
        if parts & VALUE_PART != 0 && !self.rules.keeps_schema {
            self.strip_schema(&mut entry, block);
        }
        Ok(entry)
    }

    /// The value may no longer fit the schema that the headers name: the record loses that header.
    fn strip_schema(&mut self, entry: &mut Entry, block: &[u8]) {
        let all = || trunkline_connector::batch::Headers::over(block);
        if !all().any(|(name, _)| name == headers::SCHEMA) {
            return;
        }
        entry.headers_at = (self.appended_at + self.bytes.len() + self.stripped.len()) as u32;
        let start = self.stripped.len();
        for (name, value) in all().filter(|(name, _)| *name != headers::SCHEMA) {
            write_header(&mut self.stripped, name, value);
        }
        entry.headers_len = (self.stripped.len() - start) as i32;
        self.refers = true;
    }
}

/// Is it a header block to its last byte? [`trunkline_connector::batch::Headers`] would end early at the first fault and lose the rest.
fn is_header_block(block: &[u8]) -> bool {
    let mut rest = block;
    while !rest.is_empty() {
        let Some(behind) = behind_header(rest) else { return false };
        rest = behind;
    }
    true
}

fn behind_header(bytes: &[u8]) -> Option<&[u8]> {
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

    /// A verdict, perhaps a wrong one.
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
        Rules { ports: 3, keeps_schema, output_bytes: 4096, only_emit: false }
    }

    /// Reads every part of what came out: a position out of range panics.
    fn conclude(mut batch: Batch, outcome: Outcome) -> Batch {
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
        fn whatever_comes_is_applied_whole_or_not_at_all(
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
            // as after an earlier call of the same batch
            outcome.apply(packed(1, &[vec![VALUE, 0, 0, 0, 1, 0, 0, 0, b'v']]), &batch_of(1), 0..1, &rules(true)).unwrap();
            outcome.bytes.resize(64, 0);
            let before = (outcome.entries.clone(), outcome.bytes.clone(), outcome.counts);
            match outcome.apply(bytes, &batch, 0..records, &rules(keeps_schema)) {
                Err(_) => prop_assert_eq!((outcome.entries, outcome.bytes, outcome.counts), before),
                Ok(()) => {
                    let counts = outcome.counts;
                    prop_assert_eq!(counts.records_in, 1 + records as u64);
                    prop_assert_eq!(counts.records_in + counts.extra, counts.out + counts.dropped + counts.rejected);
                    prop_assert_eq!(counts.out, outcome.entries.len() as u64);
                    prop_assert_eq!(counts.rejected, outcome.rejections.len() as u64);
                    outcome.entries.remove(0);
                    conclude(batch, outcome);
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64), records in 0usize..4) {
            let batch = batch_of(records);
            let with_header = [&packed(records as u32, &[]), bytes.as_slice()].concat();
            let _ = Outcome::default().apply(with_header, &batch, 0..records, &rules(false));
            let _ = Outcome::default().apply(bytes, &batch, 0..records, &rules(false));
        }
    }

    #[test]
    fn parts_come_back_as_the_verdict_gave_them() {
        let batch = batch_of(3);
        let value = [vec![VALUE, 0, 2, 0], 3u32.to_le_bytes().to_vec(), b"new".to_vec()].concat();
        let all =
            [vec![REPLACE, 15, 0, 0], [1u32.to_le_bytes().as_slice(), b"K", &(-1i32).to_le_bytes()].concat()].concat();
        let block = [1u32.to_le_bytes().as_slice(), b"n", &1u32.to_le_bytes(), b"x"].concat();
        let all =
            [all, (block.len() as u32).to_le_bytes().to_vec(), block.clone(), (-9i64).to_le_bytes().to_vec()].concat();
        let mut outcome = Outcome::default();
        outcome.apply(packed(3, &[vec![PASS, 0, 1, 0], value, all]), &batch, 0..3, &rules(false)).unwrap();
        let batch = conclude(batch, outcome);
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
