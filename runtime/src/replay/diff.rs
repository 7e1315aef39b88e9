//! Compares the rows of two destinations in bounded memory.
//!
//! Each row becomes an entry: the hash of its key, the hash of its values, and its place. Entries
//! are sorted in parts that fit into memory, which are written to temporary files and merged. So
//! the memory is that of one part, and a buffer for each part. Rows without a key are their own
//! keys: they are equal or not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;

use serde::Serialize;
use trunkline_connector::{Result, io_error};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Entries that are sorted in memory: 64 MiB.
const PART: usize = (64 << 20) / ENTRY;

/// Bytes of a stored entry.
const ENTRY: usize = 16 + 16 + 1 + 4 + 4;

/// The buffer of a part that is merged.
const BUFFER: usize = 64 << 10;

/// A side of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The live destination.
    Live,
    /// The shadow.
    Shadow,
}

/// Where a row is: the number of its file, and its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The number of the file on its side.
    pub file: u32,
    /// The number of the row.
    pub row: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: u128,
    side: Side,
    values: u128,
    place: Place,
}

impl Entry {
    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let mut bytes = [0; ENTRY];
        bytes[..16].copy_from_slice(&self.key.to_be_bytes());
        bytes[16..32].copy_from_slice(&self.values.to_be_bytes());
        bytes[32] = u8::from(self.side == Side::Shadow);
        bytes[33..37].copy_from_slice(&self.place.file.to_be_bytes());
        bytes[37..].copy_from_slice(&self.place.row.to_be_bytes());
        to.write_all(&bytes)
    }

    /// `None` at the end.
    fn read(from: &mut impl Read) -> std::io::Result<Option<Self>> {
        let mut bytes = [0; ENTRY];
        match from.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let long = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
        let short = |bytes: &[u8]| bytes.iter().fold(0u32, |number, byte| (number << 8) | u32::from(*byte));
        Ok(Some(Self {
            key: long(&bytes[..16]),
            values: long(&bytes[16..32]),
            side: if bytes[32] == 1 { Side::Shadow } else { Side::Live },
            place: Place { file: short(&bytes[33..37]), row: short(&bytes[37..]) },
        }))
    }
}

/// A difference: a row of the live destination, of the shadow, or of both.
pub type Sample = (Option<Place>, Option<Place>);

/// What differs.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Rows that both sides have.
    pub equal: u64,
    /// Rows with the same key and other values.
    pub changed: u64,
    /// Rows of the live destination whose key, or which, the shadow does not have.
    pub only_live: u64,
    /// Rows of the shadow whose key, or which, the live destination does not have.
    pub only_shadow: u64,
    /// Rows by folder, as the folder's name, the rows of the live destination and of the shadow.
    #[serde(serialize_with = "folders")]
    pub folders: BTreeMap<String, [u64; 2]>,
    /// Columns by name, each with whether the live destination and the shadow have a value.
    #[serde(skip)]
    pub columns: BTreeMap<String, [bool; 2]>,
    /// The first differences.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

fn folders<S: serde::Serializer>(folders: &BTreeMap<String, [u64; 2]>, to: S) -> std::result::Result<S::Ok, S::Error> {
    let rows = folders
        .iter()
        .map(|(folder, [live, shadow])| serde_json::json!({ "folder": folder, "live": live, "shadow": shadow }));
    to.collect_seq(rows)
}

impl Differences {
    /// Both sides have the same rows.
    pub fn is_empty(&self) -> bool {
        self.changed == 0 && self.only_live == 0 && self.only_shadow == 0
    }
}

/// Collects the rows of both sides.
pub struct Comparison {
    key: Vec<String>,
    ignored: Vec<String>,
    samples: usize,
    /// Entries that are sorted in memory.
    part: usize,
    folder: PathBuf,
    entries: Vec<Entry>,
    sorted: Vec<File>,
    found: Differences,
}

impl Comparison {
    /// `key` are the columns that identify a row; without any, rows are compared as a whole.
    /// Columns in `ignored` are not compared. Temporary files are in `folder`. At most `samples`
    /// differences are kept with their places.
    pub fn new(key: Vec<String>, ignored: Vec<String>, samples: usize, folder: PathBuf) -> Self {
        let (entries, sorted, found) = (Vec::new(), Vec::new(), Differences::default());
        Self { key, ignored, samples, part: PART, folder, entries, sorted, found }
    }

