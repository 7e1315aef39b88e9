//! Decodes bytes to text: charsets, byte order marks, and the delimiter as bytes of a charset.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use memchr::memmem::Finder;

/// How the text of a file is encoded.
pub(crate) struct TextFormat {
    pub(crate) charset: &'static Encoding,
    pub(crate) delimiter: Delimiter,
}

/// The configured encoding, and those that a byte order mark can name. A byte order mark takes
/// precedence.
pub(crate) struct TextFormats {
    configured: TextFormat,
    marked: [TextFormat; 3],
}

impl TextFormats {
    pub(crate) fn new(delimiter: &str, charset: &'static Encoding) -> Self {
        let format = |charset| TextFormat { charset, delimiter: Delimiter::new(delimiter, charset) };
        Self { configured: format(charset), marked: [UTF_8, UTF_16LE, UTF_16BE].map(format) }
    }

    /// The encoding of a file with these first bytes.
    pub(crate) fn of(&self, first: &[u8]) -> &TextFormat {
        let marked = Encoding::for_bom(first).map(|(charset, _)| charset);
        self.marked.iter().find(|format| Some(format.charset) == marked).unwrap_or(&self.configured)
    }

    /// Whether a file's byte order mark names another charset than the configured one.
    pub(crate) fn contradicts(&self, format: &TextFormat) -> bool {
        format.charset != self.configured.charset
    }
}

/// The delimiter of lines, as bytes of the file.
pub(crate) struct Delimiter {
    bytes: Vec<u8>,
    finder: Finder<'static>,
    /// Size of a code unit: a delimiter starts at a multiple of it.
    unit: usize,
    /// A carriage return in the charset, removed before a newline.
    carriage_return: Option<Vec<u8>>,
    /// The charset of the lines, if ASCII is not one byte in it.
    charset: Option<&'static Encoding>,
}

