//! [`Retired`]: finished files whose descriptors are kept for a while, because a writer may still
//! use its own.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::Tracker;
use crate::config::LogfileOptions;
use crate::discovery::{Found, identify};
use crate::file::{PathState, TrackedFile};
use crate::position::Stat;

/// How long a renamed file is kept.
const RENAMED: Duration = Duration::from_secs(600);
/// How long a removed file is kept: its descriptor occupies the disk space.
const REMOVED: Duration = Duration::from_secs(60);
/// Limit on the number of kept files.
const MAX_FILES: usize = 64;

pub(crate) struct Retired {
    files: Vec<(TrackedFile, Instant)>,
    max_files: usize,
}

impl Retired {
    pub(super) fn new(options: &LogfileOptions, until_idle: bool) -> Self {
        let max_files = if until_idle { 0 } else { MAX_FILES.min(options.max_open_files / 4) };
        Self { files: Vec::new(), max_files }
    }

    /// Whether one of them has grown.
    pub(super) fn has_grown(&self) -> bool {
        self.files.iter().any(|(file, _)| current_stat(file).is_some_and(|stat| has_grown(file, stat)))
    }

    /// Keeps a finished file, if it is open and not compressed.
    pub(super) fn keep(&mut self, file: TrackedFile, now: Instant) {
        if self.max_files == 0 || file.is_open_compressed() {
            return;
        }
        let Some(metadata) = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok()) else { return };
        let kept_for = if metadata.nlink() == 0 { REMOVED } else { RENAMED };
        if self.files.len() == self.max_files {
            self.files.remove(0);
        }
        self.files.push((file, now + kept_for));
    }

    /// Returns the files that have grown since or that a glob matches, and drops those that were
    /// kept long enough.
    fn take_resumed(&mut self, untracked: &[Found], now: Instant) -> Vec<TrackedFile> {
        let mut resumed = Vec::new();
        for (mut file, until) in std::mem::take(&mut self.files) {
            let Some(stat) = current_stat(&file) else { continue };
            if has_grown(&file, stat) || untracked.iter().any(|found| found.id == file.id) {
                file.observe(stat, now);
                resumed.push(file);
            } else if until > now {
                self.files.push((file, until));
            }
        }
        resumed
    }
}

/// The state of an open file now.
fn current_stat(file: &TrackedFile) -> Option<Stat> {
    let metadata = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok());
    metadata.map(|metadata| identify(&metadata).1)
}

fn has_grown(file: &TrackedFile, stat: Stat) -> bool {
    stat.size > file.read.offset.max(file.stat.size)
}

impl Tracker {
    /// Follows finished files again that have grown, or that a glob matches again.
    pub(super) fn resume_retired(&mut self, untracked: &mut Vec<Found>, now: Instant) {
        for mut file in self.retired.take_resumed(untracked, now) {
            if let Some(found) = untracked.iter().find(|found| found.id == file.id) {
                file.move_to(found, now);
                file.path_state = PathState::Matched;
            }
            tracing::info!(path = %file.path.display(), "file was changed or renamed after it was finished; it \
                is followed again");
            file.key = None;
            file.moved = true;
            file.missed_scans = 0;
            untracked.retain(|found| found.id != file.id);
            self.opened.push(file.id);
            self.files.entry(file.id).or_insert(file);
        }
    }
}
