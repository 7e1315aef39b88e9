//! [`TrackedFile`]: what is known of one file while it is followed.

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
use crate::names::family;
use crate::position::{self, FileId, Saved, Stat};
use crate::reader::{Opened, Reader};

/// A file that is followed.
pub(crate) struct TrackedFile {
    pub(crate) id: FileId,
    /// Where it was last seen.
    pub(crate) path: PathBuf,
    /// The path it was first seen under; its records carry it, whatever it is called later.
    pub(crate) name: Arc<str>,
    pub(crate) ordering_key: u32,
    /// Its key in the position, once it has one.
    pub(crate) key: Option<String>,
    /// What was handed out.
    pub(crate) read: Fingerprint,
    /// The file's first bytes, as far as this process has read them.
    pub(crate) first: Vec<u8>,
    /// See [`Saved::cut`].
    pub(crate) cut: bool,
    /// Its state when last looked at.
    pub(crate) stat: Stat,
    /// Its state when it was last read to its end.
    pub(crate) at_end: Option<Stat>,
    /// At its end there are bytes without a delimiter.
    pub(crate) has_rest: bool,
    /// A complete gzip stream was read: nothing is missing from its last line.
    pub(crate) complete: bool,
    /// The gzip stream ends in the middle: the last line is known to be incomplete.
    pub(crate) cut_off: bool,
    /// Since when its state has been the same.
    pub(crate) resting_since: Instant,
    pub(crate) place: Place,
    /// Looks in a row that did not find it where the globs match.
    pub(crate) missed: u32,
    pub(crate) reader: Option<Box<Reader>>,
    /// It was used since the descriptors were last looked through.
    pub(crate) used: bool,
    /// Its content was compared with what a former run read.
    pub(crate) verified: bool,
    pub(crate) failure: Option<Failure>,
    /// Malformed bytes of it were replaced, and that was told.
    pub(crate) told_malformed: bool,
    /// Headers that all its records carry, encoded.
    pub(crate) headers: Vec<u8>,
    /// The position must be written.
    pub(crate) moved: bool,
}

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Under a path that the globs match.
    Matched,
    /// Renamed to a path that they do not match, or removed; followed by its descriptor until it is finished.
    Detached,
}

/// Why a file cannot be read now.
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) retry_at: Instant,
}

/// A file whose content is no longer where it was: truncated, overwritten, or gone without a descriptor left. It may live on in a copy.
pub(crate) struct Lost {
    /// As it was last known. Its reader may hold lines that were read and not handed out.
    pub(crate) file: TrackedFile,
    /// Bytes that are known to have been there and were not handed out.
    pub(crate) unread: u64,
    pub(crate) why: Why,
    /// Looks that found nothing that it lives on in.
    pub(crate) looks: u32,
}

/// How a file was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It was read to its end, or not at all, and is gone: only a copy of it must be recognised.
    Finished,
    /// Its path holds other content now.
    Truncated,
    /// It is gone.
    Gone,
}

/// What became of an attempt to open a file.
pub(crate) enum Attempt {
    /// It is open, and is the one it should be.
    Open,
    /// Another file is under its path now, or none: the next scan tells.
    Moved,
    /// It is the file, but its content is another.
    Changed,
}

impl TrackedFile {
    /// A file that was found, to be read from its beginning.
    pub(crate) fn new(found: Found, now: Instant) -> Self {
        let name: Arc<str> = found.path.to_string_lossy().into();
        Self {
            id: found.id,
            ordering_key: xxh3_64(family(&name).as_bytes()) as u32 & i32::MAX as u32,
            name,
            key: None,
            read: Fingerprint::empty(),
            first: Vec::new(),
            cut: false,
            stat: found.stat,
            at_end: None,
            has_rest: false,
            complete: false,
            cut_off: false,
            resting_since: rested_since(found.stat, now),
            place: Place::Matched,
            missed: 0,
            reader: None,
            used: false,
            verified: true,
            failure: None,
            told_malformed: false,
            headers: Vec::new(),
            moved: false,
            path: found.path,
        }
    }

