//! [`LogfileSource`]: the loop that hands out lines.
//!
//! A *look* at the file system ([`crate::discovery`], [`crate::tracker`]) says which files have something to read. Files of one family
//! (`access.log`, `access.log.1`, ..) are read one after the other, oldest first, so that a log stays in order over rotation; families
//! take turns. When all of them have been read there is another look, and if that finds nothing, the source is caught up.
//!
//! Positions are written at the end of a fill, one change a file that moved; those that a look changes (a file is gone, a copy goes on)
//! are in the same batch, so that they are committed together (I1).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_connector::{
    Error, Fill, PositionChange, Reservation, Result, Source, SourceBatch, SourceContext, SourceLag,
};

use crate::config::{EndOfFile, LogfileOptions};
use crate::discovery::{self, identify};
use crate::emit::{Emitter, Origin};
use crate::file::{Attempt, Place, TrackedFile};
use crate::input::MAGIC;
use crate::names::{age_rank, family};
use crate::position::{self, FileId, STARTED_KEY};
use crate::reader::More;
use crate::text::Delimiter;
use crate::tracker::{Outcome, Tracker};
use crate::watch::Watch;

/// Bytes that a file may hand out before it is another one's turn.
const TURN: usize = 1 << 20;
/// A look costs at most this part of the time: the more files, the rarer.
const LOOK_SHARE: u32 = 20;
/// Looks in a row while files come and go under them, so that nothing newer is read before an older file is recognised.
const LOOKS: usize = 5;
/// Bytes of memory of a file that is followed, beside its reader.
const FILE_BYTES: usize = 2048;

pub(crate) struct LogfileSource {
    options: Arc<LogfileOptions>,
    until_idle: bool,
    tracker: Tracker,
    watch: Watch,
    emitter: Emitter,
    delimiter: Delimiter,
    /// Files with something to read; those of a family in order.
    queue: VecDeque<VecDeque<FileId>>,
    /// When a family last had its turn.
    turns: HashMap<String, u64>,
    turn: u64,
    /// No look before this.
    next_look: Instant,
    /// A look at the latest then.
    look_by: Instant,
    /// Something was found while reading that only a look can settle.
    look_again: bool,
    held: Reservation,
}

