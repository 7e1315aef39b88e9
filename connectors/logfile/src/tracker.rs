//! [`Tracker`]: which file is which, from one look at the file system to the next.
//!
//! A file is followed by its device and inode, so a new name changes nothing. Whenever that does not hold, contents decide:
//!
//! - *Its content is another* (shorter than what was read, or its head or tail differ): it was truncated, overwritten, or its inode was given
//!   to a new file. What was read is **lost** here; the file is read from its beginning.
//! - *It is gone*, from its path and from every descriptor: lost too. While a descriptor is open, a file that was removed or renamed away
//!   is followed through it until it has been at rest for `rotate_wait`, and is forgotten then.
//! - A lost file lives on in an **heir**: a file not followed yet whose decompressed content has the same head, and the same tail before
//!   the same offset (what `copytruncate` and `gzip` leave behind). The heir goes on where the lost one stopped. If there is none and
//!   something was not read, that is told, with what is known of how much.
//! - A new file that is so far a copy of one that is *still there* is its **shadow**, and is not read: it is either what `copytruncate` makes just
//!   before it truncates, or what `gzip` makes before it removes. It becomes the heir when that happens, and a file of its own if
//!   the two differ one day.
//!
//! Files come, go and change while they are looked at. What a look finds is true of every file by itself, what it does *not* find may only have
//! been moved under it: a file is given up, and a new one is taken for new, only where nothing was in motion; until then the look is
//! **undecided** and there is another one at once.
//!
//! A stored position past the end of its file is a truncation that happened while no worker ran. To go on waiting there for the file to grow
//! (or to fail) would lose every line written since; to begin anew can only repeat lines if somebody cut the file's end off.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use trunkline_connector::{PositionChange, Result};

use crate::config::{LogfileOptions, ReadFrom};
use crate::discovery::{Found, Scan, files_of, identify};
use crate::file::{Attempt, Failure, Lost, Place, TrackedFile, Why};
use crate::heirs::{self, Likeness, Pool, Relatives};
use crate::input::Input;
use crate::names::family;
use crate::position::{FileId, STARTED_KEY, Saved};

/// How long a file that cannot be read is left alone before the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// Looks in a row that do not find a file, or nothing that it lives on in, before it is given up: one may pass a file by that is renamed while
/// its folder is listed.
const MISSED: u32 = 3;

pub(crate) struct Tracker {
    options: Arc<LogfileOptions>,
    pub(crate) files: BTreeMap<FileId, TrackedFile>,
    /// Files whose content changed under the reader since the last look.
    lost: Vec<Lost>,
    /// Copies of files that are still there, as they were when compared.
    shadows: HashMap<FileId, Shadow>,
    /// Nothing was ever read by this source.
    first_start: bool,
    /// Places that could not be looked at, to tell each once.
    unreadable: HashMap<PathBuf, String>,
    /// See [`Tracker::is_undecided`].
    undecided: bool,
}

struct Shadow {
    of: FileId,
    copy: Found,
}

/// What a look at the file system changed beside the files themselves.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) changes: Vec<PositionChange>,
    /// Lost files whose reader holds lines that will not come any more from elsewhere.
    pub(crate) orphans: Vec<Lost>,
}

impl Tracker {
    pub(crate) fn new(options: Arc<LogfileOptions>, saved: Vec<(String, FileId, Saved)>, first_start: bool) -> Self {
        let now = Instant::now();
        let mut files = BTreeMap::new();
        let mut lost = Vec::new();
        for (key, id, saved) in saved {
            let file = TrackedFile::load(key, id, saved, now);
            if let Some(other) = files.insert(id, file) {
                // Two positions under one inode: a file, and the one that had the inode before it.
                lost.push(other.lose(Why::Gone));
            }
        }
        Self {
            options,
            files,
            lost,
            shadows: HashMap::new(),
            first_start,
            unreadable: HashMap::new(),
            undecided: false,
        }
    }

