//! Search for the continuations of missing and replaced files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Instant;

use trunkline_connector::{PositionChange, Result};

use super::{Reconciled, SCANS_UNTIL_MISSING, Tracker};
use crate::config::Compression;
use crate::copy_detection::{self, CandidateIndex, ContentMatch};
use crate::discovery::{Found, files_of, identify};
use crate::file::{MissingFile, MissingReason, PathState, TrackedFile};
use crate::fingerprint::{Fingerprint, HEAD};
use crate::input::{Input, SeekOutcome, read_fully_at};
use crate::position::FileId;

/// A removed file of fewer bytes is not recognised in the file that replaces it: so few are equal
/// by chance.
const MIN_REPLACED: u64 = 128;

/// The file that continues a missing one.
struct Continuation {
    found: Found,
    /// Set if the file ends before the missing file's offset.
    read: Option<Fingerprint>,
    path_state: PathState,
}

/// Result of the search for a continuation.
struct Search {
    continuation: Option<Continuation>,
    /// A candidate was moved during the search.
    moved: bool,
}

/// How a new file relates to the removed or renamed file that had its path.
enum Replacement {
    /// It begins with all content of that file.
    Continues,
    /// The other file must be read to its end before the two are compared.
    AfterReading,
    /// The other file still has a name, which a scan or two may change.
    AfterScans,
    /// It begins with the same bytes, but does not have all content.
    Similar,
    /// It is a file like any other.
    None,
}

impl Tracker {
    pub(super) fn find_continuations(
        &mut self,
        untracked: &mut Vec<Found>,
        reconciled: &mut Reconciled,
        now: Instant,
    ) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        // The inode of a known copy may have been reused.
        let sizes: HashMap<FileId, u64> = untracked.iter().map(|found| (found.id, found.stat.size)).collect();
        self.copies.retain(|id, known| sizes.get(id).is_none_or(|size| *size >= known.copy.stat.size));
        let mut copies: HashMap<FileId, HashSet<FileId>> = HashMap::new();
        for (id, known) in &self.copies {
            copies.entry(known.original).or_default().insert(*id);
        }
        let no_copies = HashSet::new();
        let matched = CandidateIndex::new(untracked.clone(), self.options.compression);
        let mut neighbours: HashMap<PathBuf, CandidateIndex> = HashMap::new();
        let mut taken: HashSet<FileId> = HashSet::new();
        for mut missing in std::mem::take(&mut self.missing) {
            let copies = copies.get(&missing.file.id).unwrap_or(&no_copies);
            let mut candidates: Vec<(Found, PathState)> =
                matched.candidates(&missing, copies).into_iter().map(|found| (found, PathState::Matched)).collect();
            if missing.may_have_unread_copy() {
                candidates.extend(self.neighbours(&missing, copies, &mut neighbours));
            }
            candidates.retain(|(found, _)| !taken.contains(&found.id));
            let search = self.search(&missing, candidates, copies);
            missing.scans += u32::from(!search.moved);
            let copy_unseen = copies.iter().any(|id| !sizes.contains_key(id));
            let expected = copy_unseen || (missing.reason != MissingReason::Finished && !missing.file.is_unread());
            let scanned_enough = missing.scans >= SCANS_UNTIL_MISSING || !expected;
            let certain = search.continuation.as_ref().is_some_and(|found| found.read.is_none());
            if !certain && (search.moved || (search.continuation.is_none() && !scanned_enough)) {
                self.missing.push(missing);
                self.unsettled = true;
                continue;
            }
            taken.extend(search.continuation.as_ref().map(|continuation| continuation.found.id));
            self.settle(missing, search.continuation, untracked, reconciled, now)?;
        }
        untracked.retain(|found| !taken.contains(&found.id));
        Ok(())
    }

    /// Candidates in the folders of a missing file that no glob matches.
    fn neighbours(
        &self,
        missing: &MissingFile,
        copies: &HashSet<FileId>,
        indexes: &mut HashMap<PathBuf, CandidateIndex>,
    ) -> Vec<(Found, PathState)> {
        let mut candidates = Vec::new();
        for folder in missing.file.folders() {
            let index = indexes.entry(folder).or_insert_with_key(|folder| {
                let unknown = files_of(folder).into_iter().filter(|found| !self.files.contains_key(&found.id));
                CandidateIndex::new(unknown.collect(), self.options.compression)
            });
            let found = index.candidates(missing, copies);
            candidates.extend(found.into_iter().map(|found| (found, PathState::Detached)));
        }
        candidates
    }

    /// Compares a missing file with its candidates. One with all of the content is preferred to one
    /// with a part of it.
    fn search(&self, missing: &MissingFile, candidates: Vec<(Found, PathState)>, copies: &HashSet<FileId>) -> Search {
        let mut search = Search { continuation: None, moved: false };
        for (found, path_state) in candidates {
            let is_known_copy = copies.contains(&found.id);
            match copy_detection::compare(missing, &found, is_known_copy, self.options.compression) {
                ContentMatch::Whole => {
                    search.continuation = Some(Continuation { found, read: None, path_state });
                    break;
                }
                ContentMatch::Part(read) if search.continuation.is_none() => {
                    search.continuation = Some(Continuation { found, read: Some(read), path_state });
                }
                ContentMatch::Unknown => search.moved = true,
                ContentMatch::Part(_) | ContentMatch::None => {}
            }
        }
        search
    }

    /// Replaces a missing file by its continuation, or gives it up.
    fn settle(
        &mut self,
        missing: MissingFile,
        continuation: Option<Continuation>,
        untracked: &[Found],
        reconciled: &mut Reconciled,
        now: Instant,
    ) -> Result<()> {
        // The old key is removed first: the continuation, or the file that is read from its
        // beginning, may get the same key.
        if let Some(key) = &missing.file.key {
            reconciled.changes.push(PositionChange { key: key.clone(), value: None });
        }
        let Some(Continuation { found, read, path_state }) = continuation else {
            self.give_up(missing, untracked, reconciled, now);
            return Ok(());
        };
        tracing::info!(
            from = %missing.file.path.display(), to = %found.path.display(), offset = missing.file.read.offset,
            "file continues in a copy"
        );
        self.copies.remove(&found.id);
        let mut file = TrackedFile { path_state, ..TrackedFile::continuing(&missing.file, found, now) };
        if let Some(read) = read {
            // All of the copy's content was read already, and more.
            file.read = read;
            file.at_end = Some(file.stat);
        }
        reconciled.changes.extend(file.position()?);
        self.files.insert(file.id, file);
        Ok(())
    }

    /// Handles a missing file without a continuation.
    fn give_up(&mut self, missing: MissingFile, untracked: &[Found], reconciled: &mut Reconciled, now: Instant) {
        if missing.reason == MissingReason::Finished && !missing.file.is_unread() {
            self.retired.keep(missing.file, now);
            return;
        }
        let successor = untracked.iter().find(|found| found.path == missing.file.path && found.id != missing.file.id);
        let similar = successor
            .filter(|_| missing.reason == MissingReason::Deleted)
            .filter(|found| copy_detection::begins_alike(found, &missing.file.read, self.options.compression));
        match similar {
            Some(found) => report_similar(found, missing.file.read.offset),
            None => copy_detection::report_missing(&missing),
        }
        if missing.file.reader.is_some() {
            reconciled.abandoned.push(missing);
        }
    }

    /// Finds new files that replace a removed one: `rsync` and editors write a copy of a file, add
    /// to it, and rename it over the original.
    pub(super) fn continue_replaced(&mut self, untracked: &mut Vec<Found>, reconciled: &mut Reconciled, now: Instant) {
        let is_candidate = |file: &&TrackedFile| {
            file.path_state == PathState::Detached && file.read.offset > 0 && file.reader.is_some() && !file.continued
        };
        let detached: BTreeMap<PathBuf, FileId> =
            self.files.values().filter(is_candidate).map(|file| (file.path.clone(), file.id)).collect();
        if detached.is_empty() {
            return;
        }
        for found in std::mem::take(untracked) {
            let original = detached.get(&found.path).and_then(|id| self.files.get_mut(id));
            let Some(file) = original else {
                untracked.push(found);
                continue;
            };
            match replacement(file, &found).unwrap_or(Replacement::None) {
                Replacement::None => untracked.push(found),
                Replacement::Similar => {
                    report_similar(&found, file.read.offset);
                    untracked.push(found);
                }
                Replacement::AfterReading => self.awaits_reading = true,
                Replacement::AfterScans => self.unsettled = true,
                Replacement::Continues => {
                    tracing::info!(
                        path = %found.path.display(), offset = file.read.offset,
                        "file was replaced by a copy of it; the copy is read from the offset"
                    );
                    file.continued = true;
                    if let Some(key) = file.key.take() {
                        reconciled.changes.push(PositionChange { key, value: None });
                    }
                    let continuation = TrackedFile::continuing(file, found, now);
                    self.files.insert(continuation.id, continuation);
                }
            }
        }
    }
}

