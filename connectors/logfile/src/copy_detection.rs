//! Compares contents: is a file a copy of another one, and how much of it was read already?
//!
//! Thousands of files are not compared with thousands of others: both indexes here select
//! candidates by a hash of the first bytes, which is computed once for each file, and by names.

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Compression;
use crate::decompress::{Format, MAGIC_LEN};
use crate::discovery::{Found, identify};
use crate::file::{MissingFile, MissingReason, TrackedFile};
use crate::fingerprint::{ContentHash, Fingerprint, HEAD};
use crate::input::{Coverage, Input, SeekOutcome, read_fully_at};
use crate::names::{original_paths, path_text, possible_stems, rotation_group, stem, text_path, uncompressed_name};
use crate::position::FileId;

/// Bytes that are compared one by one between a file and its supposed copy, at the beginning and at
/// the end of the copy.
const COMPARED: usize = 64 << 10;
/// Limit on the originals that a new file is compared with.
const MAX_ORIGINALS: usize = 16;
/// Limit on the candidates that a missing file is compared with.
const MAX_CANDIDATES: usize = 64;

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

/// Files that may continue a missing file.
pub(crate) struct CandidateIndex {
    found: Vec<Found>,
    by_id: HashMap<FileId, usize>,
    by_path: HashMap<PathBuf, usize>,
    /// First bytes of each file, up to [`HEAD`]. Read on first use, because that opens every file.
    heads: OnceCell<Vec<Vec<u8>>>,
    /// For a length, the files by the hash of that many first bytes.
    by_prefix: RefCell<HashMap<usize, HashMap<u64, Vec<usize>>>>,
    /// Files with less than [`HEAD`] bytes by all possible stems of their names.
    short_by_stem: OnceCell<HashMap<String, Vec<usize>>>,
    compression: Compression,
}

impl CandidateIndex {
    pub(crate) fn new(found: Vec<Found>, compression: Compression) -> Self {
        let by_id = found.iter().enumerate().map(|(number, found)| (found.id, number)).collect();
        let by_path = found.iter().enumerate().map(|(number, found)| (found.path.clone(), number)).collect();
        Self {
            found,
            by_id,
            by_path,
            heads: OnceCell::new(),
            by_prefix: RefCell::default(),
            short_by_stem: OnceCell::new(),
            compression,
        }
    }

    /// The files to compare with a missing one, the likeliest first.
    pub(crate) fn candidates(&self, missing: &MissingFile, copies: &HashSet<FileId>) -> Vec<Found> {
        let mut numbers: Vec<usize> = copies.iter().filter_map(|id| self.by_id.get(id)).copied().collect();
        numbers.sort_unstable();
        if !missing.file.is_unread() {
            let allowed = |number: &usize| {
                let found = &self.found[*number];
                let itself = found.id == missing.file.id && missing.reason != MissingReason::Deleted;
                !itself && !copies.contains(&found.id) && found.stat.size > 0
            };
            let own_paths = related_paths(&missing.file);
            let own: Vec<usize> = own_paths.iter().filter_map(|path| self.by_path.get(path)).copied().collect();
            let own = own.into_iter().filter(allowed);
            // The file that now has the missing file's path is mostly its successor. But a full
            // head that is equal shows that it was restored or replaced.
            let own_first = missing.file.read.head.len as usize == HEAD;
            let alike =
                self.alike(missing, &|number| allowed(number) && !own_paths.contains(&self.found[*number].path));
            if own_first {
                numbers.extend(own.chain(alike));
            } else {
                numbers.extend(alike.into_iter().chain(own));
            }
        }
        numbers.into_iter().map(|number| self.found[number].clone()).collect()
    }

