//! Lines out of an open file.
//!
//! # How changes behind our back are noticed
//! Every read of a plain file begins up to [`TAIL`] bytes *before* the new ones and compares them with what was read there. A file that was
//! truncated and written anew, even past the old offset and even between two polls, is noticed in the very read that would have taken its
//! bytes for a continuation.
//!
//! # Memory
//! One line is held at most, and of a line longer than allowed only the first `max_line_bytes`: its rest is counted and let go.

use std::fs::File;
use std::io;

use crate::config::Compression;
use crate::fingerprint::{Fingerprint, HEAD, TAIL};
use crate::input::{Content, Got, Input, MAGIC, Skip};
use crate::text::Delimiter;

/// More decompressed bytes than this are passed over in steps.
const LONG_WAY: u64 = 4 << 20;
/// Bytes asked for in one read.
const CHUNK: usize = 128 << 10;

pub(crate) struct Reader {
    input: Input,
    compression: Compression,
    /// Content from `base` on: some bytes that were handed out, then those that were not.
    buffer: Vec<u8>,
    base: u64,
    /// Where the next line starts in `buffer`.
    start: usize,
    /// There is no delimiter in `buffer` from `start` to here.
    scanned: usize,
    /// The file's first bytes, [`HEAD`] at most.
    first: Vec<u8>,
    /// Where the last run stopped is not reached yet.
    skip: Option<Box<Skip>>,
    /// The line being read, once it is longer than allowed.
    long: Option<Long>,
    /// The line last handed out, if it was too long.
    handed_out: Vec<u8>,
    /// The last line was handed out before its delimiter.
    cut: bool,
    /// What was handed out before the last line, if that was too long.
    before_long: Option<Fingerprint>,
    /// See [`Reader::step_back`].
    stepped_back: Option<Fingerprint>,
    /// A gzip stream has ended; what is appended later needs a new one.
    ended: bool,
}

struct Long {
    offset: u64,
    kept: Vec<u8>,
    len: u64,
    before: Vec<u8>,
}

/// A line as it stands in the file, without its delimiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Where it starts.
    pub(crate) offset: u64,
    /// Its bytes; only the first ones if it is too long.
    pub(crate) bytes: &'a [u8],
    /// Its true length if it is too long.
    pub(crate) oversize: Option<u64>,
}

/// What [`Reader::read_more`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum More {
    /// Bytes; there may be lines.
    Bytes(usize),
    /// The end, for now.
    End,
    /// The end of a gzip file that is cut off.
    CutOff,
    /// What was read before is no longer there: truncated or overwritten.
    Changed,
}

/// What [`Reader::open`] found.
pub(crate) enum Opened {
    /// The content is what it was; reading goes on.
    Reader(Box<Reader>),
    /// The file is too short to be what it was.
    Shorter,
    /// Something else is in it.
    Other,
}

impl Reader {
    /// Opens a file where a fingerprint was taken.
    pub(crate) fn open(file: File, compression: Compression, known: &Fingerprint, cut: bool) -> io::Result<Opened> {
        let mut input = Input::open(file, compression)?;
        // A fill must not pass its deadline: a long way through a gzip file is gone in steps, and what is found at its end is told then.
        let skip = (input.is_gzip() && known.offset > LONG_WAY).then(|| Box::new(Skip::new(*known)));
        let (first, before) = match &skip {
            Some(_) => (Vec::new(), Vec::new()),
            None => match input.seek(known)? {
                Content::Same { first, before } => (first, before),
                Content::Shorter => return Ok(Opened::Shorter),
                Content::Other => return Ok(Opened::Other),
            },
        };
        Ok(Opened::Reader(Box::new(Self {
            input,
            compression,
            base: known.offset - before.len() as u64,
            start: before.len(),
            scanned: before.len(),
            buffer: before,
            first,
            skip,
            long: None,
            handed_out: Vec::new(),
            cut,
            before_long: None,
            stepped_back: None,
            ended: false,
        })))
    }

    pub(crate) fn file(&self) -> &File {
        self.input.file()
    }

    pub(crate) fn is_gzip(&self) -> bool {
        self.input.is_gzip()
    }

    /// A gzip stream that has ended cannot go on: the file must be opened again to read what was appended.
    pub(crate) fn must_reopen(&self) -> bool {
        self.ended
    }

    /// Where the next line starts.
    pub(crate) fn offset(&self) -> u64 {
        self.long.as_ref().map_or(self.base + self.start as u64, |long| long.offset)
    }