    /// Adds a row: its columns with a value, in the order of their names, as text.
    pub fn add(&mut self, side: Side, folder: &str, place: Place, row: &[(&str, &str)]) -> Result<()> {
        let at = usize::from(side == Side::Shadow);
        let mut values = Xxh3::new();
        for (name, value) in row.iter().filter(|(name, _)| !self.ignored.iter().any(|ignored| ignored == name)) {
            hash(&mut values, name);
            hash(&mut values, value);
            match self.found.columns.get_mut(*name) {
                Some(sides) => sides[at] = true,
                None => self.found.columns.entry((*name).to_owned()).or_default()[at] = true,
            }
        }
        let values = values.digest128();
        let key = if self.key.is_empty() { values } else { self.key_of(row) };
        match self.found.folders.get_mut(folder) {
            Some(rows) => rows[at] += 1,
            None => self.found.folders.entry(folder.to_owned()).or_default()[at] += 1,
        }
        self.entries.push(Entry { key, side, values, place });
        if self.entries.len() >= self.part { self.sort_part() } else { Ok(()) }
    }

    fn key_of(&self, row: &[(&str, &str)]) -> u128 {
        let mut key = Vec::new();
        for name in &self.key {
            let value = row.iter().find(|(column, _)| column == name).map(|(_, value)| value.as_bytes());
            // No value is not the empty text.
            key.extend_from_slice(&value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
            key.extend_from_slice(value.unwrap_or_default());
        }
        xxh3_128(&key)
    }

    fn sort_part(&mut self) -> Result<()> {
        self.entries.sort_unstable();
        let failed = |error: std::io::Error| io_error("write a temporary file in", &self.folder, &error);
        let path = self.folder.join(format!("part-{}", self.sorted.len()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        // The open file is enough.
        std::fs::remove_file(&path).map_err(failed)?;
        let mut writer = BufWriter::with_capacity(BUFFER, file);
        self.entries.iter().try_for_each(|entry| entry.write(&mut writer)).map_err(failed)?;
        let mut file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.rewind().map_err(failed)?;
        self.sorted.push(file);
        self.entries.clear();
        Ok(())
    }

    /// Compares what was added.
    pub fn finish(mut self) -> Result<Differences> {
        let folder = self.folder.clone();
        self.entries.sort_unstable();
        let failed = |error: std::io::Error| io_error("read a temporary file in", &folder, &error);
        let mut readers: Vec<BufReader<File>> =
            std::mem::take(&mut self.sorted).into_iter().map(|file| BufReader::with_capacity(BUFFER, file)).collect();
        // The part in memory is the last one.
        let mut rest = std::mem::take(&mut self.entries).into_iter();
        let mut heads = BinaryHeap::new();
        for number in 0..=readers.len() {
            let next = match readers.get_mut(number) {
                Some(reader) => Entry::read(reader).map_err(failed)?,
                None => rest.next(),
            };
            heads.extend(next.map(|entry| Reverse((entry, number))));
        }
        let mut group: Vec<Entry> = Vec::new();
        while let Some(Reverse((entry, number))) = heads.pop() {
            let next = match readers.get_mut(number) {
                Some(reader) => Entry::read(reader).map_err(failed)?,
                None => rest.next(),
            };
            heads.extend(next.map(|entry| Reverse((entry, number))));
            if group.first().is_some_and(|first| first.key != entry.key) {
                self.compare(&group);
                group.clear();
            }
            group.push(entry);
        }
        self.compare(&group);
        Ok(self.found)
    }

    /// Compares the rows of one key, which are sorted by side and values.
    fn compare(&mut self, group: &[Entry]) {
        let (live, shadow) = group.split_at(group.partition_point(|entry| entry.side == Side::Live));
        let (mut live, mut shadow) = (live.iter().peekable(), shadow.iter().peekable());
        let (mut missing, mut added) = (Vec::new(), Vec::new());
        loop {
            match (live.peek(), shadow.peek()) {
                (Some(one), Some(other)) if one.values == other.values => {
                    self.found.equal += 1;
                    live.next();
                    shadow.next();
                }
                (Some(one), Some(other)) if one.values < other.values => missing.extend(live.next()),
                (Some(_), None) => missing.extend(live.next()),
                (_, Some(_)) => added.extend(shadow.next()),
                (None, None) => break,
            }
        }
        // Without a key, only one side can have such rows.
        let changed = missing.len().min(added.len());
        self.found.changed += changed as u64;
        self.found.only_live += (missing.len() - changed) as u64;
        self.found.only_shadow += (added.len() - changed) as u64;
        for number in 0..missing.len().max(added.len()) {
            if self.found.samples.len() == self.samples {
                return;
            }
            let place = |entries: &[&Entry]| entries.get(number).map(|entry| entry.place);
            self.found.samples.push((place(&missing), place(&added)));
        }
    }
}

/// Hashes a text with its length, so that two texts are not another two.
fn hash(state: &mut Xxh3, text: &str) {
    state.update(&(text.len() as u64).to_le_bytes());
    state.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares rows of two columns, sorted in parts of three entries.
    fn compare(key: &[&str], ignored: &[&str], live: &[(&str, &str)], shadow: &[(&str, &str)]) -> Differences {
        let folder = tempfile::tempdir().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut comparison = Comparison::new(names(key), names(ignored), 3, folder.path().to_owned());
        comparison.part = 3;
        for (side, rows) in [(Side::Live, live), (Side::Shadow, shadow)] {
            for ((id, text), row) in rows.iter().zip(0..) {
                comparison.add(side, "day=1", Place { file: 7, row }, &[("id", id), ("text", text)]).unwrap();
            }
        }
        comparison.finish().unwrap()
    }

    fn counts(found: &Differences) -> [u64; 4] {
        [found.equal, found.changed, found.only_live, found.only_shadow]
    }

    const LIVE: [(&str, &str); 8] =
        [("1", "a"), ("2", "b"), ("3", "c"), ("4", "d"), ("5", "e"), ("5", "e"), ("6", "f"), ("7", "g")];

    #[test]
    fn equal_rows_in_any_order_do_not_differ() {
        let mut shadow = LIVE;
        shadow.reverse();
        for key in [&[][..], &["id"]] {
            let found = compare(key, &[], &LIVE, &shadow);
            assert_eq!((counts(&found), found.is_empty()), ([8, 0, 0, 0], true));
            assert_eq!(found.folders["day=1"], [8, 8]);
        }
    }

    #[test]
    fn rows_are_missing_added_and_changed_by_key() {
        // One of two equal rows is missing, one row has changed, one is new and one is gone.
        let shadow = [("1", "a"), ("2", "x"), ("3", "c"), ("5", "e"), ("6", "f"), ("7", "g"), ("8", "h")];
        let found = compare(&["id"], &[], &LIVE, &shadow);
        assert_eq!((counts(&found), found.is_empty()), ([5, 1, 2, 1], false));
        assert_eq!(found.samples.len(), 3, "samples are limited");
        let whole = compare(&[], &[], &LIVE, &shadow);
        assert_eq!(counts(&whole), [5, 0, 3, 2]);
        let ignored = compare(&["id"], &["text"], &LIVE, &shadow);
        assert_eq!(counts(&ignored), [6, 0, 2, 1]);
        assert_eq!(ignored.columns.keys().collect::<Vec<_>>(), ["id"]);
    }

    #[test]
    fn a_sample_names_the_rows_of_both_sides() {
        let found = compare(&["id"], &[], &[("1", "a"), ("2", "b")], &[("2", "x"), ("1", "a")]);
        let (live, shadow) = found.samples[0];
        assert_eq!((live.unwrap().row, shadow.unwrap().row, live.unwrap().file), (1, 0, 7));
    }

    #[test]
    fn names_and_values_are_not_confused() {
        let found = compare(&[], &[], &[("ab", "c")], &[("a", "bc")]);
        assert_eq!(counts(&found), [0, 0, 1, 1]);
    }
}
