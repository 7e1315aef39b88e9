//! [`LogfileSource`]: decides which file is read when.
//!
//! A *scan* of the file system ([`crate::discovery`], [`crate::tracker`]) finds the files with
//! something to read, and [`crate::read_queue`] orders them. Between two scans, notifications of
//! the kernel name the files that change ([`crate::watch`]), and the source looks at no others. It
//! scans when a name appears, disappears or moves, when a read meets a file with other content, and
//! at an interval, because not every change is reported.
//!
//! A run that ends when everything was read has caught up after a scan that finds nothing to read.
//!
//! Positions are added at the end of a fill, one change for each file that moved. The changes that
//! a scan makes (a file is gone, a copy continues it) are in the same batch, so that one
//! transaction commits them together (I1).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{
    Error, Fill, PositionChange, Reservation, Result, Retry, Source, SourceBatch, SourceContext, SourceLag, SourceWaker,
};

use crate::config::LogfileOptions;
use crate::discovery;
use crate::discovery::Scan;
use crate::file::{PathState, TrackedFile};
use crate::names::rotation_group;
use crate::position::{self, FileId, STARTED_KEY};
use crate::read_queue::{Age, ReadQueue};
use crate::reading::{LineReading, ReadSlice};
use crate::tracker::{Observed, Reconciled, Tracker};
use crate::watch::{KnownFiles, Watch};

/// Scans take at most this part of the time: the more files, the rarer they are.
const SCAN_TIME_DIVISOR: u32 = 20;
/// Consecutive scans while files are moved, so that an older file is identified before a newer one
/// is read.
const MAX_CONSECUTIVE_SCANS: usize = 5;
/// Longest pause after a scan that took long.
const MAX_SCAN_PAUSE: Duration = Duration::from_secs(5);
/// The same for a run that ends when everything was read: it waits for nothing else.
const MAX_PAUSE_UNTIL_IDLE: Duration = Duration::from_millis(50);
/// Time between two scans where the kernel reports all changes. The source keeps scanning, because
/// a change through a memory map sends no notification.
const NOTIFIED_INTERVAL: Duration = Duration::from_secs(2);
/// The same for many files: such scans take at most this part of the time.
const NOTIFIED_TIME_DIVISOR: u32 = 500;
const MAX_NOTIFIED_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two scans, at least, where the kernel reports all changes of the folders that
/// exist, and others do not exist yet.
const MISSING_FOLDER_INTERVAL: Duration = Duration::from_secs(1);
/// Memory of a tracked file without its reader.
const TRACKED_FILE_BYTES: usize = 2048;

pub(crate) struct LogfileSource {
    options: Arc<LogfileOptions>,
    until_idle: bool,
    tracker: Tracker,
    watch: Watch,
    reading: LineReading,
    queue: ReadQueue,
    /// When a file is read although it does not change.
    timers: BinaryHeap<Reverse<(Instant, FileId)>>,
    /// Earliest time of the next scan.
    next_scan: Instant,
    /// Latest time of the next scan.
    scan_by: Instant,
    /// The same if changes wait while other files are read.
    poll_by: Instant,
    /// Something has changed that only a scan finds.
    rescan: bool,
    /// Rotation groups whose files wait for the next scan, by their ordering key.
    blocked: HashSet<u32>,
    /// When finished files are looked at next.
    check_finished_at: Instant,
    has_scanned: bool,
    /// Files whose position may have moved in this fill, unless there was a scan.
    read: Vec<FileId>,
    /// There was a scan in this fill.
    scanned: bool,
    /// Globs without a file were reported.
    reported_globs: bool,
    reservation: Reservation,
}

impl LogfileSource {
    pub(crate) fn open(options: Arc<LogfileOptions>, context: SourceContext) -> Result<Self> {
        let first_start = context.position.is_empty();
        let mut saved = Vec::new();
        for (key, value) in &context.position {
            if key != STARTED_KEY {
                let (id, value) = position::decode(key, value)?;
                saved.push((key.clone(), id, value));
            }
        }
        let now = Instant::now();
        Ok(Self {
            until_idle: context.until_idle,
            tracker: Tracker::new(Arc::clone(&options), saved, first_start, context.until_idle),
            watch: Watch::new(),
            reading: LineReading::new(Arc::clone(&options), context.until_idle),
            queue: ReadQueue::default(),
            timers: BinaryHeap::new(),
            next_scan: now,
            scan_by: now,
            poll_by: now,
            rescan: false,
            blocked: HashSet::new(),
            check_finished_at: now,
            has_scanned: false,
            read: Vec::new(),
            scanned: false,
            reported_globs: false,
            reservation: context.budget.empty(),
            options,
        })
    }

