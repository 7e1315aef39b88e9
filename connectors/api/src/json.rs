//! JSON without a document tree: a borrowed walk over an object's members, and a writer of strings.
//! It costs a tenth of parsing into values.
//!
//! The walk checks the structure, but not numbers, UTF-8 or escapes. Parse the document where those
//! must be valid.

mod scan;

use std::borrow::Cow;
use std::ops::Range;

pub use self::scan::plain_len;

/// Why bytes are not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Byte where the walk stopped.
    pub at: usize,
    /// What it expected there.
    pub expected: &'static str,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "not JSON at byte {}: expected {}", self.at, self.expected)
    }
}

impl std::error::Error for Malformed {}

/// Walks the members of the object that `json` holds, in order.
pub fn members(json: &[u8]) -> Members<'_> {
    Members { json, at: 0, state: State::Start }
}

/// A member: key and value as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The key between its quotes, escapes not resolved.
    pub key: &'a [u8],
    /// The value as written, strings with their quotes.
    pub value: &'a [u8],
    /// Byte range of the value.
    pub range: Range<usize>,
}

/// Iterator of [`members`]; ends after the first error.
pub struct Members<'a> {
    json: &'a [u8],
    at: usize,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Start,
    Inside,
    Done,
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        match self.step() {
            Ok(Some(member)) => Some(Ok(member)),
            Ok(None) => {
                self.state = State::Done;
                None
            }
            Err(malformed) => {
                self.state = State::Done;
                Some(Err(malformed))
            }
        }
    }
}

impl<'a> Members<'a> {
    fn step(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        self.skip_space();
        if self.state == State::Start {
            self.expect(b'{', "an object")?;
            self.state = State::Inside;
            self.skip_space();
            if self.peek() == Some(b'}') {
                return self.end();
            }
        } else {
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => return self.end(),
                _ => return Err(Malformed { at: self.at, expected: "`,` or `}`" }),
            }
            self.skip_space();
        }
        let key_at = self.at + 1;
        let key_end = string_end(self.json, self.at)?;
        self.at = key_end;
        self.skip_space();
        self.expect(b':', "`:`")?;
        self.skip_space();
        let value_at = self.at;
        self.at = value_end(self.json, value_at)?;
        let range = value_at..self.at;
        Ok(Some(Member { key: &self.json[key_at..key_end - 1], value: &self.json[range.clone()], range }))
    }

    fn end(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        self.at += 1;
        self.skip_space();
        if self.at == self.json.len() { Ok(None) } else { Err(Malformed { at: self.at, expected: "the end" }) }
    }

    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Malformed> {
        if self.peek() != Some(byte) {
            return Err(Malformed { at: self.at, expected });
        }
        self.at += 1;
        Ok(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

/// The end of the string that starts (with its quote) at `at`.
fn string_end(json: &[u8], at: usize) -> Result<usize, Malformed> {
    if json.get(at) != Some(&b'"') {
        return Err(Malformed { at, expected: "a string" });
    }
    let mut from = at + 1;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &json[from..]) {
        if json[from + found] == b'"' {
            return Ok(from + found + 1);
        }
        from = (from + found + 2).min(json.len());
    }
    Err(Malformed { at, expected: "a string that ends" })
}

fn value_end(json: &[u8], at: usize) -> Result<usize, Malformed> {
    match json.get(at) {
        Some(b'"') => string_end(json, at),
        Some(b'{' | b'[') => {
            let mut depth = 0usize;
            let mut here = at;
            loop {
                match json.get(here) {
                    Some(b'"') => here = string_end(json, here)?,
                    Some(b'{' | b'[') => {
                        depth += 1;
                        here += 1;
                    }
                    Some(b'}' | b']') => {
                        depth -= 1;
                        here += 1;
                        if depth == 0 {
                            return Ok(here);
                        }
                    }
                    Some(_) => here += 1,
                    None => return Err(Malformed { at, expected: "a value that ends" }),
                }
            }
        }
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
            let len =
                json[at..].iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
            Ok(len.map_or(json.len(), |len| at + len))
        }
        _ => Err(Malformed { at, expected: "a value" }),
    }
}

/// The raw value at a path of keys; `None` if a key is missing. The last occurrence of a repeated
/// key counts, as in parsers.
pub fn lookup<'a>(json: &'a [u8], path: &[String]) -> Result<Option<&'a [u8]>, Malformed> {
    let mut here = json;
    for key in path {
        let mut found = None;
        for member in members(here) {
            let member = member?;
            if key_is(member.key, key) {
                found = Some(member.value);
            }
        }
        match found {
            Some(value) => here = value,
            None => return Ok(None),
        }
        if here.first() != Some(&b'{') && !std::ptr::eq(key, &path[path.len() - 1]) {
            return Ok(None);
        }
    }
    Ok(Some(here))
}

/// A key as written, with or without escapes, is `name`.
pub fn key_is(raw: &[u8], name: &str) -> bool {
    if memchr::memchr(b'\\', raw).is_none() {
        return raw == name.as_bytes();
    }
    unescape(raw).is_some_and(|key| key == name)
}

/// The text of a raw value: a string without quotes and escapes, any other value as written. `None`
/// if it is not valid text.
pub fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    match raw {
        [b'"', inner @ .., b'"'] => unescape(inner),
        _ => std::str::from_utf8(raw).ok().map(Cow::Borrowed),
    }
}

