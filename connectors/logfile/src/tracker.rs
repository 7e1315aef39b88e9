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

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use trunkline_connector::{PositionChange, Result};

use crate::config::{LogfileOptions, ReadFrom};
use crate::copy_detection::{self, CandidateIndex, ContentMatch, CopyIndex};
use crate::discovery::{Found, Scan, files_of, identify};
use crate::file::{MissingFile, MissingReason, OpenOutcome, PathState, TrackedFile};
use crate::input::Input;
use crate::names::rotation_group;
use crate::position::{FileId, FilePosition, STARTED_KEY};

/// Pause before the next attempt to read an unreadable file.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// Consecutive scans that must miss a file, or its continuation, before it is given up: a single
/// scan may overlook a file that is renamed while its folder is listed.
const SCANS_UNTIL_MISSING: u32 = 3;

pub(crate) struct Tracker {
    options: Arc<LogfileOptions>,
    pub(crate) files: BTreeMap<FileId, TrackedFile>,
    /// Files without their content, until their continuation is found.
    missing: Vec<MissingFile>,
    /// Copies of files that are intact, as they were when compared.
    copies: HashMap<FileId, KnownCopy>,
    /// This source has not read anything yet.
    first_start: bool,
    /// Paths that could not be scanned, to warn once about each.
    unreadable: HashMap<PathBuf, String>,
    /// See [`Tracker::is_unsettled`].
    unsettled: bool,
}

struct KnownCopy {
    original: FileId,
    copy: Found,
}

/// Side effects of a scan.
#[derive(Default)]
pub(crate) struct Reconciled {
    pub(crate) changes: Vec<PositionChange>,
    /// Missing files without a continuation whose readers hold lines that were not emitted.
    pub(crate) abandoned: Vec<MissingFile>,
}

/// The file that continues a missing one.
struct Continuation {
    found: Found,
    /// Set if the file ends before the missing file's offset.
    read: Option<crate::fingerprint::Fingerprint>,
    path_state: PathState,
}

/// Result of the search for a continuation.
struct Search {
    continuation: Option<Continuation>,
    /// A candidate was moved during the search.
    moved: bool,
}

impl Tracker {
    pub(crate) fn new(
        options: Arc<LogfileOptions>,
        saved: Vec<(String, FileId, FilePosition)>,
        first_start: bool,
    ) -> Self {
        let now = Instant::now();
        let mut files = BTreeMap::new();
        let mut missing = Vec::new();
        for (key, id, saved) in saved {
            let file = TrackedFile::load(key, id, saved, now);
            if let Some(other) = files.insert(id, file) {
                // Two positions with one inode: the file, and the one that had the inode before it.
                missing.push(other.into_missing(MissingReason::Deleted));
            }
        }
        Self {
            options,
            files,
            missing,
            copies: HashMap::new(),
            first_start,
            unreadable: HashMap::new(),
            unsettled: false,
        }
    }

    /// Updates the tracked files with the result of a scan.
    pub(crate) fn reconcile(&mut self, scan: Scan) -> Result<Reconciled> {
        let now = Instant::now();
        let mut reconciled = Reconciled::default();
        self.unsettled = false;
        self.report_unreadable(scan.unreadable);
        let mut untracked = self.match_by_id(scan.found, now);
        self.follow_absent(now);
        while self.check_originals(&mut untracked) {}
        self.find_continuations(&mut untracked, &mut reconciled, now)?;
        // A new file may still turn out to continue a missing one.
        if !self.unsettled {
            self.track_new(untracked, now);
        }
        if !self.unsettled && std::mem::take(&mut self.first_start) && self.options.read_from == ReadFrom::End {
            reconciled.changes.push(PositionChange { key: STARTED_KEY.to_owned(), value: Some(b"{}".to_vec()) });
        }
        Ok(reconciled)
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

    /// Changes of the position by emitted lines, those of missing files included: the source may
    /// stop before the next scan.
    pub(crate) fn positions(&mut self) -> impl Iterator<Item = Result<PositionChange>> {
        let missing = self.missing.iter_mut().map(|missing| &mut missing.file);
        self.files.values_mut().chain(missing).filter_map(|file| file.position().transpose())
    }

    /// Whether reading must wait for another scan.
    pub(crate) fn needs_scan(&self) -> bool {
        !self.missing.is_empty() || self.unsettled
    }

    /// Whether the last scan met a change in progress, so that only another one identifies the
    /// files.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unsettled
    }

