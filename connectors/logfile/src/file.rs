//! [`TrackedFile`]: the state of one file that is followed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_connector::{PositionChange, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::Compression;
use crate::discovery::{Found, identify};
use crate::emit::CommonParts;
use crate::fingerprint::{ContentHash, Fingerprint, HEAD};
use crate::input::Input;
use crate::names::{is_same_path, path_text, rotation_group, text_path};
use crate::position::{self, FileId, FilePosition, Stat};
use crate::rate_limit::RateLimit;
use crate::reader::{Reader, ResumeOutcome};

/// A file that is followed.
pub(crate) struct TrackedFile {
    pub(crate) id: FileId,
    /// The path where the last scan found it.
    pub(crate) path: PathBuf,
    /// Its path without symbolic links, if `path` leads through some.
    pub(crate) real: Option<PathBuf>,
    /// The path where it was first found; its records carry it after renames too.
    pub(crate) name: Arc<str>,
    pub(crate) ordering_key: u32,
    /// Its key in the position, once it has one.
    pub(crate) key: Option<String>,
    /// Identifies the content whose lines were emitted.
    pub(crate) read: Fingerprint,
    /// The file's first bytes, as far as this process has read them.
    pub(crate) first: Vec<u8>,
    /// See [`FilePosition::cut`].
    pub(crate) cut: bool,
    /// Its state at the last scan.
    pub(crate) stat: Stat,
    /// Its state when it was last read to its end.
    pub(crate) at_end: Option<Stat>,
    /// It ends with bytes that were not emitted: an unfinished line, or an event that may have more
    /// lines.
    pub(crate) has_rest: bool,
    /// These bytes are complete lines of an event.
    pub(crate) has_only_event: bool,
    /// A newer file of its rotation group is not empty: no line follows the event.
    pub(crate) is_superseded: bool,
    /// A complete compressed stream was read, so its last line is complete.
    pub(crate) complete: bool,
    /// The compressed stream ends inside a member, so its last line is incomplete.
    pub(crate) truncated_stream: bool,
    /// When its state or its path last changed.
    pub(crate) resting_since: Instant,
    pub(crate) path_state: PathState,
    /// Consecutive scans that did not find it under a path that the globs match.
    pub(crate) missed_scans: u32,
    pub(crate) reader: Option<Box<Reader>>,
    /// It was read since descriptors were last closed for `max_open_files`.
    pub(crate) used: bool,
    /// Its state or path has changed since the scan before, or it was not read since it changed.
    pub(crate) changed: bool,
    /// Its content was compared with the content that the stored position describes.
    pub(crate) verified: bool,
    pub(crate) failure: Option<Failure>,
    /// Its first bytes at its discovery, up to [`HEAD`], hashed.
    pub(crate) head_at_discovery: Option<ContentHash>,
    /// A new file at its path continues it, so that its incomplete last line is emitted there.
    pub(crate) continued: bool,
    /// The warnings that were logged about its content.
    pub(crate) warned: Warned,
    /// It was read to its end by this process, so that new lines are written now.
    pub(crate) caught_up: bool,
    pub(crate) rate: RateLimit,
    /// What all its records carry.
    pub(crate) common: CommonParts,
    /// The offset that is committed in Kafka.
    pub(crate) committed: Option<u64>,
    /// A failed removal was logged.
    pub(crate) removal_failed: bool,
    /// The position must be written.
    pub(crate) moved: bool,
}

/// Whether the globs match a file's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathState {
    /// They do.
    Matched,
    /// The file was removed, or renamed to a path that they do not match; it is followed by its
    /// descriptor until it is finished.
    Detached,
}

/// Warnings that are logged once for each file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Warned {
    pub(crate) malformed: bool,
    pub(crate) hole: bool,
    pub(crate) byte_order_mark: bool,
    pub(crate) trailing_bytes: bool,
}

/// Why a file cannot be read now.
pub(crate) struct Failure {
    pub(crate) message: String,
    /// The content is the reason, so that a retry makes sense only when the file has changed from
    /// this state.
    damaged: Option<Stat>,
    retry_at: Instant,
    delay: Duration,
}