    /// Takes up what a look at the file system found.
    pub(crate) fn reconcile(&mut self, scan: Scan) -> Result<Outcome> {
        let now = Instant::now();
        let mut outcome = Outcome::default();
        self.undecided = false;
        self.tell_unreadable(scan.unreadable);
        let mut unclaimed = self.sight(scan.found, now);
        self.look_for_absent(now);
        while self.check_relatives(&mut unclaimed) {}
        self.find_heirs(&mut unclaimed, &mut outcome, now)?;
        // What is new may turn out to be the heir of what is still missing.
        if !self.undecided {
            self.take_up_new(unclaimed, now);
        }
        if !self.undecided && std::mem::take(&mut self.first_start) && self.options.read_from == ReadFrom::End {
            outcome.changes.push(PositionChange { key: STARTED_KEY.to_owned(), value: Some(b"{}".to_vec()) });
        }
        Ok(outcome)
    }

    /// A file's content is no longer what was read, found while reading. What is under its path now is taken up by the next look, as any
    /// file not followed yet: it may itself be a copy of something.
    pub(crate) fn content_changed(&mut self, id: FileId) {
        if let Some(file) = self.files.remove(&id) {
            self.lost.push(file.lose(Why::Truncated));
        }
    }

    /// Changes of the position by what was handed out. Of lost files too: the look that settles them may come after a stop.
    pub(crate) fn positions(&mut self) -> impl Iterator<Item = Result<PositionChange>> {
        let lost = self.lost.iter_mut().map(|lost| &mut lost.file);
        self.files.values_mut().chain(lost).filter_map(|file| file.position().transpose())
    }

    /// A look at the file system is needed before reading goes on.
    pub(crate) fn needs_scan(&self) -> bool {
        !self.lost.is_empty() || self.undecided
    }

    /// The last look came in the middle of a change: only another one says what a file is.
    pub(crate) fn is_undecided(&self) -> bool {
        self.undecided
    }

    /// Messages about what cannot be read now.
    pub(crate) fn failures(&self) -> Vec<String> {
        let files = self.files.values().filter_map(|file| file.failure.as_ref()).map(|failure| failure.message.clone());
        let places = self.unreadable.iter().map(|(path, why)| format!("cannot look at {}: {why}", path.display()));
        files.chain(places).collect()
    }

    /// Remembers that a file cannot be read now, and tells it the first time.
    pub(crate) fn fail(file: &mut TrackedFile, error: &std::io::Error) {
        let message = format!("cannot read {}: {error}", file.path.display());
        if file.failure.as_ref().is_none_or(|failure| failure.message != message) {
            tracing::warn!("{message}; it is tried again, other files go on");
        }
        file.failure = Some(Failure { message, retry_at: Instant::now() + RETRY });
        file.reader = None;
    }

    fn tell_unreadable(&mut self, unreadable: Vec<(PathBuf, String)>) {
        for (path, why) in &unreadable {
            if !self.unreadable.contains_key(path) {
                tracing::warn!("cannot look at {}: {why}; it is tried again, other files go on", path.display());
            }
        }
        self.unreadable = unreadable.into_iter().collect();
    }

