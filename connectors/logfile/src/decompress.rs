//! [`Decoder`]: decompresses gzip, zstd and xz files of one or more members.
//!
//! Like the formats' own tools, it accepts zero padding after a member and ignores other bytes
//! after the last member, with a warning.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek};
use std::sync::Arc;

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;

use crate::input::{RawRead, read_fully_at};

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gzip,
    Zstd,
    Xz,
}

/// Length of the longest magic number.
pub(crate) const MAGIC_LEN: usize = 6;
/// Largest dictionary of an xz file, in KiB: the one of `xz -9` is half of it.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// Largest window of a zstd file, as a power of two: the default limit of `zstd -d`.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER: usize = 64 << 10;

/// Formats that are recognised and cannot be read, with their first bytes.
const UNSUPPORTED: [(&str, &[u8]); 6] = [
    ("bzip2", b"BZh"),
    ("zip", b"PK\x03\x04"),
    ("lz4", &[0x04, 0x22, 0x4d, 0x18]),
    ("compress", &[0x1f, 0x9d]),
    ("7z", &[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c]),
    ("snappy", &[0xff, 0x06, 0x00, 0x00, b's', b'N']),
];

impl Format {
    const ALL: [Self; 3] = [Self::Gzip, Self::Zstd, Self::Xz];

    /// First bytes of a member.
    fn magic(self) -> &'static [u8] {
        match self {
            // Deflate is the only method of gzip that exists.
            Self::Gzip => &[0x1f, 0x8b, 0x08],
            Self::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
            Self::Xz => &[0xfd, b'7', b'z', b'X', b'Z', 0x00],
        }
    }

    /// The format of a file, by its first bytes. An error names a format that cannot be read.
    pub(crate) fn detect(first: &[u8]) -> io::Result<Option<Self>> {
        let format = Self::ALL.into_iter().find(|format| first.starts_with(format.magic()));
        let unsupported = UNSUPPORTED.iter().find(|(_, magic)| first.starts_with(magic));
        match (format, unsupported) {
            (None, Some(("bzip2", _))) if !first.get(3).is_some_and(|level| (b'1'..=b'9').contains(level)) => Ok(None),
            (None, Some((name, _))) => Err(io::Error::new(
                ErrorKind::Unsupported,
                format!(
                    "it is compressed with {name}; the source reads gzip, zstd and xz. Exclude the file with `exclude`, or set \
                     `compression = \"none\"` to read its bytes as they are"
                ),
            )),
            (format, _) => Ok(format),
        }
    }

    /// Whether a file that has only these bytes may become a compressed one.
    pub(crate) fn may_begin(first: &[u8]) -> bool {
        let begins = |format: &Self| first.len() < format.magic().len() && format.magic().starts_with(first);
        // One printable character is more likely a text than the beginning of a zstd file.
        !first.iter().all(u8::is_ascii_graphic) && Self::ALL.iter().any(begins)
    }
}

/// Decompresses one file.
pub(crate) struct Decoder {
    format: Format,
    file: Arc<File>,
    /// `None` at the end of the file, after [`Decoder::release`].
    state: Option<State>,
    /// Bytes of memory that it holds.
    memory: usize,
    /// A member was read.
    begun: bool,
    /// The file has bytes after its last member that are not part of one.
    trailing: bool,
}

enum State {
    Gzip(GzDecoder<BufReader<Arc<File>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Arc<File>>>),
    Xz(Box<XzReader<BufReader<Arc<File>>>>),
    /// Before or after a member.
    Between(BufReader<Arc<File>>),
}

/// What follows a member.
enum Next {
    Member,
    /// The beginning of a magic number: the member may still be written.
    Incomplete,
    End {
        trailing: bool,
    },
}

