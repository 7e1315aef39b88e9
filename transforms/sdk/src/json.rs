//! JSON without a document tree: a borrowed iterator over an object's members, and
//! [`Paths::splice`], which copies a text and replaces the values at some paths. Both cost about a
//! tenth of parsing into values and serialising them.
//!
//! The parser checks structure, but not numbers, UTF-8 or escapes: output is as valid as its input.
//!
//! ```
//! use trunkline_plugin::json::{self, Paths};
//!
//! let paths = Paths::new(["card", "customer.email"]);
//! let mut out = Vec::new();
//! let input = br#"{"card":"4111","customer":{"email":"a@b"},"n":1}"#;
//! let found = paths.splice(input, &mut out, |_, _raw, out| json::write_string(out, "***"))?;
//! assert_eq!(out, br#"{"card":"***","customer":{"email":"***"},"n":1}"#);
//! assert_eq!(found, 2);
//! # Ok::<(), json::Malformed>(())
//! ```

mod scan;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// Maximum nesting depth. The parser is recursive, so a limit must protect the stack.
const MAX_DEPTH: usize = 64;

/// The bytes are not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Byte position of the error.
    pub at: usize,
    /// The expected syntax at this position.
    pub expected: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "expected {} at byte {}", self.expected, self.at)
    }
}

impl std::error::Error for Malformed {}

/// Iterates over the members of the object in `json`, in order. Stops after the first error.
pub fn members(json: &[u8]) -> Members<'_> {
    Members { cursor: Cursor { json, at: 0 }, state: State::Start }
}

/// A member of an object: the raw key and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// The raw key without quotes, with escapes. Compare it with [`key_is`].
    pub key: &'a [u8],
    /// The raw value. Strings include their quotes; decode them with [`text`].
    pub value: &'a [u8],
}

/// Iterator of [`members`].
#[derive(Debug)]
pub struct Members<'a> {
    cursor: Cursor<'a>,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    Start,
    Inside,
    Done,
}

impl<'a> Members<'a> {
    fn step(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        let cursor = &mut self.cursor;
        let before = if self.state == State::Start { b'{' } else { b',' };
        if cursor.peek() == Some(before)
            && let Some((member, end)) = compact_member(cursor.json, cursor.at + 1)
        {
            cursor.at = end;
            self.state = State::Inside;
            return Ok(Some(member));
        }
        self.step_in_general()
    }

    fn step_in_general(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        let cursor = &mut self.cursor;
        if self.state == State::Start {
            cursor.skip_space();
            if !cursor.open(b'{', b'}', "an object")? {
                cursor.at_end()?;
                return Ok(None);
            }
            self.state = State::Inside;
        } else if !cursor.separator(b'}', "`,` or `}`")? {
            cursor.at_end()?;
            return Ok(None);
        }
        let (key, _) = cursor.key()?;
        let value_at = cursor.at;
        cursor.skip_value()?;
        Ok(Some(Member { key, value: &cursor.json[value_at..cursor.at] }))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let member = self.step().transpose();
        if !matches!(member, Some(Ok(_))) {
            self.state = State::Done;
        }
        member
    }
}

/// Iterates over the raw items of the array in `json`, in order. Stops after the first error.
pub fn items(json: &[u8]) -> Items<'_> {
    Items { cursor: Cursor { json, at: 0 }, state: State::Start }
}

/// Iterator of [`items`].
#[derive(Debug)]
pub struct Items<'a> {
    cursor: Cursor<'a>,
    state: State,
}

impl<'a> Items<'a> {
    fn step(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let cursor = &mut self.cursor;
        if self.state == State::Start {
            cursor.skip_space();
            if !cursor.open(b'[', b']', "an array")? {
                cursor.at_end()?;
                return Ok(None);
            }
            self.state = State::Inside;
        } else if !cursor.separator(b']', "`,` or `]`")? {
            cursor.at_end()?;
            return Ok(None);
        }
        let item_at = cursor.at;
        cursor.skip_value()?;
        Ok(Some(&cursor.json[item_at..cursor.at]))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let item = self.step().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.state = State::Done;
        }
        item
    }
}

