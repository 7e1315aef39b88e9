//! Character sets. The binlog holds strings as raw bytes in the column's character set, and a
//! snapshot requests the same raw bytes, so one decoder serves both.
//!
//! A single-byte charset is a table of 256 characters that the *server* provides: `latin1` is
//! neither ISO 8859-1 nor exactly windows-1252. encoding_rs decodes multi-byte charsets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use encoding_rs::Encoding;

/// Decodes the bytes of a text column.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Charset {
    pub(crate) name: String,
    decoder: Decoder,
}

#[derive(Debug, PartialEq, Eq)]
enum Decoder {
    Utf8,
    /// A character per byte.
    Table(Vec<char>),
    Utf16Be,
    Utf16Le,
    Utf32Be,
    Multi(&'static Encoding),
}

impl Charset {
    /// A single-byte charset, from the characters of its 256 bytes.
    pub(crate) fn single_byte(name: &str, table: Vec<char>) -> Option<Self> {
        (table.len() == 256).then(|| Self { name: name.to_owned(), decoder: Decoder::Table(table) })
    }

    /// A multi-byte charset; `None` if it is unknown.
    pub(crate) fn multi_byte(name: &str) -> Option<Self> {
        let decoder = match name {
            "utf8mb4" | "utf8mb3" | "utf8" => Decoder::Utf8,
            "utf16" | "ucs2" => Decoder::Utf16Be,
            "utf16le" => Decoder::Utf16Le,
            "utf32" => Decoder::Utf32Be,
            "sjis" | "cp932" => Decoder::Multi(encoding_rs::SHIFT_JIS),
            "ujis" | "eucjpms" => Decoder::Multi(encoding_rs::EUC_JP),
            "gbk" | "gb2312" => Decoder::Multi(encoding_rs::GBK),
            "gb18030" => Decoder::Multi(encoding_rs::GB18030),
            "big5" => Decoder::Multi(encoding_rs::BIG5),
            "euckr" => Decoder::Multi(encoding_rs::EUC_KR),
            _ => return None,
        };
        Some(Self { name: name.to_owned(), decoder })
    }

    /// Decodes text. Invalid bytes become U+FFFD.
    pub(crate) fn decode<'a>(&self, bytes: &'a [u8]) -> Cow<'a, str> {
        match &self.decoder {
            Decoder::Utf8 => String::from_utf8_lossy(bytes),
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
            Decoder::Multi(encoding) => encoding.decode_without_bom_handling(bytes).0,
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
        assert_eq!(named("sjis").decode(b"\x93\xfa\x96\x7b"), "日本");
        assert_eq!(named("utf8mb4").decode(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(named("utf16").decode(b"\x65"), "\u{fffd}");
        assert!(Charset::multi_byte("klingon").is_none());
    }

    #[test]
    fn a_single_byte_charset_may_differ_from_ascii_below_128() {
        let mut table: Vec<char> = (0..=255u8).map(char::from).collect();
        table[usize::from(b'[')] = 'Ä';
        let swe7 = Charset::single_byte("swe7", table).unwrap();
        assert_eq!(swe7.decode(b"a[b"), "aÄb");
    }
}