    /// Of what was handed out.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        if let Some(before) = self.stepped_back.or(self.skip.as_ref().map(|skip| skip.known)) {
            return before;
        }
        match &self.long {
            Some(long) => Fingerprint::at(long.offset, &self.first, &long.before),
            None => Fingerprint::at(self.offset(), &self.first, &self.buffer[..self.start]),
        }
    }

    /// Counts the last line, which was too long, as not handed out: from now on [`Reader::fingerprint`] is the one before it. The reader
    /// cannot go on after this.
    pub(crate) fn step_back(&mut self) {
        self.stepped_back = self.before_long;
        self.cut = false;
    }

    /// Where the bytes read so far end.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// The file's first bytes.
    pub(crate) fn first(&self) -> &[u8] {
        &self.first
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        let long = self.long.as_ref().map_or(0, |long| long.kept.capacity());
        let decoder = if self.input.is_gzip() { 176 << 10 } else { 0 };
        self.buffer.capacity() + long + self.handed_out.capacity() + self.first.capacity() + decoder
    }

    /// The next whole line, if it has been read.
    pub(crate) fn next_line(&mut self, delimiter: &Delimiter, max_bytes: usize) -> Option<Line<'_>> {
        if self.cut && !self.complete_cut_line(delimiter) {
            return None;
        }
        let found = delimiter.find(&self.buffer[self.scanned..], self.base + self.scanned as u64);
        let Some(found) = found else {
            self.scanned = (self.buffer.len() + 1).saturating_sub(delimiter.len()).max(self.scanned);
            self.let_go_of_long_line(delimiter, max_bytes);
            return None;
        };
        let end = self.scanned + found;
        let (start, offset) = (self.start, self.offset());
        self.before_long = (self.long.is_some() || end - start > max_bytes).then(|| self.fingerprint());
        self.start = end + delimiter.len();
        self.scanned = self.start;
        if let Some(long) = self.long.take() {
            let carriage_return = delimiter.carriage_return();
            let trimmed = if self.buffer[..end].ends_with(carriage_return) { carriage_return.len() } else { 0 };
            let len = long.len + (end - start) as u64 - trimmed as u64;
            self.handed_out = long.kept;
            return Some(Line { offset, bytes: &self.handed_out, oversize: Some(len) });
        }
        let bytes = delimiter.trim(&self.buffer[start..end]);
        Some(limited(offset, bytes, delimiter, max_bytes))
    }

    /// The bytes after the last delimiter, if there are any, taken as a line.
    pub(crate) fn take_rest(&mut self, delimiter: &Delimiter, max_bytes: usize) -> Option<Line<'_>> {
        if !self.has_rest(delimiter) {
            return None;
        }
        let (start, offset) = (self.start, self.offset());
        self.before_long = Some(self.fingerprint());
        self.start = self.buffer.len();
        self.scanned = self.start;
        self.cut = true;
        if let Some(long) = self.long.take() {
            let len = long.len + (self.buffer.len() - start) as u64;
            self.handed_out = long.kept;
            return Some(Line { offset, bytes: &self.handed_out, oversize: Some(len) });
        }
        let bytes = delimiter.trim(&self.buffer[start..]);
        Some(limited(offset, bytes, delimiter, max_bytes))
    }

    /// Are there bytes after the last delimiter that make a line?
    pub(crate) fn has_rest(&self, delimiter: &Delimiter) -> bool {
        let rest = &self.buffer[self.start..];
        let only_delimiter = self.cut && delimiter.completion(rest).is_none();
        self.long.is_some() || (!rest.is_empty() && !only_delimiter)
    }

    /// Reads on.
    pub(crate) fn read_more(&mut self) -> io::Result<More> {
        if let Some(mut skip) = self.skip.take() {
            return match skip.step(&mut self.input)? {
                None => {
                    self.skip = Some(skip);
                    Ok(More::Bytes(0))
                }
                Some(Content::Same { first, before }) => {
                    self.base -= before.len() as u64;
                    (self.start, self.scanned) = (before.len(), before.len());
                    (self.first, self.buffer) = (first, before);
                    Ok(More::Bytes(0))
                }
                Some(Content::Shorter | Content::Other) => {
                    self.stepped_back = Some(skip.known);
                    Ok(More::Changed)
                }
            };
        }
        self.compact();
        let len = self.buffer.len();
        let overlap = if self.input.is_gzip() { 0 } else { len.min(TAIL) };
        let mut known = [0; TAIL];
        known[..overlap].copy_from_slice(&self.buffer[len - overlap..]);
        self.buffer.resize(len + CHUNK, 0);
        let at = self.base + (len - overlap) as u64;
        let got = self.input.read(&mut self.buffer[len - overlap..], at);
        let count = if let Ok(Got::Bytes(count)) = got { count } else { 0 };
        let same = count >= overlap && self.buffer[len - overlap..len] == known[..overlap];
        if count <= overlap || !same {
            self.buffer[len - overlap..len].copy_from_slice(&known[..overlap]);
            self.buffer.truncate(len);
        } else {
            self.buffer.truncate(len - overlap + count);
        }
        let got = got?;
        if self.input.is_gzip() && got != Got::Bytes(count) {
            self.ended = true;
        }
        match got {
            Got::CutOff => Ok(More::CutOff),
            _ if !same => Ok(More::Changed),
            Got::Bytes(count) if count > overlap => {
                if self.base + len as u64 == 0 && self.turns_out_to_be_gzip() {
                    return self.switch_to_gzip();
                }
                self.keep_first(len);
                Ok(More::Bytes(count - overlap))
            }
            Got::Bytes(_) | Got::End => Ok(More::End),
        }
    }

    /// Gives memory back while the file is at rest.
    pub(crate) fn rest(&mut self) {
        self.compact();
        self.handed_out = Vec::new();
        if self.buffer.capacity() > 4 * self.buffer.len().max(TAIL) {
            self.buffer.shrink_to_fit();
        }
    }

    fn compact(&mut self) {
        let let_go = self.start.saturating_sub(TAIL);
        self.buffer.drain(..let_go);
        self.base += let_go as u64;
        self.start -= let_go;
        self.scanned -= let_go;
    }

    fn keep_first(&mut self, from: usize) {
        if self.first.len() < HEAD && self.first.len() as u64 == self.base + from as u64 {
            let new = &self.buffer[from..];
            self.first.extend_from_slice(&new[..new.len().min(HEAD - self.first.len())]);
        }
    }

    /// A file that was empty when it was opened, and now begins like a gzip file (or with too little to tell).
    fn turns_out_to_be_gzip(&self) -> bool {
        let begins = self.buffer.starts_with(MAGIC) || MAGIC.starts_with(&self.buffer);
        self.compression == Compression::Auto && !self.input.is_gzip() && begins
    }

    fn switch_to_gzip(&mut self) -> io::Result<More> {
        let whole = self.buffer.len() >= MAGIC.len();
        self.buffer.clear();
        if !whole {
            return Ok(More::End);
        }
        self.input = Input::open(self.input.file().try_clone()?, Compression::Auto)?;
        self.read_more()
    }

    /// Takes the delimiter that comes after a line already handed out. `false` if more bytes are needed to tell.
    fn complete_cut_line(&mut self, delimiter: &Delimiter) -> bool {
        let Some(len) = delimiter.completion(&self.buffer[self.start..]) else { return false };
        self.start += len;
        self.scanned = self.start;
        self.cut = false;
        true
    }

    fn let_go_of_long_line(&mut self, delimiter: &Delimiter, max_bytes: usize) {
        let unread = self.scanned - self.start;
        // A carriage return at the end may turn out to belong to the delimiter.
        let allowed = max_bytes + delimiter.carriage_return().len();
        if self.long.is_none() && unread > allowed {
            let kept = max_bytes - max_bytes % delimiter.unit();
            self.long = Some(Long {
                offset: self.base + self.start as u64,
                kept: self.buffer[self.start..self.start + kept].to_vec(),
                len: 0,
                before: self.buffer[self.start.saturating_sub(TAIL)..self.start].to_vec(),
            });
        }
        if let Some(long) = &mut self.long {
            long.len += (self.scanned - self.start) as u64;
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
            Opened::Reader(reader) => reader,
            _ => panic!("the content is not what it was"),
        }
    }

    type Owned = (u64, Vec<u8>, Option<u64>);

    fn lines(reader: &mut Reader, delimiter: &Delimiter, max: usize) -> (Vec<Owned>, More) {
        let mut all = Vec::new();
        loop {
            while let Some(line) = reader.next_line(delimiter, max) {
                all.push((line.offset, line.bytes.to_vec(), line.oversize));
            }
            match reader.read_more().unwrap() {
                More::Bytes(_) => {}
                end => return (all, end),
            }
        }
    }

    #[test]
    fn lines_of_a_growing_file_and_its_rest() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let newline = Delimiter::new("\n", encoding_rs::UTF_8);
        let mut reader = open(file.path(), &Fingerprint::empty());
        file.write_all(b"one\r\n\ntwo").unwrap();
        let (found, end) = lines(&mut reader, &newline, 100);
        assert_eq!(found, [(0, b"one".to_vec(), None), (5, Vec::new(), None)]);
        assert_eq!((end, reader.offset(), reader.has_rest(&newline)), (More::End, 6, true));
        file.write_all(b" and\nthree").unwrap();
        assert_eq!(lines(&mut reader, &newline, 100).0, [(6, b"two and".to_vec(), None)]);
        assert_eq!(reader.take_rest(&newline, 100).unwrap().bytes, b"three");
        assert!(reader.take_rest(&newline, 100).is_none());
        file.write_all(b"\r\nfour\n").unwrap();
        assert_eq!(lines(&mut reader, &newline, 100).0, [(21, b"four".to_vec(), None)]);
    }

    #[test]
    fn of_a_long_line_only_the_first_bytes_are_held() {
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
    fn a_rewritten_file_is_noticed_even_when_it_has_grown_past_the_offset() {
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
            assert_eq!(lines(&mut reader, &newline, 100).1, More::Changed, "{before:?} -> {after:?}");
        }
    }

    proptest! {
        #[test]
        fn any_resumption_gives_the_same_lines(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), any::<u8>()], 0..600),
            max in 1usize..20, delimiter in prop_oneof![Just("\n"), Just("\r\n"), Just("aa")], stop in 0usize..50, gzip: bool
        ) {
            prop_assume!(!MAGIC.starts_with(&text[..text.len().min(3)]) || text.is_empty());
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
                } else if !matches!(reader.read_more().unwrap(), More::Bytes(_)) {
                    break;
                }
            }
            let mut reader = open(file.path(), &reader.fingerprint());
            found.extend(lines(&mut reader, &delimiter, max).0);
            prop_assert_eq!(found, all);
        }
    }
}
