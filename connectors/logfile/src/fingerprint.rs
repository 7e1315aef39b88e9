//! [`Fingerprint`]: recognises content without keeping it.
//!
//! A fingerprint describes the decompressed content up to an offset: a hash of the first [`HEAD`]
//! bytes (of fewer while the file is shorter) and a hash of the last [`TAIL`] bytes before the
//! offset. The head distinguishes files from their first line on. The tail shows that the content
//! before the offset is still the one that was read, even where many files begin alike (a banner, a
//! header).

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes hashed at the beginning of a file.
pub(crate) const HEAD: usize = 1024;
/// Bytes hashed before the offset.
pub(crate) const TAIL: usize = 256;

/// Identifies what was read of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    /// Decompressed bytes read; the next line starts here.
    pub(crate) offset: u64,
    /// The beginning of the file.
    pub(crate) head: ContentHash,
    /// The bytes before the offset.
    pub(crate) tail: ContentHash,
}

/// Length and hash of some bytes; written `[length, "hash"]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u32, String)", try_from = "(u32, String)")]
pub(crate) struct ContentHash {
    pub(crate) len: u32,
    pub(crate) hash: u64,
}

impl From<ContentHash> for (u32, String) {
    fn from(piece: ContentHash) -> Self {
        (piece.len, format!("{:016x}", piece.hash))
    }
}

impl TryFrom<(u32, String)> for ContentHash {
    type Error = std::num::ParseIntError;

    fn try_from((len, hash): (u32, String)) -> Result<Self, Self::Error> {
        Ok(Self { len, hash: u64::from_str_radix(&hash, 16)? })
    }
}

impl ContentHash {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u32, hash: xxh3_64(bytes) }
    }

    /// Whether these are the hashed bytes.
    pub(crate) fn matches(self, bytes: &[u8]) -> bool {
        self == Self::of(bytes)
    }
}

impl Fingerprint {
    /// Of a file of which nothing was read.
    pub(crate) fn empty() -> Self {
        Self { offset: 0, head: ContentHash::of(b""), tail: ContentHash::of(b"") }
    }

    /// At an offset, from the file's first bytes (all that are known) and the last ones before the
    /// offset.
    pub(crate) fn at(offset: u64, first: &[u8], before: &[u8]) -> Self {
        let head_len = usize::try_from(offset).unwrap_or(HEAD).min(HEAD).min(first.len());
        Self {
            offset,
            head: ContentHash::of(&first[..head_len]),
            tail: ContentHash::of(&before[before.len() - before.len().min(TAIL)..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_grow_with_the_file_and_survive_json() {
        let text: Vec<u8> = (0..4000u32).map(|n| (n % 251) as u8).collect();
        let small = Fingerprint::at(10, &text[..10], &text[..10]);
        assert_eq!((small.head.len, small.tail.len), (10, 10));
        let large = Fingerprint::at(4000, &text[..1024], &text);
        assert_eq!((large.head.len, large.tail.len), (1024, 256));
        assert!(large.tail.matches(&text[3744..]));
        let json = serde_json::to_string(&large).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), large);
    }
}
