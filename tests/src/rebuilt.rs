//! What a replay over the rows of keys must end with, computed from the changes alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{History, RowChange};
use crate::{Memory, Random};

/// A history that a live sink has loaded, and a range of it that is replayed with other transforms.
/// The offset of a change is its number.
pub struct Rebuilt {
    changes: Vec<RowChange>,
    /// The first offset of the range, which reaches the end.
    pub from: usize,
    /// Offsets of records that the transforms dropped when the live sink read them.
    dropped_before: BTreeSet<usize>,
    /// Those that today's transforms drop.
    dropped_today: BTreeSet<usize>,
}

/// A version of a row: its value, the second from which it is valid, and the one in which it ended.
/// A TRUNCATE ends versions when it is loaded.
pub type Version = (u64, String, u64, Option<Ended>);

/// The end of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// By a change at this second.
    At(u64),
    /// By a TRUNCATE.
    ByTruncate,
}

impl Rebuilt {
    /// Random transforms, and a random range of a history. A range that does not begin with the
    /// first record keeps all deletes: a table does not know where one was that is dropped now.
    pub fn random(random: &mut Random, history: &History, is_whole: bool) -> Self {
        let changes = history.changes().to_vec();
        let from = if is_whole { 0 } else { random.below(changes.len() as u64 - 1) as usize + 1 };
        // Few in a part of the cases, so that not every one is refused.
        let share = if random.below(2) == 0 { 40 } else { 6 };
        let mut dropped = || -> BTreeSet<usize> {
            let may_drop = |change: &RowChange| is_whole || matches!(change.op, 'c' | 'u');
            let all = changes.iter().enumerate();
            all.filter(|(_, change)| may_drop(change) && random.below(share) == 0).map(|(index, _)| index).collect()
        };
        let (dropped_before, dropped_today) = (dropped(), dropped());
        Self { changes, from, dropped_before, dropped_today }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// There are no records.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What the live sink has loaded, with the offsets.
    pub fn loaded(&self) -> Vec<(usize, RowChange)> {
        self.effective(0..self.len(), &self.dropped_before)
    }

    /// What the replay stages: today's transforms mark each value.
    pub fn staged(&self) -> Vec<(usize, RowChange)> {
        let mut staged = self.effective(self.from..self.len(), &self.dropped_today);
        staged.iter_mut().for_each(|(_, change)| change.note.push('!'));
        staged
    }

    fn effective(&self, range: std::ops::Range<usize>, dropped: &BTreeSet<usize>) -> Vec<(usize, RowChange)> {
        range.filter(|index| !dropped.contains(index)).map(|index| (index, self.changes[index].clone())).collect()
    }

    /// The changes of a table that is right after the replay.
    fn right(&self) -> Vec<(usize, RowChange)> {
        [self.effective(0..self.from, &self.dropped_before), self.staged()].concat()
    }

    /// The rows at the end, by key.
    pub fn rows(&self) -> BTreeMap<u64, String> {
        rows(&self.right())
    }

    /// All versions at the end.
    pub fn versions(&self) -> Vec<Version> {
        let mut versions: Vec<Version> = Vec::new();
        for (_, change) in self.right() {
            let second = change.second();
            for version in versions.iter_mut().filter(|version| version.3.is_none()) {
                match change.op {
                    't' => version.3 = Some(Ended::ByTruncate),
                    _ if version.0 == change.id => version.3 = Some(Ended::At(second)),
                    _ => {}
                }
            }
            if matches!(change.op, 'c' | 'u') {
                versions.push((change.id, change.note, second, None));
            }
        }
        versions.sort();
        versions
    }

    /// The replay must be refused: it has no change of a key whose row is from its range.
    pub fn must_be_refused(&self, memory: Memory) -> bool {
        let staged = self.staged();
        if self.from == 0 || memory == Memory::Versions || staged.iter().any(|(_, change)| change.op == 't') {
            return false;
        }
        let is_staged = |id: u64| staged.iter().any(|(_, change)| change.id == id);
        let mut writes: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, change) in self.loaded() {
            match (change.op, memory) {
                ('t', Memory::Rows) => writes.clear(),
                ('d', Memory::Rows) => drop(writes.remove(&change.id)),
                ('c' | 'u', _) => drop(writes.insert(change.id, index)),
                _ => {}
            }
        }
        writes.iter().any(|(id, index)| *index >= self.from && !is_staged(*id))
    }

    /// The replay may be refused: it has changes, which the transforms dropped before, of a key
    /// that the table only knows to be deleted later.
    pub fn may_be_refused(&self, memory: Memory) -> bool {
        if self.from == 0 || memory == Memory::Rows {
            return false;
        }
        self.staged().iter().any(|(index, change)| {
            let is_deleted = |later: &RowChange| later.op == 't' || (later.op == 'd' && later.id == change.id);
            self.dropped_before.contains(index) && self.changes[index + 1..].iter().any(is_deleted)
        })
    }
}

fn rows(changes: &[(usize, RowChange)]) -> BTreeMap<u64, String> {
    let mut table = BTreeMap::new();
    for (_, change) in changes {
        match change.op {
            't' => table.clear(),
            'd' => drop(table.remove(&change.id)),
            _ => drop(table.insert(change.id, change.note.clone())),
        }
    }
    table
}