fn unescape(inner: &[u8]) -> Option<Cow<'_, str>> {
    if memchr::memchr(b'\\', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    let mut quoted = Vec::with_capacity(inner.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(inner);
    quoted.push(b'"');
    serde_json::from_slice::<String>(&quoted).ok().map(Cow::Owned)
}

/// Appends `text` as a JSON string, with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let plain = plain_len(bytes);
    if plain == bytes.len() {
        return write_plain(out, bytes);
    }
    write_escaped(out, bytes, plain);
}

/// As [`write_string`], if the text needs no escapes. Otherwise writes nothing and returns false.
pub fn write_unescaped(out: &mut Vec<u8>, text: &str) -> bool {
    let is_plain = plain_len(text.as_bytes()) == text.len();
    if is_plain {
        write_plain(out, text.as_bytes());
    }
    is_plain
}

/// Appends a text whose first `plain` bytes need no escapes.
fn write_escaped(out: &mut Vec<u8>, bytes: &[u8], plain: usize) {
    out.reserve(bytes.len() + 8);
    out.push(b'"');
    out.extend_from_slice(&bytes[..plain]);
    let mut rest = &bytes[plain..];
    while let Some((byte, after)) = rest.split_first() {
        match ESCAPE[usize::from(*byte)] {
            b'u' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[
                    b'\\',
                    b'u',
                    b'0',
                    b'0',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]);
            }
            letter => out.extend_from_slice(&[b'\\', letter]),
        }
        let plain = plain_len(after);
        out.extend_from_slice(&after[..plain]);
        rest = &after[plain..];
    }
    out.push(b'"');
}

/// Appends UTF-8 as a JSON string, as [`write_string`] does. Invalid bytes become U+FFFD. One
/// search finds out whether a text needs neither an escape nor a check of its UTF-8.
pub fn write_utf8(out: &mut Vec<u8>, text: &[u8]) {
    match scan::is_plain_ascii(text) {
        true => write_plain(out, text),
        false => write_string(out, &lossy(text)),
    }
}

/// Appends a text without bytes that must be escaped.
#[inline]
fn write_plain(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// UTF-8 as text. Invalid bytes become U+FFFD. Faster than `String::from_utf8_lossy`, which checks
/// ASCII byte by byte.
pub fn lossy(text: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(text).map_or_else(|_| String::from_utf8_lossy(text), Cow::Borrowed)
}

/// The letter after the backslash for bytes that must be escaped; 0 for the others.
const ESCAPE: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[0x08] = b'b';
    table[0x0c] = b'f';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_come_as_they_stand() {
        let json = br#" {"a" : 1, "b":{"c":"}\"]"},"d":[1,[2]] , "e":null} "#;
        let found: Vec<_> = members(json).map(|m| m.unwrap()).map(|m| (m.key.to_vec(), m.value.to_vec())).collect();
        let expected = [("a", "1"), ("b", r#"{"c":"}\"]"}"#), ("d", "[1,[2]]"), ("e", "null")];
        assert_eq!(found, expected.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())));
    }

    #[test]
    fn nested_lookup() {
        let path = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let json = br#"{"a":{"b":"x\ny"},"n":1}"#;
        assert_eq!(lookup(json, &path(&["a", "b"])).unwrap().and_then(text).unwrap(), "x\ny");
        assert_eq!(lookup(json, &path(&["n", "b"])), Ok(None));
        assert_eq!(lookup(json, &path(&["z"])), Ok(None));
        assert!(lookup(b"[1]", &path(&["z"])).is_err());
    }

    #[test]
    fn malformed_text_is_reported() {
        for bad in
            ["", "{", "{\"a\"", "{\"a\":}", "{\"a\":1", "{\"a\":1,}", "{\"a\":1}x", "[]", "{\"a\":\"\\", "{\"a\":[1}"]
        {
            assert!(members(bad.as_bytes()).any(|member| member.is_err()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn written_strings_are_what_a_parser_reads(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            prop_assert_eq!(super::text(&out).unwrap(), text);
        }

        #[test]
        fn bytes_are_escaped_at_every_place(text in "[a-cé\u{7f}\u{0}-\u{23}\\\\]{0,40}") {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(&out, &serde_json::to_vec(&text).unwrap());
            out.clear();
            write_utf8(&mut out, text.as_bytes());
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn invalid_utf8_is_replaced(bytes in proptest::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..40)) {
            let mut out = Vec::new();
            write_utf8(&mut out, &bytes);
            prop_assert_eq!(out, serde_json::to_vec(&String::from_utf8_lossy(&bytes)).unwrap());
        }

        #[test]
        fn the_first_byte_to_escape_is_found(
            bytes in proptest::collection::vec(prop_oneof![20 => Just(b'a'), 1 => any::<u8>()], 0..70),
        ) {
            let is_special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
            prop_assert_eq!(plain_len(&bytes), bytes.iter().position(is_special).unwrap_or(bytes.len()));
            let is_plain = !bytes.iter().any(|byte| is_special(byte) || !byte.is_ascii());
            prop_assert_eq!(scan::is_plain_ascii(&bytes), is_plain);
        }

        #[test]
        fn the_walk_agrees_with_a_parser(map in proptest::collection::btree_map(".{0,4}", any::<Option<i32>>(), 0..6)) {
            let json = serde_json::to_vec(&map).unwrap();
            let walked: Vec<_> = members(&json).map(|m| m.unwrap()).map(|m| (unescape(m.key).unwrap().into_owned(), serde_json::from_slice(m.value).unwrap())).collect();
            prop_assert_eq!(walked, map.into_iter().collect::<Vec<(String, Option<i32>)>>());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = members(&bytes).count();
        }
    }
}
