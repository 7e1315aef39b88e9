//! [`Reader`]: splits an open file into lines.
//!
//! # Detection of changed content
//! Each read of a plain file begins up to [`TAIL`] bytes *before* the new ones and compares them
//! with what was read there. A file that was truncated and rewritten, even past the old offset and
//! between two polls, is detected by the read that would otherwise take the new bytes for a
//! continuation.
//!
//! # Holes
//! A writer that does not append keeps its offset when its file is truncated, so that the file
//! begins with a hole: zero bytes. A file system may leave zero bytes after a crash. Zero bytes at
//! the beginning of a line are skipped.
//!
//! # Memory
//! The reader holds one line at most. Of a line longer than `max_line_bytes` it keeps the first
//! bytes and counts the rest.

use std::fs::File;
use std::io;

use crate::config::Compression;
use crate::decompress::{Format, MAGIC_LEN};
use crate::fingerprint::{Fingerprint, HEAD, TAIL};
use crate::input::{CompressedSeek, Input, RawRead, SeekOutcome};
use crate::multiline::Multiline;
use crate::text::Delimiter;

/// A seek over more decompressed bytes than this runs in steps.
const MAX_SEEK_AT_ONCE: u64 = 4 << 20;
/// Size of one read of a file with much to read.
const CHUNK: usize = 128 << 10;
/// Size of the first read after the end of a file: it grew by a few lines.
const FIRST_CHUNK: usize = 8 << 10;
/// Fewer zero bytes than this at the beginning of a line are skipped only at the beginning of a
/// file.
const MIN_HOLE: usize = 64;

pub(crate) struct Reader {
    input: Input,
    compression: Compression,
    /// Content from `base` on: some bytes of emitted lines, then the others.
    buffer: Vec<u8>,
    base: u64,
    /// Where the next line starts in `buffer`.
    start: usize,
    /// `buffer` has no delimiter between `start` and here.
    scanned: usize,
    /// Size of the next read of a plain file.
    chunk: usize,
    /// The file's first bytes, [`HEAD`] at most.
    first: Vec<u8>,
    /// The seek to the stored offset, while it is not finished.
    seek: Option<Box<CompressedSeek>>,
    /// The current line, once it is longer than allowed.
    oversized: Option<OversizedLine>,
    /// The last returned line, if it was too long.
    returned: Vec<u8>,
    /// The last line was returned before its delimiter was written.
    cut: bool,
    /// The fingerprint before the last line, if that was too long.
    before_oversized: Option<Fingerprint>,
    /// Set by [`Reader::step_back`].
    stepped_back: Option<Fingerprint>,
    /// The compressed stream has ended; reading appended bytes needs a new one.
    ended: bool,
    /// Number of bytes of a file that is too short to decide whether it is compressed; they are not
    /// in `buffer`.
    undecided: usize,
    /// Zero bytes that were skipped since the last [`Reader::take_skipped_zeros`].
    skipped_zeros: u64,
    /// The event that begins at `start`, while it may continue.
    pending: Option<PendingEvent>,
}

/// The complete lines of an event that may have more of them. They are in the buffer after `start`,
/// so the position stays before them.
#[derive(Debug, Clone, Copy)]
struct PendingEvent {
    /// Its length, with the delimiter of its last line.
    len: usize,
    lines: usize,
    /// Where its last line begins, counted from the event's beginning.
    last_line: usize,
    /// See [`Multiline::is_open_after`].
    is_open: bool,
}

struct OversizedLine {
    offset: u64,
    kept: Vec<u8>,
    len: u64,
    before: Vec<u8>,
}

/// A line of the file, without its delimiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Offset of its first byte.
    pub(crate) offset: u64,
    /// Its bytes; only the first ones if it is too long.
    pub(crate) bytes: &'a [u8],
    /// Its full length if it is too long.
    pub(crate) oversize: Option<u64>,
}

