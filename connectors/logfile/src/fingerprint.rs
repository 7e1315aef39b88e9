//! [`Fingerprint`]: how content is recognised without keeping it.
//!
//! It is taken of what has been read up to an offset, decompressed: a hash of the first [`HEAD`] bytes, which grows until the file is
//! that long, and a hash of the last [`TAIL`] bytes before the offset. The head tells files apart from their first line on; the tail tells that
//! what lies before the offset is still what was read, even where many files begin alike (a banner, a header).

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes hashed at the beginning.
pub(crate) const HEAD: usize = 1024;
/// Bytes hashed before the offset.
pub(crate) const TAIL: usize = 256;

/// See the module's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// Bytes read, decompressed: where the next line starts.
    pub(crate) offset: u64,
    /// Beginning of the file.
    pub(crate) head: Piece,
    /// Bytes before the offset.
    pub(crate) tail: Piece,
}

/// Length and hash of some bytes; written `[length, "hash"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u32, String)", try_from = "(u32, String)")]
pub(crate) struct Piece {
    pub(crate) len: u32,
    pub(crate) hash: u64,
}

impl From<Piece> for (u32, String) {
    fn from(piece: Piece) -> Self {
        (piece.len, format!("{:016x}", piece.hash))
    }
}

impl TryFrom<(u32, String)> for Piece {
    type Error = std::num::ParseIntError;

    fn try_from((len, hash): (u32, String)) -> Result<Self, Self::Error> {
        Ok(Self { len, hash: u64::from_str_radix(&hash, 16)? })
    }
}

impl Piece {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u32, hash: xxh3_64(bytes) }
    }

    /// Are these the bytes?
    pub(crate) fn is(self, bytes: &[u8]) -> bool {
        self == Self::of(bytes)
    }
}

impl Fingerprint {
    /// Of nothing.
    pub(crate) fn empty() -> Self {
        Self { offset: 0, head: Piece::of(b""), tail: Piece::of(b"") }
    }

    /// At an offset, from the file's first bytes (as many as are known) and the last ones before the offset.
    pub(crate) fn at(offset: u64, first: &[u8], before: &[u8]) -> Self {
        let head_len = usize::try_from(offset).unwrap_or(HEAD).min(HEAD).min(first.len());
        Self {
            offset,
            head: Piece::of(&first[..head_len]),
            tail: Piece::of(&before[before.len() - before.len().min(TAIL)..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_file_and_comes_back_from_json() {
        let text: Vec<u8> = (0..4000u32).map(|n| (n % 251) as u8).collect();
        let small = Fingerprint::at(10, &text[..10], &text[..10]);
        assert_eq!((small.head.len, small.tail.len), (10, 10));
        let large = Fingerprint::at(4000, &text[..1024], &text);
        assert_eq!((large.head.len, large.tail.len), (1024, 256));
        assert!(large.tail.is(&text[3744..]));
        let json = serde_json::to_string(&large).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), large);
    }
}
