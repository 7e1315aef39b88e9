//! Finds files: globs, exclusions, identities.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::MatchOptions;

use crate::config::{Glob, LogfileOptions};
use crate::position::{FileId, Stat};

/// A file that a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) id: FileId,
    pub(crate) stat: Stat,
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
}

/// Matches like a shell: wildcards stay within a folder and do not match a leading dot.
const SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
/// Exclusions match hidden files too.
const EXCLUSION: MatchOptions = MatchOptions { require_literal_leading_dot: false, ..SHELL };

/// Finds the files that `paths` matches and `exclude` does not.
pub(crate) fn scan(options: &LogfileOptions) -> Scan {
    let mut scan = Scan::default();
    for glob in &options.paths {
        scan.folders.insert(glob.root.clone());
        // The options were checked: the pattern compiles.
        let Ok(paths) = glob::glob_with(&glob.absolute, SHELL) else { continue };
        for path in paths {
            match path {
                Ok(path) if is_excluded(&path, &options.exclude) => {}
                Ok(path) => {
                    if let Some(parent) = path.parent() {
                        scan.folders.insert(parent.to_owned());
                    }
                    match regular_file(&path) {
                        Ok(Some(found)) => scan.found.push(found),
                        Ok(None) => {}
                        Err(error) => scan.unreadable.push((path, error.to_string())),
                    }
                }
                Err(error) if error.error().kind() == ErrorKind::NotFound => {}
                Err(error) => scan.unreadable.push((error.path().to_owned(), error.error().to_string())),
            }
        }
    }
    scan.found.sort_by(|left, right| left.path.cmp(&right.path));
    scan.found.dedup();
    scan
}

/// The regular file at a path, through symbolic links; `None` for anything else and if the path was
/// removed.
fn regular_file(path: &Path) -> std::io::Result<Option<Found>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let (id, stat) = identify(&metadata);
            Ok(Some(Found { path: path.to_owned(), id, stat }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
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

fn is_excluded(path: &Path, exclude: &[Glob]) -> bool {
    exclude.iter().any(|glob| {
        let text = if glob.absolute.contains('/') { Some(path.as_os_str()) } else { path.file_name() };
        text.is_some_and(|text| glob.pattern.matches_with(&text.to_string_lossy(), EXCLUSION))
    })
}