impl Failure {
    /// Whether the file is not read now.
    pub(crate) fn blocks(&self, stat: Stat, now: Instant) -> bool {
        match self.damaged {
            Some(damaged) => damaged == stat,
            None => self.retry_at > now,
        }
    }

    /// When the file is read again if it does not change.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.damaged.is_none().then_some(self.retry_at)
    }

    /// Whether the content of the file is the reason.
    pub(crate) fn is_damage(&self) -> bool {
        self.damaged.is_some()
    }
}

/// Pause before the first retry of an unreadable file; it doubles with each retry.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A file whose content is no longer at its path or behind its descriptor. A copy may continue it.
pub(crate) struct MissingFile {
    /// Its last known state. Its reader may hold bytes whose lines were not emitted.
    pub(crate) file: TrackedFile,
    /// Known bytes of it that were not emitted.
    pub(crate) unread: u64,
    pub(crate) reason: MissingReason,
    /// Scans that found no continuation.
    pub(crate) scans: u32,
}

/// How a file became missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingReason {
    /// It was read to its end, or not at all, and is gone: only a copy of it must be recognised.
    Finished,
    /// It has other content now.
    ContentChanged,
    /// It was deleted.
    Deleted,
}

/// Result of opening a file.
pub(crate) enum OpenOutcome {
    /// It is open and has the expected content.
    Open,
    /// Its path leads to another file or to none: the next scan finds out where it is.
    Moved,
    /// It has other content.
    ContentChanged,
}

impl MissingFile {
    /// Whether a copy of it, also one that no glob matches, may have content that was not read.
    pub(crate) fn may_have_unread_copy(&self) -> bool {
        let unseen = self.reason == MissingReason::Deleted && !self.file.verified;
        self.unread > 0 || unseen || self.reason == MissingReason::ContentChanged
    }
}

impl TrackedFile {
    /// A new file, to be read from its beginning.
    pub(crate) fn new(found: Found, now: Instant) -> Self {
        let name: Arc<str> = path_text(&found.path).into();
        let real = found.linked.then(|| std::fs::canonicalize(&found.path).ok()).flatten();
        Self {
            id: found.id,
            ordering_key: xxh3_64(rotation_group(&name).as_bytes()) as u32 & i32::MAX as u32,
            name,
            key: None,
            read: Fingerprint::empty(),
            first: Vec::new(),
            cut: false,
            stat: found.stat,
            at_end: None,
            has_rest: false,
            has_only_event: false,
            is_superseded: false,
            complete: false,
            truncated_stream: false,
            resting_since: modified_instant(found.stat, now),
            path_state: PathState::Matched,
            missed_scans: 0,
            reader: None,
            used: false,
            changed: false,
            verified: true,
            failure: None,
            head_at_discovery: None,
            continued: false,
            warned: Warned::default(),
            caught_up: false,
            rate: RateLimit::default(),
            common: CommonParts::default(),
            committed: None,
            removal_failed: false,
            moved: false,
            path: found.path,
            real,
        }
    }

    /// A file that an earlier run followed.
    pub(crate) fn load(key: String, id: FileId, saved: FilePosition, now: Instant) -> Self {
        let stat = saved.at_end.unwrap_or(Stat { size: saved.read.offset, modified: 0 });
        let found = Found { path: text_path(&saved.path), id, stat, linked: false };
        Self {
            name: saved.path.as_str().into(),
            real: saved.real_path.as_deref().map(text_path),
            ordering_key: saved.ordering_key,
            key: Some(key),
            read: saved.read,
            cut: saved.cut,
            at_end: saved.at_end,
            committed: Some(saved.read.offset),
            verified: false,
            has_rest: saved.at_end.is_some_and(|stat| stat.size > saved.read.offset),
            ..Self::new(found, now)
        }
    }

    /// A file that continues another one.
    pub(crate) fn continuing(original: &Self, found: Found, now: Instant) -> Self {
        Self {
            name: Arc::clone(&original.name),
            ordering_key: original.ordering_key,
            read: original.read,
            first: original.first.clone(),
            cut: original.cut,
            moved: true,
            ..Self::new(found, now)
        }
    }