/// Compares a new file with the detached file that had its path.
fn replacement(file: &TrackedFile, found: &Found) -> io::Result<Replacement> {
    let Some(reader) = file.reader.as_ref().filter(|reader| !reader.is_compressed()) else {
        return Ok(Replacement::None);
    };
    let is_removed = reader.file().metadata()?.nlink() == 0;
    let opened = File::open(&found.path)?;
    if identify(&opened.metadata()?).0 != found.id {
        return Ok(Replacement::AfterScans);
    }
    let mut input = Input::open(opened, Compression::None)?;
    let has_content = matches!(input.seek(&file.read)?, SeekOutcome::Same { .. });
    let full_head = file.read.head.len as usize == HEAD;
    if !has_content {
        let similar = is_removed && full_head && copy_detection::begins_alike(found, &file.read, Compression::None);
        return Ok(if similar { Replacement::Similar } else { Replacement::None });
    }
    if !is_removed {
        // A rotated file that equals its successor, or the backup that an editor removes in a
        // moment.
        return Ok(match file.missed_scans < SCANS_UNTIL_MISSING {
            _ if !full_head => Replacement::None,
            true => Replacement::AfterScans,
            false => Replacement::Similar,
        });
    }
    if file.read.offset < MIN_REPLACED || file.failure.is_some() {
        return Ok(Replacement::None);
    }
    if file.at_end != Some(file.stat) {
        return Ok(Replacement::AfterReading);
    }
    let Some(rest) = reader.rest() else { return Ok(Replacement::Similar) };
    let mut same = vec![0; rest.len()];
    let len = read_fully_at(input.file(), &mut same, reader.end() - rest.len() as u64)?;
    Ok(if same[..len] == *rest { Replacement::Continues } else { Replacement::Similar })
}

fn report_similar(found: &Found, read: u64) {
    tracing::warn!(
        "{} was replaced by a file that begins with the same bytes. It does not have all of the {read} bytes that were read, or the \
         replaced file still exists, so the source reads it from its beginning and may emit up to {read} bytes of lines twice",
        found.path.display()
    );
}
