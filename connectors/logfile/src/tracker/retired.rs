//! [`Retired`]: finished files whose descriptors are kept for a while, because a writer may still
//! use its own.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::Tracker;
use crate::config::LogfileOptions;
use crate::discovery::{Found, identify};
use crate::file::TrackedFile;

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

    /// Returns the files that have grown since, and drops those that were kept long enough.
    fn take_grown(&mut self, now: Instant) -> Vec<TrackedFile> {
        let mut grown = Vec::new();
        for (mut file, until) in std::mem::take(&mut self.files) {
            let metadata = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok());
            let Some(stat) = metadata.map(|metadata| identify(&metadata).1) else { continue };
            if stat.size > file.read.offset.max(file.stat.size) {
                file.observe(stat, now);
                grown.push(file);
            } else if until > now {
                self.files.push((file, until));
            }
        }
        grown
    }
}

impl Tracker {
    /// Follows finished files again that have grown, or that a glob matches again.
    pub(super) fn resume_retired(&mut self, untracked: &mut Vec<Found>, now: Instant) {
        for mut file in self.retired.take_grown(now) {
            tracing::info!(path = %file.path.display(), "file has grown after it was finished; it is followed again");
            file.key = None;
            file.moved = true;
            file.missed_scans = 0;
            untracked.retain(|found| found.id != file.id);
            self.opened.push(file.id);
            self.files.entry(file.id).or_insert(file);
        }
    }
}
