//! Bytes of a file by their offset in the decompressed content.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use crate::config::Compression;
use crate::decompress::{Decoder, Format, MAGIC_LEN};
use crate::fingerprint::{Fingerprint, HEAD, TAIL};

/// An open file.
pub(crate) enum Input {
    /// Not compressed.
    Plain(File),
    /// Compressed; it can only be read in order.
    Compressed(Box<Decoder>),
}

/// How much of a file [`Input::beginning`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// As many bytes as were asked for; more may follow.
    Partial,
    /// The whole file, as it is now.
    Complete,
    /// All bytes of a compressed file that ends inside a member.
    Truncated,
}

/// Result of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawRead {
    /// This many bytes.
    Bytes(usize),
    /// The current end of the file.
    End,
    /// The end of a compressed file inside a member: the file may still be written.
    TruncatedStream,
}

/// Whether a file still has the content that a fingerprint was taken of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SeekOutcome {
    /// It has. `first` are the file's first bytes, `before` the last ones before the offset.
    Same { first: Vec<u8>, before: Vec<u8> },
    /// The file is shorter than the offset, and the bytes that it has do not differ.
    Shorter,
    /// The file has other content.
    Different,
}

/// The content of a file before an offset.
pub(crate) struct ContentBefore {
    pub(crate) read: Fingerprint,
    /// The first bytes, and the last ones before the offset.
    pub(crate) first: Vec<u8>,
    pub(crate) before: Vec<u8>,
}

impl Input {
    /// Opens a file at its beginning.
    pub(crate) fn open(file: File, compression: Compression) -> io::Result<Self> {
        let format = match compression {
            Compression::None => None,
            Compression::Gzip => Some(Format::Gzip),
            Compression::Zstd => Some(Format::Zstd),
            Compression::Xz => Some(Format::Xz),
            Compression::Auto => {
                let mut first = [0; MAGIC_LEN];
                let len = read_fully_at(&file, &mut first, 0)?;
                Format::detect(&first[..len])?
            }
        };
        Ok(match format {
            Some(format) => Self::Compressed(Box::new(Decoder::new(format, file))),
            None => Self::Plain(file),
        })
    }

    pub(crate) fn is_compressed(&self) -> bool {
        matches!(self, Self::Compressed(_))
    }