/// The raw value at a path of keys, or `None` if the path does not exist. If a key occurs twice,
/// the last occurrence counts, as in most parsers.
pub fn lookup<'a>(json: &'a [u8], path: &[impl AsRef<str>]) -> Result<Option<&'a [u8]>, Malformed> {
    let mut here = json;
    for (level, key) in path.iter().enumerate() {
        if level > 0 && here.first() != Some(&b'{') {
            return Ok(None);
        }
        let found = match find_in_compact(here, key.as_ref().as_bytes()) {
            Some(found) => found,
            None => find(here, key.as_ref())?,
        };
        let Some(value) = found else { return Ok(None) };
        here = value;
    }
    Ok(Some(here))
}

fn find<'a>(json: &'a [u8], key: &str) -> Result<Option<&'a [u8]>, Malformed> {
    let mut found = None;
    for member in members(json) {
        let member = member?;
        if key_is(member.key, key) {
            found = Some(member.value);
        }
    }
    Ok(found)
}

/// The result of [`find`] for an object in the form that most programs write: no white space around
/// members, and no escapes in its keys and texts. `None` for all other texts. It takes half the
/// time.
fn find_in_compact<'a>(json: &'a [u8], key: &[u8]) -> Option<Option<&'a [u8]>> {
    if *json.first()? != b'{' || key.contains(&b'\\') {
        return None;
    }
    let mut found = None;
    let mut at = 1;
    loop {
        let (member, end) = compact_member(json, at)?;
        if member.key == key {
            found = Some(member.value);
        }
        match *json.get(end)? {
            b',' => at = end + 1,
            b'}' if end + 1 == json.len() => return Some(found),
            _ => return None,
        }
    }
}

/// The member whose key is at `at`, and its end, which is a comma or a brace. `None` if it is not
/// in the form of [`find_in_compact`].
#[inline(always)]
fn compact_member(json: &[u8], at: usize) -> Option<(Member<'_>, usize)> {
    let key_end = string_end(json, at)?;
    let value_at = key_end + 2;
    if *json.get(key_end + 1)? != b':' {
        return None;
    }
    let end = match *json.get(value_at)? {
        b'"' => string_end(json, value_at)? + 1,
        b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => scalar_end(json, value_at)?,
        b'{' | b'[' => {
            let mut cursor = Cursor { json, at: value_at };
            cursor.skip_value().ok()?;
            cursor.at
        }
        _ => return None,
    };
    if !matches!(json.get(end)?, b',' | b'}') {
        return None;
    }
    Some((Member { key: json.get(at + 1..key_end)?, value: json.get(value_at..end)? }, end))
}

/// The position of the quote that ends the string at `at`. `None` if it is no string, or has an
/// escape.
#[inline(always)]
fn string_end(json: &[u8], at: usize) -> Option<usize> {
    if *json.get(at)? != b'"' {
        return None;
    }
    let end = scan::quote_or_escape(json, at + 1)?;
    (json[end] == b'"').then_some(end)
}

/// The position of the comma or brace that ends a scalar. `None` if something else ends it.
#[inline]
fn scalar_end(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *json.get(at)? {
            b',' | b'}' => return Some(at),
            b']' | b' ' | b'\n' | b'\r' | b'\t' => return None,
            _ => at += 1,
        }
    }
}

/// Paths into JSON objects, prepared once for all records. A path continues into the objects of an
/// array: `orders.card` is the `card` of `orders`, or of every object in `orders` if it is an
/// array.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    root: Node,
    count: usize,
}

#[derive(Debug, Clone, Default)]
struct Node {
    children: Vec<(String, Node)>,
    /// Index of the path that ends here.
    ends: Option<usize>,
}