    /// Messages about everything that cannot be read now.
    pub(crate) fn failures(&self) -> Vec<String> {
        let files = self.files.values().filter_map(|file| file.failure.as_ref()).map(|failure| failure.message.clone());
        let paths = self.unreadable.iter().map(|(path, why)| format!("cannot scan {}: {why}", path.display()));
        files.chain(paths).collect()
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
            let preferred = known_path == Some(&found.path);
            if preferred || !by_id.contains_key(&found.id) {
                by_id.insert(found.id, found);
            }
        }
        for file in self.files.values_mut() {
            if !by_id.contains_key(&file.id) {
                file.path_state = PathState::Detached;
                file.missed_scans = file.missed_scans.saturating_add(1);
            }
        }
        let mut untracked = Vec::new();
        for (id, found) in by_id {
            match self.files.get(&id) {
                None => untracked.push(found),
                // An inode without a descriptor may have been reused since, even by a copy of a
                // missing file. And a file of which nothing was read (so far it had only a gzip
                // header, say) can be compared better now.
                Some(file) if file.stat != found.stat && file.is_unread() => {
                    self.remove_as_missing(id, MissingReason::Finished);
                    untracked.push(found);
                }
                Some(_) => {
                    if !self.observe(id, &found, now) {
                        self.remove_as_missing(id, MissingReason::ContentChanged);
                        untracked.push(found);
                    }
                }
            }
        }
        untracked
    }

    /// Updates a tracked file that a scan found. `false` if it has other content.
    fn observe(&mut self, id: FileId, found: &Found, now: Instant) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return true };
        if file.stat != found.stat {
            file.verified &= file.reader.is_some();
        }
        if file.path != found.path {
            tracing::info!(from = %file.path.display(), to = %found.path.display(), "file was renamed");
        }
        file.path = found.path.clone();
        file.path_state = PathState::Matched;
        file.missed_scans = 0;
        let unchanged = file.at_end == Some(found.stat);
        file.observe(found.stat, now);
        if file.verified {
            return true;
        }
        file.resting_since = now;
        if unchanged {
            file.verified = true;
            return true;
        }
        match file.open(self.options.compression) {
            Ok(OpenOutcome::Open | OpenOutcome::Moved) => {}
            Ok(OpenOutcome::ContentChanged) => return false,
            Err(error) => file.fail(&error, RETRY),
        }
        self.limit_open_files();
        true
    }

    /// Handles files that no glob matches any more: each is followed by its descriptor, found in
    /// the folder of its old path, finished, or missing.
    fn follow_absent(&mut self, now: Instant) {
        let absent: Vec<FileId> =
            self.files.values().filter(|file| file.path_state == PathState::Detached).map(|file| file.id).collect();
        let mut folders: HashMap<PathBuf, Vec<Found>> = HashMap::new();
        for id in absent {
            let Some(file) = self.files.get_mut(&id) else { continue };
            if let Some(metadata) = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok()) {
                file.observe(identify(&metadata).1, now);
            } else {
                let folder = file.path.parent().map(PathBuf::from).unwrap_or_default();
                let neighbours = folders.entry(folder).or_insert_with_key(|folder| files_of(folder));
                // As in `match_by_id`: a file of which nothing was read is identified by its state
                // too.
                let is_it = |found: &&Found| found.id == id && (!file.is_unread() || found.stat == file.stat);
                let opened = match neighbours.iter().find(is_it).cloned() {
                    Some(found) => {
                        file.path = found.path;
                        file.observe(found.stat, now);
                        file.open(self.options.compression)
                    }
                    None => Ok(OpenOutcome::Moved),
                };
                if !matches!(opened, Ok(OpenOutcome::Open)) {
                    let changed = matches!(opened, Ok(OpenOutcome::ContentChanged));
                    let reason = if changed { MissingReason::ContentChanged } else { MissingReason::Deleted };
                    self.remove_as_missing(id, reason);
                    continue;
                }
                tracing::info!(path = %file.path.display(), "file was renamed; it is followed until it is finished");
            }
            let read = file.at_end == Some(file.stat) && !file.has_rest;
            if read && file.missed_scans >= SCANS_UNTIL_MISSING && file.rested(self.options.rotate_wait, now) {
                self.remove_as_missing(id, MissingReason::Finished);
            }
        }
    }

    /// Verifies the possible originals of new files before these are compared with them: a copy may
    /// be made and its original truncated between two scans. `true` if one lost its content, and is
    /// now missing and untracked.
    fn check_originals(&mut self, untracked: &mut Vec<Found>) -> bool {
        let new: Vec<&Found> = untracked
            .iter()
            .filter(|found| self.copies.get(&found.id).is_none_or(|known| known.copy.stat != found.stat))
            .collect();
        if new.is_empty() {
            return false;
        }
        let index = CopyIndex::new(self.files.values());
        let mut originals: BTreeSet<FileId> = BTreeSet::new();
        for found in new {
            let may_be = |id: &FileId| self.files.get(id).is_some_and(|file| copy_detection::may_be_copy(found, file));
            originals.extend(index.originals(found).iter().filter(|id| may_be(id)));
        }
        let before = untracked.len();
        for id in originals {
            let Some(file) = self.files.get(&id) else { continue };
            if copy_detection::content_is_gone(file, self.options.compression) == Some(true) {
                if file.path_state == PathState::Matched {
                    untracked.push(Found { path: file.path.clone(), id, stat: file.stat });
                }
                self.remove_as_missing(id, MissingReason::ContentChanged);
            }
        }
        untracked.len() > before
    }

    fn find_continuations(
        &mut self,
        untracked: &mut Vec<Found>,
        reconciled: &mut Reconciled,
        now: Instant,
    ) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        // The inode of a known copy may have been reused.
        let sizes: HashMap<FileId, u64> = untracked.iter().map(|found| (found.id, found.stat.size)).collect();
        self.copies.retain(|id, known| sizes.get(id).is_none_or(|size| *size >= known.copy.stat.size));
        let matched = CandidateIndex::new(untracked.clone(), self.options.compression);
        let mut neighbours: HashMap<PathBuf, CandidateIndex> = HashMap::new();
        let mut taken: HashSet<FileId> = HashSet::new();
        for mut missing in std::mem::take(&mut self.missing) {
            let copies: HashSet<FileId> = self
                .copies
                .values()
                .filter(|known| known.original == missing.file.id)
                .map(|known| known.copy.id)
                .collect();
            let mut candidates: Vec<(Found, PathState)> =
                matched.candidates(&missing, &copies).into_iter().map(|found| (found, PathState::Matched)).collect();
            if missing.unread > 0 || missing.reason == MissingReason::ContentChanged {
                let folder = missing.file.path.parent().map(PathBuf::from).unwrap_or_default();
                let neighbours = neighbours.entry(folder).or_insert_with_key(|folder| {
                    let unknown = files_of(folder).into_iter().filter(|found| !self.files.contains_key(&found.id));
                    CandidateIndex::new(unknown.collect(), self.options.compression)
                });
                let detached = neighbours.candidates(&missing, &copies).into_iter();
                candidates.extend(detached.map(|found| (found, PathState::Detached)));
            }
            candidates.retain(|(found, _)| !taken.contains(&found.id));
            let search = self.search(&missing, candidates, &copies);
            missing.scans += u32::from(!search.moved);
            let copy_unseen = copies.iter().any(|id| !sizes.contains_key(id));
            let expected = copy_unseen || (missing.reason != MissingReason::Finished && !missing.file.is_unread());
            let scanned_enough = missing.scans >= SCANS_UNTIL_MISSING || !expected;
            let certain = search.continuation.as_ref().is_some_and(|found| found.read.is_none());
            if !certain && (search.moved || (search.continuation.is_none() && !scanned_enough)) {
                self.missing.push(missing);
                self.unsettled = true;
                continue;
            }
            taken.extend(search.continuation.as_ref().map(|continuation| continuation.found.id));
            self.settle(missing, search.continuation, reconciled, now)?;
        }
        untracked.retain(|found| !taken.contains(&found.id));
        Ok(())
    }

    /// Compares a missing file with its candidates. One with all of the content is preferred to one
    /// with a part of it.
    fn search(&self, missing: &MissingFile, candidates: Vec<(Found, PathState)>, copies: &HashSet<FileId>) -> Search {
        let mut search = Search { continuation: None, moved: false };
        for (found, path_state) in candidates {
            let is_known_copy = copies.contains(&found.id);
            match copy_detection::compare(missing, &found, is_known_copy, self.options.compression) {
                ContentMatch::Whole => {
                    search.continuation = Some(Continuation { found, read: None, path_state });
                    break;
                }
                ContentMatch::Part(read) if search.continuation.is_none() => {
                    search.continuation = Some(Continuation { found, read: Some(read), path_state });
                }
                ContentMatch::Unknown => search.moved = true,
                ContentMatch::Part(_) | ContentMatch::None => {}
            }
        }
        search
    }

    /// Replaces a missing file by its continuation, or gives it up.
    fn settle(
        &mut self,
        missing: MissingFile,
        continuation: Option<Continuation>,
        reconciled: &mut Reconciled,
        now: Instant,
    ) -> Result<()> {
        // The old key is removed first: the continuation, or the file that is read from its
        // beginning, may get the same key.
        if let Some(key) = &missing.file.key {
            reconciled.changes.push(PositionChange { key: key.clone(), value: None });
        }
        let Some(Continuation { found, read, path_state }) = continuation else {
            copy_detection::report_missing(&missing);
            if missing.file.reader.is_some() {
                reconciled.abandoned.push(missing);
            }
            return Ok(());
        };
        tracing::info!(
            from = %missing.file.path.display(), to = %found.path.display(), offset = missing.file.read.offset,
            "file continues in a copy"
        );
        self.copies.remove(&found.id);
        let mut file = TrackedFile { path_state, ..TrackedFile::continuing(&missing, found, now) };
        if let Some(read) = read {
            // All of the copy's content was read already, and more.
            file.read = read;
            file.at_end = Some(file.stat);
        }
        reconciled.changes.extend(file.position()?);
        self.files.insert(file.id, file);
        Ok(())
    }

    fn track_new(&mut self, mut untracked: Vec<Found>, now: Instant) {
        let present: HashSet<FileId> = untracked.iter().map(|found| found.id).collect();
        self.copies.retain(|id, _| present.contains(id));
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
            // An empty file may become a copy: it is judged when it has content. So may the
            // beginning of a compressed file while it is written; a file that stays truncated is
            // read as far as it goes.
            let being_written = age_of(&found).is_none_or(|age| age < self.options.rotate_wait);
            let waits = |truncated_len| truncated_len == 0 || being_written;
            let compression = self.options.compression;
            if found.stat.size == 0 || copy_detection::truncated_gzip_len(&found, compression).is_some_and(waits) {
                continue;
            }
            // In this order: a file that is complete stays complete. The other way round, a file
            // completed between the two checks would pass both.
            if self.is_copy(&found, &index) || self.is_too_old(&found) {
                continue;
            }
            let mut file = TrackedFile::new(found, now);
            if self.first_start && self.options.read_from == ReadFrom::End {
                match File::open(&file.path).and_then(|opened| Input::open(opened, compression)?.fingerprint_of_all()) {
                    Ok(read) => {
                        file.read = read;
                        file.at_end = Some(file.stat);
                        file.moved = true;
                    }
                    Err(error) => file.fail(&error, RETRY),
                }
            }
            index.add(&file);
            self.files.insert(file.id, file);
        }
    }

    fn is_copy(&mut self, found: &Found, index: &CopyIndex) -> bool {
        if let Some(known) = self.copies.get(&found.id)
            && known.copy.stat == found.stat
            && self.files.contains_key(&known.original)
        {
            return true;
        }
        let was_copy = self.copies.remove(&found.id).is_some();
        let mut original = None;
        for file in index.originals(found).into_iter().filter_map(|id| self.files.get(&id)) {
            if !copy_detection::may_be_copy(found, file) {
                continue;
            }
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
        if !was_copy {
            tracing::info!(
                path = %found.path.display(), original = %original.path.display(),
                "file is a copy of a followed file; it is not read"
            );
        }
        self.copies.insert(found.id, KnownCopy { original: original.id, copy: found.clone() });
        true
    }

    fn is_too_old(&self, found: &Found) -> bool {
        let at_first = self.first_start && self.options.read_from == ReadFrom::End;
        let Some(limit) = self.options.ignore_older.filter(|_| !at_first) else { return false };
        age_of(found).is_some_and(|age| age > limit)
    }

    /// Closes descriptors beyond `max_open_files`: first of files at their end, then of those not
    /// used for longest. Detached files stay open, because they cannot be reopened.
    pub(crate) fn limit_open_files(&mut self) {
        let mut open: Vec<&mut TrackedFile> = self.files.values_mut().filter(|file| file.reader.is_some()).collect();
        if open.len() < self.options.max_open_files {
            return;
        }
        // Closes a few more than needed, so that this does not run for each file.
        let spare = self.options.max_open_files / 8 + 1;
        let excess = open.len() - self.options.max_open_files + spare;
        open.sort_by_key(|file| (file.at_end != Some(file.stat), file.used));
        let mut closed = 0;
        for file in open {
            file.used = false;
            if closed < excess && file.path_state == PathState::Matched {
                file.note_read();
                file.reader = None;
                closed += 1;
            }
        }
    }
}

/// Time since the last modification of a file; `None` if that is in the future.
fn age_of(found: &Found) -> Option<Duration> {
    let modified = std::time::UNIX_EPOCH + Duration::from_nanos(u64::try_from(found.stat.modified).unwrap_or(0));
    SystemTime::now().duration_since(modified).ok()
}
