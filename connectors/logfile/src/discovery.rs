//! Finds files: walks the folders that globs reach, and identifies files.
//!
//! `**` follows symbolic links to folders, but enters each folder once: real folders first, so that
//! a path without links is preferred and a link to a folder above ends no scan.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::config::LogfileOptions;
use crate::glob::{Glob, Part};
use crate::position::{FileId, Stat};

/// A file that a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) id: FileId,
    pub(crate) stat: Stat,
    /// Its path leads through a symbolic link.
    pub(crate) linked: bool,
}

/// Result of a scan of the file system.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Files, by path. A file with several names has several entries.
    pub(crate) found: Vec<Found>,
    /// Folders to watch.
    pub(crate) folders: BTreeSet<PathBuf>,
    /// Paths that could not be scanned, with the reason.
    pub(crate) unreadable: Vec<(PathBuf, String)>,
    /// For each glob of `paths`, the number of files that it matches, and how many of them are
    /// excluded.
    pub(crate) matches: Vec<Matches>,
}

/// The number of files that a glob matches.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matches {
    pub(crate) found: usize,
    pub(crate) excluded: usize,
}

/// An entry of a folder.
#[derive(Debug)]
struct Entry {
    name: OsString,
    is_link: bool,
    is_folder: bool,
}

/// A scan in progress.
struct Walk<'a> {
    exclude: &'a [Glob],
    listings: HashMap<PathBuf, Rc<Vec<Entry>>>,
    files: BTreeMap<PathBuf, Found>,
    scan: Scan,
    matches: Matches,
}

/// Finds the files that `paths` matches and `exclude` does not.
pub(crate) fn scan(options: &LogfileOptions) -> Scan {
    let mut walk = Walk {
        exclude: &options.exclude,
        listings: HashMap::new(),
        files: BTreeMap::new(),
        scan: Scan::default(),
        matches: Matches::default(),
    };
    for glob in &options.paths {
        for pattern in &glob.patterns {
            walk.scan.folders.insert(pattern.root.clone());
            let linked = std::fs::canonicalize(&pattern.root).is_ok_and(|real| real != pattern.root);
            walk.descend(&pattern.parts, &pattern.root, linked);
        }
        walk.scan.matches.push(std::mem::take(&mut walk.matches));
    }
    let mut scan = walk.scan;
    scan.found = walk.files.into_values().collect();
    scan
}

impl Walk<'_> {
    /// Finds what the parts of a pattern match in a folder.
    fn descend(&mut self, parts: &[Part], folder: &Path, linked: bool) {
        let Some((part, rest)) = parts.split_first() else { return };
        match part {
            Part::Literal(name) => {
                let path = folder.join(name);
                let is_link = path.is_symlink();
                self.step(rest, path, linked || is_link);
            }
            Part::Wildcard(pattern) => {
                let listing = self.listing(folder);
                for entry in listing.iter().filter(|entry| pattern.matches_visible(&entry.name)) {
                    if rest.is_empty() || entry.is_folder || entry.is_link {
                        self.step(rest, folder.join(&entry.name), linked || entry.is_link);
                    }
                }
            }
            Part::Recursive => self.descend_recursively(rest, folder, linked),
        }
    }

    fn step(&mut self, rest: &[Part], path: PathBuf, linked: bool) {
        if rest.is_empty() {
            self.file(path, linked);
        } else if path.is_dir() {
            self.descend(rest, &path, linked);
        }
    }

    /// Finds what the parts after `**` match in a folder and in all folders below it.
    fn descend_recursively(&mut self, rest: &[Part], folder: &Path, linked: bool) {
        let mut links = VecDeque::new();
        let mut entered = HashSet::new();
        self.enter_all(rest, folder.to_owned(), linked, &mut links, &mut entered);
        while let Some(folder) = links.pop_front() {
            self.enter_all(rest, folder, true, &mut links, &mut entered);
        }
    }

    /// Descends into a folder and all real folders below it that were not entered yet.
    fn enter_all(
        &mut self,
        rest: &[Part],
        folder: PathBuf,
        linked: bool,
        links: &mut VecDeque<PathBuf>,
        entered: &mut HashSet<FileId>,
    ) {
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            let Ok(metadata) = std::fs::metadata(&folder) else { continue };
            if !metadata.is_dir() || !entered.insert(identify(&metadata).0) {
                continue;
            }
            self.descend(rest, &folder, linked);
            let visible = |entry: &&Entry| !entry.name.as_encoded_bytes().starts_with(b".");
            for entry in self.listing(&folder).iter().filter(visible) {
                let path = folder.join(&entry.name);
                if entry.is_link {
                    links.push_back(path);
                } else if entry.is_folder {
                    folders.push(path);
                }
            }
        }
    }

    /// The entries of a folder; none if it does not exist.
    fn listing(&mut self, folder: &Path) -> Rc<Vec<Entry>> {
        if let Some(listing) = self.listings.get(folder) {
            return Rc::clone(listing);
        }
        self.scan.folders.insert(folder.to_owned());
        let entries = match list(folder) {
            Ok(entries) => entries,
            Err(error) => {
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
                    self.scan.unreadable.push((folder.to_owned(), error.to_string()));
                }
                Vec::new()
            }
        };
        let listing = Rc::new(entries);
        self.listings.insert(folder.to_owned(), Rc::clone(&listing));
        listing
    }

    /// Adds a file that a glob matches.
    fn file(&mut self, path: PathBuf, linked: bool) {
        if let Some(known) = self.files.get_mut(&path) {
            self.matches.found += 1;
            known.linked &= linked;
            return;
        }
        match regular_file(&path) {
            Ok(Some(found)) => {
                self.matches.found += 1;
                if self.exclude.iter().any(|glob| glob.excludes(&path)) {
                    self.matches.excluded += 1;
                    return;
                }
                if let Some(parent) = path.parent() {
                    self.scan.folders.insert(parent.to_owned());
                }
                self.files.insert(path, Found { linked, ..found });
            }
            Ok(None) => {}
            Err(error) => self.scan.unreadable.push((path, error.to_string())),
        }
    }
}

fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        entries.push(Entry { name: entry.file_name(), is_link: kind.is_symlink(), is_folder: kind.is_dir() });
    }
    Ok(entries)
}

/// The regular file at a path, through symbolic links; `None` for anything else and if the path was
/// removed.
pub(crate) fn regular_file(path: &Path) -> io::Result<Option<Found>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let (id, stat) = identify(&metadata);
            Ok(Some(Found { path: path.to_owned(), id, stat, linked: false }))
        }
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        // A symbolic link that leads to itself leads to no file.
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All regular files of a folder; none if it cannot be read.
pub(crate) fn files_of(folder: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<Found> =
        entries.flatten().filter_map(|entry| regular_file(&entry.path()).ok().flatten()).collect();
    files.sort_by(|left, right| left.path.cmp(&right.path));
    files
}

/// Identity and state of a file.
pub(crate) fn identify(metadata: &Metadata) -> (FileId, Stat) {
    let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    (FileId { device: metadata.dev(), inode: metadata.ino() }, Stat { size: metadata.len(), modified })
}