impl Node {
    /// The child with a raw key; `is_plain`: the key has no escapes.
    #[inline]
    fn child(&self, key: &[u8], is_plain: bool) -> Option<&Self> {
        let is_it = |name: &str| if is_plain { key == name.as_bytes() } else { key_is(key, name) };
        self.children.iter().find(|(name, _)| is_it(name)).map(|(_, child)| child)
    }
}

impl Paths {
    /// Creates paths from dotted names such as `customer.email`. If one path is a prefix of
    /// another, the shorter path applies: its whole value is replaced.
    pub fn new<'p>(dotted: impl IntoIterator<Item = &'p str>) -> Self {
        let mut paths = Self::default();
        for path in dotted {
            paths.add(path.split('.'));
        }
        paths
    }

    /// Adds a path of keys and returns its index. A path that exists keeps its first index.
    pub fn add<'p>(&mut self, keys: impl IntoIterator<Item = &'p str>) -> usize {
        let index = self.count;
        self.count += 1;
        let mut node = &mut self.root;
        for key in keys {
            let position = node.children.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
                node.children.push((key.to_owned(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[position].1;
        }
        *node.ends.get_or_insert(index)
    }

    /// Appends `json` to `out` and replaces each value at one of the paths by the bytes that
    /// `replace` appends. `replace` gets the index of the path, the raw value, and `out`. Returns
    /// the number of replaced values. After an error, `out` contains a part of the text.
    pub fn splice(
        &self,
        json: &[u8],
        out: &mut Vec<u8>,
        replace: impl FnMut(usize, &[u8], &mut Vec<u8>),
    ) -> Result<usize, Malformed> {
        let mut splice = Splice { cursor: Cursor { json, at: 0 }, copied: 0, found: 0, out, replace };
        splice.cursor.skip_space();
        if splice.cursor.peek() != Some(b'{') {
            return Err(Malformed { at: splice.cursor.at, expected: "an object" });
        }
        splice.value(&self.root, 0)?;
        splice.cursor.at_end()?;
        splice.out.extend_from_slice(&json[splice.copied..]);
        Ok(splice.found)
    }
}

struct Splice<'a, F> {
    cursor: Cursor<'a>,
    /// Number of input bytes that are already copied or replaced.
    copied: usize,
    found: usize,
    out: &'a mut Vec<u8>,
    replace: F,
}

impl<F: FnMut(usize, &[u8], &mut Vec<u8>)> Splice<'_, F> {
    fn value(&mut self, node: &Node, depth: usize) -> Result<(), Malformed> {
        match self.cursor.peek() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => {
                Err(Malformed { at: self.cursor.at, expected: "no more than 64 levels" })
            }
            Some(b'{') => self.object(node, depth),
            Some(b'[') => self.array(node, depth),
            _ => self.cursor.skip_value(),
        }
    }

    fn object(&mut self, node: &Node, depth: usize) -> Result<(), Malformed> {
        let mut more = self.cursor.open(b'{', b'}', "an object")?;
        while more {
            let (key, is_plain) = self.cursor.key()?;
            match node.child(key, is_plain) {
                Some(Node { ends: Some(index), .. }) => self.replace(*index)?,
                Some(child) => self.value(child, depth + 1)?,
                None => self.cursor.skip_value()?,
            }
            more = self.cursor.separator(b'}', "`,` or `}`")?;
        }
        Ok(())
    }

    fn array(&mut self, node: &Node, depth: usize) -> Result<(), Malformed> {
        let mut more = self.cursor.open(b'[', b']', "an array")?;
        while more {
            self.value(node, depth + 1)?;
            more = self.cursor.separator(b']', "`,` or `]`")?;
        }
        Ok(())
    }

    fn replace(&mut self, index: usize) -> Result<(), Malformed> {
        let value_at = self.cursor.at;
        self.cursor.skip_value()?;
        self.out.extend_from_slice(&self.cursor.json[self.copied..value_at]);
        (self.replace)(index, &self.cursor.json[value_at..self.cursor.at], self.out);
        self.copied = self.cursor.at;
        self.found += 1;
        Ok(())
    }
}

