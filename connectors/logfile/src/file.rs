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
use crate::fingerprint::{Fingerprint, HEAD};
use crate::input::Input;
use crate::names::rotation_group;
use crate::position::{self, FileId, FilePosition, Stat};
use crate::reader::{Reader, ResumeOutcome};

/// A file that is followed.
pub(crate) struct TrackedFile {
    pub(crate) id: FileId,
    /// The path where the last scan found it.
    pub(crate) path: PathBuf,
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
    /// It ends with bytes after the last delimiter.
    pub(crate) has_rest: bool,
    /// A complete gzip stream was read, so its last line is complete.
    pub(crate) complete: bool,
    /// The gzip stream ends inside a member, so its last line is incomplete.
    pub(crate) truncated_stream: bool,
    /// When its state last changed.
    pub(crate) resting_since: Instant,
    pub(crate) path_state: PathState,
    /// Consecutive scans that did not find it under a path that the globs match.
    pub(crate) missed_scans: u32,
    pub(crate) reader: Option<Box<Reader>>,
    /// It was read since descriptors were last closed for `max_open_files`.
    pub(crate) used: bool,
    /// Its content was compared with the content that the stored position describes.
    pub(crate) verified: bool,
    pub(crate) failure: Option<Failure>,
    /// The warning about malformed bytes was logged.
    pub(crate) warned_malformed: bool,
    /// Headers that all its records carry, encoded.
    pub(crate) headers: Vec<u8>,
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

/// Why a file cannot be read now.
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) retry_at: Instant,
}

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

impl TrackedFile {
    /// A new file, to be read from its beginning.
    pub(crate) fn new(found: Found, now: Instant) -> Self {
        let name: Arc<str> = found.path.to_string_lossy().into();
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
            complete: false,
            truncated_stream: false,
            resting_since: modified_instant(found.stat, now),
            path_state: PathState::Matched,
            missed_scans: 0,
            reader: None,
            used: false,
            verified: true,
            failure: None,
            warned_malformed: false,
            headers: Vec::new(),
            moved: false,
            path: found.path,
        }
    }

    /// A file that an earlier run followed.
    pub(crate) fn load(key: String, id: FileId, saved: FilePosition, now: Instant) -> Self {
        let stat = saved.at_end.unwrap_or(Stat { size: saved.read.offset, modified: 0 });
        let found = Found { path: PathBuf::from(&saved.path), id, stat };
        Self {
            ordering_key: saved.ordering_key,
            key: Some(key),
            read: saved.read,
            cut: saved.cut,
            at_end: saved.at_end,
            verified: false,
            has_rest: saved.at_end.is_some_and(|stat| stat.size > saved.read.offset),
            ..Self::new(found, now)
        }
    }

    /// A file that continues a missing one.
    pub(crate) fn continuing(missing: &MissingFile, found: Found, now: Instant) -> Self {
        Self {
            name: Arc::clone(&missing.file.name),
            ordering_key: missing.file.ordering_key,
            read: missing.file.read,
            first: missing.file.first.clone(),
            cut: missing.file.cut,
            moved: true,
            ..Self::new(found, now)
        }
    }

    /// Updates its state.
    pub(crate) fn observe(&mut self, stat: Stat, now: Instant) {
        if self.stat != stat {
            self.stat = stat;
            self.resting_since = now;
        }
    }

    /// Whether nothing of it was read yet, so that its content cannot identify it.
    pub(crate) fn is_unread(&self) -> bool {
        self.read.offset == 0 && self.first.is_empty()
    }

    /// Whether it is an open gzip file.
    pub(crate) fn is_open_gzip(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.is_gzip())
    }

    /// Whether it has not changed for `wait`.
    pub(crate) fn rested(&self, wait: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.resting_since) >= wait
    }

    /// Whether its path differs from the one that its records carry.
    pub(crate) fn is_rotated(&self) -> bool {
        self.path_state == PathState::Detached || self.path != Path::new(&*self.name)
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
        };
        Ok(Some(PositionChange { key, value: Some(position::encode(&saved)?) }))
    }

    /// Bytes that were not emitted yet, as far as known. For a compressed file: its compressed size
    /// until it is at its end.
    pub(crate) fn lag_bytes(&self) -> u64 {
        let compressed = self.is_open_gzip() || self.complete;
        match self.at_end {
            Some(stat) if stat == self.stat && (compressed || !self.has_rest) => 0,
            _ if compressed => self.stat.size,
            _ => self.stat.size.saturating_sub(self.read.offset),
        }
    }

    /// Records a failed read, with a warning the first time.
    pub(crate) fn fail(&mut self, error: &io::Error, retry: Duration) {
        let message = format!("cannot read {}: {error}", self.path.display());
        if self.failure.as_ref().is_none_or(|failure| failure.message != message) {
            tracing::warn!("{message}; the source retries it and keeps reading the other files");
        }
        self.failure = Some(Failure { message, retry_at: Instant::now() + retry });
        self.reader = None;
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
