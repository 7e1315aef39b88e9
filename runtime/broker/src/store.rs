//! The internal log: all state that is not a record in a topic.
//!
//! Topics, groups, committed offsets and transactions are entries of one ordered map from [`Key`]
//! to a JSON value. The map is in memory. Every change is first appended to a file as a **frame**.
//! A frame is atomic: a transaction's offsets and its end are one frame. An incomplete frame after
//! a crash was never acknowledged and is dropped at the next start. A file that is mostly obsolete
//! is rewritten.
//!
//! Frame: length (u32), CRC-32C of the rest (u32), JSON array of `[key, value or null]`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::log::sync_directory;
use crate::private_files::{self, open_for_append};
use crate::sync::lock;

const FILE_NAME: &str = "state.log";
const TEMPORARY_NAME: &str = "state.log.new";
const FRAME_HEADER: usize = 8;
/// A file of at least this size that is mostly obsolete is rewritten.
const REWRITE_ABOVE: u64 = 8 << 20;

/// The key of an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Key {
    /// The cluster id.
    Cluster,
    /// Producer ids below this value are used.
    ProducerIds,
    /// A topic by name.
    Topic(String),
    /// The generation and members of a group.
    Group(String),
    /// The committed offset of (group, topic, partition).
    Offset(String, String, i32),
    /// A pending offset of (group, producer id, topic, partition).
    PendingOffset(String, i64, String, i32),
    /// A transaction by its transactional id.
    Transaction(String),
}

/// A new value for a key, or its removal.
#[derive(Debug)]
pub(crate) struct Change {
    key: Key,
    value: Option<Box<RawValue>>,
}

impl Change {
    pub(crate) fn put(key: Key, value: &impl Serialize) -> io::Result<Self> {
        Ok(Self { key, value: Some(serde_json::value::to_raw_value(value)?) })
    }

    pub(crate) fn remove(key: Key) -> Self {
        Self { key, value: None }
    }
}

#[derive(Debug)]
struct Inner {
    file: File,
    size: u64,
    /// Approximate size of the file after a rewrite.
    live: u64,
    entries: BTreeMap<Key, Box<RawValue>>,
    has_partial_write: bool,
}

/// The internal log.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    /// The file was new, or its end was cut off: entries may be missing.
    is_incomplete: bool,
    sync_each_append: bool,
    inner: Mutex<Inner>,
}

impl Store {
    /// Opens the internal log in `directory`, or creates it.
    pub(crate) fn open(directory: &Path, sync_each_append: bool) -> io::Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = open_for_append(&path)?;
        let bytes = std::fs::read(&path)?;
        let mut entries = BTreeMap::new();
        let mut at = 0;
        while let Some((changes, length)) = decode_frame(&bytes[at..]) {
            for (key, value) in changes {
                apply(&mut entries, key, value);
            }
            at += length;
        }
        let is_torn = at < bytes.len();
        if is_torn {
            tracing::warn!(path = %path.display(), cut = bytes.len() - at, kept = at, "the last write was torn; cutting it off");
            file.set_len(at as u64)?;
            file.sync_all()?;
        }
        sync_directory(directory)?;
        let live = entries.values().map(|value| entry_size(value)).sum();
        let inner = Inner { file, size: at as u64, live, entries, has_partial_write: false };
        let is_incomplete = is_torn || bytes.is_empty();
        Ok(Self { directory: directory.to_owned(), is_incomplete, sync_each_append, inner: Mutex::new(inner) })
    }

    /// Whether entries may be missing because the file was new or torn.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Applies all changes, or none on an error.
    pub(crate) fn apply(&self, changes: Vec<Change>) -> io::Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let pairs: Vec<(&Key, &Option<Box<RawValue>>)> =
            changes.iter().map(|change| (&change.key, &change.value)).collect();
        let frame = encode_frame(&serde_json::to_vec(&pairs)?);
        let mut inner = lock(&self.inner);
        let size = inner.size;
        if inner.has_partial_write {
            inner.file.set_len(size)?;
            inner.has_partial_write = false;
        }
        let written = inner.file.write_all(&frame);
        let written = written.and_then(|()| if self.sync_each_append { inner.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            inner.has_partial_write = inner.file.set_len(size).is_err();
            tracing::error!(directory = %self.directory.display(), %error, "cannot write to the internal log");
            return Err(error);
        }
        inner.size += frame.len() as u64;
        for Change { key, value } in changes {
            let added = value.as_ref().map_or(0, |value| entry_size(value));
            let removed = apply(&mut inner.entries, key, value).map_or(0, |value| entry_size(&value));
            inner.live = (inner.live + added).saturating_sub(removed);
        }
        if inner.size > REWRITE_ABOVE && inner.size > inner.live * 4 {
            // The changes are applied. The next call retries a failed rewrite.
            if let Err(error) = self.rewrite(&mut inner) {
                tracing::warn!(directory = %self.directory.display(), %error, "cannot rewrite the internal log");
            }
        }
        Ok(())
    }

    /// One entry.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &Key) -> io::Result<Option<T>> {
        let inner = lock(&self.inner);
        inner.entries.get(key).map(|value| serde_json::from_str(value.get()).map_err(Into::into)).transpose()
    }

    /// All entries whose key `select` accepts, with the result of `select`.
    pub(crate) fn scan<K, T: DeserializeOwned>(&self, select: impl Fn(&Key) -> Option<K>) -> io::Result<Vec<(K, T)>> {
        let inner = lock(&self.inner);
        let mut found = Vec::new();
        for (key, value) in &inner.entries {
            if let Some(selected) = select(key) {
                found.push((selected, serde_json::from_str(value.get())?));
            }
        }
        Ok(found)
    }

    /// Syncs the file.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let file = lock(&self.inner).file.try_clone()?;
        file.sync_data()
    }

    fn rewrite(&self, inner: &mut Inner) -> io::Result<()> {
        let temporary = self.directory.join(TEMPORARY_NAME);
        let mut file = private_files::create(&temporary)?;
        let mut size = 0;
        let pairs: Vec<_> = inner.entries.iter().collect();
        for chunk in pairs.chunks(1000) {
            let frame = encode_frame(&serde_json::to_vec(chunk)?);
            file.write_all(&frame)?;
            size += frame.len() as u64;
        }
        file.sync_all()?;
        let path = self.directory.join(FILE_NAME);
        std::fs::rename(&temporary, &path)?;
        sync_directory(&self.directory)?;
        inner.file = open_for_append(&path)?;
        inner.size = size;
        inner.live = size;
        Ok(())
    }
}