    /// Recognises files by device and inode; gives back those that are not followed yet, one entry a file.
    fn sight(&mut self, found: Vec<Found>, now: Instant) -> Vec<Found> {
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
                file.place = Place::Detached;
                file.missed = file.missed.saturating_add(1);
            }
        }
        let mut unclaimed = Vec::new();
        for (id, found) in by_id {
            let Some(file) = self.files.get_mut(&id) else {
                unclaimed.push(found);
                continue;
            };
            if file.stat != found.stat {
                // Without a descriptor that holds it, its inode may have been given to another file since: to a copy of one that is lost
                // now, even. And of what nothing was read yet, say because so far it is the mere header of a gzip file, more can be told now.
                if file.is_unread() {
                    if let Some(file) = self.files.remove(&id) {
                        self.lost.push(file.lose(Why::Finished));
                    }
                    unclaimed.push(found);
                    continue;
                }
                file.verified &= file.reader.is_some();
            }
            if file.path != found.path {
                tracing::info!(from = %file.path.display(), to = %found.path.display(), "file was renamed");
            }
            file.path = found.path.clone();
            file.place = Place::Matched;
            file.missed = 0;
            let unchanged = file.at_end == Some(found.stat);
            file.sighted(found.stat, now);
            if file.verified {
                continue;
            }
            file.resting_since = now;
            if unchanged {
                file.verified = true;
                continue;
            }
            match file.open(self.options.compression) {
                Ok(Attempt::Open | Attempt::Moved) => {}
                Ok(Attempt::Changed) => {
                    if let Some(file) = self.files.remove(&id) {
                        self.lost.push(file.lose(Why::Truncated));
                    }
                    unclaimed.push(found);
                }
                Err(error) => Self::fail(file, &error),
            }
            self.limit_open_files(id);
        }
        unclaimed
    }

    /// Files that no glob matches any more: followed by descriptor, found again beside their old path, finished, or lost.
    fn look_for_absent(&mut self, now: Instant) {
        let absent: Vec<FileId> =
            self.files.values().filter(|file| file.place == Place::Detached).map(|file| file.id).collect();
        let mut folders: HashMap<PathBuf, Vec<Found>> = HashMap::new();
        for id in absent {
            let Some(file) = self.files.get_mut(&id) else { continue };
            if let Some(metadata) = file.reader.as_ref().and_then(|reader| reader.file().metadata().ok()) {
                file.sighted(identify(&metadata).1, now);
            } else {
                let folder = file.path.parent().map(PathBuf::from).unwrap_or_default();
                let beside = folders.entry(folder).or_insert_with_key(|folder| files_of(folder));
                // As in [`Tracker::sight`]: what was not read can only be told by its looks.
                let is_it = |found: &&Found| found.id == id && (!file.is_unread() || found.stat == file.stat);
                let again = beside.iter().find(is_it).cloned();
                let open = match again {
                    Some(found) => {
                        file.path = found.path;
                        file.sighted(found.stat, now);
                        file.open(self.options.compression)
                    }
                    None => Ok(Attempt::Moved),
                };
                if !matches!(open, Ok(Attempt::Open)) {
                    let why = if matches!(open, Ok(Attempt::Changed)) { Why::Truncated } else { Why::Gone };
                    if let Some(file) = self.files.remove(&id) {
                        self.lost.push(file.lose(why));
                    }
                    continue;
                }
                tracing::info!(path = %file.path.display(), "file was renamed; it is followed until it is finished");
            }
            let read = file.at_end == Some(file.stat) && !file.has_rest;
            let finished = read && file.missed >= MISSED && file.rested(self.options.rotate_wait, now);
            if finished && let Some(file) = self.files.remove(&id) {
                self.lost.push(file.lose(Why::Finished));
            }
        }
    }

    /// Before a new file is compared with a relative, make sure that the relative's content is still there: a copy may appear and its
    /// original be truncated between two looks. `true` if one was not, and is now unclaimed itself.
    fn check_relatives(&mut self, unclaimed: &mut Vec<Found>) -> bool {
        let new: Vec<&Found> = unclaimed
            .iter()
            .filter(|found| self.shadows.get(&found.id).is_none_or(|shadow| shadow.copy.stat != found.stat))
            .collect();
        if new.is_empty() {
            return false;
        }
        let relatives = Relatives::of(self.files.values());
        let mut originals: BTreeSet<FileId> = BTreeSet::new();
        for found in new {
            let may_be = |id: &FileId| self.files.get(id).is_some_and(|file| heirs::may_be_copy(found, file));
            originals.extend(relatives.originals(found).iter().filter(|id| may_be(id)));
        }
        let before = unclaimed.len();
        for id in originals {
            let Some(file) = self.files.get(&id) else { continue };
            if heirs::content_is_gone(file, self.options.compression) == Some(true) {
                if file.place == Place::Matched {
                    unclaimed.push(Found { path: file.path.clone(), id, stat: file.stat });
                }
                self.content_changed(id);
            }
        }
        unclaimed.len() > before
    }

    fn find_heirs(&mut self, unclaimed: &mut Vec<Found>, outcome: &mut Outcome, now: Instant) -> Result<()> {
        if self.lost.is_empty() {
            return Ok(());
        }
        // An inode that was a shadow's may have been given to another file.
        let sizes: HashMap<FileId, u64> = unclaimed.iter().map(|found| (found.id, found.stat.size)).collect();
        self.shadows.retain(|id, shadow| sizes.get(id).is_none_or(|size| *size >= shadow.copy.stat.size));
        let compression = self.options.compression;
        let pool = Pool::new(unclaimed.clone(), compression);
        let mut beside: HashMap<PathBuf, Pool> = HashMap::new();
        let mut taken: HashSet<FileId> = HashSet::new();
        for mut lost in std::mem::take(&mut self.lost) {
            let shadows: HashSet<FileId> =
                self.shadows.values().filter(|shadow| shadow.of == lost.file.id).map(|shadow| shadow.copy.id).collect();
            let mut candidates = pool.candidates(&lost, &shadows);
            candidates.retain(|found| !taken.contains(&found.id));
            let matched = candidates.len();
            if lost.unread > 0 || lost.why == Why::Truncated {
                let folder = lost.file.path.parent().map(PathBuf::from).unwrap_or_default();
                let beside = beside.entry(folder).or_insert_with_key(|folder| {
                    let unknown = files_of(folder).into_iter().filter(|found| !self.files.contains_key(&found.id));
                    Pool::new(unknown.collect(), compression)
                });
                candidates.extend(beside.candidates(&lost, &shadows));
                candidates.retain(|found| !taken.contains(&found.id));
            }
            // One that holds all that was read comes before one that holds a part of it.
            let (mut heir, mut moved) = (None, false);
            for (number, found) in candidates.into_iter().enumerate() {
                let likeness = heirs::compare(&lost, &found, shadows.contains(&found.id), self.options.compression);
                let place = if number < matched { Place::Matched } else { Place::Detached };
                match likeness {
                    Likeness::Whole => {
                        heir = Some((found, likeness, place));
                        break;
                    }
                    Likeness::Part(_) if heir.is_none() => heir = Some((found, likeness, place)),
                    Likeness::Unknown => moved = true,
                    Likeness::Part(_) | Likeness::None => {}
                }
            }
            lost.looks += u32::from(!moved);
            let shadow_missed = shadows.iter().any(|id| !sizes.contains_key(id));
            let expected = shadow_missed || (lost.why != Why::Finished && !lost.file.is_unread());
            let looked_enough = lost.looks >= MISSED || !expected;
            let found_whole = matches!(heir, Some((_, Likeness::Whole, _)));
            if !found_whole && (moved || (heir.is_none() && !looked_enough)) {
                self.lost.push(lost);
                self.undecided = true;
                continue;
            }
            // The old key goes first: the heir's, or that of the file that is read anew, may be the same.
            if let Some(key) = &lost.file.key {
                outcome.changes.push(PositionChange { key: key.clone(), value: None });
            }
            let Some((found, likeness, place)) = heir else {
                heirs::tell_lost(&lost);
                if lost.file.reader.is_some() {
                    outcome.orphans.push(lost);
                }
                continue;
            };
            tracing::info!(from = %lost.file.path.display(), to = %found.path.display(), offset = lost.file.read.offset, "file goes on in a copy");
            taken.insert(found.id);
            self.shadows.remove(&found.id);
            let mut file = TrackedFile { place, ..TrackedFile::adopt(&lost, found, now) };
            if let Likeness::Part(read) = likeness {
                // All of the copy was read already, and more.
                file.read = read;
                file.at_end = Some(file.stat);
            }
            outcome.changes.extend(file.position()?);
            self.files.insert(file.id, file);
        }
        unclaimed.retain(|found| !taken.contains(&found.id));
        Ok(())
    }

    fn take_up_new(&mut self, mut unclaimed: Vec<Found>, now: Instant) {
        let still_there: HashSet<FileId> = unclaimed.iter().map(|found| found.id).collect();
        self.shadows.retain(|id, _| still_there.contains(id));
        if unclaimed.is_empty() {
            return;
        }
        // A log before what it was rotated to: if both are new and alike, the latter is the copy.
        unclaimed.sort_by_cached_key(|found| {
            let path = found.path.to_string_lossy().into_owned();
            (family(&path) != path, path)
        });
        let mut relatives = Relatives::of(self.files.values());
        for found in unclaimed {
            // An empty file may be a copy that is about to be made: it is decided when there is something in it. So may the beginning of a
            // compressed one, as long as it is written; one that was cut off for good is read for what it has.
            let being_written = age_of(&found).is_none_or(|age| age < self.options.rotate_wait);
            let waits = |cut_off_after| cut_off_after == 0 || being_written;
            if found.stat.size == 0 || heirs::cut_off_after(&found, self.options.compression).is_some_and(waits) {
                continue;
            }
            // Only now, for what is complete stays so: the other way round, one that is completed between the two would pass both.
            if self.is_shadow(&found, &relatives) || self.is_too_old(&found) {
                continue;
            }
            let mut file = TrackedFile::new(found, now);
            if self.first_start && self.options.read_from == ReadFrom::End {
                match File::open(&file.path)
                    .and_then(|opened| Input::open(opened, self.options.compression)?.fingerprint_of_all())
                {
                    Ok(read) => {
                        file.read = read;
                        file.at_end = Some(file.stat);
                        file.moved = true;
                    }
                    Err(error) => {
                        Self::fail(&mut file, &error);
                    }
                }
            }
            relatives.add(&file);
            self.files.insert(file.id, file);
        }
    }

    fn is_shadow(&mut self, found: &Found, relatives: &Relatives) -> bool {
        if let Some(shadow) = self.shadows.get(&found.id)
            && shadow.copy.stat == found.stat
            && self.files.contains_key(&shadow.of)
        {
            return true;
        }
        let was_shadow = self.shadows.remove(&found.id).is_some();
        let mut original = None;
        for file in relatives.originals(found).into_iter().filter_map(|id| self.files.get(&id)) {
            if !heirs::may_be_copy(found, file) {
                continue;
            }
            match heirs::is_copy(found, file, self.options.compression) {
                Some(false) => {}
                Some(true) => {
                    original = Some(file);
                    break;
                }
                None => {
                    // Taken for a new file now, it could not become the heir of the one that just went.
                    self.undecided = true;
                    return true;
                }
            }
        }
        let Some(original) = original else { return false };
        if !was_shadow {
            tracing::info!(path = %found.path.display(), of = %original.path.display(), "file is a copy of one that is read: it is not read a second time");
        }
        self.shadows.insert(found.id, Shadow { of: original.id, copy: found.clone() });
        true
    }

    fn is_too_old(&self, found: &Found) -> bool {
        let at_first = self.first_start && self.options.read_from == ReadFrom::End;
        let Some(limit) = self.options.ignore_older.filter(|_| !at_first) else { return false };
        age_of(found).is_some_and(|age| age > limit)
    }

    /// Closes descriptors beyond `max_open_files`: of files at their end first, then of those not used for longest. Files that have no path
    /// any more stay open, for they cannot be opened again; so does the one that is `in_use`.
    pub(crate) fn limit_open_files(&mut self, in_use: FileId) {
        let mut open: Vec<&mut TrackedFile> = self.files.values_mut().filter(|file| file.reader.is_some()).collect();
        if open.len() <= self.options.max_open_files {
            return;
        }
        // Close some more than needed, so that this is not done for every single file.
        let spare = self.options.max_open_files / 8;
        let too_many = open.len() - self.options.max_open_files + spare;
        open.sort_by_key(|file| (file.at_end != Some(file.stat), file.used));
        let mut closed = 0;
        for file in open {
            file.used = false;
            if closed < too_many && file.place == Place::Matched && file.id != in_use {
                file.note_read();
                file.reader = None;
                closed += 1;
            }
        }
    }
}

/// Time since a file was written to last; `None` if that is in the future.
fn age_of(found: &Found) -> Option<Duration> {
    let modified = std::time::UNIX_EPOCH + Duration::from_nanos(u64::try_from(found.stat.modified).unwrap_or(0));
    SystemTime::now().duration_since(modified).ok()
}
