//! [`Scanner`], which walks through a line, and [`Object`], which writes the record's JSON.

use memchr::memchr;
use trunkline_connector::json::write_string;

use super::Expected;

/// A place in a line. It moves forward only, and stays at a boundary of characters.
pub(super) struct Scanner<'a> {
    pub(super) line: &'a str,
    pub(super) at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self { line, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    /// Passes over `text`, if it is next.
    pub(super) fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    /// Passes over `text`, which must be next.
    pub(super) fn require(&mut self, text: &str, what: &str) -> Result<(), Expected> {
        if self.eat(text) { Ok(()) } else { Err(self.expected(what)) }
    }

    pub(super) fn skip_spaces(&mut self) {
        let bytes = &self.line.as_bytes()[self.at..];
        self.at += bytes.iter().position(|byte| *byte != b' ').unwrap_or(bytes.len());
    }

    /// The text before the next `byte` (ASCII), which is not empty. Passes over both.
    pub(super) fn until(&mut self, byte: u8, what: &str) -> Result<&'a str, Expected> {
        match memchr(byte, &self.line.as_bytes()[self.at..]) {
            Some(len) if len > 0 => {
                let text = &self.line[self.at..self.at + len];
                self.at += len + 1;
                Ok(text)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// One to eighteen digits.
    pub(super) fn digits(&mut self, what: &str) -> Result<&'a str, Expected> {
        let text = self.rest();
        let len = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
        if len == 0 || len > 18 {
            return Err(self.expected(what));
        }
        self.at += len;
        Ok(&text[..len])
    }

    pub(super) fn expected(&self, what: &str) -> Expected {
        Expected { at: self.at, what: what.to_owned() }
    }
}

/// Writes an object member by member. What is written is complete after each member, so that
/// `partial` can keep the members before an error.
pub(super) struct Object<'o> {
    pub(super) out: &'o mut Vec<u8>,
    separator: u8,
}

impl<'o> Object<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, separator: b'{' }
    }

    /// Writes a name, which needs no escapes, and the colon after it.
    pub(super) fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.out.push(self.separator);
        self.separator = b',';
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub(super) fn text(&mut self, name: &str, text: &str) {
        write_string(self.name(name), text);
    }

    /// A string, or null.
    pub(super) fn optional(&mut self, name: &str, text: Option<&str>) {
        match text {
            Some(text) => self.text(name, text),
            None => self.name(name).extend_from_slice(b"null"),
        }
    }

    /// A whole number from its digits, or null.
    pub(super) fn number(&mut self, name: &str, digits: Option<&str>) {
        let digits = digits.map(|digits| {
            let leading = digits.len() - digits.trim_start_matches('0').len();
            &digits[leading.min(digits.len() - 1)..]
        });
        self.name(name).extend_from_slice(digits.unwrap_or("null").as_bytes());
    }

    pub(super) fn end(self) {
        if self.separator == b'{' {
            self.out.push(b'{');
        }
        self.out.push(b'}');
    }
}