/// How a file's turn ended.
enum Turn {
    /// Nothing more to read of it now.
    Done,
    /// There is more; another one's turn.
    Over,
    /// It is not what it was, and what has become of it only a look tells: newer files of its family wait for that.
    Lost,
    /// The batch is full or time is up.
    Stop,
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
            tracker: Tracker::new(Arc::clone(&options), saved, first_start),
            watch: Watch::new(),
            emitter: Emitter::new(&options),
            delimiter: Delimiter::new(&options.delimiter, options.charset),
            queue: VecDeque::new(),
            turns: HashMap::new(),
            turn: 0,
            next_look: now,
            look_by: now,
            look_again: false,
            held: context.budget.empty(),
            options,
        })
    }

    fn fill_until(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        let mut looked = false;
        if Instant::now() >= self.look_by {
            self.look(out)?;
            looked = true;
        }
        loop {
            if self.take_turns(out, deadline)? {
                return Ok(Fill::More);
            }
            let settled = looked && !self.look_again && !self.tracker.needs_scan();
            if settled && (self.until_idle || !out.is_empty()) {
                self.tell_unreadable()?;
                return Ok(Fill::CaughtUp);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(if settled { Fill::CaughtUp } else { Fill::More });
            }
            let mut look_at = self.next_look;
            if settled {
                let noticed = self.watch.wait(self.look_by.min(deadline));
                look_at = if noticed { self.next_look } else { self.look_by };
            } else if now < self.next_look && !out.is_empty() {
                return Ok(Fill::More);
            }
            while Instant::now() < look_at.min(deadline) {
                self.watch.wait(look_at.min(deadline));
            }
            if Instant::now() >= look_at {
                self.look(out)?;
                looked = true;
            }
        }
    }

    /// In a run that ends when all has been read, what cannot be read must not pass for read.
    fn tell_unreadable(&self) -> Result<()> {
        let failures = self.tracker.failures();
        if !self.until_idle || failures.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 5;
        let more = failures.len().saturating_sub(SHOWN);
        let mut text = failures[..failures.len() - more].join("; ");
        if more > 0 {
            text.push_str(&format!("; and {more} more"));
        }
        Err(Error::external(
            "logfile.unreadable",
            format!(
                "{text}. All other files have been read; give the worker's user read access, or leave these out with `exclude`"
            ),
        ))
    }

    /// Reads queued files in turn; `true` if it stopped with something left to read.
    fn take_turns(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<bool> {
        while let Some(files) = self.queue.front_mut() {
            let Some(id) = files.front().copied() else {
                self.queue.pop_front();
                continue;
            };
            if out.is_full() || Instant::now() >= deadline {
                return Ok(true);
            }
            match self.read(id, out, deadline)? {
                Turn::Done => {
                    files_done(&mut self.queue);
                }
                Turn::Lost => {
                    self.queue.pop_front();
                }
                Turn::Over => self.queue.rotate_left(1),
                Turn::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Looks at the file system, takes up what changed, and queues what has something to read.
    fn look(&mut self, out: &mut SourceBatch) -> Result<()> {
        let began = Instant::now();
        self.look_again = false;
        for _ in 0..LOOKS {
            let scan = discovery::scan(&self.options);
            self.watch.follow(&scan.folders);
            let outcome = self.tracker.reconcile(scan)?;
            self.deliver(outcome, out);
            if !self.tracker.is_undecided() {
                break;
            }
        }
        self.queue_ready();
        let now = Instant::now();
        let pause = (now - began) * LOOK_SHARE;
        self.next_look = now + pause.min(Duration::from_secs(5));
        self.look_by = now + self.options.poll_interval.max(pause.min(Duration::from_secs(5)));
        Ok(())
    }

    fn deliver(&mut self, outcome: Outcome, out: &mut SourceBatch) {
        for change in outcome.changes {
            push_change(out, change);
        }
        let max = self.options.max_line_bytes;
        for lost in outcome.orphans {
            let mut file = lost.file;
            let headers = self.emitter.headers(&file.name);
            let origin =
                Origin { name: &file.name, ordering_key: file.ordering_key, headers: &headers, read_at: now_ms() };
            let Some(reader) = &mut file.reader else { continue };
            loop {
                let mut line = reader.next_line(&self.delimiter, max);
                let last = line.is_none();
                if last {
                    line = reader.take_rest(&self.delimiter, max);
                }
                let Some(line) = line else { break };
                if self.emitter.line(out, origin, &line).is_err() {
                    // `oversize = "error"` stops before a line; there is nothing left to stop before.
                    self.emitter.oversize(out, origin, &line, line.oversize.unwrap_or(line.bytes.len() as u64));
                }
            }
        }
    }

    fn queue_ready(&mut self) {
        let now = Instant::now();
        let mut families: BTreeMap<&str, Vec<&TrackedFile>> = BTreeMap::new();
        for file in self.tracker.files.values() {
            let waits = file.failure.as_ref().is_some_and(|failure| failure.retry_at > now);
            let unread = file.at_end != Some(file.stat) || (file.has_rest && self.rest_is_due(file, now));
            if unread && !waits {
                families.entry(family(&file.name)).or_default().push(file);
            }
        }
        let mut queue: Vec<(u64, i64, VecDeque<FileId>)> = Vec::new();
        for (name, mut files) in families {
            // What has the log's plain name is the newest, whatever the times say: copying and compressing may change them.
            files.sort_by_cached_key(|file| {
                let path = file.path.to_string_lossy().into_owned();
                (family(&path) == path, file.stat.modified, age_rank(&path))
            });
            let last_turn = self.turns.get(name).copied().unwrap_or(0);
            queue.push((last_turn, files[0].stat.modified, files.iter().map(|file| file.id).collect()));
        }
        queue.sort_by_key(|(last_turn, modified, _)| (*last_turn, *modified));
        self.queue = queue.into_iter().map(|(.., files)| files).collect();
        if self.turns.len() > 4 * self.tracker.files.len() + 1000 {
            self.turns.clear();
        }
    }

    /// Is a last line without delimiter to be handed out? See [`EndOfFile`].
    fn rest_is_due(&self, file: &TrackedFile, now: Instant) -> bool {
        let finished = file.complete
            || (file.is_rotated() && file.rested(self.options.rotate_wait, now))
            || (file.place == Place::Detached && self.until_idle);
        if file.cut_off && file.place == Place::Matched {
            return false;
        }
        finished
            || match self.options.eof {
                EndOfFile::Auto => self.until_idle,
                EndOfFile::Wait => false,
                EndOfFile::Emit => file.rested(self.options.eof_after, now),
            }
    }

    /// A file's turn.
    fn read(&mut self, id: FileId, out: &mut SourceBatch, deadline: Instant) -> Result<Turn> {
        let Some(file) = self.tracker.files.get_mut(&id) else { return Ok(Turn::Done) };
        if file.reader.as_ref().is_some_and(|reader| reader.must_reopen()) {
            file.reader = None;
        }
        if file.reader.is_none() {
            match file.open(self.options.compression) {
                Ok(Attempt::Open) => file.failure = None,
                Ok(Attempt::Moved) => {
                    self.look_again = true;
                    return Ok(Turn::Lost);
                }
                Ok(Attempt::Changed) => {
                    self.tracker.content_changed(id);
                    return Ok(Turn::Lost);
                }
                Err(error) => {
                    Tracker::fail(file, &error);
                    return Ok(Turn::Done);
                }
            }
            file.used = true;
            self.tracker.limit_open_files(id);
        }
        let Some(file) = self.tracker.files.get_mut(&id) else { return Ok(Turn::Done) };
        file.used = true;
        if file.headers.is_empty() {
            file.headers = self.emitter.headers(&file.name);
        }
        self.turn += 1;
        match self.turns.get_mut(family(&file.name)) {
            Some(turn) => *turn = self.turn,
            None => {
                self.turns.insert(family(&file.name).to_owned(), self.turn);
            }
        }
        self.read_open(id, out, deadline)
    }

    fn read_open(&mut self, id: FileId, out: &mut SourceBatch, deadline: Instant) -> Result<Turn> {
        let Some(file) = self.tracker.files.get_mut(&id) else { return Ok(Turn::Done) };
        let Some(reader) = file.reader.as_mut() else { return Ok(Turn::Done) };
        let origin =
            Origin { name: &file.name, ordering_key: file.ordering_key, headers: &file.headers, read_at: now_ms() };
        let mut taken = 0;
        let mut malformed = false;
        let mut result = Ok(());
        let max = self.options.max_line_bytes;
        let end = loop {
            if out.is_full() {
                break None;
            }
            if let Some(line) = reader.next_line(&self.delimiter, max) {
                result = self.emitter.line(out, origin, &line).map(|replaced| malformed |= replaced);
                if result.is_err() {
                    break None;
                }
                continue;
            }
            if taken >= TURN || Instant::now() >= deadline {
                break None;
            }
            match reader.read_more() {
                Ok(More::Bytes(count)) => taken += count,
                end => break Some(end),
            }
        };
        if malformed && !file.told_malformed {
            file.told_malformed = true;
            tracing::warn!(path = %file.path.display(), charset = self.options.charset.name(), "bytes that are not of the charset were replaced by U+FFFD; set `charset` if the file has another one");
        }
        if let Err(error) = result {
            reader.step_back();
            file.note_read();
            file.reader = None;
            file.at_end = None;
            return Err(error);
        }
        match end {
            None => {
                file.at_end = None;
                file.note_read();
                Ok(if taken >= TURN && !out.is_full() { Turn::Over } else { Turn::Stop })
            }
            Some(Ok(More::Bytes(_))) => Ok(Turn::Over),
            Some(Ok(More::End)) => self.at_end(id, true, out),
            Some(Ok(More::CutOff)) => {
                if self.until_idle {
                    tracing::warn!(path = %file.path.display(), "gzip file is cut off: what there is of it was read");
                }
                self.at_end(id, false, out)
            }
            Some(Ok(More::Changed)) => {
                self.tracker.content_changed(id);
                Ok(Turn::Lost)
            }
            Some(Err(error)) => {
                file.note_read();
                Tracker::fail(file, &error);
                Ok(Turn::Done)
            }
        }
    }

    /// A file was read to its end, for now.
    fn at_end(&mut self, id: FileId, whole: bool, out: &mut SourceBatch) -> Result<Turn> {
        let now = Instant::now();
        let Some(file) = self.tracker.files.get_mut(&id) else { return Ok(Turn::Done) };
        let Some(reader) = file.reader.as_ref() else { return Ok(Turn::Done) };
        let (is_gzip, has_rest) = (reader.is_gzip(), reader.has_rest(&self.delimiter));
        if !is_gzip {
            let (_, stat) = match reader.file().metadata() {
                Ok(metadata) => identify(&metadata),
                Err(error) => {
                    file.note_read();
                    Tracker::fail(file, &error);
                    return Ok(Turn::Done);
                }
            };
            // One or two bytes that begin like a gzip file are held back until there are more, or this would go round for ever.
            let undecided = reader.end() == 0 && stat.size < MAGIC.len() as u64;
            if stat.size != reader.end() && !undecided {
                // It has grown meanwhile, or was truncated, which reading on notices.
                file.note_read();
                return Ok(Turn::Over);
            }
            file.sighted(stat, now);
        }
        file.complete = whole && is_gzip;
        file.cut_off = !whole;
        file.has_rest = has_rest;
        file.at_end = Some(file.stat);
        let Some(file) = self.tracker.files.get(&id) else { return Ok(Turn::Done) };
        let due = file.has_rest && self.rest_is_due(file, now);
        let Some(file) = self.tracker.files.get_mut(&id) else { return Ok(Turn::Done) };
        let Some(reader) = file.reader.as_mut() else { return Ok(Turn::Done) };
        // Lines already handed out keep their position even if the last one stops the source.
        let mut result = Ok(());
        if due && let Some(line) = reader.take_rest(&self.delimiter, self.options.max_line_bytes) {
            let origin =
                Origin { name: &file.name, ordering_key: file.ordering_key, headers: &file.headers, read_at: now_ms() };
            result = self.emitter.line(out, origin, &line).map(|_| ());
            if result.is_err() {
                reader.step_back();
            }
            file.has_rest = result.is_err();
        }
        reader.rest();
        file.note_read();
        if result.is_err() {
            file.reader = None;
            file.at_end = None;
        }
        result.map(|()| Turn::Done)
    }

    fn write_positions(&mut self, out: &mut SourceBatch) -> Result<()> {
        for change in self.tracker.positions() {
            push_change(out, change?);
        }
        Ok(())
    }
}

impl Source for LogfileSource {
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill> {
        let filled = self.fill_until(out, deadline);
        // What was handed out before an error is delivered, and so must its position be (I1).
        self.write_positions(out)?;
        let readers: usize =
            self.tracker.files.values().filter_map(|file| file.reader.as_ref()).map(|reader| reader.memory()).sum();
        self.held.resize(readers + self.tracker.files.len() * FILE_BYTES);
        filled
    }

    fn lag(&self) -> SourceLag {
        let bytes = self.tracker.files.values().map(TrackedFile::behind).sum();
        SourceLag { bytes: Some(bytes), ..SourceLag::default() }
    }
}

fn files_done(queue: &mut VecDeque<VecDeque<FileId>>) {
    if let Some(files) = queue.front_mut() {
        files.pop_front();
    }
}

/// Adds a change of the position. A key mostly occurs once in a batch; where it does not, the later change counts, as everywhere.
fn push_change(out: &mut SourceBatch, change: PositionChange) {
    const FEW: usize = 64;
    if out.position.len() < FEW {
        out.set_position(&change.key, change.value);
    } else {
        out.position.push(change);
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
