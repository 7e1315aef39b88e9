//! Checkpoints: what a start can believe without reading the log.
//!
//! A checkpoint names the length of every segment up to which the log was synced to the device and taken into account,
//! and holds what the log's headers say up to there: offsets, producers, aborted transactions. It is taken in two steps,
//! so that nobody waits for the device: [`PartitionLog::prepare_checkpoint`] copies the state under the partition's lock,
//! [`Checkpoint::write`] syncs and writes without it. A start reads only what follows the checkpoint; without a
//! checkpoint it reads everything.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::producer_state::ProducerStates;
use super::segment::write_index;
use super::{PartitionLog, sync_directory};

const FILE_NAME: &str = "checkpoint.json";
const TEMPORARY_NAME: &str = "checkpoint.json.new";
const VERSION: u32 = 1;

/// A checkpoint is due after this many bytes...
const DUE_BYTES: u64 = 64 << 20;
/// ...or this long after the first of fewer.
const DUE_AFTER: Duration = Duration::from_secs(30);

/// One segment in a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SegmentState {
    pub(crate) base_offset: i64,
    pub(crate) size: u64,
    pub(crate) max_timestamp: i64,
    pub(crate) index_entries: usize,
}

/// The file's contents.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    pub(crate) start_offset: i64,
    pub(crate) end_offset: i64,
    pub(crate) cleaned_until: i64,
    pub(crate) segments: Vec<SegmentState>,
    pub(crate) producers: ProducerStates,
}

/// A checkpoint that is not written yet.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    directory: PathBuf,
    state: State,
    /// Files with bytes that were not synced.
    unsynced: Vec<Arc<File>>,
    /// For each segment with new index entries: its log, how many its file has, and the new ones.
    index: Vec<(PathBuf, usize, Vec<u8>)>,
}

impl PartitionLog {
    /// Whether enough was appended since the last checkpoint.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        if self.device.as_ref().is_some_and(|device| device.check().is_err()) {
            return false;
        }
        let is_old = self.unchecked_since.is_some_and(|since| since.elapsed() >= DUE_AFTER);
        self.unchecked_bytes >= DUE_BYTES || is_old
    }

    /// Whether anything was appended since the last checkpoint.
    pub(crate) fn has_unchecked(&self) -> bool {
        self.unchecked_since.is_some()
    }

    /// Copies the state. Only one checkpoint of a partition may be in the making at a time.
    pub(crate) fn prepare_checkpoint(&mut self) -> io::Result<Checkpoint> {
        if let Some(device) = &self.device {
            device.check()?;
        }
        let mut unsynced = Vec::new();
        let mut index = Vec::new();
        for segment in &mut self.segments {
            let is_saved = segment.saved_size == segment.size;
            if !is_saved {
                unsynced.push(segment.file()?);
            }
            if segment.indexed_on_disk < segment.index.len() {
                index.push((segment.path().to_owned(), segment.indexed_on_disk, segment.unsaved_index()));
                segment.indexed_on_disk = segment.index.len();
            }
            segment.saved_size = segment.size;
        }
        let describe = |segment: &super::Segment| SegmentState {
            base_offset: segment.base_offset,
            size: segment.size,
            max_timestamp: segment.max_timestamp,
            index_entries: segment.index.len(),
        };
        let state = State {
            version: VERSION,
            start_offset: self.start_offset,
            end_offset: self.end_offset,
            cleaned_until: self.cleaned_until,
            segments: self.segments.iter().map(describe).collect(),
            producers: self.producers.clone(),
        };
        self.unchecked_bytes = 0;
        self.unchecked_since = None;
        Ok(Checkpoint { directory: self.directory.clone(), state, unsynced, index })
    }

    /// What was prepared could not be written: the next checkpoint has to do all of it again.
    pub(crate) fn checkpoint_failed(&mut self) {
        for segment in &mut self.segments {
            segment.saved_size = 0;
            segment.indexed_on_disk = 0;
        }
        self.unchecked_since.get_or_insert_with(Instant::now);
    }
}

impl Checkpoint {
    /// Syncs the log and writes the checkpoint. On failure the one before stays in force.
    pub(crate) fn write(&self) -> io::Result<()> {
        for file in &self.unsynced {
            file.sync_data()?;
        }
        for (log_path, entries_before, bytes) in &self.index {
            write_index(log_path, *entries_before, bytes)?;
        }
        let temporary = self.directory.join(TEMPORARY_NAME);
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.state)?)?;
        file.sync_data()?;
        std::fs::rename(&temporary, self.directory.join(FILE_NAME))?;
        sync_directory(&self.directory)
    }
}

/// Reads the checkpoint; `None` when there is none to be trusted.
pub(crate) fn read(directory: &Path) -> Option<State> {
    let bytes = std::fs::read(directory.join(FILE_NAME)).ok()?;
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.version == VERSION => Some(state),
        Ok(state) => {
            tracing::warn!(directory = %directory.display(), version = state.version, "unknown checkpoint version, the log is read in full");
            None
        }
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "unreadable checkpoint, the log is read in full");
            None
        }
    }
}