#[derive(Debug)]
struct Cursor<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Malformed> {
        if self.peek() != Some(byte) {
            return Err(Malformed { at: self.at, expected });
        }
        self.at += 1;
        Ok(())
    }

    /// Skips an opening bracket. Returns false if the closing bracket follows, and skips it too.
    fn open(&mut self, opening: u8, closing: u8, expected: &'static str) -> Result<bool, Malformed> {
        self.expect(opening, expected)?;
        self.skip_space();
        let empty = self.peek() == Some(closing);
        self.at += usize::from(empty);
        Ok(!empty)
    }

    /// Skips a comma (true) or the closing bracket (false) after a value.
    #[inline]
    fn separator(&mut self, closing: u8, expected: &'static str) -> Result<bool, Malformed> {
        // Without white space, as most programs write it.
        if let Some([b',', next]) = self.json.get(self.at..).and_then(<[u8]>::first_chunk)
            && *next > b' '
        {
            self.at += 1;
            return Ok(true);
        }
        self.skip_space();
        if self.peek() == Some(closing) {
            self.at += 1;
            return Ok(false);
        }
        self.expect(b',', expected)?;
        self.skip_space();
        Ok(true)
    }

    /// Skips a key and its colon, and returns the raw key. True: it has no escapes.
    #[inline]
    fn key(&mut self) -> Result<(&'a [u8], bool), Malformed> {
        let start = self.at + 1;
        if let Some(end) = string_end(self.json, self.at)
            && self.json.get(end + 1) == Some(&b':')
        {
            self.at = end + 2;
            self.skip_space();
            return Ok((&self.json[start..end], true));
        }
        self.skip_string()?;
        let key = &self.json[start..self.at - 1];
        self.skip_space();
        self.expect(b':', "`:`")?;
        self.skip_space();
        Ok((key, false))
    }

    fn at_end(&mut self) -> Result<(), Malformed> {
        self.skip_space();
        if self.at == self.json.len() {
            Ok(())
        } else {
            Err(Malformed { at: self.at, expected: "the end of the text" })
        }
    }

    #[inline]
    fn skip_string(&mut self) -> Result<(), Malformed> {
        if let Some(end) = string_end(self.json, self.at) {
            self.at = end + 1;
            return Ok(());
        }
        self.skip_string_in_general()
    }

    fn skip_string_in_general(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        self.expect(b'"', "a string")?;
        while let Some(found) = scan::quote_or_escape(self.json, self.at) {
            if self.json[found] == b'"' {
                self.at = found + 1;
                return Ok(());
            }
            self.at = (found + 2).min(self.json.len());
        }
        Err(Malformed { at: start, expected: "a closing quote" })
    }

    fn skip_value(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'{' | b'[') => {
                let mut depth = 0usize;
                loop {
                    match self.peek() {
                        Some(b'"') => {
                            self.skip_string()?;
                            continue;
                        }
                        Some(b'{' | b'[') => depth += 1,
                        Some(b'}' | b']') => depth -= 1,
                        Some(_) => {}
                        None => return Err(Malformed { at: start, expected: "a closing bracket" }),
                    }
                    self.at += 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
            }
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
                self.at = self.json[start..].iter().position(ends).map_or(self.json.len(), |len| start + len);
                Ok(())
            }
            _ => Err(Malformed { at: start, expected: "a value" }),
        }
    }
}

/// Whether a raw key, which may contain escapes, equals `name`.
pub fn key_is(raw: &[u8], name: &str) -> bool {
    match raw.len().cmp(&name.len()) {
        Ordering::Equal => raw == name.as_bytes() && !raw.contains(&b'\\'),
        Ordering::Less => false,
        // an escape is longer than its character
        Ordering::Greater => raw.contains(&b'\\') && unescape(raw).is_some_and(|key| key == name),
    }
}

