//! [`LogfileSource`]: decides which file is read when.
//!
//! A *scan* of the file system ([`crate::discovery`], [`crate::tracker`]) finds the files with
//! something to read. The files of one rotation group (`access.log`, `access.log.1`, ..) are read
//! one after the other, oldest first, so that a log stays in order across rotation; the groups take
//! turns. After all of them the source scans again. If that scan finds nothing, the source has
//! caught up.
//!
//! Positions are added at the end of a fill, one change for each file that moved. The changes that
//! a scan makes (a file is gone, a copy continues it) are in the same batch, so that one
//! transaction commits them together (I1).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{
    Error, Fill, PositionChange, Reservation, Result, Retry, Source, SourceBatch, SourceContext, SourceLag,
};

use crate::config::LogfileOptions;
use crate::discovery;
use crate::discovery::Scan;
use crate::file::TrackedFile;
use crate::names::{rotation_age, rotation_group};
use crate::position::{self, FileId, STARTED_KEY};
use crate::reading::{LineReading, ReadSlice};
use crate::tracker::{Reconciled, Tracker};
use crate::watch::Watch;

/// Scans take at most this part of the time: the more files, the rarer they are.
const SCAN_TIME_DIVISOR: u32 = 20;
/// Consecutive scans while files are moved, so that an older file is identified before a newer one
/// is read.
const MAX_CONSECUTIVE_SCANS: usize = 5;
/// Longest pause after a scan that took long.
const MAX_SCAN_PAUSE: Duration = Duration::from_secs(5);
/// The same for a run that ends when everything was read: it waits for nothing else.
const MAX_PAUSE_UNTIL_IDLE: Duration = Duration::from_millis(50);
/// After this many quiet scans the source relies on the kernel's notifications.
const QUIET_SCANS: u32 = 8;
/// Time between two scans then. The source keeps scanning, because a change through a memory map
/// sends no notification.
const QUIET_INTERVAL: Duration = Duration::from_secs(2);
/// Memory of a tracked file without its reader.
const TRACKED_FILE_BYTES: usize = 2048;