impl Decoder {
    pub(crate) fn new(format: Format, file: File) -> Self {
        let file = Arc::new(file);
        let state = Some(State::Between(BufReader::with_capacity(BUFFER, Arc::clone(&file))));
        Self { format, file, state, memory: BUFFER, begun: false, trailing: false }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of memory that it holds.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether the file has bytes after its last member that are not part of one.
    pub(crate) fn has_trailing_bytes(&self) -> bool {
        self.trailing
    }

    /// Frees the buffers. Every later read returns the end of the file.
    pub(crate) fn release(&mut self) {
        self.state = None;
        self.memory = 0;
    }

    /// Reads the next decompressed bytes.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<RawRead> {
        loop {
            let read = match &mut self.state {
                Some(State::Gzip(decoder)) => decoder.read(buffer),
                Some(State::Zstd(decoder)) => decoder.read(buffer),
                Some(State::Xz(decoder)) => decoder.read(buffer),
                None => return Ok(RawRead::End),
                Some(State::Between(reader)) => match next_member(self.format, reader)? {
                    Next::Member => {
                        self.begin_member()?;
                        continue;
                    }
                    Next::Incomplete => return Ok(RawRead::TruncatedStream),
                    Next::End { trailing: true } if !self.begun => {
                        let message = format!("it does not begin like a file of the format {:?}", self.format);
                        return Err(io::Error::new(ErrorKind::InvalidData, message));
                    }
                    Next::End { trailing } => {
                        self.trailing = trailing;
                        return Ok(RawRead::End);
                    }
                },
            };
            match read {
                Ok(0) => self.end_member(),
                Ok(count) => return Ok(RawRead::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(RawRead::TruncatedStream),
                Err(error) => return Err(error),
            }
        }
    }

    fn begin_member(&mut self) -> io::Result<()> {
        let Some(State::Between(reader)) = self.state.take() else { return Ok(()) };
        let mut header = [0; 64];
        let len = read_fully_at(&self.file, &mut header, position(&reader)?)?;
        let header = &header[..len];
        let (state, memory) = match self.format {
            // The window of deflate, tables, and a buffer for the header.
            Format::Gzip => (State::Gzip(GzDecoder::new(reader)), 112 << 10),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                (State::Zstd(decoder), zstd_window(header).unwrap_or(8 << 20))
            }
            Format::Xz => {
                let decoder = XzReader::new_mem_limit(reader, false, XZ_MEMORY_KIB);
                (State::Xz(Box::new(decoder)), xz_dictionary(header).unwrap_or(8 << 20))
            }
        };
        self.state = Some(state);
        self.begun = true;
        self.memory = BUFFER + memory;
        Ok(())
    }

    fn end_member(&mut self) {
        let reader = match self.state.take() {
            Some(State::Gzip(decoder)) => decoder.into_inner(),
            Some(State::Zstd(decoder)) => decoder.finish(),
            Some(State::Xz(decoder)) => decoder.into_inner(),
            Some(State::Between(reader)) => reader,
            None => return,
        };
        self.state = Some(State::Between(reader));
        self.memory = BUFFER;
    }
}

/// Passes over zero padding and finds out what follows it.
fn next_member(format: Format, reader: &mut BufReader<Arc<File>>) -> io::Result<Next> {
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if buffer.is_empty() {
            return Ok(Next::End { trailing: false });
        }
        if zeros < buffer.len() {
            reader.consume(zeros);
            break;
        }
        reader.consume(zeros);
    }
    let mut first = [0; MAGIC_LEN];
    let magic = format.magic();
    let len = read_fully_at(reader.get_ref(), &mut first[..magic.len()], position(reader)?)?;
    // A skippable frame of zstd has no content.
    let skippable = format == Format::Zstd && first[1..4] == [0x2a, 0x4d, 0x18] && first[0] & 0xf0 == 0x50;
    Ok(if first.starts_with(magic) || skippable {
        Next::Member
    } else if len < magic.len() && magic.starts_with(&first[..len]) {
        Next::Incomplete
    } else {
        Next::End { trailing: true }
    })
}

/// Position in the file of the next byte of a reader.
fn position(reader: &BufReader<Arc<File>>) -> io::Result<u64> {
    let end = (&**reader.get_ref()).stream_position()?;
    Ok(end - reader.buffer().len() as u64)
}

/// The window of a zstd frame, in bytes.
fn zstd_window(header: &[u8]) -> Option<usize> {
    let descriptor = *header.get(4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = *header.get(5)?;
        let base = 1_usize.checked_shl(10 + u32::from(window >> 3))?;
        return Some(base + base / 8 * usize::from(window & 7));
    }
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = header.get(5 + dictionary_id..)?;
    Some(match descriptor >> 6 {
        0 => usize::from(*size.first()?),
        1 => 256 + usize::from(u16::from_le_bytes(*size.first_chunk()?)),
        2 => u32::from_le_bytes(*size.first_chunk()?) as usize,
        _ => usize::try_from(u64::from_le_bytes(*size.first_chunk()?)).ok()?,
    })
}

