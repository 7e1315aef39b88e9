//! Character sets. The binlog holds strings as raw bytes in the column's character set, and a
//! snapshot requests the same raw bytes, so one decoder serves both.
//!
//! Only the *server* knows its character sets: `latin1` is neither ISO 8859-1 nor exactly
//! windows-1252, and the tables of other libraries differ in hundreds of codes (`eucjpms`, `big5`).
//! So it provides the characters of every encoding but Unicode's: see
//! [`crate::connection::charsets`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use trunkline_connector::json;

/// Decodes the bytes of a text column.
#[derive(Debug)]
pub(crate) struct Charset {
    pub(crate) name: String,
    decoder: Decoder,
}

impl PartialEq for Charset {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Charset {}

#[derive(Debug)]
enum Decoder {
    Utf8,
    /// A character per byte.
    Table(Vec<char>),
    Utf16Be,
    Utf16Le,
    Utf32Be,
    /// Codes of several bytes. The table is loaded when a column uses the charset.
    Codes(Structure, OnceLock<CodeTable>),
}

/// How a multi-byte charset divides bytes into codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Structure {
    /// One or two bytes. The first byte of two determines both.
    DoubleByte,
    /// EUC: one byte, two bytes, or three bytes that begin with 8F.
    Euc,
    /// GB 18030: one, two or four bytes, the second of which is a digit.
    Gb18030,
}

/// The characters of a multi-byte charset.
#[derive(Debug)]
pub(crate) struct CodeTable {
    /// By one byte.
    pub(crate) single: Vec<Option<char>>,
    /// By two bytes, as a big-endian number.
    pub(crate) double: Vec<Option<char>>,
    /// By the last two bytes of an EUC code that begins with 8F.
    pub(crate) triple: Vec<Option<char>>,
    /// By the [index](four_byte_index) of a GB 18030 code of four bytes, within the Basic
    /// Multilingual Plane.
    pub(crate) four: Vec<Option<char>>,
}

/// The index of a four-byte code of GB 18030: `81308130` is 0.
pub(crate) fn four_byte_index(code: [u8; 4]) -> Option<usize> {
    let [a, b, c, d] = code;
    let is_code = (0x81..=0xfe).contains(&a) && b.is_ascii_digit() && (0x81..=0xfe).contains(&c) && d.is_ascii_digit();
    let digit = |byte: u8| usize::from(byte - b'0');
    is_code.then(|| ((usize::from(a - 0x81) * 10 + digit(b)) * 126 + usize::from(c - 0x81)) * 10 + digit(d))
}

/// The index of `90308130`, the code of U+10000. The codes after it are in Unicode's order.
const SUPPLEMENTARY: usize = 15 * 12_600;

impl CodeTable {
    /// The first character, and the number of its bytes. Invalid bytes have no character.
    fn next(&self, structure: Structure, bytes: &[u8]) -> (Option<char>, usize) {
        let first = bytes[0];
        let pair = bytes.get(1).map(|second| usize::from(first) << 8 | usize::from(*second));
        match structure {
            Structure::Euc if first == 0x8f => {
                let last = bytes.get(1..3).map(|last| usize::from(last[0]) << 8 | usize::from(last[1]));
                if let Some(character) = last.and_then(|last| self.triple[last]) {
                    return (Some(character), 3);
                }
            }
            Structure::Gb18030 => {
                let index = bytes.first_chunk::<4>().and_then(|code| four_byte_index(*code));
                if let Some(index) = index {
                    let supplementary = index.checked_sub(SUPPLEMENTARY).and_then(|offset| u32::try_from(offset).ok());
                    let character = match supplementary {
                        Some(offset) => char::from_u32(0x1_0000 + offset),
                        None => self.four.get(index).copied().flatten(),
                    };
                    return (character.or(Some('?')), 4);
                }
            }
            _ => {}
        }
        if let Some(character) = pair.and_then(|pair| self.double[pair]) {
            return (Some(character), 2);
        }
        (self.single[usize::from(first)], 1)
    }

