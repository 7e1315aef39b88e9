//! [`ReadQueue`]: the order in which files are read.
//!
//! The files of one rotation group (`access.log`, `access.log.1`, ..) are read one after the other,
//! oldest first, so that a log stays in order across rotation; the groups take turns. The ordering
//! key of its files, a hash of the name that they share, identifies a group here: if two groups
//! have the same key, their files are read one after the other, too.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::file::TrackedFile;
use crate::names::{rotation_age, rotation_group};
use crate::position::FileId;

#[derive(Default)]
pub(crate) struct ReadQueue {
    /// Files with something to read; those of a group in order.
    queue: VecDeque<VecDeque<FileId>>,
    /// All files of each group.
    groups: HashMap<u32, Vec<FileId>>,
    /// The turn in which a group was last read.
    last_turns: HashMap<u32, u64>,
    turn: u64,
}

impl ReadQueue {
    /// Sets the files of all groups.
    pub(crate) fn set_files(&mut self, files: &BTreeMap<FileId, TrackedFile>) {
        self.groups.clear();
        for file in files.values() {
            self.groups.entry(file.ordering_key).or_default().push(file.id);
        }
        self.last_turns.retain(|group, _| self.groups.contains_key(group));
    }

    /// The files of a group.
    pub(crate) fn files_of(&self, group: u32) -> &[FileId] {
        self.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    /// All groups.
    pub(crate) fn groups(&self) -> impl Iterator<Item = u32> {
        self.groups.keys().copied()
    }

    /// Replaces the queue by the files of some groups that are ready to be read.
    pub(crate) fn fill(
        &mut self,
        groups: impl IntoIterator<Item = u32>,
        files: &BTreeMap<FileId, TrackedFile>,
        is_ready: impl Fn(&TrackedFile) -> bool,
    ) {
        let mut queue: Vec<(u64, i64, VecDeque<FileId>)> = Vec::new();
        for group in groups {
            let of_group = self.files_of(group).iter().filter_map(|id| files.get(id));
            let mut ready: Vec<&TrackedFile> = of_group.filter(|file| is_ready(file)).collect();
            if ready.len() > 1 {
                ready.sort_by_cached_key(|file| Age::of(file));
            }
            let Some(oldest) = ready.first() else { continue };
            let last_turn = self.last_turns.get(&group).copied().unwrap_or(0);
            queue.push((last_turn, oldest.stat.modified, ready.iter().map(|file| file.id).collect()));
        }
        queue.sort_by_key(|(last_turn, modified, _)| (*last_turn, *modified));
        self.queue = queue.into_iter().map(|(.., files)| files).collect();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The file whose turn it is.
    pub(crate) fn front(&mut self) -> Option<FileId> {
        while let Some(group) = self.queue.front() {
            if let Some(id) = group.front() {
                return Some(*id);
            }
            self.queue.pop_front();
        }
        None
    }

    /// Notes that a file of a group is read now.
    pub(crate) fn note_turn(&mut self, group: u32) {
        self.turn += 1;
        self.last_turns.insert(group, self.turn);
    }

    /// Removes the file whose turn it was.
    pub(crate) fn finish_file(&mut self) {
        if let Some(group) = self.queue.front_mut() {
            group.pop_front();
        }
    }

    /// Removes the other files of its group, too.
    pub(crate) fn skip_group(&mut self) {
        self.queue.pop_front();
    }

    /// Moves its group behind the others.
    pub(crate) fn next_group(&mut self) {
        self.queue.rotate_left(1);
    }
}

/// Orders the files of a rotation group, oldest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    /// The file with the log's plain name is the newest, whatever the times say: copying and
    /// compressing may change them.
    pub(crate) is_current: bool,
    modified: i64,
    suffix: (u8, u32, String),
}

impl Age {
    pub(crate) fn of(file: &TrackedFile) -> Self {
        let path = file.path.to_string_lossy();
        // A file that is followed by its descriptor keeps the path at which the new file is.
        let is_current = rotation_group(&path) == path && !file.is_rotated();
        Self { is_current, modified: file.stat.modified, suffix: rotation_age(&path) }
    }
}