    /// Hash of its first [`HEAD`] bytes, if it has that many and they are known.
    pub(crate) fn full_head(&self) -> Option<u64> {
        let read = Some(self.read.head).filter(|head| head.len as usize == HEAD);
        let first = || (self.first.len() >= HEAD).then(|| ContentHash::of(&self.first[..HEAD]));
        let discovered = self.head_at_discovery.filter(|head| head.len as usize == HEAD);
        read.or_else(first).or(discovered).map(|head| head.hash)
    }

    /// Updates its state.
    pub(crate) fn observe(&mut self, stat: Stat, now: Instant) {
        if self.stat != stat {
            self.stat = stat;
            self.resting_since = now;
        }
    }

    /// Whether its path still leads to it.
    pub(crate) fn is_at_known_path(&self) -> bool {
        let is_it = |metadata: std::fs::Metadata| identify(&metadata).0 == self.id;
        self.path_state == PathState::Matched && std::fs::metadata(&self.path).is_ok_and(is_it)
    }

    /// Whether nothing of it was read yet, so that its content cannot identify it.
    pub(crate) fn is_unread(&self) -> bool {
        self.read.offset == 0 && self.first.is_empty()
    }

    /// Whether it is an open compressed file.
    pub(crate) fn is_open_compressed(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.is_compressed())
    }

    /// Whether it has not changed for `wait`.
    pub(crate) fn rested(&self, wait: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.resting_since) >= wait
    }

    /// Whether it was read to its end, its lines are committed, and it has not changed for `wait`.
    pub(crate) fn may_be_removed(&self, wait: Duration, now: Instant) -> bool {
        let read = self.at_end == Some(self.stat) && !self.has_rest && !self.truncated_stream && self.read.offset > 0;
        let committed = self.committed == Some(self.read.offset) && !self.moved;
        let in_place = self.path_state == PathState::Matched && self.real.is_none() && self.verified;
        read && committed && in_place && self.failure.is_none() && self.rested(wait, now)
    }

    /// Whether its path differs from the one that its records carry.
    pub(crate) fn is_rotated(&self) -> bool {
        let named = is_same_path(&self.path, Path::new(&*self.name)) || self.path == text_path(&self.name);
        self.path_state == PathState::Detached || !named
    }

    /// Whether the beginning of an unfinished line was read that no fingerprint covers yet.
    pub(crate) fn read_ahead(&self) -> bool {
        self.first.len() > self.read.head.len as usize
    }

    /// Whether an input, which is at its beginning, has the first bytes that were read.
    pub(crate) fn begins_as_read(&self, input: &mut Input) -> io::Result<bool> {
        Ok(input.beginning(self.first.len())?.0 == self.first)
    }

    /// Opens it at the offset of the next line.
    pub(crate) fn open(&mut self, compression: Compression) -> io::Result<OpenOutcome> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OpenOutcome::Moved),
            Err(error) => return Err(error),
        };
        if identify(&file.metadata()?).0 != self.id {
            return Ok(OpenOutcome::Moved);
        }
        if self.read_ahead() && !self.begins_as_read(&mut Input::open(File::open(&self.path)?, compression)?)? {
            return Ok(OpenOutcome::ContentChanged);
        }
        match Reader::open(file, compression, &self.read, self.cut)? {
            ResumeOutcome::Resumed(reader) => {
                self.verified = true;
                self.reader = Some(reader);
                Ok(OpenOutcome::Open)
            }
            ResumeOutcome::Shorter | ResumeOutcome::Different => Ok(OpenOutcome::ContentChanged),
        }
    }

    /// Takes over the reader's progress.
    pub(crate) fn note_read(&mut self) {
        let Some(reader) = &self.reader else { return };
        let read = reader.fingerprint();
        if read != self.read || reader.is_cut() != self.cut {
            self.read = read;
            self.cut = reader.is_cut();
            self.moved = true;
        }
        if self.first.len() < HEAD {
            self.first = reader.first().to_vec();
        }
    }

    /// Takes back the last line, which stops the source, and closes the file.
    pub(crate) fn take_back_line(&mut self) {
        if let Some(reader) = &mut self.reader {
            reader.step_back();
        }
        self.note_read();
        self.reader = None;
        self.at_end = None;
    }

    /// The change of the position, if it moved.
    pub(crate) fn position(&mut self) -> Result<Option<PositionChange>> {
        if !self.moved {
            return Ok(None);
        }
        self.moved = false;
        let key = self.key.get_or_insert_with(|| position::key(self.id, &self.read)).clone();
        let saved = FilePosition {
            path: self.name.to_string(),
            read: self.read,
            at_end: self.at_end,
            ordering_key: self.ordering_key,
            cut: self.cut,
            real_path: (self.location() != text_path(&self.name)).then(|| path_text(self.location())),
        };
        Ok(Some(PositionChange { key, value: Some(position::encode(&saved)?) }))
    }

    /// Bytes that were not emitted yet, as far as known. For a compressed file: its compressed size
    /// until it is at its end.
    pub(crate) fn lag_bytes(&self) -> u64 {
        let compressed = self.is_open_compressed() || self.complete;
        match self.at_end {
            Some(stat) if stat == self.stat && (compressed || !self.has_rest) => 0,
            _ if compressed => self.stat.size,
            _ => self.stat.size.saturating_sub(self.read.offset),
        }
    }

    /// Records a failed read, with a warning the first time.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        self.note_read();
        let path = self.path.display();
        // Decoders report damaged content without an error number of the system.
        let is_damage = error.raw_os_error().is_none();
        let (message, next) = match error.kind() {
            io::ErrorKind::Unsupported => (format!("cannot read {path}: {error}"), "reads it again when it changes"),
            _ if is_damage => (
                format!("{path} is damaged after byte {} of its decompressed content: {error}", self.read.offset),
                "reads it again when it changes",
            ),
            _ => (format!("cannot read {path}: {error}"), "retries it"),
        };
        let previous = self.failure.take().filter(|failure| failure.message == message);
        if previous.is_none() {
            tracing::warn!("{message}; the source {next} and keeps reading the other files");
        }
        let delay = previous.map_or(FIRST_RETRY, |failure| (failure.delay * 2).min(LAST_RETRY));
        self.failure =
            Some(Failure { message, damaged: is_damage.then_some(self.stat), retry_at: Instant::now() + delay, delay });
        self.reader = None;
    }

    /// Updates its path. The position stores a path in another folder, and the first rename.
    pub(crate) fn move_to(&mut self, found: &Found, now: Instant) {
        if is_same_path(&self.path, &found.path) {
            return;
        }
        let (folder, was_rotated) = (self.location().parent().map(PathBuf::from), self.is_rotated());
        self.path = found.path.clone();
        self.real = found.linked.then(|| std::fs::canonicalize(&self.path).ok()).flatten();
        self.resting_since = now;
        let changed = self.location().parent() != folder.as_deref() || self.is_rotated() != was_rotated;
        self.moved |= changed && self.key.is_some();
    }

    /// Its path without symbolic links.
    fn location(&self) -> &Path {
        self.real.as_ref().unwrap_or(&self.path)
    }

    /// The folders where its renamed or copied content may be: of its path, and of the path without
    /// symbolic links.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let paths = [Some(&self.path), self.real.as_ref()];
        let mut folders: Vec<PathBuf> =
            paths.into_iter().flatten().filter_map(|path| path.parent()).map(PathBuf::from).collect();
        folders.dedup();
        folders
    }

    /// Marks it as missing.
    pub(crate) fn into_missing(mut self, reason: MissingReason) -> MissingFile {
        self.note_read();
        let unread = if reason == MissingReason::Finished { 0 } else { self.lag_bytes() };
        self.at_end = None;
        MissingFile { unread, reason, scans: 0, file: self }
    }
}

/// When a file was last modified.
fn modified_instant(stat: Stat, now: Instant) -> Instant {
    let modified = UNIX_EPOCH + Duration::from_nanos(u64::try_from(stat.modified).unwrap_or(0));
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}
