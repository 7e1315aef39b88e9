//! [`RowOrder`]: which of two rows with one subject counts.

use std::collections::HashMap;
use std::mem::Discriminant;

use crate::checkpoint::ControlRow;

/// A worker shows the rows that it writes at once. It reads them later, and before them the rows
/// that others wrote. The row with the higher offset counts, in whichever order they are shown.
#[derive(Default)]
pub(super) struct RowOrder {
    /// The last offset that was read.
    read: Option<i64>,
    /// The offsets of rows that were written and not read yet, by their subjects.
    written: HashMap<(Discriminant<ControlRow>, String), i64>,
}

impl RowOrder {
    /// Whether a row counts that was written at this offset.
    pub(super) fn admits_written(&mut self, row: &ControlRow, offset: i64) -> bool {
        if self.read.is_some_and(|read| read >= offset) {
            return false;
        }
        let (kind, name) = row.subject();
        let last = self.written.entry((kind, name.to_owned())).or_insert(offset);
        *last = offset.max(*last);
        *last == offset
    }

    /// Whether a row counts that was read at this offset.
    pub(super) fn admits_read(&mut self, row: &ControlRow, offset: i64) -> bool {
        self.read = Some(offset);
        if self.written.is_empty() {
            return true;
        }
        let (kind, name) = row.subject();
        let is_last = self.written.get(&(kind, name.to_owned())).is_none_or(|written| *written <= offset);
        self.written.retain(|_, written| *written > offset);
        is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: &str) -> ControlRow {
        ControlRow::State(target.to_owned(), None)
    }

    #[test]
    fn a_row_that_was_written_counts_before_earlier_rows_that_are_read() {
        let mut order = RowOrder::default();
        assert!(order.admits_read(&row("shop"), 3));
        assert!(order.admits_written(&row("shop"), 6));
        assert!(!order.admits_read(&row("shop"), 4));
        assert!(order.admits_read(&row("web"), 5), "another subject");
        assert!(order.admits_read(&ControlRow::Restart("shop".to_owned(), None), 5), "another kind");
        assert!(order.admits_read(&row("shop"), 6));
        assert!(order.admits_read(&row("shop"), 7));
        assert!(order.written.is_empty());
    }

    #[test]
    fn a_row_that_compaction_removed_lets_later_rows_count() {
        let mut order = RowOrder::default();
        assert!(order.admits_written(&row("shop"), 6));
        assert!(order.admits_read(&row("shop"), 9));
        assert!(order.written.is_empty());
    }

    #[test]
    fn a_row_that_is_shown_late_does_not_count_before_later_rows() {
        let mut order = RowOrder::default();
        assert!(order.admits_written(&row("shop"), 6));
        assert!(!order.admits_written(&row("shop"), 5), "two requests at the same time");
        assert!(order.admits_read(&row("shop"), 8));
        assert!(!order.admits_written(&row("shop"), 7), "a later row was read");
    }
}