pub(crate) struct LogfileSource {
    options: Arc<LogfileOptions>,
    until_idle: bool,
    tracker: Tracker,
    watch: Watch,
    reading: LineReading,
    /// Files with something to read; those of a rotation group in order.
    queue: VecDeque<VecDeque<FileId>>,
    /// The turn in which a rotation group was last read.
    last_turns: HashMap<String, u64>,
    turn: u64,
    /// Earliest time of the next scan.
    next_scan: Instant,
    /// Latest time of the next scan.
    scan_by: Instant,
    /// Reading met a change that only a scan resolves.
    rescan: bool,
    /// Consecutive scans after which only a change makes another one useful.
    quiet_scans: u32,
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
            queue: VecDeque::new(),
            last_turns: HashMap::new(),
            turn: 0,
            next_scan: now,
            scan_by: now,
            rescan: false,
            quiet_scans: 0,
            reported_globs: false,
            reservation: context.budget.empty(),
            options,
        })
    }

    fn fill_until(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        // Without a notification since a quiet scan, there is nothing to read.
        let mut scanned = !self.until_idle && self.quiet_scans >= QUIET_SCANS;
        if Instant::now() >= self.scan_by {
            self.scan(out)?;
            scanned = true;
        }
        loop {
            if self.read_queue(out, deadline)? {
                return Ok(Fill::More);
            }
            let settled = scanned && !self.rescan && !self.tracker.needs_scan();
            if settled && (self.until_idle || !out.is_empty()) {
                self.finish_run()?;
                return Ok(Fill::CaughtUp);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(if settled { Fill::CaughtUp } else { Fill::More });
            }
            let mut scan_at = self.next_scan;
            if settled {
                if self.watch.wait(self.scan_by.min(deadline)) {
                    // The next fill scans, if this one ends before.
                    self.scan_by = self.next_scan;
                    self.quiet_scans = 0;
                }
                scan_at = self.scan_by;
            } else if now < self.next_scan && !out.is_empty() {
                return Ok(Fill::More);
            }
            while Instant::now() < scan_at.min(deadline) {
                self.watch.wait(scan_at.min(deadline));
            }
            if Instant::now() >= scan_at {
                self.scan(out)?;
                scanned = true;
            }
        }
    }

    /// Ends a run that ends when everything was read: fails it if something could not be read.
    fn finish_run(&mut self) -> Result<()> {
        if !self.until_idle {
            return Ok(());
        }
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
        while let Some(group) = self.queue.front_mut() {
            let Some(id) = group.front().copied() else {
                self.queue.pop_front();
                continue;
            };
            if out.is_full() || Instant::now() >= deadline {
                return Ok(true);
            }
            match self.read_file(id, out, deadline)? {
                ReadSlice::Done => {
                    if let Some(group) = self.queue.front_mut() {
                        group.pop_front();
                    }
                }
                ReadSlice::More => self.queue.rotate_left(1),
                ReadSlice::Moved => {
                    self.rescan = true;
                    self.queue.pop_front();
                }
                ReadSlice::ContentChanged => {
                    self.queue.pop_front();
                }
                ReadSlice::Stopped => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Reads one slice of a file. The tracker does not hold the file meanwhile.
    fn read_file(&mut self, id: FileId, out: &mut SourceBatch, deadline: Instant) -> Result<ReadSlice> {
        // A scan may have removed a queued file since: there is nothing to read then.
        let Some(mut file) = self.tracker.files.remove(&id) else { return Ok(ReadSlice::Done) };
        self.turn += 1;
        match self.last_turns.get_mut(rotation_group(&file.name)) {
            Some(turn) => *turn = self.turn,
            None => {
                self.last_turns.insert(rotation_group(&file.name).to_owned(), self.turn);
            }
        }
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
        if matches!(slice, Ok(ReadSlice::ContentChanged)) {
            self.tracker.content_changed(file);
        } else {
            self.tracker.put_back(file, was_closed);
        }
        slice
    }

    /// Scans the file system, updates the tracked files, and queues those with something to read.
    fn scan(&mut self, out: &mut SourceBatch) -> Result<()> {
        let began = Instant::now();
        self.rescan = false;
        for _ in 0..MAX_CONSECUTIVE_SCANS {
            let mut scan = discovery::scan(&self.options);
            scan.folders.extend(self.tracker.linked_folders());
            self.watch.follow(&scan.folders);
            self.report_globs(&scan);
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
        self.queue_ready();
        let now = Instant::now();
        let max_pause = if self.until_idle { MAX_PAUSE_UNTIL_IDLE } else { MAX_SCAN_PAUSE };
        let pause = ((now - began) * SCAN_TIME_DIVISOR).min(max_pause);
        self.next_scan = now + pause;
        let is_quiet = self.watch.is_reliable() && self.tracker.is_quiet();
        self.quiet_scans = if is_quiet { self.quiet_scans.saturating_add(1) } else { 0 };
        let quiet_interval = if self.quiet_scans >= QUIET_SCANS { QUIET_INTERVAL } else { Duration::ZERO };
        self.scan_by = now + self.options.poll_interval.max(pause).max(quiet_interval);
        Ok(())
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

    fn queue_ready(&mut self) {
        self.mark_superseded();
        let now = Instant::now();
        let mut groups: BTreeMap<&str, Vec<&TrackedFile>> = BTreeMap::new();
        for file in self.tracker.files.values() {
            let waits = file.failure.as_ref().is_some_and(|failure| failure.blocks(file.stat, now));
            let unread = file.at_end != Some(file.stat) || (file.has_rest && self.reading.rest_is_due(file, now));
            if unread && !waits {
                groups.entry(rotation_group(&file.name)).or_default().push(file);
            }
        }
        let mut queue: Vec<(u64, i64, VecDeque<FileId>)> = Vec::new();
        for (name, mut files) in groups {
            files.sort_by_cached_key(|file| Age::of(file));
            let last_turn = self.last_turns.get(name).copied().unwrap_or(0);
            queue.push((last_turn, files[0].stat.modified, files.iter().map(|file| file.id).collect()));
        }
        queue.sort_by_key(|(last_turn, modified, _)| (*last_turn, *modified));
        self.queue = queue.into_iter().map(|(.., files)| files).collect();
        if self.last_turns.len() > 4 * self.tracker.files.len() + 1000 {
            self.last_turns.clear();
        }
    }

    fn write_positions(&mut self, out: &mut SourceBatch) -> Result<()> {
        for change in self.tracker.positions() {
            push_change(out, change?);
        }
        Ok(())
    }
}

/// Orders the files of a rotation group, oldest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    /// The file with the log's plain name is the newest, whatever the times say: copying and
    /// compressing may change them.
    is_current: bool,
    modified: i64,
    suffix: (u8, u32, String),
}

impl Age {
    fn of(file: &TrackedFile) -> Self {
        let path = file.path.to_string_lossy();
        // A file that is followed by its descriptor keeps the path at which the new file is.
        let is_current = rotation_group(&path) == path && !file.is_rotated();
        Self { is_current, modified: file.stat.modified, suffix: rotation_age(&path) }
    }
}

impl Source for LogfileSource {
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        let filled = self.fill_until(out, deadline);
        // Lines emitted before an error are delivered, so their position is written (I1).
        self.write_positions(out)?;
        let readers: usize =
            self.tracker.files.values().filter_map(|file| file.reader.as_ref()).map(|reader| reader.memory()).sum();
        self.reservation.resize(readers + self.tracker.files.len() * TRACKED_FILE_BYTES);
        filled
    }

    fn committed(&mut self, position: &[PositionChange]) -> Result<()> {
        self.tracker.committed(position);
        Ok(())
    }

    fn lag(&self) -> SourceLag {
        let bytes = self.tracker.files.values().map(TrackedFile::lag_bytes).sum();
        SourceLag { bytes: Some(bytes), ..SourceLag::default() }
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
