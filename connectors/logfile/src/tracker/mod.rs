//! [`Tracker`]: identifies files across scans of the file system.
//!
//! A file is followed by its device and inode, so a rename changes nothing. Where that identity is
//! not enough, contents decide:
//!
//! - *Changed content* (shorter than what was read, or head or tail differ): the file was truncated
//!   or overwritten, or its inode was reused. The content that was read is **missing** here, and
//!   the file is read from its beginning.
//! - *Removed*, from its path and from every descriptor: missing too. A removed or renamed file
//!   with an open descriptor is followed through it until it has not changed for `rotate_wait`;
//!   then it is finished.
//! - A **continuation** is an untracked file whose decompressed content has the missing file's
//!   head, and its tail before the same offset (the result of `copytruncate` and `gzip`). It is
//!   read from that offset. Without a continuation, unread bytes are reported.
//! - A **replacement** is a new file at the path of a removed one whose content begins with all
//!   content that was read (`rsync`, editors). It is read from that offset.
//! - A **copy** is a new file whose content equals the beginning of a followed and intact one:
//!   `copytruncate` makes it just before it truncates, `gzip` before it removes. A copy is not
//!   read. It becomes the continuation when its original is missing, and a file like any other when
//!   the two differ.
//!
//! Files may be created, removed and changed during a scan. Each file that a scan finds is
//! described correctly; a file that it does *not* find may have been moved during the scan. A file
//! is given up, and a new one is treated as new, only after a scan that met no change in progress.
//! Until then the tracker is **unsettled** and scans again at once.
//!
//! A stored position past the end of its file means that the file was truncated while no worker
//! ran. Waiting there for the file to grow (or failing) would lose every line written since.
//! Reading from the beginning repeats lines only if the end of the file was cut off.

mod continuation;
mod copies;
mod locate;
mod removal;
mod retired;
mod totals;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use trunkline_connector::{PositionChange, Result};

use self::copies::KnownCopy;
use self::locate::Neighbourhood;
use self::retired::Retired;
use self::totals::Totals;
use crate::config::{LogfileOptions, ReadFrom};
use crate::copy_detection::Beginning;
use crate::discovery::{Found, Scan, identify, regular_file};
use crate::file::{Failure, MissingFile, MissingReason, OpenOutcome, PathState, TrackedFile};
use crate::names::is_same_path;
use crate::position::{FileId, FilePosition, STARTED_KEY, Stat};

/// Consecutive scans that must miss a file, or its continuation, before it is given up: a single
/// scan may overlook a file that is renamed while its folder is listed.
const SCANS_UNTIL_MISSING: u32 = 3;

pub(crate) struct Tracker {
    options: Arc<LogfileOptions>,
    pub(crate) files: BTreeMap<FileId, TrackedFile>,
    /// Sums over `files`.
    pub(crate) totals: Totals,
    /// Files without their content, until their continuation is found.
    missing: Vec<MissingFile>,
    /// Copies of files that are intact, as they were when compared.
    copies: HashMap<FileId, KnownCopy>,
    retired: Retired,
    /// This source has not read anything yet.
    first_start: bool,
    /// Paths that could not be scanned, to warn once about each.
    unreadable: HashMap<PathBuf, String>,
    /// See [`Tracker::is_unsettled`].
    unsettled: bool,
    /// A new file is identified after another file was read to its end.
    awaits_reading: bool,
    /// New compressed files that are read when more of them is written.
    awaits_writing: Vec<PathBuf>,
    /// Files that were opened since descriptors were last closed for `max_open_files`, and those
    /// that were open then.
    opened: Vec<FileId>,
    /// Descriptors are closed when `opened` has this length.
    close_at: usize,
}

/// Side effects of a scan.
#[derive(Default)]
pub(crate) struct Reconciled {
    pub(crate) changes: Vec<PositionChange>,
    /// Missing files without a continuation whose readers hold lines that were not emitted.
    pub(crate) abandoned: Vec<MissingFile>,
}

/// Result of [`Tracker::observe_changed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observed {
    /// The file is where it was, and its state is known.
    Known,
    /// Only a scan finds what happened to it.
    NeedsScan,
}

/// The beginnings of new files, read once in a scan.
type Beginnings = HashMap<FileId, Beginning>;

/// What was known of a file before a scan found its inode again.
struct Known {
    path: PathBuf,
    real: Option<PathBuf>,
    stat: Stat,
}

impl Known {
    fn of(file: &TrackedFile) -> Self {
        Self { path: file.path.clone(), real: file.real.clone(), stat: file.stat }
    }