/// The dictionary of the first block of an xz stream, in bytes.
fn xz_dictionary(header: &[u8]) -> Option<usize> {
    const LZMA2: u8 = 0x21;
    let block = header.get(12..)?;
    let flags = *block.get(1)?;
    let mut at = 2;
    let skip_number = |at: &mut usize| {
        while block.get(*at).is_some_and(|byte| byte & 0x80 != 0) {
            *at += 1;
        }
        *at += 1;
    };
    for flag in [0x40, 0x80] {
        if flags & flag != 0 {
            skip_number(&mut at);
        }
    }
    for _ in 0..=flags & 3 {
        let (id, len) = (*block.get(at)?, usize::from(*block.get(at + 1)?));
        if id == LZMA2 {
            let bits = u32::from(*block.get(at + 2)?);
            return usize::try_from((2 | u64::from(bits & 1)).checked_shl(bits / 2 + 11)?).ok();
        }
        at += 2 + len;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The content of a file, and what its last read returned.
    fn read_all(format: Format, bytes: &[u8]) -> (Vec<u8>, io::Result<RawRead>, bool) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let mut decoder = Decoder::new(format, file);
        let (mut content, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match decoder.read(&mut buffer) {
                Ok(RawRead::Bytes(count)) => content.extend_from_slice(&buffer[..count]),
                end => return (content, end, decoder.has_trailing_bytes()),
            }
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(content: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(0);
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn samples() -> [(Format, Vec<u8>, Vec<u8>); 3] {
        [
            (Format::Gzip, gzip(b"one\n"), gzip(b"two\n")),
            (Format::Zstd, zstd::encode_all(&b"one\n"[..], 3).unwrap(), zstd::encode_all(&b"two\n"[..], 19).unwrap()),
            (Format::Xz, xz(b"one\n"), xz(b"two\n")),
        ]
    }

    #[test]
    fn members_padding_and_trailing_bytes_are_read_like_the_formats_tools_do() {
        for (format, one, two) in samples() {
            assert_eq!(Format::detect(&one).unwrap(), Some(format));
            let (content, end, trailing) = read_all(format, &[&one[..], &[0; 512], &two].concat());
            assert_eq!(
                (content.as_slice(), end.unwrap(), trailing),
                (&b"one\ntwo\n"[..], RawRead::End, false),
                "{format:?}"
            );
            let (content, end, trailing) = read_all(format, &[&one[..], &[0; 100_000]].concat());
            assert_eq!(
                (content.as_slice(), end.unwrap(), trailing),
                (&b"one\n"[..], RawRead::End, false),
                "{format:?}"
            );
            let (content, end, trailing) = read_all(format, &[&one[..], b"trailing"].concat());
            assert_eq!((content.as_slice(), end.unwrap(), trailing), (&b"one\n"[..], RawRead::End, true), "{format:?}");
        }
    }

    #[test]
    fn a_file_that_ends_inside_a_member_is_truncated_at_every_length() {
        for (format, one, two) in samples() {
            let whole = [one.clone(), two].concat();
            for len in (1..one.len()).chain(one.len() + 1..whole.len()) {
                let (content, end, _) = read_all(format, &whole[..len]);
                assert!(b"one\ntwo\n".starts_with(&content[..]), "{format:?} {len}");
                assert_eq!(end.unwrap(), RawRead::TruncatedStream, "{format:?} {len} of {}", whole.len());
            }
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        for (format, mut one, _) in samples() {
            let middle = one.len() / 2;
            one[middle] ^= 0xff;
            let (_, end, _) = read_all(format, &one);
            assert!(end.is_err(), "{format:?}: {end:?}");
        }
    }

    #[test]
    fn unsupported_formats_are_named() {
        assert!(Format::detect(b"BZh91AY&SY").unwrap_err().to_string().contains("bzip2"));
        assert!(Format::detect(b"PK\x03\x04").unwrap_err().to_string().contains("zip"));
        assert_eq!(Format::detect(b"BZhello").unwrap(), None);
        assert!(Format::may_begin(&[0x1f]) && !Format::may_begin(b"(") && !Format::may_begin(b"\x1fx"));
    }

    #[test]
    fn memory_follows_the_window() {
        let content = vec![b'x'; 3 << 20];
        let mut frame = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        frame.write_all(&content).unwrap();
        let window = zstd_window(&frame.finish().unwrap()).unwrap();
        assert!((1 << 20..=8 << 20).contains(&window), "{window}");
        let dictionary = xz_dictionary(&xz(&content)).unwrap();
        assert_eq!(dictionary, 256 << 10);
    }
}