    /// A file of a former run.
    pub(crate) fn load(key: String, id: FileId, saved: Saved, now: Instant) -> Self {
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

    /// What a lost file lives on in.
    pub(crate) fn adopt(lost: &Lost, found: Found, now: Instant) -> Self {
        Self {
            name: Arc::clone(&lost.file.name),
            ordering_key: lost.file.ordering_key,
            read: lost.file.read,
            first: lost.file.first.clone(),
            cut: lost.file.cut,
            moved: true,
            ..Self::new(found, now)
        }
    }

    /// Takes up what a look at the file system says.
    pub(crate) fn sighted(&mut self, stat: Stat, now: Instant) {
        if self.stat != stat {
            self.stat = stat;
            self.resting_since = now;
        }
    }

    /// Was nothing of it read yet, so that its content cannot tell whether it is still the file that was found?
    pub(crate) fn is_unread(&self) -> bool {
        self.read.offset == 0 && self.first.is_empty()
    }

    /// Is it compressed, and being read?
    pub(crate) fn is_open_gzip(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.is_gzip())
    }

    /// Has it been at rest for so long?
    pub(crate) fn rested(&self, wait: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.resting_since) >= wait
    }

    /// Is it under another path than its records say?
    pub(crate) fn is_rotated(&self) -> bool {
        self.place == Place::Detached || self.path != Path::new(&*self.name)
    }

    /// Was more read than was handed out: the beginning of a line, which no fingerprint covers yet?
    pub(crate) fn read_ahead(&self) -> bool {
        self.first.len() > self.read.head.len as usize
    }

    /// Does an input, from its beginning, hold the first bytes that were read?
    pub(crate) fn begins_as_read(&self, input: &mut Input) -> io::Result<bool> {
        Ok(input.beginning(self.first.len())?.0 == self.first)
    }

    /// Opens it where it was left.
    pub(crate) fn open(&mut self, compression: Compression) -> io::Result<Attempt> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Attempt::Moved),
            Err(error) => return Err(error),
        };
        if identify(&file.metadata()?).0 != self.id {
            return Ok(Attempt::Moved);
        }
        if self.read_ahead() && !self.begins_as_read(&mut Input::open(File::open(&self.path)?, compression)?)? {
            return Ok(Attempt::Changed);
        }
        match Reader::open(file, compression, &self.read, self.cut)? {
            Opened::Reader(reader) => {
                self.verified = true;
                self.reader = Some(reader);
                Ok(Attempt::Open)
            }
            Opened::Shorter | Opened::Other => Ok(Attempt::Changed),
        }
    }

    /// Takes over from the reader what was handed out since.
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

    /// The change of the position, if it moved.
    pub(crate) fn position(&mut self) -> Result<Option<PositionChange>> {
        if !self.moved {
            return Ok(None);
        }
        self.moved = false;
        let key = self.key.get_or_insert_with(|| position::key(self.id, &self.read)).clone();
        let saved = Saved {
            path: self.name.to_string(),
            read: self.read,
            at_end: self.at_end,
            ordering_key: self.ordering_key,
            cut: self.cut,
        };
        Ok(Some(PositionChange { key, value: Some(position::encode(&saved)?) }))
    }

    /// Bytes not handed out yet, as far as that can be known: of a compressed file, compressed ones until it is at its end.
    pub(crate) fn behind(&self) -> u64 {
        let compressed = self.is_open_gzip() || self.complete;
        match self.at_end {
            Some(stat) if stat == self.stat && (compressed || !self.has_rest) => 0,
            _ if compressed => self.stat.size,
            _ => self.stat.size.saturating_sub(self.read.offset),
        }
    }

    /// Its content is no longer there; what is left of it is looked for.
    pub(crate) fn lose(mut self, why: Why) -> Lost {
        self.note_read();
        let unread = if why == Why::Finished { 0 } else { self.behind() };
        self.at_end = None;
        Lost { unread, why, looks: 0, file: self }
    }
}

/// Since when a file has been at rest, by its modification time.
fn rested_since(stat: Stat, now: Instant) -> Instant {
    let modified = UNIX_EPOCH + Duration::from_nanos(u64::try_from(stat.modified).unwrap_or(0));
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}
