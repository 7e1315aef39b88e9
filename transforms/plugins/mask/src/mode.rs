//! Masks one value.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use trunkline_plugin::json;

pub(crate) enum Mode {
    /// The JSON string that replaces each value.
    Fixed(Vec<u8>),
    KeepLast {
        with: String,
        keep: usize,
    },
    Hash(Box<Hmac<Sha256>>),
}

impl Mode {
    pub(crate) fn fixed(with: &str) -> Self {
        let mut json = Vec::new();
        json::write_string(&mut json, with);
        Self::Fixed(json)
    }

    pub(crate) fn keep_last(with: &str, keep: usize) -> Self {
        Self::KeepLast { with: with.to_owned(), keep }
    }

    pub(crate) fn hash(salt: &str) -> Self {
        #[allow(clippy::expect_used, reason = "HMAC accepts keys of any length")]
        Self::Hash(Box::new(Hmac::new_from_slice(salt.as_bytes()).expect("any key")))
    }

    /// Appends the masked form of a raw JSON value. Returns true if a string replaces another type.
    pub(crate) fn mask(&self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        match (raw.first(), self) {
            (Some(b'"'), Self::Fixed(mask)) => out.extend_from_slice(mask),
            (Some(b'"'), Self::KeepLast { with, keep }) => {
                // an invalid string has no characters to keep
                let text = json::text(raw).unwrap_or_default();
                json::write_string(out, &keep_last(&text, with, *keep));
            }
            (Some(b'"'), Self::Hash(keyed)) => match json::text(raw) {
                Some(text) => write_hash(keyed, text.as_bytes(), out),
                None => write_hash(keyed, raw, out),
            },
            (Some(b'-' | b'0'..=b'9' | b't' | b'f'), Self::Hash(keyed)) => {
                write_hash(keyed, raw, out);
                return true;
            }
            _ => out.extend_from_slice(b"null"),
        }
        false
    }
}

fn keep_last(text: &str, with: &str, keep: usize) -> String {
    // the position of the last `keep` characters, if the text has more characters
    match text.char_indices().rev().nth(keep - 1) {
        Some((at, _)) if at > 0 => format!("{with}{}", &text[at..]),
        _ => with.to_owned(),
    }
}

fn write_hash(keyed: &Hmac<Sha256>, value: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut mac = keyed.clone();
    mac.update(value);
    out.push(b'"');
    for byte in mac.finalize().into_bytes() {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    out.push(b'"');
}

/// Omits the secret (I8).
impl fmt::Debug for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fixed(_) => "Fixed",
            Self::KeepLast { .. } => "KeepLast",
            Self::Hash(_) => "Hash",
        })
    }
}
