//! Compares contents: is a file a copy of another one, and how much of it was read already?

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;

use crate::config::Compression;
use crate::discovery::{Found, identify};
use crate::file::{MissingFile, MissingReason, TrackedFile};
use crate::fingerprint::{ContentHash, Fingerprint, HEAD};
use crate::input::{Coverage, GZIP_MAGIC, Input, SeekOutcome, read_fully_at};
use crate::names::{possible_stems, rotation_group, stem};
use crate::position::FileId;

/// Bytes compared one by one between a file and its supposed copy.
const COMPARED: usize = 64 << 10;

/// How a candidate's content compares with a missing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentMatch {
    /// It begins with all content that was read.
    Whole,
    /// All of its content was read already; with the fingerprint of its end.
    Part(Fingerprint),
    /// Its content differs.
    None,
    /// It was renamed or removed during the comparison: the next scan repeats it.
    Unknown,
}

/// Files that may continue a missing file, indexed so that thousands of them are not compared with
/// thousands of missing ones.
pub(crate) struct CandidateIndex {
    found: Vec<Found>,
    by_stem: HashMap<String, Vec<usize>>,
    /// By the hash of a full head. Built on first use, because it opens every file.
    by_head: OnceCell<HashMap<u64, Vec<usize>>>,
    compression: Compression,
}

impl CandidateIndex {
    pub(crate) fn new(found: Vec<Found>, compression: Compression) -> Self {
        let mut by_stem: HashMap<String, Vec<usize>> = HashMap::new();
        for (number, found) in found.iter().enumerate() {
            for stem in possible_stems(&found.path) {
                by_stem.entry(stem).or_default().push(number);
            }
        }
        Self { found, by_stem, by_head: OnceCell::new(), compression }
    }

    /// The files to compare with a missing one, the likeliest first.
    pub(crate) fn candidates(&self, missing: &MissingFile, copies: &HashSet<FileId>) -> Vec<Found> {
        let mut candidates: Vec<&Found> = self.found.iter().filter(|found| copies.contains(&found.id)).collect();
        if !missing.file.is_unread() {
            // Short contents are equal by chance: there the name must match too.
            let named = [stem(Path::new(&*missing.file.name)), stem(&missing.file.path)];
            let by_name = named.iter().filter_map(|stem| self.by_stem.get(stem)).flatten();
            let full_head = missing.file.read.head.len as usize >= HEAD;
            let by_head = full_head.then(|| self.heads().get(&missing.file.read.head.hash)).flatten();
            let numbers: BTreeSet<usize> = by_name.chain(by_head.into_iter().flatten()).copied().collect();
            let others = numbers.into_iter().map(|number| &self.found[number]);
            candidates.extend(others.filter(|found| {
                let itself = found.id == missing.file.id && missing.reason != MissingReason::Deleted;
                !itself && !copies.contains(&found.id) && found.stat.size > 0
            }));
        }
        // The file that now has the missing file's path is mostly its successor, not its copy.
        candidates.sort_by_key(|found| (!copies.contains(&found.id), found.path == missing.file.path));
        candidates.into_iter().cloned().collect()
    }

    fn heads(&self) -> &HashMap<u64, Vec<usize>> {
        self.by_head.get_or_init(|| {
            let mut heads: HashMap<u64, Vec<usize>> = HashMap::new();
            for (number, found) in self.found.iter().enumerate() {
                let head = open(found, self.compression).and_then(|mut input| input.beginning(HEAD));
                if let Ok((head, _)) = head
                    && head.len() == HEAD
                {
                    heads.entry(ContentHash::of(&head).hash).or_default().push(number);
                }
            }
            heads
        })
    }
}

