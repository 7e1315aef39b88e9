//! A random history of a table `(id, note)` with a failover of its source, and deliveries of it in
//! which changes arrive late and again.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Random;

/// A change of a row, or a TRUNCATE.
#[derive(Debug, Clone)]
pub struct RowChange {
    /// Debezium's letter: `c`, `u`, `d` or `t`.
    pub op: char,
    /// The row's key; that of no row for a TRUNCATE.
    pub id: u64,
    /// The value that the change writes, different in each change.
    pub note: String,
    /// The value before.
    before: Option<String>,
    /// The header `trunkline.epoch`.
    pub epoch: u64,
    file: u64,
    pos: u64,
    time: u64,
}

impl RowChange {
    /// When the source made the change, in seconds since the Unix epoch. Each change has another
    /// one.
    pub fn second(&self) -> u64 {
        self.time / 1_000
    }

    /// The record's key.
    pub fn key(&self) -> Option<String> {
        (self.op != 't').then(|| format!("{{\"id\":{}}}", self.id))
    }

    /// The record's value, in Debezium's envelope.
    pub fn value(&self) -> String {
        let row = |note: Option<&String>| match note {
            Some(note) => format!("{{\"id\":{},\"note\":\"{note}\"}}", self.id),
            None => "null".to_owned(),
        };
        let after = matches!(self.op, 'c' | 'u').then_some(&self.note);
        format!(
            "{{\"before\":{},\"after\":{},\"source\":{{\"ts_ms\":{},\"file\":\"binlog.{:06}\",\"pos\":{},\"row\":0}},\"op\":\"{}\"}}",
            row(self.before.as_ref()),
            row(after),
            self.time,
            self.file,
            self.pos,
            self.op
        )
    }
}

/// What a table remembers of rows that were deleted: it decides which changes may arrive late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Nothing.
    Rows,
    /// Their versions.
    Versions,
    /// Their deletes.
    Deletes,
}

/// See the module's header.
pub struct History {
    changes: Vec<RowChange>,
}

impl History {
    /// A history of this number of changes of `rows` rows. After half of them the source follows
    /// another server, whose positions are lower.
    pub fn random(random: &mut Random, rows: u64, changes: u64) -> Self {
        let mut table: BTreeMap<u64, String> = BTreeMap::new();
        let mut made = Vec::new();
        for number in 0..changes {
            let (epoch, file) = if number < changes / 2 { (1_764_300_000, 900) } else { (1_764_300_777, 3) };
            let (id, note) = (random.below(rows), format!("v{number}"));
            let before = table.get(&id).cloned();
            let op = match (&before, random.below(20)) {
                (_, 0) if number > changes / 4 && number < changes / 2 => 't',
                (Some(_), 1..=5) => 'd',
                (Some(_), _) => 'u',
                (None, _) => 'c',
            };
            match op {
                't' => table.clear(),
                'd' => drop(table.remove(&id)),
                _ => drop(table.insert(id, note.clone())),
            }
            let before = before.filter(|_| op != 't');
            let time = 1_764_300_000_000 + number * 1_000;
            made.push(RowChange { op, id, note, before, epoch, file, pos: 4 + number, time });
        }
        Self { changes: made }
    }

    /// All changes, in order.
    pub fn changes(&self) -> &[RowChange] {
        &self.changes
    }

    /// The rows at the end, by key.
    pub fn rows(&self) -> BTreeMap<u64, String> {
        let mut table = BTreeMap::new();
        for change in &self.changes {
            match change.op {
                't' => table.clear(),
                'd' => drop(table.remove(&change.id)),
                _ => drop(table.insert(change.id, change.note.clone())),
            }
        }
        table
    }

    /// All changes in parts of `size`, in which some arrive later than in the part that they belong
    /// to, and earlier ones arrive again.
    pub fn deliveries(&self, random: &mut Random, size: usize, memory: Memory) -> Vec<Vec<RowChange>> {
        let mut parts: Vec<Vec<RowChange>> = Vec::new();
        let mut late: Vec<RowChange> = Vec::new();
        for (number, part) in self.changes.chunks(size).enumerate() {
            let first = number * size;
            let mut delivered = Vec::new();
            for (index, change) in (first..).zip(part) {
                let is_late = random.below(5) == 0 && self.may_be_late(index, memory);
                if is_late { &mut late } else { &mut delivered }.push(change.clone());
            }
            if random.below(2) == 0 {
                delivered.append(&mut late);
            }
            if first > 0 && random.below(2) == 0 {
                delivered.extend(self.repeated(random.below(first as u64) as usize..first, memory));
            }
            parts.push(delivered);
        }
        parts.push(late);
        parts.push(self.repeated(0..self.changes.len(), memory).collect());
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// The changes of a range that may arrive again.
    fn repeated(&self, range: Range<usize>, memory: Memory) -> impl Iterator<Item = RowChange> {
        let may_repeat = move |index: &usize| {
            memory != Memory::Rows || self.changes[*index].op == 't' || self.is_of_existing_row(*index)
        };
        range.filter(may_repeat).map(|index| self.changes[index].clone())
    }

    /// Whether a change may arrive after those that follow it.
    fn may_be_late(&self, index: usize, memory: Memory) -> bool {
        self.changes[index].op != 't' && (memory == Memory::Deletes || self.is_of_existing_row(index))
    }

    /// Whether the row of a change was not deleted after it, or not before a TRUNCATE, which every
    /// table remembers.
    fn is_of_existing_row(&self, index: usize) -> bool {
        let id = self.changes[index].id;
        let mut later = self.changes[index + 1..].iter();
        later.find(|change| change.op == 't' || (change.op == 'd' && change.id == id)).is_none_or(|end| end.op == 't')
    }
}
