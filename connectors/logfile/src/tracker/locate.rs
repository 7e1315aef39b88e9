//! [`Neighbourhood`]: finds renamed files by their inode near their old path.

use std::collections::HashMap;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use crate::discovery::{Found, regular_file};
use crate::file::TrackedFile;

/// Limit on the folders that one scan lists in addition to those of the files themselves.
const MAX_FOLDERS: usize = 64;
/// Limit on the entries of these folders.
const MAX_ENTRIES: usize = 50_000;

/// Listings of folders, made once in a scan.
#[derive(Default)]
pub(crate) struct Neighbourhood {
    listings: HashMap<PathBuf, Listing>,
    listed_entries: usize,
}

#[derive(Default)]
struct Listing {
    by_inode: HashMap<u64, PathBuf>,
    folders: Vec<PathBuf>,
}

impl Neighbourhood {
    /// Finds a file that is not at a path that the globs match: where a symbolic link led to it, in
    /// the folder of its path, or in a folder above, below or next to that (`olddir`).
    pub(super) fn find(&mut self, file: &TrackedFile) -> Option<Found> {
        let is_it = |path: &Path| {
            let found = regular_file(path).ok().flatten().filter(|found| found.id == file.id);
            // A file of which nothing was read is identified by its state too.
            found.filter(|found| !file.is_unread() || found.stat == file.stat)
        };
        let by_path = [file.real.as_deref(), Some(file.path.as_path())].into_iter().flatten().find_map(is_it);
        if by_path.is_some() {
            return by_path;
        }
        let folders = file.folders();
        let find_in = |this: &mut Self, folder: &Path| {
            let path = this.listing(folder).by_inode.get(&file.id.inode).cloned()?;
            is_it(&path)
        };
        folders.iter().find_map(|folder| find_in(self, folder)).or_else(|| {
            let near: Vec<PathBuf> = folders.iter().flat_map(|folder| self.near(folder)).collect();
            near.iter().find_map(|folder| {
                let listed = self.listings.contains_key(folder);
                let exhausted = self.listings.len() >= MAX_FOLDERS || self.listed_entries >= MAX_ENTRIES;
                if listed || !exhausted { find_in(self, folder) } else { None }
            })
        })
    }

    /// The folders below, above and next to a folder. The root folder is not searched.
    fn near(&mut self, folder: &Path) -> Vec<PathBuf> {
        let mut near = self.listing(folder).folders.clone();
        if let Some(parent) = folder.parent().filter(|parent| parent.parent().is_some()) {
            near.push(parent.to_owned());
            near.extend(self.listing(parent).folders.iter().filter(|sibling| *sibling != folder).cloned());
        }
        near
    }

    fn listing(&mut self, folder: &Path) -> &Listing {
        if !self.listings.contains_key(folder) {
            let listing = list(folder);
            self.listed_entries += listing.by_inode.len();
            self.listings.insert(folder.to_owned(), listing);
        }
        self.listings.entry(folder.to_owned()).or_default()
    }
}

/// The files and folders of a folder; none if it cannot be read.
fn list(folder: &Path) -> Listing {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            listing.folders.push(entry.path());
        } else if kind.is_file() {
            listing.by_inode.insert(entry.ino(), entry.path());
        }
    }
    listing.folders.sort();
    listing
}