/// Compares a candidate's content with what was read of a missing file.
pub(crate) fn compare(
    missing: &MissingFile,
    found: &Found,
    is_known_copy: bool,
    compression: Compression,
) -> ContentMatch {
    let result = (|| {
        let mut input = open(found, compression)?;
        match input.seek(&missing.file.read)? {
            SeekOutcome::Same { .. } if missing.file.read.offset == 0 && !is_known_copy => {
                // No line was emitted, but the beginning of the file was read.
                let first = &missing.file.first;
                let (found, _) = input.beginning(first.len())?;
                Ok(if found == *first { ContentMatch::Whole } else { ContentMatch::None })
            }
            SeekOutcome::Same { .. } => Ok(ContentMatch::Whole),
            SeekOutcome::Different => Ok(ContentMatch::None),
            SeekOutcome::Shorter => {
                let mut input = open(found, compression)?;
                let (first, _) = input.beginning(HEAD)?;
                let begins_alike = !first.is_empty()
                    && if missing.file.first.len() >= first.len() {
                        missing.file.first.starts_with(&first)
                    } else {
                        first.len() == HEAD && missing.file.read.head.matches(&first)
                    };
                let own_path = found.path == missing.file.path;
                if is_known_copy || (begins_alike && !own_path) {
                    return Ok(ContentMatch::Part(open(found, compression)?.fingerprint_of_all()?));
                }
                Ok::<_, io::Error>(ContentMatch::None)
            }
        }
    })();
    unless_moved(result, &found.path)
        .map_or(ContentMatch::Unknown, |content_match| content_match.unwrap_or(ContentMatch::None))
}

/// Followed files by the stem of their names: a new file is compared with few of thousands.
#[derive(Default)]
pub(crate) struct CopyIndex {
    by_stem: HashMap<String, BTreeSet<FileId>>,
}

impl CopyIndex {
    pub(crate) fn new<'a>(files: impl Iterator<Item = &'a TrackedFile>) -> Self {
        let mut index = Self::default();
        files.for_each(|file| index.add(file));
        index
    }

    pub(crate) fn add(&mut self, file: &TrackedFile) {
        for path in [Path::new(&*file.name), &file.path] {
            self.by_stem.entry(stem(path)).or_default().insert(file.id);
        }
    }

    /// The files whose copy a new file may be, by its name.
    pub(crate) fn originals(&self, found: &Found) -> BTreeSet<FileId> {
        possible_stems(&found.path).iter().filter_map(|stem| self.by_stem.get(stem)).flatten().copied().collect()
    }
}

/// Whether a new file may be a copy of a followed one. Under a path that the other has or had it is
/// a successor.
pub(crate) fn may_be_copy(found: &Found, file: &TrackedFile) -> bool {
    found.path != file.path && found.path != Path::new(&*file.name)
}

/// Whether a file lost the content that was read of it. `None` if it was moved meanwhile: the next
/// scan decides.
pub(crate) fn content_is_gone(file: &TrackedFile, compression: Compression) -> Option<bool> {
    let check = || {
        if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_gzip()) {
            // The reader may hold the beginning of a line that was not emitted.
            let mut first = vec![0; reader.first().len()];
            let count = read_fully_at(reader.file(), &mut first, 0)?;
            if reader.file().metadata()?.len() < reader.end() || first[..count] != *reader.first() {
                return Ok(true);
            }
        } else if file.read_ahead() && !file.begins_as_read(&mut reopen(file, compression)?)? {
            return Ok(true);
        }
        if file.read.offset == 0 {
            return Ok(false);
        }
        Ok::<_, io::Error>(!matches!(reopen(file, compression)?.seek(&file.read)?, SeekOutcome::Same { .. }))
    };
    unless_moved(check(), &file.path).map(|is_gone| is_gone.unwrap_or(false))
}