    /// A few files that begin like a missing one, or are shorter and may be its beginning. Short
    /// contents are equal by chance: there the name must be related too.
    fn alike(&self, missing: &MissingFile, allowed: &impl Fn(&usize) -> bool) -> Vec<usize> {
        let file = &missing.file;
        let known = if file.read.offset == 0 { ContentHash::of(&file.first) } else { file.read.head };
        let stems: HashSet<String> = related_paths(file).iter().map(|path| stem(path)).collect();
        let related =
            |number: &usize| possible_stems(&self.found[*number].path).iter().any(|stem| stems.contains(stem));
        let len = known.len as usize;
        let mut by_prefix = self.by_prefix.borrow_mut();
        let by_hash = by_prefix.entry(len).or_insert_with(|| {
            let mut by_hash: HashMap<u64, Vec<usize>> = HashMap::new();
            for (number, head) in self.heads().iter().enumerate().filter(|(_, head)| head.len() >= len) {
                by_hash.entry(ContentHash::of(&head[..len]).hash).or_default().push(number);
            }
            by_hash
        });
        let begins_alike = by_hash.get(&known.hash).map(Vec::as_slice).unwrap_or_default().iter();
        let begins_alike = begins_alike.filter(|number| allowed(number) && (len >= HEAD || related(number)));
        let shorter = stems.iter().filter_map(|stem| self.short_by_stem().get(stem)).flatten();
        let shorter = shorter.filter(|number| allowed(number) && file.first.starts_with(&self.heads()[**number]));
        begins_alike.take(MAX_CANDIDATES).chain(shorter.take(MAX_CANDIDATES)).copied().collect()
    }

    fn heads(&self) -> &[Vec<u8>] {
        let head = |found| open(found, self.compression).and_then(|mut input| input.beginning(HEAD));
        self.heads.get_or_init(|| {
            self.found.iter().map(|found| head(found).map(|(head, _)| head).unwrap_or_default()).collect()
        })
    }

    fn short_by_stem(&self) -> &HashMap<String, Vec<usize>> {
        self.short_by_stem.get_or_init(|| {
            let mut by_stem: HashMap<String, Vec<usize>> = HashMap::new();
            for (number, _) in self.heads().iter().enumerate().filter(|(_, head)| (1..HEAD).contains(&head.len())) {
                for stem in possible_stems(&self.found[number].path) {
                    by_stem.entry(stem).or_default().push(number);
                }
            }
            by_stem
        })
    }
}

/// The paths under which a file was found.
fn related_paths(file: &TrackedFile) -> Vec<PathBuf> {
    let mut paths = vec![text_path(&file.name), file.path.clone()];
    paths.extend(file.real.clone());
    paths.dedup();
    paths
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

/// Followed files that new files may be copies of.
///
/// A name decides first: a copy has its original's path with suffixes of rotation, or a name that
/// begins like that of a file without such suffixes. Files with different numbers or dates are not
/// copies of each other, even if they are equal. A file whose known path is outdated, because it
/// was renamed since the scan, is compared whatever its number.
#[derive(Default)]
pub(crate) struct CopyIndex {
    by_path: HashMap<PathBuf, Vec<FileId>>,
    by_name: HashMap<String, Vec<FileId>>,
    /// Files without suffixes of rotation, by the stem of their names and their heads.
    plain: ByHead,
    /// Files whose known path is outdated.
    outdated: ByHead,
    /// Files that changed since the scan before.
    changed: ByHead,
}

/// Files by the stem of their names, and the hash of their heads where these are full.
#[derive(Default)]
struct ByHead {
    full: HashMap<(String, u64), Vec<FileId>>,
    short: HashMap<(PathBuf, String), Vec<FileId>>,
}

impl ByHead {
    fn add(&mut self, path: &Path, file: &TrackedFile) {
        match file.full_head() {
            Some(head) => self.full.entry((stem(path), head)).or_default().push(file.id),
            None => self.short.entry((folder_of(path), stem(path))).or_default().push(file.id),
        }
    }

    fn get(&self, found: &Found, head: ContentHash) -> impl Iterator<Item = &FileId> {
        let (stems, folder) = (possible_stems(&found.path), folder_of(&found.path));
        let full = head.len as usize == HEAD;
        stems.into_iter().flat_map(move |stem| {
            let short = self.short.get(&(folder.clone(), stem.clone()));
            let full = self.full.get(&(stem, head.hash)).filter(|_| full);
            short.into_iter().chain(full).flatten()
        })
    }
}

impl CopyIndex {
    pub(crate) fn new<'a>(files: impl Iterator<Item = &'a TrackedFile>) -> Self {
        let mut index = Self::default();
        files.for_each(|file| index.add(file));
        index
    }

    pub(crate) fn add(&mut self, file: &TrackedFile) {
        if !file.is_at_known_path() {
            for path in related_paths(file) {
                self.outdated.add(&path, file);
            }
            return;
        }
        for path in [Some(&file.path), file.real.as_ref()].into_iter().flatten() {
            let text = path.to_string_lossy();
            if rotation_group(&text) == text {
                self.plain.add(path, file);
            }
            if file.changed {
                self.changed.add(path, file);
            }
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            self.by_name.entry(name).or_default().push(file.id);
            self.by_path.entry(path.clone()).or_default().push(file.id);
        }
    }

    /// The files to compare a new file with, the likeliest first.
    pub(crate) fn originals(&self, found: &Found, head: ContentHash) -> Vec<FileId> {
        let text = found.path.to_string_lossy();
        let by_path = original_paths(&text).into_iter().filter_map(|path| self.by_path.get(Path::new(path)));
        let uncompressed = uncompressed_name(&found.path);
        let by_name = uncompressed.iter().filter_map(|name| self.by_name.get(name));
        let by_head = self.outdated.get(found, head).chain(self.plain.get(found, head));
        first_few(by_path.flatten().chain(by_head).chain(by_name.flatten()))
    }

    /// The files that may have lost their content to a new file: its originals, and files that
    /// changed. These may have been copied, truncated and renamed since the scan before.
    pub(crate) fn to_verify(&self, found: &Found, head: ContentHash) -> Vec<FileId> {
        first_few(self.originals(found, head).iter().chain(self.changed.get(found, head)))
    }
}