    /// The underlying file.
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Plain(file) => file,
            Self::Compressed(decoder) => decoder.file(),
        }
    }

    /// Bytes of memory that it holds.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Compressed(decoder) => decoder.memory(),
        }
    }

    /// Whether a compressed file has bytes after its last member that are not part of one.
    pub(crate) fn has_trailing_bytes(&self) -> bool {
        matches!(self, Self::Compressed(decoder) if decoder.has_trailing_bytes())
    }

    /// Frees the buffers of a compressed file that was read to its end.
    pub(crate) fn release(&mut self) {
        if let Self::Compressed(decoder) = self {
            decoder.release();
        }
    }

    /// Reads at `offset`. For a compressed file, `offset` must be where the last read ended.
    pub(crate) fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<RawRead> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Compressed(decoder) => return decoder.read(buffer),
        };
        loop {
            return match file.read_at(buffer, offset) {
                Ok(0) => Ok(RawRead::End),
                Ok(count) => Ok(RawRead::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// The first bytes, at most `max`. Nothing may have been read from the input before.
    pub(crate) fn beginning(&mut self, max: usize) -> io::Result<(Vec<u8>, Coverage)> {
        let (mut bytes, mut len, mut coverage) = (vec![0; max], 0, Coverage::Partial);
        while len < max {
            match self.read(&mut bytes[len..], len as u64)? {
                RawRead::Bytes(count) => {
                    len += count;
                    continue;
                }
                RawRead::End => coverage = Coverage::Complete,
                RawRead::TruncatedStream => coverage = Coverage::Truncated,
            }
            bytes.truncate(len);
            break;
        }
        Ok((bytes, coverage))
    }

    /// Moves to a fingerprint's offset and compares the content before it with the fingerprint. The
    /// next read continues there.
    pub(crate) fn seek(&mut self, known: &Fingerprint) -> io::Result<SeekOutcome> {
        match self {
            Self::Plain(file) => seek_plain(file, known),
            Self::Compressed(_) => self.seek_compressed(known),
        }
    }

    fn seek_compressed(&mut self, known: &Fingerprint) -> io::Result<SeekOutcome> {
        let mut seek = CompressedSeek::new(*known);
        loop {
            if let Some(outcome) = seek.step(self)? {
                return Ok(outcome);
            }
        }
    }

    /// The content before an offset. `None`: the content is shorter. The next read continues at the
    /// offset. Nothing may have been read from the input before.
    pub(crate) fn fingerprint_at(&mut self, offset: u64) -> io::Result<Option<ContentBefore>> {
        let (mut first, mut before, mut at) = (Vec::new(), Vec::new(), 0);
        let mut chunk = vec![0; 64 << 10];
        while at < offset {
            if let Self::Plain(_) = self
                && first.len() == HEAD
            {
                // The bytes between the first and the last ones are not needed.
                at = at.max(offset.saturating_sub(TAIL as u64));
            }
            let wanted = usize::try_from(offset - at).unwrap_or(usize::MAX).min(chunk.len());
            let RawRead::Bytes(count) = self.read(&mut chunk[..wanted], at)? else { return Ok(None) };
            let read = &chunk[..count];
            first.extend_from_slice(&read[..count.min(HEAD - first.len())]);
            before.extend_from_slice(&read[count - count.min(TAIL)..]);
            before.drain(..before.len() - before.len().min(TAIL));
            at += count as u64;
        }
        Ok(Some(ContentBefore { read: Fingerprint::at(offset, &first, &before), first, before }))
    }

    /// The fingerprint of the whole decompressed content.
    pub(crate) fn fingerprint_of_all(&mut self) -> io::Result<Fingerprint> {
        if let Self::Plain(file) = self {
            let size = file.metadata()?.len();
            let mut first = vec![0; HEAD.min(usize::try_from(size).unwrap_or(HEAD))];
            let count = read_fully_at(file, &mut first, 0)?;
            first.truncate(count);
            let mut before = vec![0; TAIL.min(usize::try_from(size).unwrap_or(TAIL))];
            let before_at = size - before.len() as u64;
            let count = read_fully_at(file, &mut before, before_at)?;
            before.truncate(count);
            return Ok(Fingerprint::at(size, &first, &before));
        }
        let (mut first, mut recent, mut at) = (Vec::new(), Vec::new(), 0);
        let mut chunk = vec![0; 64 << 10];
        while let RawRead::Bytes(count) = self.read(&mut chunk, at)? {
            let read = &chunk[..count];
            first.extend_from_slice(&read[..count.min(HEAD - first.len())]);
            recent.extend_from_slice(&read[count - count.min(TAIL)..]);
            recent.drain(..recent.len() - recent.len().min(TAIL));
            at += count as u64;
        }
        Ok(Fingerprint::at(at, &first, &recent))
    }
}

/// A seek in a compressed file, which must decompress everything before the offset; it runs in
/// steps.
pub(crate) struct CompressedSeek {
    pub(crate) known: Fingerprint,
    first: Vec<u8>,
    recent: Vec<u8>,
    at: u64,
    chunk: Vec<u8>,
}

impl CompressedSeek {
    pub(crate) fn new(known: Fingerprint) -> Self {
        Self { known, first: Vec::new(), recent: Vec::new(), at: 0, chunk: vec![0; 64 << 10] }
    }

    /// Decompresses one chunk. Returns the outcome once the offset is reached.
    pub(crate) fn step(&mut self, input: &mut Input) -> io::Result<Option<SeekOutcome>> {
        if self.at == self.known.offset {
            return Ok(Some(compare(&self.known, std::mem::take(&mut self.first), std::mem::take(&mut self.recent))));
        }
        let wanted = usize::try_from(self.known.offset - self.at).unwrap_or(usize::MAX).min(self.chunk.len());
        let RawRead::Bytes(count) = input.read(&mut self.chunk[..wanted], self.at)? else {
            return Ok(Some(SeekOutcome::Shorter));
        };
        let read = &self.chunk[..count];
        let head_len = self.known.head.len as usize;
        let had_head = self.first.len() >= head_len;
        self.first.extend_from_slice(&read[..count.min(HEAD - self.first.len())]);
        if !had_head && self.first.len() >= head_len && !self.known.head.matches(&self.first[..head_len]) {
            return Ok(Some(SeekOutcome::Different));
        }
        self.recent.extend_from_slice(&read[count - count.min(TAIL)..]);
        self.recent.drain(..self.recent.len() - self.recent.len().min(TAIL));
        self.at += count as u64;
        Ok(None)
    }
}

fn seek_plain(file: &File, known: &Fingerprint) -> io::Result<SeekOutcome> {
    let mut first = vec![0; known.head.len as usize];
    let count = read_fully_at(file, &mut first, 0)?;
    if count < first.len() {
        return Ok(SeekOutcome::Shorter);
    }
    let mut before = vec![0; known.tail.len as usize];
    let before_at = known.offset - u64::from(known.tail.len);
    let count = read_fully_at(file, &mut before, before_at)?;
    if count < before.len() {
        return Ok(if known.head.matches(&first) { SeekOutcome::Shorter } else { SeekOutcome::Different });
    }
    Ok(compare(known, first, before))
}

fn compare(known: &Fingerprint, first: Vec<u8>, recent: Vec<u8>) -> SeekOutcome {
    let head_len = known.head.len as usize;
    let tail_len = known.tail.len as usize;
    let before = recent[recent.len() - recent.len().min(tail_len)..].to_vec();
    let same = first.len() >= head_len && known.head.matches(&first[..head_len]) && known.tail.matches(&before);
    if same { SeekOutcome::Same { first, before } } else { SeekOutcome::Different }
}

/// Reads until `buffer` is full or the file ends.
pub(crate) fn read_fully_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