    /// Why a file is missing whose inode now has other content. Under the same path it was
    /// overwritten. Under another path, the inode was reused after the file was deleted: what was
    /// found says nothing about the file.
    fn restore_if_reused(self, file: &mut TrackedFile) -> MissingReason {
        if file.path == self.path {
            return MissingReason::ContentChanged;
        }
        (file.path, file.real, file.stat) = (self.path, self.real, self.stat);
        MissingReason::Deleted
    }
}

impl Tracker {
    pub(crate) fn new(
        options: Arc<LogfileOptions>,
        saved: Vec<(String, FileId, FilePosition)>,
        first_start: bool,
        until_idle: bool,
    ) -> Self {
        let now = Instant::now();
        let mut files = BTreeMap::new();
        let mut missing = Vec::new();
        for (key, id, saved) in saved {
            let mut file = TrackedFile::load(key, id, saved, now);
            if options.multiline.is_some() && file.has_rest {
                // Whether an event waits at its end is known when it was read: if a newer file has
                // lines, the event precedes them.
                file.at_end = None;
            }
            if let Some(other) = files.insert(id, file) {
                // Two positions with one inode: the file, and the one that had the inode before it.
                missing.push(other.into_missing(MissingReason::Deleted));
            }
        }
        Self {
            retired: Retired::new(&options, until_idle),
            close_at: options.max_open_files,
            options,
            totals: Totals::of(files.values()),
            files,
            missing,
            copies: HashMap::new(),
            first_start,
            unreadable: HashMap::new(),
            unsettled: false,
            awaits_reading: false,
            awaits_writing: Vec::new(),
            opened: Vec::new(),
        }
    }

    /// Updates the tracked files with the result of a scan.
    pub(crate) fn reconcile(&mut self, scan: Scan) -> Result<Reconciled> {
        debug_assert_eq!(self.totals, Totals::of(self.files.values()));
        let now = Instant::now();
        let mut reconciled = Reconciled::default();
        let mut beginnings = Beginnings::new();
        self.unsettled = false;
        self.awaits_reading = false;
        self.awaits_writing.clear();
        self.report_unreadable(scan.unreadable);
        let mut untracked = self.match_by_id(scan.found, now);
        self.resume_retired(&mut untracked, now);
        self.follow_absent(now);
        self.remove_committed(now);
        self.continue_replaced(&mut untracked, &mut reconciled, now);
        while self.check_originals(&mut untracked, &mut beginnings) {}
        self.find_continuations(&mut untracked, &mut reconciled, now)?;
        // A new file may still turn out to continue a missing one.
        if !self.unsettled {
            self.track_new(untracked, &mut beginnings, now);
            self.report_lasting_copies(now);
        }
        if !self.unsettled && std::mem::take(&mut self.first_start) && self.options.read_from == ReadFrom::End {
            reconciled.changes.push(PositionChange { key: STARTED_KEY.to_owned(), value: Some(b"{}".to_vec()) });
        }
        self.totals = Totals::of(self.files.values());
        Ok(reconciled)
    }

    /// Takes a file out, to read it.
    pub(crate) fn take(&mut self, id: FileId) -> Option<TrackedFile> {
        let file = self.files.remove(&id)?;
        self.totals.remove(&file);
        Some(file)
    }