    fn fill_until(&mut self, out: &mut SourceBatch, mut deadline: Instant) -> Result<Fill> {
        let began = Instant::now();
        let (turn, idle_until) = (deadline.saturating_duration_since(began), deadline.max(began + out.max_wait));
        // A run that ends must have scanned after its last read.
        let mut is_current = !self.until_idle && self.has_scanned;
        loop {
            if Instant::now() >= self.scan_by {
                self.scan(out)?;
                is_current = true;
            }
            self.queue_changed();
            if self.read_queue(out, deadline)? {
                return Ok(Fill::More);
            }
            let is_settled = is_current && !self.rescan && !self.tracker.needs_scan();
            if !is_settled {
                self.scan_by = self.scan_by.min(self.next_scan);
            } else if self.until_idle {
                self.finish_run()?;
                return Ok(Fill::CaughtUp);
            }
            let now = Instant::now();
            let is_idle = is_settled && out.is_empty() && idle_until > deadline;
            let until = if is_idle { idle_until } else { deadline };
            let is_over = now >= until || (!out.is_empty() && (is_settled || now < self.scan_by));
            if is_over || self.watch.take_interruption() {
                return Ok(if is_settled { Fill::CaughtUp } else { Fill::More });
            }
            let timer = self.timers.peek().map_or(until, |Reverse((due, _))| *due);
            self.watch.wait(self.scan_by.min(until).min(timer));
            if is_idle && Instant::now() >= deadline {
                // After the longer wait there is as much time to read as otherwise.
                deadline = Instant::now() + turn;
            }
        }
    }