/// Result of [`Reader::read_more`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// Read this many bytes; they may complete lines.
    Bytes(usize),
    /// The current end of the file.
    End,
    /// The end of a compressed file inside a member.
    TruncatedStream,
    /// The content that was read is gone: the file was truncated or overwritten.
    Changed,
}

/// Result of [`Reader::open`].
pub(crate) enum ResumeOutcome {
    /// The content is the known one; reading continues after it.
    Resumed(Box<Reader>),
    /// The file is shorter than the known content.
    Shorter,
    /// The file has other content.
    Different,
}

impl Reader {
    /// Opens a file at a fingerprint's offset.
    pub(crate) fn open(
        file: File,
        compression: Compression,
        known: &Fingerprint,
        cut: bool,
    ) -> io::Result<ResumeOutcome> {
        let mut input = Input::open(file, compression)?;
        // A fill must not pass its deadline: a long seek in a compressed file runs in steps, and
        // `read_more` reports its outcome.
        let seek =
            (input.is_compressed() && known.offset > MAX_SEEK_AT_ONCE).then(|| Box::new(CompressedSeek::new(*known)));
        let (first, before) = match &seek {
            Some(_) => (Vec::new(), Vec::new()),
            None => match input.seek(known)? {
                SeekOutcome::Same { first, before } => (first, before),
                SeekOutcome::Shorter => return Ok(ResumeOutcome::Shorter),
                SeekOutcome::Different => return Ok(ResumeOutcome::Different),
            },
        };
        Ok(ResumeOutcome::Resumed(Box::new(Self {
            input,
            compression,
            base: known.offset - before.len() as u64,
            start: before.len(),
            scanned: before.len(),
            chunk: FIRST_CHUNK,
            buffer: before,
            first,
            seek,
            oversized: None,
            returned: Vec::new(),
            cut,
            before_oversized: None,
            stepped_back: None,
            ended: false,
            undecided: 0,
            skipped_zeros: 0,
            pending: None,
        })))
    }

    pub(crate) fn file(&self) -> &File {
        self.input.file()
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.input.is_compressed()
    }

    /// Whether the compressed stream has ended: to read appended bytes, the file must be reopened.
    pub(crate) fn must_reopen(&self) -> bool {
        self.ended
    }

    /// Offset of the next line.
    pub(crate) fn offset(&self) -> u64 {
        self.oversized.as_ref().map_or(self.base + self.start as u64, |line| line.offset)
    }

