//! [`Totals`]: sums over the tracked files. They are kept while single files change, so that their
//! cost does not grow with the number of files.

use crate::file::TrackedFile;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Bytes that were not emitted yet, see [`TrackedFile::lag_bytes`].
    pub(crate) lag_bytes: u64,
    /// Memory of the readers.
    pub(crate) reader_bytes: usize,
}

impl Totals {
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a TrackedFile>) -> Self {
        let mut totals = Self::default();
        files.for_each(|file| totals.add(file));
        totals
    }

    pub(super) fn add(&mut self, file: &TrackedFile) {
        self.lag_bytes += file.lag_bytes();
        self.reader_bytes += reader_bytes(file);
    }

    /// Takes out a file that was added in the same state.
    pub(super) fn remove(&mut self, file: &TrackedFile) {
        self.lag_bytes = self.lag_bytes.saturating_sub(file.lag_bytes());
        self.reader_bytes = self.reader_bytes.saturating_sub(reader_bytes(file));
    }
}

fn reader_bytes(file: &TrackedFile) -> usize {
    file.reader.as_ref().map_or(0, |reader| reader.memory())
}