    /// Queues the files that notifications name, and those whose time has come.
    fn queue_changed(&mut self) {
        if !self.queue.is_empty() {
            if self.watch.has_changes() {
                self.scan_by = self.scan_by.min(self.poll_by);
            }
            return;
        }
        let now = Instant::now();
        let changes = self.watch.take();
        // A run that ends reads what its scans find: new names do not prolong it.
        self.rescan |= changes.needs_scan && !self.until_idle;
        if now >= self.check_finished_at {
            self.check_finished_at = now + self.options.poll_interval;
            self.rescan |= self.tracker.has_finished_grown();
        }
        let mut groups = HashSet::new();
        while self.timers.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((_, id))) = self.timers.pop() else { break };
            groups.extend(self.tracker.files.get(&id).map(|file| file.ordering_key));
        }
        if groups.is_empty() && changes.files.is_empty() {
            return;
        }
        for id in &changes.files {
            let file = self.tracker.files.get(id);
            self.rescan |= file.is_none();
            groups.extend(file.map(|file| file.ordering_key));
        }
        self.blocked.extend(self.tracker.missing_groups());
        groups.retain(|group| !self.blocked.contains(group));
        for group in &groups {
            for id in self.queue.files_of(*group) {
                let is_named = changes.files.contains(id);
                if self.tracker.observe_changed(*id, is_named, now) == Observed::NeedsScan {
                    self.rescan = true;
                    self.blocked.insert(*group);
                }
                let due = self.tracker.files.get(id).filter(|_| is_named).and_then(|file| self.reading.due_at(file));
                self.timers.extend(due.map(|due| Reverse((due, *id))));
            }
        }
        groups.retain(|group| !self.blocked.contains(group));
        self.queue_ready(groups);
    }

    /// Ends a run that ends when everything was read: fails it if something could not be read.
    fn finish_run(&mut self) -> Result<()> {
        self.tracker.report_unread();
        let unreadable: Vec<String> = self.tracker.unreadable().collect();
        let damaged = unreadable.is_empty() && self.tracker.failures().all(|failure| failure.is_damage());
        let files = self.tracker.failures().map(|failure| failure.message.clone());
        let failures: Vec<String> = files.chain(unreadable).collect();
        if failures.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 5;
        let more = failures.len().saturating_sub(SHOWN);
        let mut text = failures[..failures.len() - more].join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        if damaged {
            let message =
                format!("{text}. All other files were read; replace these files, or exclude them with `exclude`");
            return Err(Error::data("logfile.damaged", message));
        }
        let message = format!(
            "{text}. All other files were read; give the worker's user read access, or exclude these with `exclude`"
        );
        Err(Error::external("logfile.unreadable", message).retry(Retry::Never))
    }

    /// Warns, at the first scan, about globs that match no file.
    fn report_globs(&mut self, scan: &Scan) {
        if std::mem::replace(&mut self.reported_globs, true) {
            return;
        }
        for (glob, matches) in self.options.paths.iter().zip(&scan.matches) {
            let written = &glob.written;
            if matches.found == 0 {
                let absent = glob.patterns.iter().map(|pattern| &pattern.root).find(|root| !root.is_dir());
                let reason = absent.map(|folder| format!(": the folder {} does not exist", folder.display()));
                tracing::warn!(
                    "`paths`: the glob `{written}` matches no file{}; check it, and the folder that it is relative to",
                    reason.unwrap_or_default()
                );
            } else if matches.found == matches.excluded {
                tracing::warn!(
                    "`paths`: all {} files that the glob `{written}` matches are excluded; check `exclude`",
                    matches.found
                );
            }
        }
    }

    /// Reads the queued files in turns. `true` if it stopped with something left to read.
    fn read_queue(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<bool> {
        while let Some(id) = self.queue.front() {
            if out.is_full() || Instant::now() >= deadline {
                return Ok(true);
            }
            match self.read_file(id, out, deadline)? {
                ReadSlice::Done => self.queue.finish_file(),
                ReadSlice::More => self.queue.next_group(),
                ReadSlice::Moved => {
                    self.rescan = true;
                    self.queue.skip_group();
                }
                ReadSlice::ContentChanged => self.queue.skip_group(),
                ReadSlice::Stopped => {
                    // The next batch begins with another file.
                    self.queue.next_group();
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Reads one slice of a file. The tracker does not hold the file meanwhile.
    fn read_file(&mut self, id: FileId, out: &mut SourceBatch, deadline: Instant) -> Result<ReadSlice> {
        // A scan may have removed a queued file since: there is nothing to read then.
        let Some(mut file) = self.tracker.take(id) else { return Ok(ReadSlice::Done) };
        self.read.push(id);
        self.queue.note_turn(file.ordering_key);
        if file.reader.as_ref().is_some_and(|reader| reader.must_reopen()) {
            file.reader = None;
        }
        let was_closed = file.reader.is_none();
        if was_closed {
            self.tracker.limit_open_files();
        }
        let slice = match self.reading.open(&mut file) {
            Ok(()) => self.reading.read_slice(&mut file, out, deadline),
            Err(slice) => Ok(slice),
        };
        match slice {
            Ok(ReadSlice::ContentChanged) => {
                self.blocked.insert(file.ordering_key);
                self.tracker.content_changed(file);
            }
            _ => {
                if matches!(slice, Ok(ReadSlice::Moved)) {
                    self.blocked.insert(file.ordering_key);
                }
                self.timers.extend(self.reading.due_at(&file).map(|due| Reverse((due, id))));
                self.tracker.put_back(file, was_closed);
            }
        }
        slice
    }

    /// Scans the file system, updates the tracked files, and queues those with something to read.
    fn scan(&mut self, out: &mut SourceBatch) -> Result<()> {
        let began = Instant::now();
        let (mut folders, mut paths) = (BTreeSet::new(), Vec::new());
        for _ in 0..MAX_CONSECUTIVE_SCANS {
            self.watch.begin_scan();
            let mut scan = discovery::scan(&self.options);
            self.report_globs(&scan);
            folders = std::mem::take(&mut scan.folders);
            // A folder that cannot be listed cannot be watched either.
            for (path, _) in &scan.unreadable {
                folders.remove(path);
            }
            paths = scan.found.iter().map(|found| (found.path.clone(), found.id, found.linked)).collect();
            let Reconciled { changes, abandoned } = self.tracker.reconcile(scan)?;
            for change in changes {
                push_change(out, change);
            }
            for missing in abandoned {
                self.reading.emit_buffered(missing.file, out);
            }
            if !self.tracker.is_unsettled() {
                break;
            }
        }
        let known = self.known_files(paths, &mut folders);
        let has_new_folders = self.watch.follow(&folders);
        self.watch.end_scan(known, self.tracker.follows_unknown_paths());
        // Changes in a folder that was not watched yet were not reported. A run that ends scans
        // again anyway.
        self.rescan = has_new_folders && !self.until_idle;
        self.blocked.clear();
        (self.has_scanned, self.scanned) = (true, true);
        self.queue_all();
        let now = Instant::now();
        let max_pause = if self.until_idle { MAX_PAUSE_UNTIL_IDLE } else { MAX_SCAN_PAUSE };
        let pause = ((now - began) * SCAN_TIME_DIVISOR).min(max_pause);
        self.next_scan = now + pause;
        let is_notified = self.watch.is_reliable() && self.tracker.is_quiet();
        let only_lacks_folders = self.watch.only_lacks_folders() && self.tracker.is_quiet();
        let poll_interval = if only_lacks_folders { MISSING_FOLDER_INTERVAL } else { Duration::ZERO };
        self.poll_by = now + self.options.poll_interval.max(poll_interval).max(pause);
        let interval = ((now - began) * NOTIFIED_TIME_DIVISOR).clamp(NOTIFIED_INTERVAL, MAX_NOTIFIED_INTERVAL);
        self.scan_by = if is_notified { self.poll_by.max(now + interval) } else { self.poll_by };
        Ok(())
    }

    /// The files whose changes notifications name, by all their paths. Adds the folders of the
    /// targets of symbolic links.
    fn known_files(&self, found: Vec<(PathBuf, FileId, bool)>, folders: &mut BTreeSet<PathBuf>) -> KnownFiles {
        let mut known = KnownFiles::new();
        let mut targets: Vec<(PathBuf, FileId)> = Vec::new();
        for (path, id, is_linked) in found {
            let file = self.tracker.files.get(&id);
            // A file that is followed under a path without links may be written through a link.
            if is_linked && file.is_some_and(|file| file.real.is_none()) {
                targets.extend(path.canonicalize().ok().map(|target| (target, id)));
            }
            known.insert(path, file.map(|file| file.id));
        }
        for (target, id) in targets {
            folders.extend(target.parent().map(PathBuf::from));
            known.insert(target, Some(id));
        }
        for file in self.tracker.files.values() {
            let Some(target) = &file.real else { continue };
            folders.extend(target.parent().map(PathBuf::from));
            // Another file may have the path of one that was renamed.
            if file.path_state == PathState::Matched {
                known.insert(target.clone(), Some(file.id));
            }
        }
        known
    }

    /// Finds the rotated files whose log continues in a newer file: their last event is over, and
    /// precedes the lines of that file. A file that was rotated before its position was stored is
    /// known by its name alone: it was rotated if its log has a file with the plain name.
    fn mark_superseded(&mut self) {
        if self.options.multiline.is_none() {
            return;
        }
        let mut groups: BTreeMap<&str, Vec<&TrackedFile>> = BTreeMap::new();
        for file in self.tracker.files.values() {
            groups.entry(rotation_group(&file.name)).or_default().push(file);
        }
        let mut superseded = Vec::new();
        for files in groups.values_mut().filter(|files| files.len() > 1) {
            files.sort_by_cached_key(|file| Age::of(file));
            let has_plain = files.last().is_some_and(|newest| Age::of(newest).is_current);
            let Some(newest) = files.iter().rposition(|file| file.stat.size > 0) else { continue };
            let older = files[..newest].iter().filter(|file| file.is_rotated() || has_plain);
            superseded.extend(older.map(|file| file.id));
        }
        for id in superseded {
            if let Some(file) = self.tracker.files.get_mut(&id) {
                file.is_superseded = true;
            }
        }
    }

    /// Queues all files with something to read, after a scan.
    fn queue_all(&mut self) {
        self.mark_superseded();
        self.queue.set_files(&self.tracker.files);
        let due = |file: &TrackedFile| self.reading.due_at(file).map(|due| Reverse((due, file.id)));
        self.timers = self.tracker.files.values().filter_map(due).collect();
        let groups: Vec<u32> = self.queue.groups().collect();
        self.queue_ready(groups);
    }

    /// Queues the files of some groups that have something to read.
    fn queue_ready(&mut self, groups: impl IntoIterator<Item = u32>) {
        let now = Instant::now();
        let reading = &self.reading;
        self.queue.fill(groups, &self.tracker.files, |file| {
            let waits = file.failure.as_ref().is_some_and(|failure| failure.blocks(file.stat, now));
            let unread = file.at_end != Some(file.stat) || (file.has_rest && reading.rest_is_due(file, now));
            unread && !waits
        });
    }

    fn write_positions(&mut self, out: &mut SourceBatch) -> Result<()> {
        let read = std::mem::take(&mut self.read);
        let read = if std::mem::take(&mut self.scanned) { None } else { Some(read) };
        for change in self.tracker.positions(read)? {
            push_change(out, change);
        }
        Ok(())
    }
}

impl Source for LogfileSource {
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        let filled = self.fill_until(out, deadline);
        // Lines emitted before an error are delivered, so their position is written (I1).
        self.write_positions(out)?;
        let readers = self.tracker.totals.reader_bytes;
        self.reservation.resize(readers + self.tracker.files.len() * TRACKED_FILE_BYTES);
        filled
    }

    fn committed(&mut self, position: &[PositionChange]) -> Result<()> {
        self.tracker.committed(position);
        Ok(())
    }

    fn waker(&self) -> Option<SourceWaker> {
        Some(self.watch.waker())
    }

    fn lag(&self) -> SourceLag {
        SourceLag { bytes: Some(self.tracker.totals.lag_bytes), ..SourceLag::default() }
    }
}

/// Adds a change of the position; a later change of a key takes effect. A key rarely occurs twice
/// in a batch, so that a search for it is worthwhile only in a short list.
fn push_change(out: &mut SourceBatch, change: PositionChange) {
    const SEARCHED: usize = 64;
    if out.position.len() < SEARCHED {
        out.set_position(&change.key, change.value);
    } else {
        out.position.push(change);
    }
}