    /// Identifies the content of the returned lines.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        if let Some(before) = self.stepped_back.or(self.seek.as_ref().map(|seek| seek.known)) {
            return before;
        }
        match &self.oversized {
            Some(line) => Fingerprint::at(line.offset, &self.first, &line.before),
            None => Fingerprint::at(self.offset(), &self.first, &self.buffer[..self.start]),
        }
    }

    /// Takes back the last line, which was too long: [`Reader::fingerprint`] returns the one before
    /// it. The reader cannot be used for reading after this.
    pub(crate) fn step_back(&mut self) {
        self.stepped_back = self.before_oversized;
        self.cut = false;
    }

    /// Offset after the last byte that was read.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Length of a file that is too short to decide whether it is compressed, so that nothing of it
    /// was read; otherwise 0.
    pub(crate) fn undecided_len(&self) -> u64 {
        self.undecided as u64
    }

    /// The file's first bytes.
    pub(crate) fn first(&self) -> &[u8] {
        &self.first
    }

    /// The bytes after the last delimiter; `None` if not all of them are kept.
    pub(crate) fn rest(&self) -> Option<&[u8]> {
        self.oversized.is_none().then(|| &self.buffer[self.start..])
    }

    /// Whether a compressed file has bytes after its last member that are not part of one.
    pub(crate) fn has_trailing_bytes(&self) -> bool {
        self.input.has_trailing_bytes()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Bytes of memory that it holds.
    pub(crate) fn memory(&self) -> usize {
        let oversized = self.oversized.as_ref().map_or(0, |line| line.kept.capacity());
        self.buffer.capacity() + oversized + self.returned.capacity() + self.first.capacity() + self.input.memory()
    }

    /// The next complete line, if it has been read.
    pub(crate) fn next_line(&mut self, delimiter: &Delimiter, max_bytes: usize) -> Option<Line<'_>> {
        if self.cut && !self.complete_cut_line(delimiter) {
            return None;
        }
        self.skip_hole(delimiter);
        let found = delimiter.find(&self.buffer[self.scanned..], self.base + self.scanned as u64);
        let Some(found) = found else {
            self.scanned = (self.buffer.len() + 1).saturating_sub(delimiter.len()).max(self.scanned);
            self.truncate_oversized(delimiter, max_bytes);
            return None;
        };
        let end = self.scanned + found;
        let (start, offset) = (self.start, self.offset());
        self.before_oversized = (self.oversized.is_some() || end - start > max_bytes).then(|| self.fingerprint());
        self.start = end + delimiter.len();
        self.scanned = self.start;
        if let Some(line) = self.oversized.take() {
            let carriage_return = delimiter.carriage_return();
            let trimmed = if self.buffer[..end].ends_with(carriage_return) { carriage_return.len() } else { 0 };
            let len = line.len + (end - start) as u64 - trimmed as u64;
            self.returned = line.kept;
            return Some(Line { offset, bytes: &self.returned, oversize: Some(len) });
        }
        let bytes = delimiter.trim(&self.buffer[start..end]);
        Some(limited(offset, bytes, delimiter, max_bytes))
    }

    /// The next complete event, if it has been read: a line, or several of them. An event that
    /// would be longer than `max_bytes` or `max_lines` ends before the line that would exceed it.
    pub(crate) fn next_event(
        &mut self,
        delimiter: &Delimiter,
        max_bytes: usize,
        multiline: Option<&Multiline>,
    ) -> Option<Line<'_>> {
        let Some(multiline) = multiline else { return self.next_line(delimiter, max_bytes) };
        loop {
            let Some(pending) = self.pending else {
                if self.oversized.is_some() || (self.cut && !self.complete_cut_line(delimiter)) {
                    return self.next_line(delimiter, max_bytes);
                }
                self.skip_hole(delimiter);
                let found = delimiter.find(&self.buffer[self.scanned..], self.base + self.scanned as u64);
                let end = found.map(|found| self.scanned + found);
                let Some(end) = end.filter(|end| end - self.start <= max_bytes) else {
                    return self.next_line(delimiter, max_bytes);
                };
                self.scanned = end + delimiter.len();
                let event = PendingEvent { len: self.scanned - self.start, lines: 1, last_line: 0, is_open: false };
                if self.add_line(event, delimiter, multiline) {
                    return self.take_pending(delimiter, max_bytes);
                }
                continue;
            };
            let found = delimiter.find(&self.buffer[self.scanned..], self.base + self.scanned as u64);
            let Some(found) = found else {
                self.scanned = (self.buffer.len() + 1).saturating_sub(delimiter.len()).max(self.scanned);
                if self.buffer.len() - self.start > max_bytes + delimiter.carriage_return().len() {
                    return self.take_pending(delimiter, max_bytes);
                }
                return None;
            };
            let end = self.scanned + found;
            if !self.pending_continues(pending, end, delimiter, max_bytes, multiline) {
                return self.take_pending(delimiter, max_bytes);
            }
            self.scanned = end + delimiter.len();
            let event = PendingEvent {
                len: self.scanned - self.start,
                lines: pending.lines + 1,
                last_line: pending.len,
                is_open: pending.is_open,
            };
            if self.add_line(event, delimiter, multiline) {
                return self.take_pending(delimiter, max_bytes);
            }
        }
    }

    /// Makes an event whose last line is new the pending one. Whether it is complete.
    fn add_line(&mut self, event: PendingEvent, delimiter: &Delimiter, multiline: &Multiline) -> bool {
        let last = delimiter.text(self.last_line(event, delimiter));
        let is_open = multiline.is_open_after(event.is_open, &last);
        let is_complete = multiline.is_complete(is_open, &last);
        self.pending = Some(PendingEvent { is_open, ..event });
        is_complete
    }

    /// The last line of the event that begins at `start`.
    fn last_line(&self, event: PendingEvent, delimiter: &Delimiter) -> &[u8] {
        delimiter.trim(&self.buffer[self.start + event.last_line..self.start + event.len - delimiter.len()])
    }

    /// Whether the line after the pending event, which ends before `end`, continues it.
    fn pending_continues(
        &self,
        pending: PendingEvent,
        end: usize,
        delimiter: &Delimiter,
        max_bytes: usize,
        multiline: &Multiline,
    ) -> bool {
        if pending.lines >= multiline.max_lines || end - self.start > max_bytes {
            return false;
        }
        let last = delimiter.text(self.last_line(pending, delimiter));
        let line = delimiter.text(delimiter.trim(&self.buffer[self.start + pending.len..end]));
        multiline.continues(pending.is_open, &last, &line)
    }

    /// Returns the pending event.
    fn take_pending(&mut self, delimiter: &Delimiter, max_bytes: usize) -> Option<Line<'_>> {
        let pending = self.pending.take()?;
        let (start, offset) = (self.start, self.offset());
        self.before_oversized = None;
        self.start += pending.len;
        self.scanned = self.start;
        let bytes = delimiter.trim(&self.buffer[start..start + pending.len - delimiter.len()]);
        Some(limited(offset, bytes, delimiter, max_bytes))
    }

    /// Returns what is left at the end of a file: the pending event and the bytes after the last
    /// delimiter, as one event or one after the other.
    pub(crate) fn take_rest_event(
        &mut self,
        delimiter: &Delimiter,
        max_bytes: usize,
        multiline: Option<&Multiline>,
    ) -> Option<Line<'_>> {
        let (Some(pending), Some(multiline)) = (self.pending, multiline) else {
            return self.take_rest(delimiter, max_bytes);
        };
        let end = self.buffer.len();
        let has_tail = self.start + pending.len < end;
        if !has_tail || !self.pending_continues(pending, end, delimiter, max_bytes, multiline) {
            return self.take_pending(delimiter, max_bytes);
        }
        self.pending = None;
        self.take_rest(delimiter, max_bytes)
    }

    /// Whether an event waits for more lines, and no line has begun after it.
    pub(crate) fn has_only_event(&self) -> bool {
        self.pending.is_some_and(|pending| self.start + pending.len == self.buffer.len())
    }

    /// Returns the bytes after the last delimiter, if any, as a line.
    pub(crate) fn take_rest(&mut self, delimiter: &Delimiter, max_bytes: usize) -> Option<Line<'_>> {
        if !self.has_rest(delimiter) {
            return None;
        }
        let (start, offset) = (self.start, self.offset());
        self.before_oversized = Some(self.fingerprint());
        self.start = self.buffer.len();
        self.scanned = self.start;
        self.cut = true;
        if let Some(line) = self.oversized.take() {
            let len = line.len + (self.buffer.len() - start) as u64;
            self.returned = line.kept;
            return Some(Line { offset, bytes: &self.returned, oversize: Some(len) });
        }
        let bytes = delimiter.trim(&self.buffer[start..]);
        Some(limited(offset, bytes, delimiter, max_bytes))
    }

    /// Whether the bytes after the last delimiter make a line.
    pub(crate) fn has_rest(&self, delimiter: &Delimiter) -> bool {
        let rest = &self.buffer[self.start..];
        let only_delimiter = self.cut && delimiter.completion(rest).is_none();
        self.oversized.is_some() || (!rest.is_empty() && !only_delimiter)
    }

    /// Reads the next bytes of the file.
    pub(crate) fn read_more(&mut self) -> io::Result<ReadOutcome> {
        if let Some(mut seek) = self.seek.take() {
            return match seek.step(&mut self.input)? {
                None => {
                    self.seek = Some(seek);
                    Ok(ReadOutcome::Bytes(0))
                }
                Some(SeekOutcome::Same { first, before }) => {
                    self.base -= before.len() as u64;
                    (self.start, self.scanned) = (before.len(), before.len());
                    (self.first, self.buffer) = (first, before);
                    Ok(ReadOutcome::Bytes(0))
                }
                Some(SeekOutcome::Shorter | SeekOutcome::Different) => {
                    self.stepped_back = Some(seek.known);
                    Ok(ReadOutcome::Changed)
                }
            };
        }
        self.compact();
        let len = self.buffer.len();
        let overlap = if self.input.is_compressed() { 0 } else { len.min(TAIL) };
        let mut known = [0; TAIL];
        known[..overlap].copy_from_slice(&self.buffer[len - overlap..]);
        let chunk = if self.input.is_compressed() { CHUNK } else { self.chunk };
        self.buffer.resize(len + chunk, 0);
        let at = self.base + (len - overlap) as u64;
        let read = self.input.read(&mut self.buffer[len - overlap..], at);
        let count = if let Ok(RawRead::Bytes(count)) = read { count } else { 0 };
        let same = count >= overlap && self.buffer[len - overlap..len] == known[..overlap];
        if count <= overlap || !same {
            self.buffer[len - overlap..len].copy_from_slice(&known[..overlap]);
            self.buffer.truncate(len);
        } else {
            self.buffer.truncate(len - overlap + count);
        }
        let read = read?;
        if self.input.is_compressed() && read != RawRead::Bytes(count) {
            self.ended = true;
        }
        self.chunk = match count {
            _ if count == overlap + chunk => (4 * chunk).min(CHUNK),
            _ if count <= overlap => FIRST_CHUNK,
            _ => chunk,
        };
        match read {
            RawRead::TruncatedStream => Ok(ReadOutcome::TruncatedStream),
            _ if !same => Ok(ReadOutcome::Changed),
            RawRead::Bytes(count) if count > overlap => {
                if self.base + len as u64 == 0 && self.may_be_compressed() {
                    return self.switch_to_decoder();
                }
                self.undecided = 0;
                self.keep_first(len);
                Ok(ReadOutcome::Bytes(count - overlap))
            }
            RawRead::Bytes(_) | RawRead::End => Ok(ReadOutcome::End),
        }
    }

    /// Frees memory while the file does not change.
    pub(crate) fn shrink(&mut self) {
        self.compact();
        self.returned = Vec::new();
        if self.ended {
            self.input.release();
        }
        if self.buffer.capacity() > 4 * self.buffer.len().max(TAIL) {
            self.buffer.shrink_to_fit();
        }
    }

    fn compact(&mut self) {
        let drained = self.start.saturating_sub(TAIL);
        self.buffer.drain(..drained);
        self.base += drained as u64;
        self.start -= drained;
        self.scanned -= drained;
    }

    fn keep_first(&mut self, from: usize) {
        if self.first.len() < HEAD && self.first.len() as u64 == self.base + from as u64 {
            let new = &self.buffer[from..];
            self.first.extend_from_slice(&new[..new.len().min(HEAD - self.first.len())]);
        }
    }

    /// Whether a file that was empty when it was opened begins like a compressed file now, or is
    /// too short to decide.
    fn may_be_compressed(&self) -> bool {
        let first = &self.buffer[..self.buffer.len().min(MAGIC_LEN)];
        let auto = self.compression == Compression::Auto && !self.input.is_compressed();
        auto && (Format::may_begin(first) || !matches!(Format::detect(first), Ok(None)))
    }

    fn switch_to_decoder(&mut self) -> io::Result<ReadOutcome> {
        self.undecided = if Format::may_begin(&self.buffer) { self.buffer.len() } else { 0 };
        self.buffer.clear();
        if self.undecided > 0 {
            return Ok(ReadOutcome::End);
        }
        self.input = Input::open(self.input.file().try_clone()?, Compression::Auto)?;
        self.read_more()
    }

    /// Passes over the delimiter of a line that was returned before it. `false` if more bytes are
    /// needed to decide.
    fn complete_cut_line(&mut self, delimiter: &Delimiter) -> bool {
        let Some(len) = delimiter.completion(&self.buffer[self.start..]) else { return false };
        self.start += len;
        self.scanned = self.start;
        self.cut = false;
        true
    }

    /// Passes over zero bytes at the beginning of a line.
    fn skip_hole(&mut self, delimiter: &Delimiter) {
        if self.oversized.is_some() || self.buffer.get(self.start) != Some(&0) {
            return;
        }
        let zeros = delimiter.leading_zeros(&self.buffer[self.start..]);
        let before = self.start.checked_sub(delimiter.unit()).map(|from| &self.buffer[from..self.start]);
        let continues = before.is_none_or(|unit| unit.iter().all(|byte| *byte == 0));
        if zeros >= MIN_HOLE || (continues && zeros > 0) {
            self.start += zeros;
            self.scanned = self.scanned.max(self.start);
            self.skipped_zeros += zeros as u64;
        }
    }

    /// The number of zero bytes that were skipped since the last call.
    pub(crate) fn take_skipped_zeros(&mut self) -> u64 {
        std::mem::take(&mut self.skipped_zeros)
    }

    fn truncate_oversized(&mut self, delimiter: &Delimiter, max_bytes: usize) {
        let unread = self.scanned - self.start;
        // A carriage return at the end may turn out to belong to the delimiter.
        let allowed = max_bytes + delimiter.carriage_return().len();
        if self.oversized.is_none() && unread > allowed {
            let kept = max_bytes - max_bytes % delimiter.unit();
            self.oversized = Some(OversizedLine {
                offset: self.base + self.start as u64,
                kept: self.buffer[self.start..self.start + kept].to_vec(),
                len: 0,
                before: self.buffer[self.start.saturating_sub(TAIL)..self.start].to_vec(),
            });
        }
        if let Some(line) = &mut self.oversized {
            line.len += (self.scanned - self.start) as u64;
            self.start = self.scanned;
        }
    }
}