    fn decode(&self, structure: Structure, mut bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len() + bytes.len() / 2);
        while !bytes.is_empty() {
            let (character, length) = self.next(structure, bytes);
            text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
            bytes = &bytes[length..];
        }
        text
    }
}

impl Charset {
    /// A single-byte charset, from the characters of its 256 bytes.
    pub(crate) fn single_byte(name: &str, table: Vec<char>) -> Option<Self> {
        (table.len() == 256).then(|| Self { name: name.to_owned(), decoder: Decoder::Table(table) })
    }

    /// A multi-byte charset; `None` if it is unknown.
    pub(crate) fn multi_byte(name: &str) -> Option<Self> {
        let codes = |structure| Decoder::Codes(structure, OnceLock::new());
        let decoder = match name {
            "utf8mb4" | "utf8mb3" | "utf8" => Decoder::Utf8,
            "utf16" | "ucs2" => Decoder::Utf16Be,
            "utf16le" => Decoder::Utf16Le,
            "utf32" => Decoder::Utf32Be,
            "sjis" | "cp932" | "gbk" | "gb2312" | "big5" | "euckr" => codes(Structure::DoubleByte),
            "ujis" | "eucjpms" => codes(Structure::Euc),
            "gb18030" => codes(Structure::Gb18030),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), decoder })
    }

    /// The structure of a charset whose table is not loaded.
    pub(crate) fn unloaded(&self) -> Option<Structure> {
        match &self.decoder {
            Decoder::Codes(structure, table) if table.get().is_none() => Some(*structure),
            _ => None,
        }
    }

    /// Sets the table of a multi-byte charset.
    pub(crate) fn load(&self, table: CodeTable) {
        if let Decoder::Codes(_, loaded) = &self.decoder {
            // A table that is loaded already is the same.
            let _ = loaded.set(table);
        }
    }

    /// Appends text as a JSON string. Invalid bytes become U+FFFD.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>, bytes: &[u8]) {
        match &self.decoder {
            Decoder::Utf8 => json::write_utf8(out, bytes),
            _ => json::write_string(out, &self.decode(bytes)),
        }
    }

    /// Decodes text. Invalid bytes become U+FFFD.
    pub(crate) fn decode<'a>(&self, bytes: &'a [u8]) -> Cow<'a, str> {
        match &self.decoder {
            Decoder::Utf8 => json::lossy(bytes),
            Decoder::Table(table) => {
                let same = |byte: &u8| byte.is_ascii() && table[usize::from(*byte)] == char::from(*byte);
                match std::str::from_utf8(bytes) {
                    Ok(text) if bytes.iter().all(same) => Cow::Borrowed(text),
                    _ => Cow::Owned(bytes.iter().map(|byte| table[usize::from(*byte)]).collect()),
                }
            }
            Decoder::Utf16Be => Cow::Owned(utf16(bytes, u16::from_be_bytes)),
            Decoder::Utf16Le => Cow::Owned(utf16(bytes, u16::from_le_bytes)),
            Decoder::Utf32Be => {
                let character = |four: &[u8]| {
                    let code = <[u8; 4]>::try_from(four).ok().map(u32::from_be_bytes);
                    code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER)
                };
                Cow::Owned(bytes.chunks(4).map(character).collect())
            }
            Decoder::Codes(structure, table) => match table.get() {
                Some(table) => Cow::Owned(table.decode(*structure, bytes)),
                // Unreachable while tables are loaded before their columns are read. Not a wrong
                // character in any case.
                None => Cow::Owned(char::REPLACEMENT_CHARACTER.to_string()),
            },
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks(2).map(|two| <[u8; 2]>::try_from(two).map_or(0xfffd, unit));
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The server's charsets, by name and by collation number.
#[derive(Debug, Default)]
pub(crate) struct Charsets {
    by_name: HashMap<String, Arc<Charset>>,
    by_collation: HashMap<u64, String>,
}

