//! Comparing contents: is this file a copy of that one, and how much of it was read already?

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;

use crate::config::Compression;
use crate::discovery::{Found, identify};
use crate::file::{Lost, TrackedFile, Why};
use crate::fingerprint::{Fingerprint, HEAD, Piece};
use crate::input::{After, Content, Input, MAGIC, read_fully_at};
use crate::names::{family, possible_stems, stem};
use crate::position::FileId;

/// Bytes compared one by one between a file and its supposed copy.
const COMPARED: usize = 64 << 10;

/// How a candidate is like a lost file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// It begins with all that was read.
    Whole,
    /// All of it was read already; with the fingerprint of its end.
    Part(Fingerprint),
    /// It is something else.
    None,
    /// It was renamed or removed meanwhile: the next look tells.
    Unknown,
}

/// Files that may be heirs, by what a lost file is recognised by: thousands of them are not compared with thousands of lost ones.
pub(crate) struct Pool {
    found: Vec<Found>,
    by_stem: HashMap<String, Vec<usize>>,
    /// By the hash of a whole head; made when it is first needed, for every file must be opened for it.
    by_head: OnceCell<HashMap<u64, Vec<usize>>>,
    compression: Compression,
}

impl Pool {
    pub(crate) fn new(found: Vec<Found>, compression: Compression) -> Self {
        let mut by_stem: HashMap<String, Vec<usize>> = HashMap::new();
        for (number, found) in found.iter().enumerate() {
            for stem in possible_stems(&found.path) {
                by_stem.entry(stem).or_default().push(number);
            }
        }
        Self { found, by_stem, by_head: OnceCell::new(), compression }
    }

    /// The files worth comparing with a lost one, the likeliest first.
    pub(crate) fn candidates(&self, lost: &Lost, shadows: &HashSet<FileId>) -> Vec<Found> {
        let mut candidates: Vec<&Found> = self.found.iter().filter(|found| shadows.contains(&found.id)).collect();
        if !lost.file.is_unread() {
            // Short contents are alike by chance: there the name must speak for it too.
            let named = [stem(Path::new(&*lost.file.name)), stem(&lost.file.path)];
            let by_name = named.iter().filter_map(|stem| self.by_stem.get(stem)).flatten();
            let whole_head = lost.file.read.head.len as usize >= HEAD;
            let by_head = whole_head.then(|| self.heads().get(&lost.file.read.head.hash)).flatten();
            let numbers: BTreeSet<usize> = by_name.chain(by_head.into_iter().flatten()).copied().collect();
            let others = numbers.into_iter().map(|number| &self.found[number]);
            candidates.extend(others.filter(|found| {
                let itself = found.id == lost.file.id && lost.why != Why::Gone;
                !itself && !shadows.contains(&found.id) && found.stat.size > 0
            }));
        }
        // What lies under the lost file's own path now is mostly its successor, not its copy.
        candidates.sort_by_key(|found| (!shadows.contains(&found.id), found.path == lost.file.path));
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
                    heads.entry(Piece::of(&head).hash).or_default().push(number);
                }
            }
            heads
        })
    }
}

/// Compares a candidate's content with what was read of a lost file.
pub(crate) fn compare(lost: &Lost, found: &Found, was_shadow: bool, compression: Compression) -> Likeness {
    let result = (|| {
        let mut input = open(found, compression)?;
        match input.seek(&lost.file.read)? {
            Content::Same { .. } if lost.file.read.offset == 0 && !was_shadow => {
                // Nothing was handed out, but the beginning of the file was read.
                let first = &lost.file.first;
                let (found, _) = input.beginning(first.len())?;
                Ok(if found == *first { Likeness::Whole } else { Likeness::None })
            }
            Content::Same { .. } => Ok(Likeness::Whole),
            Content::Other => Ok(Likeness::None),
            Content::Shorter => {
                let mut input = open(found, compression)?;
                let (first, _) = input.beginning(HEAD)?;
                let begins_alike = !first.is_empty()
                    && if lost.file.first.len() >= first.len() {
                        lost.file.first.starts_with(&first)
                    } else {
                        first.len() == HEAD && lost.file.read.head.is(&first)
                    };
                let own_path = found.path == lost.file.path;
                if was_shadow || (begins_alike && !own_path) {
                    return Ok(Likeness::Part(open(found, compression)?.fingerprint_of_all()?));
                }
                Ok::<_, io::Error>(Likeness::None)
            }
        }
    })();
    unless_it_moved(result, &found.path).map_or(Likeness::Unknown, |likeness| likeness.unwrap_or(Likeness::None))
}

/// Followed files by the beginning of their names: of thousands of files, a new one is compared with few.
#[derive(Default)]
pub(crate) struct Relatives {
    by_stem: HashMap<String, BTreeSet<FileId>>,
}

impl Relatives {
    pub(crate) fn of<'a>(files: impl Iterator<Item = &'a TrackedFile>) -> Self {
        let mut relatives = Self::default();
        files.for_each(|file| relatives.add(file));
        relatives
    }

    pub(crate) fn add(&mut self, file: &TrackedFile) {
        for path in [Path::new(&*file.name), &file.path] {
            self.by_stem.entry(stem(path)).or_default().insert(file.id);
        }
    }

    /// Those that a new file may be a copy of, by its name.
    pub(crate) fn originals(&self, found: &Found) -> BTreeSet<FileId> {
        possible_stems(&found.path).iter().filter_map(|stem| self.by_stem.get(stem)).flatten().copied().collect()
    }
}

