//! How the values of a column enter a record: unchanged, masked, or not at all.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use trunkline_connector::json;

/// How the values of a column are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ColumnMode {
    #[default]
    Include,
    Exclude,
    Masked(Arc<Mask>),
}

/// What replaces a value. Null stays null.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Mask {
    /// SHA-256 of the salt and the value's text, in hexadecimal digits.
    Hash { salt: String },
    /// The first characters of the text.
    Truncate(usize),
    /// A constant.
    Fixed(String),
}

impl fmt::Debug for Mask {
    /// Omits the salt (I8).
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash { .. } => formatter.write_str("Hash"),
            Self::Truncate(length) => write!(formatter, "Truncate({length})"),
            Self::Fixed(text) => write!(formatter, "Fixed({text:?})"),
        }
    }
}

impl Mask {
    /// Appends the masked value as a JSON string.
    pub(crate) fn write(&self, out: &mut Vec<u8>, text: &str) {
        match self {
            Self::Hash { salt } => {
                let digest = Sha256::new().chain_update(salt).chain_update(text).finalize();
                out.push(b'"');
                out.extend(digest.iter().flat_map(|byte| hex_digits(*byte)));
                out.push(b'"');
            }
            Self::Truncate(length) => {
                let end = text.char_indices().nth(*length).map_or(text.len(), |(at, _)| at);
                json::write_string(out, &text[..end]);
            }
            Self::Fixed(fixed) => json::write_string(out, fixed),
        }
    }
}

/// A byte in hexadecimal.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_write_json_strings() {
        let written = |mask: Mask, text: &str| {
            let mut out = Vec::new();
            mask.write(&mut out, text);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(Mask::Truncate(2), "é\"x"), r#""é\"""#);
        assert_eq!(written(Mask::Truncate(9), "ab"), r#""ab""#);
        assert_eq!(written(Mask::Fixed("a\"".to_owned()), "ab"), r#""a\"""#);
        // printf 'saltab' | sha256sum
        assert_eq!(
            written(Mask::Hash { salt: "salt".to_owned() }, "ab"),
            "\"ca45866bd925d92dec67d830773b32856155b260b0deef298267bbc9c31fa970\""
        );
    }

    #[test]
    fn debug_output_of_a_mask_omits_the_salt() {
        let mask = Mask::Hash { salt: "pepper".to_owned() };
        assert_eq!(format!("{mask:?}"), "Hash");
    }
}