/// Whether a new file is, at this moment, a copy of a followed and intact one. `None` if one of
/// them was removed or truncated during the comparison: the next scan decides.
pub(crate) fn is_copy(found: &Found, file: &TrackedFile, compression: Compression) -> Option<bool> {
    let check = || {
        let mut original = match reopen(file, compression) {
            // A gzip file that was removed while it is read cannot be reopened, and must not block
            // every new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_open_gzip() => return Ok(false),
            original => original?,
        };
        let mut copy = open(found, compression)?;
        // A copy has the content of an earlier moment: it cannot be longer than the original is
        // now.
        let comparable = !copy.is_gzip() && !original.is_gzip();
        if comparable && found.stat.size > original.file().metadata()?.len() {
            return Ok(false);
        }
        let (copied, coverage) = copy.beginning(COMPARED)?;
        let (content, _) = original.beginning(COMPARED)?;
        let alike = content.starts_with(&copied) && !copied.is_empty();
        let path = found.path.to_string_lossy();
        let rotated_name = rotation_group(&path) == rotation_group(&file.name) && rotation_group(&path) != path;
        if !alike || (!rotated_name && copied.len() < HEAD) {
            return Ok(false);
        }
        if coverage != Coverage::Partial {
            return Ok(true);
        }
        let differs = matches!(open(found, compression)?.seek(&file.read)?, SeekOutcome::Different);
        Ok::<_, io::Error>(!differs)
    };
    let is_copy = unless_moved(check(), &found.path)?.unwrap_or(false);
    // The files also differ if the original was truncated just before the comparison.
    (is_copy || file.is_open_gzip() || !content_is_gone(file, compression)?).then_some(is_copy)
}

/// `None` if a file was moved; `Some(None)` if it cannot be read.
fn unless_moved<T>(result: io::Result<T>, path: &Path) -> Option<Option<T>> {
    match result {
        Ok(answer) => Some(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot compare the file");
            Some(None)
        }
    }
}

/// The decompressed length of a gzip file that ends within its first bytes. Too little of it is
/// written to compare it: the file that a compressor writes has a name that the globs match from
/// its first byte on.
pub(crate) fn truncated_gzip_len(found: &Found, compression: Compression) -> Option<usize> {
    let check = || {
        let mut input = open(found, compression)?;
        if !input.is_gzip() {
            let mut first = [0; GZIP_MAGIC.len()];
            let count = read_fully_at(input.file(), &mut first, 0)?;
            let may_become_gzip =
                compression == Compression::Auto && count < GZIP_MAGIC.len() && GZIP_MAGIC.starts_with(&first[..count]);
            return Ok(may_become_gzip.then_some(0));
        }
        let (beginning, coverage) = input.beginning(HEAD)?;
        Ok::<_, io::Error>((coverage == Coverage::Truncated).then_some(beginning.len()))
    };
    check().unwrap_or(None)
}

/// Logs the possible data loss of a missing file that nothing continues.
pub(crate) fn report_missing(missing: &MissingFile) {
    let (path, offset, unread) = (missing.file.path.display(), missing.file.read.offset, missing.unread);
    match missing.reason {
        MissingReason::Finished => {}
        MissingReason::ContentChanged => tracing::warn!(
            "{path} no longer has the {offset} bytes that were read, and no copy of them was found: the source reads it from its \
             beginning. Lines written between the last read and the truncation are lost (at least {unread} bytes); if rotation \
             copies the files, let `paths` match the copies"
        ),
        MissingReason::Deleted if unread > 0 => tracing::warn!(
            "{path} was removed with at least {unread} unread bytes, and no copy of it was found; if rotation compresses or moves \
             the files, let `paths` match the results"
        ),
        MissingReason::Deleted => tracing::info!("{path} was removed; it had been read to its end"),
    }
}

fn open(found: &Found, compression: Compression) -> io::Result<Input> {
    open_as(&found.path, found.id, compression)
}

/// Opens a path if it leads to the expected file.
fn open_as(path: &Path, id: FileId, compression: Compression) -> io::Result<Input> {
    let file = File::open(path)?;
    if identify(&file.metadata()?).0 != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another file has taken its path"));
    }
    Input::open(file, compression)
}

/// A followed file from its beginning, by its descriptor or path.
fn reopen(file: &TrackedFile, compression: Compression) -> io::Result<Input> {
    // A duplicated descriptor shares its file position, which a gzip reader depends on: gzip files
    // are reopened by path.
    if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_gzip()) {
        return Input::open(reader.file().try_clone()?, Compression::None);
    }
    open_as(&file.path, file.id, compression)
}