impl Delimiter {
    pub(crate) fn new(text: &str, charset: &'static Encoding) -> Self {
        let bytes = encode(text, charset);
        Self {
            finder: Finder::new(&bytes).into_owned(),
            bytes,
            unit: if charset == UTF_16LE || charset == UTF_16BE { 2 } else { 1 },
            carriage_return: (text == "\n").then(|| encode("\r", charset)),
            charset: Some(charset).filter(|charset| !charset.is_ascii_compatible()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The first delimiter in `bytes`, which start at offset `at` of the file.
    pub(crate) fn find(&self, bytes: &[u8], at: u64) -> Option<usize> {
        if let [byte] = self.bytes.as_slice() {
            return memchr::memchr(*byte, bytes);
        }
        let mut from = 0;
        loop {
            let found = from + self.finder.find(&bytes[from..])?;
            if (at + found as u64).is_multiple_of(self.unit as u64) {
                return Some(found);
            }
            from = found + 1;
        }
    }

    /// Whether a delimiter ends at an offset of the file. `before` are the bytes before it.
    pub(crate) fn ends(&self, before: &[u8], offset: u64) -> bool {
        before.ends_with(&self.bytes) && offset.is_multiple_of(self.unit as u64)
    }

    /// For the bytes after a line that was emitted before its delimiter: the length of that
    /// delimiter (0 if other bytes follow). `None` if more bytes are needed to decide.
    pub(crate) fn completion(&self, bytes: &[u8]) -> Option<usize> {
        let cr = self.carriage_return.as_deref().unwrap_or_default();
        let (skipped, rest) = match bytes.strip_prefix(cr) {
            Some(rest) => (cr.len(), rest),
            None => (0, bytes),
        };
        if rest.starts_with(&self.bytes) {
            return Some(skipped + self.bytes.len());
        }
        let undecided = self.bytes.starts_with(rest) || cr.starts_with(bytes);
        if undecided { None } else { Some(0) }
    }

    /// Length of the zero bytes at the beginning of `bytes`, in whole code units. Zero if the
    /// delimiter begins with zero bytes.
    pub(crate) fn leading_zeros(&self, bytes: &[u8]) -> usize {
        if self.bytes[..self.unit.min(self.bytes.len())].iter().all(|byte| *byte == 0) {
            return 0;
        }
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        zeros - zeros % self.unit
    }

    /// Size of a code unit.
    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    /// The carriage return in the charset; empty if none is removed.
    pub(crate) fn carriage_return(&self) -> &[u8] {
        self.carriage_return.as_deref().unwrap_or_default()
    }

    /// The text of a line, in which ASCII is one byte.
    pub(crate) fn text<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(charset) = self.charset else { return Cow::Borrowed(line) };
        let (text, _) = charset.decode_without_bom_handling(line);
        let text = text.into_owned();
        // The first line of a file.
        Cow::Owned(text.strip_prefix('\u{feff}').unwrap_or(&text).as_bytes().to_vec())
    }

    /// The line without the carriage return at its end.
    pub(crate) fn trim<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        self.carriage_return.as_ref().and_then(|end| line.strip_suffix(end.as_slice())).unwrap_or(line)
    }
}

fn encode(text: &str, charset: &'static Encoding) -> Vec<u8> {
    // encoding_rs has no encoder for UTF-16: it writes UTF-8 instead, as the web does.
    if charset == UTF_16LE {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    } else if charset == UTF_16BE {
        text.encode_utf16().flat_map(u16::to_be_bytes).collect()
    } else {
        charset.encode(text).0.into_owned()
    }
}

/// Decodes a line; returns the text and whether invalid bytes were replaced. The `first` line of a
/// file may begin with a byte order mark. A `cut` line may end inside a character.
pub(crate) fn decode<'a>(charset: &'static Encoding, line: &'a [u8], first: bool, cut: bool) -> (Cow<'a, str>, bool) {
    let line = match charset {
        _ if !first => line,
        charset if charset == UTF_8 => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
        charset if charset == UTF_16LE => line.strip_prefix(b"\xff\xfe").unwrap_or(line),
        charset if charset == UTF_16BE => line.strip_prefix(b"\xfe\xff").unwrap_or(line),
        _ => line,
    };
    if charset != UTF_8 {
        return charset.decode_without_bom_handling(line);
    }
    match std::str::from_utf8(line) {
        Ok(text) => (Cow::Borrowed(text), false),
        Err(error) if cut && error.error_len().is_none() => {
            (String::from_utf8_lossy(&line[..error.valid_up_to()]), false)
        }
        Err(_) => (String::from_utf8_lossy(line), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_utf16_delimiter_is_aligned_to_code_units() {
        let delimiter = Delimiter::new("\n", UTF_16LE);
        // U+0A61 U+0061 U+000A: of these units only the last one is a newline.
        let bytes = [0x00, 0x0a, 0x00, 0x61, 0x0a, 0x00];
        assert_eq!(delimiter.find(&bytes, 0), Some(4));
        assert_eq!(delimiter.find(&bytes[1..], 1), Some(3));
        assert_eq!(delimiter.trim(&[0x61, 0x00, 0x0d, 0x00]), [0x61, 0x00]);
    }

    #[test]
    fn invalid_bytes_are_replaced_and_reported() {
        assert_eq!(decode(UTF_8, b"a\xffb", false, false), (Cow::Borrowed("a\u{fffd}b"), true));
        assert_eq!(decode(UTF_8, b"\xef\xbb\xbfa", true, false), (Cow::Borrowed("a"), false));
        assert_eq!(decode(UTF_8, b"a\xc3", false, true), (Cow::Borrowed("a"), false));
        assert_eq!(decode(encoding_rs::WINDOWS_1252, b"\xe4", false, false).0, "ä");
        assert_eq!(decode(UTF_16LE, b"\xff\xfea\0", true, false).0, "a");
    }

    #[test]
    fn a_byte_order_mark_selects_the_charset() {
        let formats = TextFormats::new("\n", encoding_rs::WINDOWS_1252);
        for (first, charset) in [
            (&b"\xef\xbb\xbfa"[..], UTF_8),
            (b"\xff\xfea\0", UTF_16LE),
            (b"\xfe\xff\0a", UTF_16BE),
            (b"a", encoding_rs::WINDOWS_1252),
            (b"\xff", encoding_rs::WINDOWS_1252),
            (b"", encoding_rs::WINDOWS_1252),
        ] {
            assert_eq!(formats.of(first).charset, charset, "{first:?}");
        }
    }
}