    /// Updates the state of a file between two scans. `is_named`: a notification named it; others
    /// of its rotation group are looked at only where their changes may not be reported.
    pub(crate) fn observe_changed(&mut self, id: FileId, is_named: bool, now: Instant) -> Observed {
        let Some(file) = self.files.get_mut(&id) else { return Observed::Known };
        if file.path_state == PathState::Detached {
            if let Some(metadata) = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok()) {
                self.totals.remove(file);
                file.observe(identify(&metadata).1, now);
                self.totals.add(file);
            }
            return Observed::Known;
        }
        let waits = |failure: &Failure| !failure.is_damage() && failure.blocks(file.stat, now);
        if !is_named || file.failure.as_ref().is_some_and(waits) {
            return Observed::Known;
        }
        let linked = file.real.is_some();
        let found = match regular_file(&file.path) {
            Ok(Some(found)) if found.id == id => Found { linked, ..found },
            _ => return Observed::NeedsScan,
        };
        // A scan compares a file of which nothing was read with others.
        if file.stat != found.stat && file.is_unread() {
            return Observed::NeedsScan;
        }
        self.totals.remove(file);
        let reason = self.observe(id, &found, now);
        if let Some(file) = self.files.get(&id) {
            self.totals.add(file);
        }
        let Some(reason) = reason else { return Observed::Known };
        if let Some(file) = self.take(id) {
            self.missing.push(file.into_missing(reason));
        }
        Observed::NeedsScan
    }

    /// Removes a file whose content changed from the tracked ones. The next scan treats what its
    /// path leads to as an untracked file, which may itself be a copy.
    pub(crate) fn content_changed(&mut self, file: TrackedFile) {
        self.missing.push(file.into_missing(MissingReason::ContentChanged));
    }

    fn remove_as_missing(&mut self, id: FileId, reason: MissingReason) {
        if let Some(file) = self.files.remove(&id) {
            self.missing.push(file.into_missing(reason));
        }
    }

    /// Changes of the position by emitted lines of these files, or of all files. Those of missing
    /// files are included: the source may stop before the next scan.
    pub(crate) fn positions(&mut self, of: Option<Vec<FileId>>) -> Result<Vec<PositionChange>> {
        let mut changes = Vec::new();
        match of {
            None => {
                for file in self.files.values_mut() {
                    changes.extend(file.position()?);
                }
            }
            Some(ids) => {
                for id in ids {
                    let file = self.files.get_mut(&id);
                    changes.extend(file.map(TrackedFile::position).transpose()?.flatten());
                }
            }
        }
        for missing in &mut self.missing {
            changes.extend(missing.file.position()?);
        }
        Ok(changes)
    }

    /// The rotation groups of missing files, by their ordering keys: newer files of these groups
    /// wait until the continuations are found.
    pub(crate) fn missing_groups(&self) -> impl Iterator<Item = u32> {
        self.missing.iter().map(|missing| missing.file.ordering_key)
    }

    /// Whether a finished file has grown, so that a scan follows it again.
    pub(crate) fn has_finished_grown(&self) -> bool {
        self.retired.has_grown()
    }

    /// Whether a file is followed that may have any name.
    pub(crate) fn follows_unknown_paths(&self) -> bool {
        self.files.values().any(|file| file.path_state == PathState::Detached)
    }

    /// Whether another scan is needed before the source has caught up.
    pub(crate) fn needs_scan(&self) -> bool {
        !self.missing.is_empty() || self.unsettled || self.awaits_reading
    }

    /// Whether the last scan met a change in progress, so that only another one identifies the
    /// files.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Whether only a change of a file or folder makes another scan useful: no file waits for
    /// another scan, or is followed without a path.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.needs_scan() && self.awaits_writing.is_empty() && !self.follows_unknown_paths()
    }

    /// Warns, at the end of a run, about new files that it did not read.
    pub(crate) fn report_unread(&mut self) {
        self.report_unread_copies();
        for path in &self.awaits_writing {
            tracing::warn!(
                "{} was not read: it is the beginning of a compressed file that is being written; the next run reads it",
                path.display()
            );
        }
    }

    /// The files that cannot be read now.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.files.values().filter_map(|file| file.failure.as_ref())
    }

    /// Messages about the paths that could not be scanned.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = String> {
        self.unreadable.iter().map(|(path, why)| format!("cannot scan {}: {why}", path.display()))
    }

    fn report_unreadable(&mut self, unreadable: Vec<(PathBuf, String)>) {
        for (path, why) in &unreadable {
            if !self.unreadable.contains_key(path) {
                tracing::warn!(
                    "cannot scan {}: {why}; the source retries it and keeps reading the other files",
                    path.display()
                );
            }
        }
        self.unreadable = unreadable.into_iter().collect();
    }

    /// Recognises files by device and inode; returns the others, one entry per file.
    fn match_by_id(&mut self, found: Vec<Found>, now: Instant) -> Vec<Found> {
        let mut by_id: BTreeMap<FileId, Found> = BTreeMap::new();
        for found in found {
            let known_path = self.files.get(&found.id).map(|file| &file.path);
            let is_known_path = |path: &Path| known_path.is_some_and(|known| is_same_path(known, path));
            let is_known = is_known_path(&found.path);
            let preferred = |other: &Found| is_known || (!is_known_path(&other.path) && other.linked && !found.linked);
            if by_id.get(&found.id).is_none_or(preferred) {
                by_id.insert(found.id, found);
            }
        }
        for file in self.files.values_mut().filter(|file| !by_id.contains_key(&file.id)) {
            if file.path_state == PathState::Matched {
                file.path_state = PathState::Detached;
                file.resting_since = now;
            }
            file.missed_scans = file.missed_scans.saturating_add(1);
        }
        let mut untracked = Vec::new();
        for (id, found) in by_id {
            match self.files.get(&id) {
                None => untracked.push(found),
                // An inode without a descriptor may have been reused since, even by a copy of a
                // missing file. And a file of which nothing was read (so far it had only the header
                // of a compressed file, say) can be compared better now.
                Some(file) if file.stat != found.stat && file.is_unread() => {
                    self.remove_as_missing(id, MissingReason::Finished);
                    untracked.push(found);
                }
                Some(_) => {
                    if let Some(reason) = self.observe(id, &found, now) {
                        self.remove_as_missing(id, reason);
                        untracked.push(found);
                    }
                }
            }
        }
        untracked
    }

    /// Updates a tracked file that a scan found. A reason if what was found has other content.
    fn observe(&mut self, id: FileId, found: &Found, now: Instant) -> Option<MissingReason> {
        let file = self.files.get_mut(&id)?;
        if file.stat != found.stat {
            file.verified &= file.reader.is_some();
        }
        let is_moved = !is_same_path(&file.path, &found.path);
        let is_unread = file.changed && file.at_end != Some(file.stat);
        file.changed = file.stat != found.stat || is_moved || is_unread;
        if is_moved {
            tracing::info!(from = %file.path.display(), to = %found.path.display(), "file was renamed");
        }
        let known = Known::of(file);
        file.move_to(found, now);
        file.path_state = PathState::Matched;
        file.missed_scans = 0;
        let unchanged = file.at_end == Some(found.stat);
        file.observe(found.stat, now);
        if file.verified {
            return None;
        }
        file.resting_since = now;
        if unchanged {
            file.verified = true;
            return None;
        }
        self.limit_open_files();
        let file = self.files.get_mut(&id)?;
        match file.open(self.options.compression) {
            Ok(OpenOutcome::Open) => self.opened.push(id),
            Ok(OpenOutcome::Moved) => {}
            Ok(OpenOutcome::ContentChanged) => return Some(known.restore_if_reused(file)),
            Err(error) => file.fail(&error),
        }
        None
    }

    /// Handles files that no glob matches any more: each is followed by its descriptor, found near
    /// its old path, finished, or missing.
    fn follow_absent(&mut self, now: Instant) {
        let absent: Vec<FileId> =
            self.files.values().filter(|file| file.path_state == PathState::Detached).map(|file| file.id).collect();
        let mut neighbourhood = Neighbourhood::default();
        for id in absent {
            let Some(file) = self.files.get_mut(&id) else { continue };
            if let Some(metadata) = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok()) {
                file.observe(identify(&metadata).1, now);
            } else {
                let known = Known::of(file);
                let opened = match neighbourhood.find(file) {
                    Some(found) => {
                        file.move_to(&found, now);
                        file.observe(found.stat, now);
                        file.open(self.options.compression)
                    }
                    None => Ok(OpenOutcome::Moved),
                };
                let reason = match opened {
                    Ok(OpenOutcome::Open) => None,
                    Ok(OpenOutcome::ContentChanged) => Some(known.restore_if_reused(file)),
                    Ok(OpenOutcome::Moved) | Err(_) => Some(MissingReason::Deleted),
                };
                if let Some(reason) = reason {
                    self.remove_as_missing(id, reason);
                    continue;
                }
                self.opened.push(id);
                tracing::info!(path = %file.path.display(), "file was renamed; it is followed until it is finished");
            }
            let read = file.at_end == Some(file.stat) && (!file.has_rest || file.continued);
            if read && file.missed_scans >= SCANS_UNTIL_MISSING && file.rested(self.options.rotate_wait, now) {
                self.remove_as_missing(id, MissingReason::Finished);
            }
        }
    }

    /// Adds a file that was taken from `files` to be read.
    pub(crate) fn put_back(&mut self, file: TrackedFile, was_opened: bool) {
        if was_opened && file.reader.is_some() {
            self.opened.push(file.id);
        }
        self.totals.add(&file);
        self.files.insert(file.id, file);
    }

    /// Closes descriptors, so that one more file can be opened within `max_open_files`: first of
    /// files at their end, then of those not used for longest. Detached files stay open, because
    /// they cannot be reopened.
    pub(crate) fn limit_open_files(&mut self) {
        if self.opened.len() < self.close_at {
            return;
        }
        let mut opened = std::mem::take(&mut self.opened);
        opened.sort_unstable();
        opened.dedup();
        opened.retain(|id| self.files.get(id).is_some_and(|file| file.reader.is_some()));
        let max = self.options.max_open_files;
        // Closes a few more than needed, so that this does not run for each file.
        let spare = max / 8 + 1;
        let excess = (opened.len() + spare).saturating_sub(max);
        if opened.len() >= max {
            opened.sort_by_key(|id| self.files.get(id).map(|file| (file.at_end != Some(file.stat), file.used)));
            let mut closed = 0;
            for id in &opened {
                let Some(file) = self.files.get_mut(id) else { continue };
                file.used = false;
                if closed < excess && file.path_state == PathState::Matched {
                    self.totals.remove(file);
                    file.note_read();
                    file.reader = None;
                    self.totals.add(file);
                    closed += 1;
                }
            }
            opened.retain(|id| self.files.get(id).is_some_and(|file| file.reader.is_some()));
        }
        self.close_at = max.max(opened.len() + spare);
        self.opened = opened;
    }
}