/// False if no object in the text has a member with this key, written without escapes. This is much
/// faster than to read the members, and true may be wrong.
pub fn may_have_key(json: &[u8], key: &str) -> bool {
    scan::has_quoted(json, key.as_bytes())
}

/// The text of a raw key without quotes. `None` if the text is invalid.
pub fn key_text(raw: &[u8]) -> Option<Cow<'_, str>> {
    unescape(raw)
}

/// The text of a raw value: strings are unquoted and unescaped, other values are returned
/// unchanged. `None` if the text is invalid.
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
    let quoted = [b"\"", inner, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).ok().map(Cow::Owned)
}

/// Appends `text` as a JSON string, with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(found) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..found]);
        match rest[found] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = &rest[found + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spliced(paths: &[&str], json: &str) -> Result<String, Malformed> {
        let mut out = Vec::new();
        Paths::new(paths.iter().copied()).splice(json.as_bytes(), &mut out, |_, _, out| out.extend_from_slice(b"X"))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn members_are_returned_raw() {
        let json = br#" {"a" : 1, "b":{"c":"}\"]"},"d":[1,[2]] , "e":null} "#;
        let found: Vec<_> = members(json).map(|m| m.unwrap()).map(|m| (m.key.to_vec(), m.value.to_vec())).collect();
        let expected = [("a", "1"), ("b", r#"{"c":"}\"]"}"#), ("d", "[1,[2]]"), ("e", "null")];
        assert_eq!(found, expected.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())));
    }

    #[test]
    fn items_are_returned_raw() {
        let found = |json: &'static str| items(json.as_bytes()).collect::<Result<Vec<_>, _>>();
        let expected: [&[u8]; 4] = [b"1.50", b"\"a,]\"", b"{\"b\":[2]}", b"[]"];
        assert_eq!(found(r#" [ 1.50 ,"a,]",{"b":[2]}, [] ] "#).unwrap(), expected);
        assert!(found("[]").unwrap().is_empty());
        for malformed in ["", "{}", "[1", "[1,", "[1]x", "[,]"] {
            assert!(found(malformed).is_err(), "{malformed}");
        }
        assert_eq!(key_text(br#"a\u0062"#).as_deref(), Some("ab"));
    }

    #[test]
    fn splice_preserves_all_other_bytes() {
        assert_eq!(
            spliced(&["b"], r#" { "a" : 1 , "b" : {"c":[1]} ,"d":"x\"b\":1" } "#).unwrap(),
            r#" { "a" : 1 , "b" : X ,"d":"x\"b\":1" } "#
        );
        assert_eq!(
            spliced(&["a.b", "c"], r#"{"a":{"b":1,"c":2},"c":3,"b":4}"#).unwrap(),
            r#"{"a":{"b":X,"c":2},"c":X,"b":4}"#
        );
        assert_eq!(spliced(&["a"], "{}").unwrap(), "{}");
    }

    #[test]
    fn splice_replaces_in_arrays_and_repeated_keys() {
        assert_eq!(spliced(&["a.b"], r#"{"a":[{"b":1},[{"b":2}],3]}"#).unwrap(), r#"{"a":[{"b":X},[{"b":X}],3]}"#);
        assert_eq!(spliced(&["a"], r#"{"a":1,"a":2}"#).unwrap(), r#"{"a":X,"a":X}"#);
        assert_eq!(spliced(&["a"], "{\"\\u0061\":1}").unwrap(), "{\"\\u0061\":X}");
        assert_eq!(spliced(&["a.b", "a"], r#"{"a":{"b":1}}"#).unwrap(), r#"{"a":X}"#);
        assert_eq!(spliced(&["a.b"], r#"{"a":7}"#).unwrap(), r#"{"a":7}"#);
    }

    #[test]
    fn malformed_text_is_an_error() {
        for bad in
            ["", "{", "{\"a\"", "{\"a\":}", "{\"a\":1", "{\"a\":1,}", "{\"a\":1}x", "[]", "{\"a\":\"\\", "{\"a\":[1}"]
        {
            assert!(members(bad.as_bytes()).any(|member| member.is_err()), "{bad}");
            assert!(spliced(&["z"], bad).is_err(), "{bad}");
            assert!(spliced(&["a.b"], bad).is_err(), "{bad}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert_eq!(spliced(&["a.b"], &deep).unwrap_err().expected, "no more than 64 levels");
    }

    #[test]
    fn lookup_returns_the_last_of_repeated_keys() {
        assert_eq!(lookup(br#"{"a":{"b":1,"b":2}}"#, &["a", "b"]), Ok(Some(&b"2"[..])));
        assert_eq!(lookup(br#"{"a":1}"#, &["a", "b"]), Ok(None));
        assert!(lookup(b"[1]", &["a"]).is_err());
    }

    /// Texts that are almost JSON objects.
    fn almost_json() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            6 => Just("\"a\":"), 3 => Just("\"b\":"), 1 => Just("\"\":"), 1 => Just("\"\\u0061\":"), 6 => Just(","),
            4 => Just("1.50"), 2 => Just("\"x\""), 1 => Just("\"a long text, with \\\"a\\\": 1\""), 1 => Just("null"),
            2 => Just("{\"a\":2}"), 1 => Just("[{},[\"}\"]]"), 1 => Just("{"), 1 => Just("}"), 1 => Just("]"), 1 => Just(":"),
            1 => Just(" "), 1 => Just("\""), 1 => Just("a"), 1 => Just("\"c\":3,\"a\":4"),
        ];
        proptest::collection::vec(part, 0..8).prop_map(|parts| format!("{{{}}}", parts.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn compact_objects_are_read_as_all_others(json in almost_json(), cut in 0..3usize) {
            let json = &json.as_bytes()[..json.len() - cut.min(json.len() - 1)];
            let mut general = Members { cursor: Cursor { json, at: 0 }, state: State::Start };
            let mut members = members(json);
            loop {
                let expected = general.step_in_general();
                prop_assert_eq!(members.step(), expected, "{:?}", String::from_utf8_lossy(json));
                if !matches!(expected, Ok(Some(_))) {
                    break;
                }
            }
            for key in ["a", "b", "", "\\u0061"] {
                if let Some(found) = find_in_compact(json, key.as_bytes()) {
                    prop_assert_eq!(Ok(found), find(json, key), "{:?}", String::from_utf8_lossy(json));
                }
            }
        }

        #[test]
        fn search_in_compact_objects_finds_members(members in proptest::collection::vec(("[ab]", -20..20i32), 1..12)) {
            let texts: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            let json = format!("{{{}}}", texts.join(","));
            let expected = members.iter().rfind(|(key, _)| key == "a").map(|(_, value)| value.to_string());
            let found = find_in_compact(json.as_bytes(), b"a").expect("the text is compact");
            prop_assert_eq!(found, expected.as_deref().map(str::as_bytes));
        }
    }

    proptest! {
        #[test]
        fn written_strings_round_trip(text in any::<String>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text.clone());
            prop_assert_eq!(super::text(&out).unwrap(), text);
        }

        #[test]
        fn splice_agrees_with_a_parser(map in proptest::collection::btree_map("[ab\"\\\\]{0,2}", any::<Option<i32>>(), 0..6)) {
            let json = serde_json::to_string(&map).unwrap();
            let mut expected = map;
            if let Some(value) = expected.get_mut("a") {
                *value = Some(7);
            }
            let mut out = Vec::new();
            Paths::new(["a"]).splice(json.as_bytes(), &mut out, |_, _, out| out.push(b'7')).unwrap();
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&expected).unwrap());
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = members(&bytes).count();
            let _ = Paths::new(["a.b"]).splice(&bytes, &mut Vec::new(), |_, _, _| {});
        }
    }
}