fn first_few<'a>(ids: impl Iterator<Item = &'a FileId>) -> Vec<FileId> {
    let mut few: Vec<FileId> = Vec::new();
    for id in ids {
        if few.len() == MAX_ORIGINALS {
            break;
        }
        if !few.contains(id) {
            few.push(*id);
        }
    }
    few
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(PathBuf::from).unwrap_or_default()
}

/// Whether a new file may be a copy of a followed one. Under a path that the other has or had it is
/// a successor, and a file with the same name in another folder is a file like any other.
pub(crate) fn may_be_copy(found: &Found, file: &TrackedFile) -> bool {
    related_paths(file).iter().all(|path| path.file_name() != found.path.file_name())
}

/// The beginning of a new file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beginning {
    /// The first decompressed bytes, up to [`HEAD`], hashed.
    pub(crate) head: ContentHash,
    /// The decompressed length of a compressed file that ends within its first bytes. Too little of
    /// it is written to compare it: the file that a compressor writes has a name that the globs
    /// match from its first byte on.
    pub(crate) truncated_len: Option<usize>,
}

/// Reads the beginning of a new file. The error is [`io::ErrorKind::NotFound`] if the file was
/// moved.
pub(crate) fn beginning(found: &Found, compression: Compression) -> io::Result<Beginning> {
    let mut input = open(found, compression)?;
    let (beginning, coverage) = input.beginning(HEAD)?;
    let (truncated, len) = if input.is_compressed() {
        (coverage == Coverage::Truncated, beginning.len())
    } else {
        let first = &beginning[..beginning.len().min(MAGIC_LEN)];
        (compression == Compression::Auto && Format::may_begin(first), 0)
    };
    Ok(Beginning { head: ContentHash::of(&beginning), truncated_len: truncated.then_some(len) })
}

