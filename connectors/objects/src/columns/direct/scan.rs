//! Reads JSON tokens from a record.

use trunkline_connector::json::plain_len;

/// The chunk has a value that Arrow's decoder has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// A position in one record.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Whether the open object has a member already. Reading a nested object leaves it true.
    is_first: bool,
}

/// A number and whether it has a fraction or an exponent.
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    pub(super) is_integer: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, is_first: true }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// The next byte, without white space before it; 0 at the end.
    fn peek(&mut self) -> u8 {
        let bytes = self.bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return *byte;
            }
            self.at += 1;
        }
        0
    }

    fn expect(&mut self, byte: u8) -> Result<(), Refused> {
        if self.peek() != byte {
            return Err(Refused);
        }
        self.at += 1;
        Ok(())
    }

    /// Begins an object.
    pub(super) fn open_object(&mut self) -> Result<(), Refused> {
        self.expect(b'{')?;
        self.is_first = true;
        Ok(())
    }

    /// The name of the next member, or `None` at the object's end. Names with escapes are refused.
    pub(super) fn member(&mut self) -> Result<Option<&'a str>, Refused> {
        if self.peek() == b'}' {
            // `{"a":1,}` is refused below, because a name must follow the comma.
            self.at += 1;
            self.is_first = false;
            return Ok(None);
        }
        if !self.is_first {
            self.expect(b',')?;
        }
        self.is_first = false;
        self.expect(b'"')?;
        let start = self.at;
        let len = plain_len(&self.bytes()[start..]);
        if self.bytes().get(start + len) != Some(&b'"') {
            return Err(Refused);
        }
        self.at = start + len + 1;
        self.expect(b':')?;
        self.peek();
        Ok(Some(&self.text[start..start + len]))
    }

    /// Reads the name of the next member if it is this one: `known` is `,"name":`, without white
    /// space. The first member has no comma.
    pub(super) fn known_member(&mut self, known: &[u8]) -> bool {
        let known = if self.is_first { &known[1..] } else { known };
        let is_next = self.bytes()[self.at..].starts_with(known);
        if is_next {
            self.at += known.len();
            self.is_first = false;
            self.peek();
        }
        is_next
    }

    /// The end of the record.
    pub(super) fn end(&mut self) -> Result<(), Refused> {
        if self.peek() == 0 && self.at == self.text.len() { Ok(()) } else { Err(Refused) }
    }

    /// Reads `null` if it is next.
    pub(super) fn null(&mut self) -> bool {
        self.word("null")
    }

    /// Reads a word if it is next.
    pub(super) fn word(&mut self, word: &str) -> bool {
        let is_next = self.bytes()[self.at..].starts_with(word.as_bytes());
        if is_next {
            self.at += word.len();
        }
        is_next
    }

    /// Whether a string is next.
    pub(super) fn is_string(&self) -> bool {
        self.bytes().get(self.at) == Some(&b'"')
    }

    /// Reads a string. `scratch` holds it if it has escapes.
    pub(super) fn string<'s>(&mut self, scratch: &'s mut Vec<u8>) -> Result<&'s str, Refused>
    where
        'a: 's,
    {
        self.expect(b'"')?;
        let start = self.at;
        let len = plain_len(&self.bytes()[start..]);
        match self.bytes().get(start + len) {
            Some(b'"') => {
                self.at = start + len + 1;
                Ok(&self.text[start..start + len])
            }
            Some(b'\\') => {
                scratch.clear();
                self.unescape(scratch)?;
                std::str::from_utf8(scratch).map_err(|_| Refused)
            }
            // A control character, or the end.
            _ => Err(Refused),
        }
    }

    /// Appends the rest of a string, and reads its closing quote.
    fn unescape(&mut self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let bytes = self.bytes();
        loop {
            let len = plain_len(&bytes[self.at..]);
            out.extend_from_slice(&bytes[self.at..self.at + len]);
            self.at += len + 1;
            match bytes.get(self.at - 1) {
                Some(b'"') => return Ok(()),
                Some(b'\\') => {
                    let escape = *bytes.get(self.at).ok_or(Refused)?;
                    self.at += 1;
                    out.push(match escape {
                        b'"' | b'\\' | b'/' => escape,
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            self.unicode(out)?;
                            continue;
                        }
                        _ => return Err(Refused),
                    });
                }
                _ => return Err(Refused),
            }
        }
    }

    /// Appends the character of `\uXXXX`. Surrogates are refused.
    fn unicode(&mut self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let digits = self.bytes().get(self.at..self.at + 4).ok_or(Refused)?;
        let code = digits.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?));
        let character = code.and_then(char::from_u32).ok_or(Refused)?;
        self.at += 4;
        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// Reads a number.
    pub(super) fn number(&mut self) -> Result<Number<'a>, Refused> {
        let bytes = self.bytes();
        let start = self.at;
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let digits = |mut at: usize| {
            let start = at;
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            if at == start { Err(Refused) } else { Ok(at) }
        };
        let first = at;
        at = digits(at)?;
        // JSON has no leading zeros.
        if bytes[first] == b'0' && at > first + 1 {
            return Err(Refused);
        }
        let mut is_integer = true;
        if bytes.get(at) == Some(&b'.') {
            is_integer = false;
            at = digits(at + 1)?;
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            is_integer = false;
            at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            at = digits(at)?;
        }
        self.at = at;
        Ok(Number { text: &self.text[start..at], is_integer })
    }
}
