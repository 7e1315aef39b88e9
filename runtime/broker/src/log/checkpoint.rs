//! Checkpoints: state that a start can trust without reading the log.
//!
//! A checkpoint stores the synced length of every segment and the state derived from the headers up
//! to there: offsets, producers, aborted transactions. It is taken in two steps, so that no request
//! waits for the disk: [`PartitionLog::prepare_checkpoint`] copies the state under the partition's
//! lock, [`Checkpoint::write`] syncs and writes without it. A start reads only the log after the
//! checkpoint; without a checkpoint it reads the whole log.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::producer_state::ProducerStates;
use super::segment::write_index;
use super::{PartitionLog, sync_directory};
use crate::private_files;

const FILE_NAME: &str = "checkpoint.json";
const TEMPORARY_NAME: &str = "checkpoint.json.new";
const VERSION: u32 = 1;

/// A checkpoint is due after this many bytes...
const DUE_BYTES: u64 = 64 << 20;
/// ...or this long after the first append.
const DUE_AFTER: Duration = Duration::from_secs(30);

/// One segment in a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SegmentState {
    pub(crate) base_offset: i64,
    pub(crate) size: u64,
    pub(crate) max_timestamp: i64,
    pub(crate) index_entries: usize,
}

/// The contents of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    pub(crate) start_offset: i64,
    pub(crate) end_offset: i64,
    pub(crate) cleaned_until: i64,
    pub(crate) segments: Vec<SegmentState>,
    pub(crate) producers: ProducerStates,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    directory: PathBuf,
    state: State,
    /// Files with bytes that are not synced.
    unsynced: Vec<Arc<File>>,
    /// For each segment with new index entries: its log, the number of entries in its index file,
    /// and the new entries.
    index: Vec<(PathBuf, usize, Vec<u8>)>,
}

impl PartitionLog {
    /// Whether a checkpoint is due.
    pub(crate) fn is_checkpoint_due(&self) -> bool {
        if self.durability.as_ref().is_some_and(|durability| durability.check().is_err()) {
            return false;
        }
        let is_old = self.appended_since_checkpoint.is_some_and(|since| since.elapsed() >= DUE_AFTER);
        self.bytes_since_checkpoint >= DUE_BYTES || is_old
    }

    /// Whether records were appended since the last checkpoint.
    pub(crate) fn is_checkpoint_stale(&self) -> bool {
        self.appended_since_checkpoint.is_some()
    }

    /// Copies the state. The caller prepares one checkpoint of a partition at a time.
    pub(crate) fn prepare_checkpoint(&mut self) -> io::Result<Checkpoint> {
        if let Some(durability) = &self.durability {
            durability.check()?;
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
        self.bytes_since_checkpoint = 0;
        self.appended_since_checkpoint = None;
        Ok(Checkpoint { directory: self.directory.clone(), state, unsynced, index })
    }

    /// The prepared checkpoint was not written: the next one repeats its work.
    pub(crate) fn checkpoint_failed(&mut self) {
        for segment in &mut self.segments {
            segment.saved_size = 0;
            segment.indexed_on_disk = 0;
        }
        self.appended_since_checkpoint.get_or_insert_with(Instant::now);
    }
}

impl Checkpoint {
    /// Syncs the log and writes the checkpoint. After a failure the previous checkpoint stays
    /// valid.
    pub(crate) fn write(&self) -> io::Result<()> {
        for file in &self.unsynced {
            file.sync_data()?;
        }
        for (log_path, entries_before, bytes) in &self.index {
            write_index(log_path, *entries_before, bytes)?;
        }
        let temporary = self.directory.join(TEMPORARY_NAME);
        let mut file = private_files::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.state)?)?;
        file.sync_data()?;
        std::fs::rename(&temporary, self.directory.join(FILE_NAME))?;
        sync_directory(&self.directory)
    }
}

/// Reads the checkpoint. `None`: there is no valid one.
pub(crate) fn read(directory: &Path) -> Option<State> {
    let bytes = std::fs::read(directory.join(FILE_NAME)).ok()?;
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.version == VERSION => Some(state),
        Ok(state) => {
            tracing::warn!(directory = %directory.display(), version = state.version, "checkpoint version is unknown; reading the whole log");
            None
        }
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "checkpoint is unreadable; reading the whole log");
            None
        }
    }
}
