//! New files: some are copies of followed ones, the others are tracked.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::time::{Duration, Instant, SystemTime};

use super::{Beginnings, Tracker};
use crate::config::ReadFrom;
use crate::copy_detection::{self, Beginning, CopyIndex};
use crate::discovery::Found;
use crate::file::{MissingReason, PathState, TrackedFile};
use crate::input::Input;
use crate::names::rotation_group;
use crate::position::FileId;

/// A copy whose original is intact for this long is reported.
const LASTING: Duration = Duration::from_secs(60);

/// A copy of a followed file.
pub(super) struct KnownCopy {
    pub(super) original: FileId,
    pub(super) copy: Found,
    since: Instant,
    warned: bool,
}

impl Tracker {
    /// Verifies the possible originals of new files before these are compared with them: a copy may
    /// be made and its original truncated between two scans. `true` if one lost its content, and is
    /// now missing and untracked.
    pub(super) fn check_originals(&mut self, untracked: &mut Vec<Found>, beginnings: &mut Beginnings) -> bool {
        let new: Vec<Found> = untracked.iter().filter(|found| self.is_new(found)).cloned().collect();
        if new.is_empty() {
            return false;
        }
        let index = CopyIndex::new(self.files.values());
        let mut originals: HashSet<FileId> = HashSet::new();
        for found in new {
            let Some(beginning) = self.beginning(&found, beginnings) else { continue };
            let may_be = |id: &FileId| self.files.get(id).is_some_and(|file| copy_detection::may_be_copy(&found, file));
            originals.extend(index.to_verify(&found, beginning.head).into_iter().filter(may_be));
        }
        let before = untracked.len();
        for id in originals {
            let Some(file) = self.files.get(&id) else { continue };
            if copy_detection::content_is_gone(file, self.options.compression) == Some(true) {
                if file.path_state == PathState::Matched {
                    let linked = file.real.is_some();
                    untracked.push(Found { path: file.path.clone(), id, stat: file.stat, linked });
                }
                self.remove_as_missing(id, MissingReason::ContentChanged);
            }
        }
        untracked.len() > before
    }

    /// Whether an untracked file must be judged: it has content, is young enough, and is not a
    /// known copy.
    fn is_new(&self, found: &Found) -> bool {
        let known = self.copies.get(&found.id).is_some_and(|known| known.copy.stat == found.stat);
        !known && found.stat.size > 0 && !self.is_too_old(found)
    }

    /// The beginning of a new file, read once in a scan. `None` if it was moved since the scan, or
    /// cannot be read.
    fn beginning(&mut self, found: &Found, beginnings: &mut Beginnings) -> Option<Beginning> {
        if let Some(beginning) = beginnings.get(&found.id) {
            return Some(*beginning);
        }
        match copy_detection::beginning(found, self.options.compression) {
            Ok(beginning) => {
                beginnings.insert(found.id, beginning);
                Some(beginning)
            }
            Err(error) => {
                self.unsettled |= error.kind() == ErrorKind::NotFound;
                None
            }
        }
    }

    pub(super) fn track_new(&mut self, mut untracked: Vec<Found>, beginnings: &mut Beginnings, now: Instant) {
        let present: HashSet<FileId> = untracked.iter().map(|found| found.id).collect();
        self.copies.retain(|id, known| present.contains(id) && self.files.contains_key(&known.original));
        untracked.retain(|found| self.is_new(found));
        if untracked.is_empty() {
            return;
        }
        // A log before the files it was rotated to: if both are new and equal, the latter is the
        // copy.
        untracked.sort_by_cached_key(|found| {
            let path = found.path.to_string_lossy().into_owned();
            (rotation_group(&path) != path, path)
        });
        let mut index = CopyIndex::new(self.files.values());
        for found in untracked {
            let beginning = self.beginning(&found, beginnings);
            // The beginning of a compressed file may become a copy: it is judged when it is
            // written. A file that stays truncated is read as far as it goes.
            let being_written = age_of(&found).is_none_or(|age| age < self.options.rotate_wait);
            let waits = |truncated_len| truncated_len == 0 || being_written;
            if beginning.and_then(|beginning| beginning.truncated_len).is_some_and(waits) {
                continue;
            }
            // In this order: a file that is complete stays complete. The other way round, a file
            // completed between the two checks would pass both.
            if beginning.is_some_and(|beginning| self.is_copy(&found, beginning, &index, now)) {
                continue;
            }
            let mut file = TrackedFile::new(found, now);
            file.head_at_discovery = beginning.map(|beginning| beginning.head);
            if self.first_start && self.options.read_from == ReadFrom::End {
                let compression = self.options.compression;
                match File::open(&file.path).and_then(|opened| Input::open(opened, compression)?.fingerprint_of_all()) {
                    Ok(read) => {
                        file.read = read;
                        file.at_end = Some(file.stat);
                        file.moved = true;
                    }
                    Err(error) => file.fail(&error),
                }
            }
            index.add(&file);
            self.files.insert(file.id, file);
        }
    }

    fn is_copy(&mut self, found: &Found, beginning: Beginning, index: &CopyIndex, now: Instant) -> bool {
        let was_copy = self.copies.remove(&found.id);
        let mut original = None;
        for id in index.originals(found, beginning.head) {
            let Some(file) = self.files.get(&id).filter(|file| copy_detection::may_be_copy(found, file)) else {
                continue;
            };
            match copy_detection::is_copy(found, file, self.options.compression) {
                Some(false) => {}
                Some(true) => {
                    original = Some(file);
                    break;
                }
                None => {
                    // A file tracked as new now could not become the continuation of the one that
                    // was just removed.
                    self.unsettled = true;
                    return true;
                }
            }
        }
        let Some(original) = original else { return false };
        if was_copy.is_none() {
            tracing::info!(
                path = %found.path.display(), original = %original.path.display(),
                "file is a copy of a followed file; it is not read"
            );
        }
        let (since, warned) = was_copy.map_or((now, false), |known| (known.since, known.warned));
        self.copies.insert(found.id, KnownCopy { original: original.id, copy: found.clone(), since, warned });
        true
    }

    /// Warns about copies whose originals stay intact: they may be files with equal content.
    pub(super) fn report_lasting_copies(&mut self, now: Instant) {
        self.report_copies(|known| now.saturating_duration_since(known.since) >= LASTING);
    }

    /// Warns about all copies at the end of a run.
    pub(crate) fn report_unread_copies(&mut self) {
        self.report_copies(|_| true);
    }

    fn report_copies(&mut self, is_due: impl Fn(&KnownCopy) -> bool) {
        for known in self.copies.values_mut().filter(|known| !known.warned && is_due(known)) {
            known.warned = true;
            let original = self.files.get(&known.original).map(|file| file.path.display().to_string());
            tracing::warn!(
                "{} was not read: its {} bytes equal the beginning of {}, so that it counts as a copy. Exclude copies with `exclude`; if \
                 it is a log like any other, rename it",
                known.copy.path.display(),
                known.copy.stat.size,
                original.unwrap_or_default()
            );
        }
    }

    fn is_too_old(&self, found: &Found) -> bool {
        let at_first = self.first_start && self.options.read_from == ReadFrom::End;
        let Some(limit) = self.options.ignore_older.filter(|_| !at_first) else { return false };
        age_of(found).is_some_and(|age| age > limit)
    }
}

/// Time since the last modification of a file; `None` if that is in the future.
fn age_of(found: &Found) -> Option<Duration> {
    let modified = std::time::UNIX_EPOCH + Duration::from_nanos(u64::try_from(found.stat.modified).unwrap_or(0));
    SystemTime::now().duration_since(modified).ok()
}