/// Approximate size of a key and the array around it.
const KEY_OVERHEAD: u64 = 60;

fn entry_size(value: &RawValue) -> u64 {
    value.get().len() as u64 + KEY_OVERHEAD
}

fn apply(entries: &mut BTreeMap<Key, Box<RawValue>>, key: Key, value: Option<Box<RawValue>>) -> Option<Box<RawValue>> {
    match value {
        Some(value) => entries.insert(key, value),
        None => entries.remove(&key),
    }
}

fn encode_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

type Pair = (Key, Option<Box<RawValue>>);

fn decode_frame(bytes: &[u8]) -> Option<(Vec<Pair>, usize)> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let payload = bytes.get(FRAME_HEADER..FRAME_HEADER + length)?;
    if crc32c::crc32c(payload) != crc {
        return None;
    }
    Some((serde_json::from_slice(payload).ok()?, FRAME_HEADER + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_frame_is_dropped_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::open(directory.path(), false).unwrap();
        let change = |name: &str, value: i32| Change::put(Key::Topic(name.into()), &value).unwrap();
        open().apply(vec![change("a", 1), change("b", 2)]).unwrap();
        let whole = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
        open().apply(vec![change("a", 3), Change::remove(Key::Topic("b".into()))]).unwrap();
        let path = directory.path().join(FILE_NAME);
        let longer = std::fs::read(&path).unwrap();
        for cut in whole.len()..longer.len() {
            std::fs::write(&path, &longer[..cut]).unwrap();
            let store = open();
            assert_eq!(store.get::<i32>(&Key::Topic("a".into())).unwrap(), Some(1));
            assert_eq!(store.get::<i32>(&Key::Topic("b".into())).unwrap(), Some(2));
        }
        std::fs::write(&path, &longer).unwrap();
        assert_eq!(open().get::<i32>(&Key::Topic("a".into())).unwrap(), Some(3));
        assert_eq!(open().get::<i32>(&Key::Topic("b".into())).unwrap(), None);
    }

    #[test]
    fn rewriting_keeps_the_state() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), false).unwrap();
        let filler = "x".repeat(100_000);
        for number in 0..200 {
            store.apply(vec![Change::put(Key::Topic("t".into()), &(number, &filler)).unwrap()]).unwrap();
        }
        assert!(std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().len() < REWRITE_ABOVE + (1 << 20));
        drop(store);
        let store = Store::open(directory.path(), false).unwrap();
        assert_eq!(store.get::<(i32, String)>(&Key::Topic("t".into())).unwrap(), Some((199, filler)));
    }
}