/// May a new file be a copy of one that is followed? Not under the path that the other has or had: there it is a successor.
pub(crate) fn may_be_copy(found: &Found, file: &TrackedFile) -> bool {
    found.path != file.path && found.path != Path::new(&*file.name)
}

/// Is what was read of a file no longer in it? `None` if the file is not where it was: then the next look tells.
pub(crate) fn content_is_gone(file: &TrackedFile, compression: Compression) -> Option<bool> {
    let check = || {
        if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_gzip()) {
            // More was read than was handed out: the beginning of a line.
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
        Ok::<_, io::Error>(!matches!(reopen(file, compression)?.seek(&file.read)?, Content::Same { .. }))
    };
    unless_it_moved(check(), &file.path).map(|is_gone| is_gone.unwrap_or(false))
}

/// Is a new file, as it is now, a copy of one that is followed and intact? `None` if one of them went or was truncated meanwhile: then the next
/// look tells.
pub(crate) fn is_copy(found: &Found, file: &TrackedFile, compression: Compression) -> Option<bool> {
    let check = || {
        let mut original = match reopen(file, compression) {
            // A compressed file that was removed while it is read cannot be opened again, and must not leave every new one undecided.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_open_gzip() => return Ok(false),
            original => original?,
        };
        let mut copy = open(found, compression)?;
        // A copy was made of what was there before: it cannot be longer than the original is now.
        let comparable = !copy.is_gzip() && !original.is_gzip();
        if comparable && found.stat.size > original.file().metadata()?.len() {
            return Ok(false);
        }
        let (copied, after) = copy.beginning(COMPARED)?;
        let (there, _) = original.beginning(COMPARED)?;
        let alike = there.starts_with(&copied) && !copied.is_empty();
        let path = found.path.to_string_lossy();
        let rotated_name = family(&path) == family(&file.name) && family(&path) != path;
        if !alike || (!rotated_name && copied.len() < HEAD) {
            return Ok(false);
        }
        if after != After::Unknown {
            return Ok(true);
        }
        let differs = matches!(open(found, compression)?.seek(&file.read)?, Content::Other);
        Ok::<_, io::Error>(!differs)
    };
    // It does not look like a copy either if the original was truncated just before the two were compared.
    let is_copy = unless_it_moved(check(), &found.path)?.unwrap_or(false);
    (is_copy || file.is_open_gzip() || !content_is_gone(file, compression)?).then_some(is_copy)
}

/// `None` if a file was not found where it had been; `Some(None)` if it cannot be read.
fn unless_it_moved<T>(result: io::Result<T>, path: &Path) -> Option<Option<T>> {
    match result {
        Ok(answer) => Some(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot be compared");
            Some(None)
        }
    }
}

/// If this is a gzip file that is cut off in its first bytes: how many there are, decompressed. Too little is written yet to compare it with
/// anything; whoever compresses a log has it under a name that the globs match from its first byte on.
pub(crate) fn cut_off_after(found: &Found, compression: Compression) -> Option<usize> {
    let look = || {
        let mut input = open(found, compression)?;
        if !input.is_gzip() {
            let mut first = [0; MAGIC.len()];
            let count = read_fully_at(input.file(), &mut first, 0)?;
            let may_become =
                compression == Compression::Auto && count < MAGIC.len() && MAGIC.starts_with(&first[..count]);
            return Ok(may_become.then_some(0));
        }
        let (beginning, after) = input.beginning(HEAD)?;
        Ok::<_, io::Error>((after == After::CutOff).then_some(beginning.len()))
    };
    look().unwrap_or(None)
}

/// Says what may be missing when a lost file has no heir.
pub(crate) fn tell_lost(lost: &Lost) {
    let (path, offset, unread) = (lost.file.path.display(), lost.file.read.offset, lost.unread);
    match lost.why {
        Why::Finished => {}
        Why::Truncated => tracing::warn!(
            "{path} no longer holds the {offset} bytes that were read of it, and no copy of them was found: it is read from its beginning. \
             What was written between the last read and that moment is missing (at least {unread} bytes are known of); if files are \
             rotated by copying, let `paths` match the copies"
        ),
        Why::Gone if unread > 0 => tracing::warn!(
            "{path} was removed with at least {unread} bytes not read, and no copy of it was found; if files are compressed or moved when they \
             are rotated, let `paths` match the results"
        ),
        Why::Gone => tracing::info!("{path} is gone; it had been read to its end"),
    }
}

fn open(found: &Found, compression: Compression) -> io::Result<Input> {
    open_as(&found.path, found.id, compression)
}

/// Opens a file if it is the one that is meant.
fn open_as(path: &Path, id: FileId, compression: Compression) -> io::Result<Input> {
    let file = File::open(path)?;
    if identify(&file.metadata()?).0 != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another file has taken its path"));
    }
    Input::open(file, compression)
}

/// A followed file from its beginning, by its descriptor or path.
fn reopen(file: &TrackedFile, compression: Compression) -> io::Result<Input> {
    // A descriptor's duplicate shares its position, which a gzip reader needs for itself: those go by path.
    if let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_gzip()) {
        return Input::open(reader.file().try_clone()?, Compression::None);
    }
    open_as(&file.path, file.id, compression)
}
