//! Bytes of a file by their offset in the decompressed content.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;

use flate2::bufread::MultiGzDecoder;

use crate::config::Compression;
use crate::fingerprint::{Fingerprint, HEAD, TAIL};

/// An open file.
pub(crate) enum Input {
    /// As it is.
    Plain(File),
    /// One or more gzip members, read in order.
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
}

/// First bytes of a gzip member (deflate is the only method there is).
pub(crate) const MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];

/// What comes after a file's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nobody has looked.
    Unknown,
    /// Nothing, for now.
    Nothing,
    /// A gzip member that is cut off.
    CutOff,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    /// So many bytes.
    Bytes(usize),
    /// The end, for now.
    End,
    /// The end of a gzip file that is cut off in a member: perhaps it is still being written.
    CutOff,
}

/// What became of the content that a fingerprint was taken of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// It is there. With the file's first bytes and the last ones before the offset.
    Same { first: Vec<u8>, before: Vec<u8> },
    /// The file is shorter, and what there is of it does not tell.
    Shorter,
    /// Something else is there.
    Other,
}

impl Input {
    /// Takes a file from its beginning.
    pub(crate) fn open(file: File, compression: Compression) -> io::Result<Self> {
        let gzip = match compression {
            Compression::None => false,
            Compression::Gzip => true,
            Compression::Auto => {
                let mut first = [0; MAGIC.len()];
                read_fully_at(&file, &mut first, 0)? == MAGIC.len() && first == MAGIC
            }
        };
        if gzip {
            return Ok(Self::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file)))));
        }
        Ok(Self::Plain(file))
    }

    pub(crate) fn is_gzip(&self) -> bool {
        matches!(self, Self::Gzip(_))
    }

    /// The file under it.
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Plain(file) => file,
            Self::Gzip(decoder) => decoder.get_ref().get_ref(),
        }
    }

    /// Reads at `offset`. For gzip that must be where the last read ended.
    pub(crate) fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<Got> {
        loop {
            let result = match self {
                Self::Plain(file) => file.read_at(buffer, offset),
                Self::Gzip(decoder) => decoder.read(buffer),
            };
            return match result {
                Ok(0) => Ok(Got::End),
                Ok(count) => Ok(Got::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof && self.is_gzip() => Ok(Got::CutOff),
                Err(error) => Err(error),
            };
        }
    }

    /// The first bytes, `most` at most, and what comes after them. Only of an input that nothing was read from.
    pub(crate) fn beginning(&mut self, most: usize) -> io::Result<(Vec<u8>, After)> {
        let (mut bytes, mut len, mut after) = (vec![0; most], 0, After::Unknown);
        while len < most {
            match self.read(&mut bytes[len..], len as u64)? {
                Got::Bytes(count) => {
                    len += count;
                    continue;
                }
                Got::End => after = After::Nothing,
                Got::CutOff => after = After::CutOff,
            }
            bytes.truncate(len);
            break;
        }
        Ok((bytes, after))
    }

    /// Goes to a fingerprint's offset and says whether the content before it is the fingerprint's. Afterwards reading goes on there.
    pub(crate) fn seek(&mut self, known: &Fingerprint) -> io::Result<Content> {
        match self {
            Self::Plain(file) => seek_plain(file, known),
            Self::Gzip(_) => self.seek_gzip(known),
        }
    }

    fn seek_gzip(&mut self, known: &Fingerprint) -> io::Result<Content> {
        let mut skip = Skip::new(*known);
        loop {
            if let Some(content) = skip.step(self)? {
                return Ok(content);
            }
        }
    }

    /// The fingerprint of all there is, decompressed.
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
        while let Got::Bytes(count) = self.read(&mut chunk, at)? {
            let read = &chunk[..count];
            first.extend_from_slice(&read[..count.min(HEAD - first.len())]);
            recent.extend_from_slice(&read[count - count.min(TAIL)..]);
            recent.drain(..recent.len() - recent.len().min(TAIL));
            at += count as u64;
        }
        Ok(Fingerprint::at(at, &first, &recent))
    }
}

/// On the way to a fingerprint's offset in a gzip file, which can only be read from its beginning.
pub(crate) struct Skip {
    pub(crate) known: Fingerprint,
    first: Vec<u8>,
    recent: Vec<u8>,
    at: u64,
    chunk: Vec<u8>,
}

impl Skip {
    pub(crate) fn new(known: Fingerprint) -> Self {
        Self { known, first: Vec::new(), recent: Vec::new(), at: 0, chunk: vec![0; 64 << 10] }
    }

    /// Decompresses a little; says what is there once the offset is reached.
    pub(crate) fn step(&mut self, input: &mut Input) -> io::Result<Option<Content>> {
        if self.at == self.known.offset {
            return Ok(Some(compare(&self.known, std::mem::take(&mut self.first), std::mem::take(&mut self.recent))));
        }
        let wanted = usize::try_from(self.known.offset - self.at).unwrap_or(usize::MAX).min(self.chunk.len());
        let Got::Bytes(count) = input.read(&mut self.chunk[..wanted], self.at)? else {
            return Ok(Some(Content::Shorter));
        };
        let read = &self.chunk[..count];
        let head_len = self.known.head.len as usize;
        let had_head = self.first.len() >= head_len;
        self.first.extend_from_slice(&read[..count.min(HEAD - self.first.len())]);
        if !had_head && self.first.len() >= head_len && !self.known.head.is(&self.first[..head_len]) {
            return Ok(Some(Content::Other));
        }
        self.recent.extend_from_slice(&read[count - count.min(TAIL)..]);
        self.recent.drain(..self.recent.len() - self.recent.len().min(TAIL));
        self.at += count as u64;
        Ok(None)
    }
}

fn seek_plain(file: &File, known: &Fingerprint) -> io::Result<Content> {
    let mut first = vec![0; known.head.len as usize];
    let count = read_fully_at(file, &mut first, 0)?;
    if count < first.len() {
        return Ok(Content::Shorter);
    }
    let mut before = vec![0; known.tail.len as usize];
    let before_at = known.offset - u64::from(known.tail.len);
    let count = read_fully_at(file, &mut before, before_at)?;
    if count < before.len() {
        // What is left of the head may tell already.
        return Ok(if known.head.is(&first) { Content::Shorter } else { Content::Other });
    }
    Ok(compare(known, first, before))
}

fn compare(known: &Fingerprint, first: Vec<u8>, recent: Vec<u8>) -> Content {
    let head_len = known.head.len as usize;
    let tail_len = known.tail.len as usize;
    let before = recent[recent.len() - recent.len().min(tail_len)..].to_vec();
    let same = first.len() >= head_len && known.head.is(&first[..head_len]) && known.tail.is(&before);
    if same { Content::Same { first, before } } else { Content::Other }
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