/// Whether a file lost the content that was read of it. `None` if it was moved meanwhile: the next
/// scan decides.
pub(crate) fn content_is_gone(file: &TrackedFile, compression: Compression) -> Option<bool> {
    let check = || {
        if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_compressed()) {
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
            // A compressed file that was removed while it is read cannot be reopened, and must not
            // block every new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_open_compressed() => return Ok(false),
            original => original?,
        };
        let mut copy = open(found, compression)?;
        // A copy has the content of an earlier moment: it cannot be longer than the original is
        // now.
        let comparable = !copy.is_compressed() && !original.is_compressed();
        if comparable && found.stat.size > original.file().metadata()?.len() {
            return Ok(false);
        }
        let (copied, coverage) = copy.beginning(COMPARED)?;
        let (content, _) = original.beginning(COMPARED)?;
        let alike = content.starts_with(&copied) && !copied.is_empty();
        let path = path_text(&found.path);
        let rotated_name = rotation_group(&path) != path
            && related_paths(file).iter().any(|known| rotation_group(&path_text(known)) == rotation_group(&path));
        if !alike || (!rotated_name && copied.len() < HEAD) {
            return Ok(false);
        }
        if coverage != Coverage::Partial {
            return Ok(true);
        }
        if comparable && !same_before(copy.file(), original.file(), found.stat.size)? {
            return Ok(false);
        }
        let differs = matches!(open(found, compression)?.seek(&file.read)?, SeekOutcome::Different);
        Ok::<_, io::Error>(!differs)
    };
    let is_copy = unless_moved(check(), &found.path)?.unwrap_or(false);
    // The files also differ if the original was truncated just before the comparison.
    (is_copy || file.is_open_compressed() || !content_is_gone(file, compression)?).then_some(is_copy)
}

/// Whether two files have the same last bytes before an offset.
fn same_before(left: &File, right: &File, offset: u64) -> io::Result<bool> {
    let len = usize::try_from(offset).unwrap_or(COMPARED).min(COMPARED);
    let (mut left_bytes, mut right_bytes) = (vec![0; len], vec![0; len]);
    let from = offset - len as u64;
    let read = (read_fully_at(left, &mut left_bytes, from)?, read_fully_at(right, &mut right_bytes, from)?);
    Ok(read == (len, len) && left_bytes == right_bytes)
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

/// Whether a file begins with the same full head as the content that was read of another one.
pub(crate) fn begins_alike(found: &Found, read: &Fingerprint, compression: Compression) -> bool {
    let head = open(found, compression).and_then(|mut input| input.beginning(HEAD));
    head.is_ok_and(|(head, _)| head.len() == HEAD && read.head.matches(&head))
}

/// Logs the possible data loss of a missing file that nothing continues.
pub(crate) fn report_missing(missing: &MissingFile) {
    let (path, offset, unread) = (missing.file.path.display(), missing.file.read.offset, missing.unread);
    let text = missing.file.path.to_string_lossy();
    match missing.reason {
        MissingReason::Finished => {}
        MissingReason::ContentChanged => tracing::warn!(
            "{path} no longer has the {offset} bytes that were read, and no copy of them was found: the source \
             reads it from its beginning. Lines written between the last read and the truncation are lost (at \
             least {unread} bytes); if rotation copies the files, let `paths` match the copies"
        ),
        MissingReason::Deleted if unread > 0 => tracing::warn!(
            "{path} was removed with at least {unread} unread bytes, and no copy of it was found; if rotation \
             compresses or moves the files, let `paths` match the results"
        ),
        MissingReason::Deleted if missing.file.verified => {
            tracing::info!("{path} was removed; it was read up to byte {offset}, its end at the last scan");
        }
        MissingReason::Deleted if rotation_group(&text) != text => {
            tracing::info!(
                "{path} was removed while the source did not have it open; it was read up to byte {offset}, its last \
                 known end"
            );
        }
        MissingReason::Deleted => tracing::warn!(
            "{path} was removed while the source did not have it open, and no copy of it was found; it was read up \
             to byte {offset}. Lines written to it later are lost, if there were any; let `paths` match the files \
             that rotation makes of it"
        ),
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
    // A duplicated descriptor shares its file position, which a decoder depends on: compressed
    // files are reopened by path.
    if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_compressed()) {
        return Input::open(reader.file().try_clone()?, Compression::None);
    }
    open_as(&file.path, file.id, compression)
}
