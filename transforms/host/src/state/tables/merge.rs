//! The rows of several tables in one order.

use std::sync::Arc;

use super::TableError;
use super::table::{Cursor, Row, Table};

/// Goes through the rows of tables in the order of their keys. Of the rows of a key, it returns
/// that of the newest table.
pub(super) struct Merge {
    /// Of the newest table first.
    cursors: Vec<Cursor>,
    /// The cursors that are not at their ends: a binary heap whose first one has the least key.
    heap: Vec<usize>,
    /// The key of the last returned row.
    key: Vec<u8>,
    has_returned: bool,
}

impl Merge {
    /// From `start` on. The newest table comes first.
    pub(super) fn new(tables: &[Arc<Table>], start: &[u8]) -> Result<Self, TableError> {
        let cursors: Vec<Cursor> =
            tables.iter().map(|table| Cursor::new(table.clone(), start)).collect::<Result<_, _>>()?;
        let heap: Vec<usize> = (0..cursors.len()).filter(|cursor| !cursors[*cursor].is_at_end()).collect();
        let mut this = Self { cursors, heap, key: Vec::new(), has_returned: false };
        (0..this.heap.len() / 2).rev().for_each(|at| this.sift_down(at));
        Ok(this)
    }

    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, TableError> {
        if self.has_returned
            && let Some(first) = self.heap.first()
        {
            self.key.clear();
            self.key.extend_from_slice(self.cursors[*first].key());
            // The returned row, and older ones of its key.
            while let Some(first) = self.heap.first()
                && self.cursors[*first].key() == self.key
            {
                self.advance_first()?;
            }
        }
        self.has_returned = true;
        Ok(self.current())
    }

    /// The row that `next` has returned.
    pub(super) fn current(&self) -> Option<Row<'_>> {
        self.heap.first().map(|first| self.cursors[*first].row())
    }

    fn advance_first(&mut self) -> Result<(), TableError> {
        let Some(first) = self.heap.first() else { return Ok(()) };
        let cursor = &mut self.cursors[*first];
        cursor.advance()?;
        if cursor.is_at_end() {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    /// Moves the cursor at this place of the heap down to where it belongs.
    fn sift_down(&mut self, mut at: usize) {
        loop {
            let child = 2 * at + 1;
            let Some(left) = self.heap.get(child) else { return };
            let least = match self.heap.get(child + 1) {
                Some(right) if self.is_before(*right, *left) => child + 1,
                _ => child,
            };
            if !self.is_before(self.heap[least], self.heap[at]) {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }

    fn is_before(&self, a: usize, b: usize) -> bool {
        self.cursors[a].key().cmp(self.cursors[b].key()).then(a.cmp(&b)).is_lt()
    }
}