/// Number of the collation `binary`, which marks a column of bytes.
pub(crate) const BINARY_COLLATION: u64 = 63;

impl Charsets {
    pub(crate) fn new(charsets: Vec<Charset>, collations: Vec<(u64, String)>) -> Self {
        let by_name = charsets.into_iter().map(|charset| (charset.name.clone(), Arc::new(charset))).collect();
        Self { by_name, by_collation: collations.into_iter().collect() }
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Charset>> {
        self.by_name.get(name)
    }

    /// The charsets of these collations whose tables are not loaded.
    pub(crate) fn unloaded(&self, collations: impl IntoIterator<Item = u64>) -> Vec<Arc<Charset>> {
        let charsets = collations.into_iter().filter_map(|collation| self.by_collation(collation));
        charsets.filter(|charset| charset.unloaded().is_some()).cloned().collect()
    }

    pub(crate) fn by_collation(&self, collation: u64) -> Option<&Arc<Charset>> {
        self.by_name(self.by_collation.get(&collation)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_charset_decodes_its_bytes() {
        let mut table: Vec<char> = (0..=255u8).map(char::from).collect();
        table[0x80] = '€';
        let latin1 = Charset::single_byte("latin1", table).unwrap();
        assert_eq!(latin1.decode(b"plain"), "plain");
        assert_eq!(latin1.decode(b"\xe9\x80"), "é€");
        let named = |name: &str| Charset::multi_byte(name).unwrap();
        assert_eq!(named("utf16").decode(b"\x65\xe5\xd8\x3d\xde\x00"), "日😀");
        assert_eq!(named("utf16le").decode(b"\xe5\x65"), "日");
        assert_eq!(named("utf32").decode(b"\x00\x01\xf6\x00"), "😀");
        assert_eq!(named("utf8mb4").decode(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(named("utf16").decode(b"\x65"), "\u{fffd}");
        assert!(Charset::multi_byte("klingon").is_none());
    }

    #[test]
    fn codes_of_several_bytes_are_divided_by_their_structure() {
        let ascii: Vec<Option<char>> = (0..=255u8).map(|byte| byte.is_ascii().then(|| char::from(byte))).collect();
        let table = || {
            let empty = || vec![None; 1 << 16];
            let mut table =
                CodeTable { single: ascii.clone(), double: empty(), triple: empty(), four: vec![None; 50_400] };
            table.double[0x81_40] = Some('二');
            table.double[0x81_81] = Some('丁');
            table.triple[0xa1_a1] = Some('三');
            table.four[four_byte_index([0x81, 0x30, 0x81, 0x31]).unwrap()] = Some('四');
            table
        };
        let loaded = |name: &str| {
            let charset = Charset::multi_byte(name).unwrap();
            assert!(charset.unloaded().is_some());
            charset.load(table());
            charset
        };
        assert_eq!(loaded("sjis").decode(b"a\x81\x40b\x81"), "a二b\u{fffd}");
        assert_eq!(loaded("ujis").decode(b"\x8f\xa1\xa1\x81\x81\x8f\xa1"), "三丁\u{fffd}\u{fffd}");
        let gb18030 = loaded("gb18030");
        assert_eq!(
            gb18030.decode(b"\x81\x30\x81\x31\x81\x40z\x90\x30\x81\x30\xe3\x32\x9a\x35"),
            "四二z\u{10000}\u{10ffff}"
        );
        assert_eq!(gb18030.decode(b"\x81\x30\x81\x32\xe3\x32\x9a\x36"), "??");
    }

    #[test]
    fn a_single_byte_charset_may_differ_from_ascii_below_128() {
        let mut table: Vec<char> = (0..=255u8).map(char::from).collect();
        table[usize::from(b'[')] = 'Ä';
        let swe7 = Charset::single_byte("swe7", table).unwrap();
        assert_eq!(swe7.decode(b"a[b"), "aÄb");
    }
}