fn limited<'a>(offset: u64, bytes: &'a [u8], delimiter: &Delimiter, max_bytes: usize) -> Line<'a> {
    if bytes.len() <= max_bytes {
        return Line { offset, bytes, oversize: None };
    }
    let kept = max_bytes - max_bytes % delimiter.unit();
    Line { offset, bytes: &bytes[..kept], oversize: Some(bytes.len() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use proptest::prelude::*;

    fn open(path: &std::path::Path, known: &Fingerprint) -> Box<Reader> {
        match Reader::open(File::open(path).unwrap(), Compression::Auto, known, false).unwrap() {
            ResumeOutcome::Resumed(reader) => reader,
            _ => panic!("the content differs"),
        }
    }

    type Owned = (u64, Vec<u8>, Option<u64>);

    fn lines(reader: &mut Reader, delimiter: &Delimiter, max: usize) -> (Vec<Owned>, ReadOutcome) {
        let mut all = Vec::new();
        loop {
            while let Some(line) = reader.next_line(delimiter, max) {
                all.push((line.offset, line.bytes.to_vec(), line.oversize));
            }
            match reader.read_more().unwrap() {
                ReadOutcome::Bytes(_) => {}
                end => return (all, end),
            }
        }
    }

    #[test]
    fn lines_and_rest_of_a_growing_file_are_returned_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let newline = Delimiter::new("\n", encoding_rs::UTF_8);
        let mut reader = open(file.path(), &Fingerprint::empty());
        file.write_all(b"one\r\n\ntwo").unwrap();
        let (found, end) = lines(&mut reader, &newline, 100);
        assert_eq!(found, [(0, b"one".to_vec(), None), (5, Vec::new(), None)]);
        assert_eq!((end, reader.offset(), reader.has_rest(&newline)), (ReadOutcome::End, 6, true));
        file.write_all(b" and\nthree").unwrap();
        assert_eq!(lines(&mut reader, &newline, 100).0, [(6, b"two and".to_vec(), None)]);
        assert_eq!(reader.take_rest(&newline, 100).unwrap().bytes, b"three");
        assert!(reader.take_rest(&newline, 100).is_none());
        file.write_all(b"\r\nfour\n").unwrap();
        assert_eq!(lines(&mut reader, &newline, 100).0, [(21, b"four".to_vec(), None)]);
    }

    #[test]
    fn only_the_first_bytes_of_an_oversized_line_are_held() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let long = vec![b'x'; 3 * CHUNK + 7];
        file.write_all(b"a\n").unwrap();
        file.write_all(&long).unwrap();
        file.write_all(b"\r\nb\n0123456789\n").unwrap();
        let newline = Delimiter::new("\n", encoding_rs::UTF_8);
        let mut reader = open(file.path(), &Fingerprint::empty());
        let (found, _) = lines(&mut reader, &newline, 10);
        let len = long.len() as u64;
        let expected = [
            (0, b"a".to_vec(), None),
            (2, long[..10].to_vec(), Some(len)),
            (len + 4, b"b".to_vec(), None),
            (len + 6, b"0123456789".to_vec(), None),
        ];
        assert_eq!(found, expected);
        assert!(reader.memory() < 2 * CHUNK + 4096, "{}", reader.memory());
    }

    #[test]
    fn a_rewritten_file_that_has_grown_past_the_offset_is_detected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.log");
        let newline = Delimiter::new("\n", encoding_rs::UTF_8);
        for (before, after) in
            [("one\ntwo\n", "one\nTWO\nthree\n"), ("one\n", ""), ("one\n", "on"), ("one\nrest", "one\nREST\n")]
        {
            std::fs::write(&path, before).unwrap();
            let mut reader = open(&path, &Fingerprint::empty());
            lines(&mut reader, &newline, 100);
            std::fs::write(&path, after).unwrap();
            assert_eq!(lines(&mut reader, &newline, 100).1, ReadOutcome::Changed, "{before:?} -> {after:?}");
        }
    }

    proptest! {
        #[test]
        fn a_resumed_reader_returns_the_same_lines(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), any::<u8>()], 0..600),
            max in 1usize..20, delimiter in prop_oneof![Just("\n"), Just("\r\n"), Just("aa")], stop in 0usize..50, gzip: bool
        ) {
            let first = &text[..text.len().min(MAGIC_LEN)];
            prop_assume!(text.is_empty() || (!Format::may_begin(first) && matches!(Format::detect(first), Ok(None))));
            let mut file = tempfile::NamedTempFile::new().unwrap();
            if gzip {
                let mut encoder = flate2::write::GzEncoder::new(file.as_file_mut(), flate2::Compression::fast());
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap();
            } else {
                file.write_all(&text).unwrap();
            }
            let delimiter = Delimiter::new(delimiter, encoding_rs::UTF_8);
            let (all, _) = lines(&mut open(file.path(), &Fingerprint::empty()), &delimiter, max);
            let mut reader = open(file.path(), &Fingerprint::empty());
            let mut found = Vec::new();
            while found.len() < stop {
                if let Some(line) = reader.next_line(&delimiter, max) {
                    found.push((line.offset, line.bytes.to_vec(), line.oversize));
                } else if !matches!(reader.read_more().unwrap(), ReadOutcome::Bytes(_)) {
                    break;
                }
            }
            let mut reader = open(file.path(), &reader.fingerprint());
            found.extend(lines(&mut reader, &delimiter, max).0);
            prop_assert_eq!(found, all);
        }
    }
}
