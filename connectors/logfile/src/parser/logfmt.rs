//! `parser = "logfmt"`: pairs such as `level=info msg="it works" took=3ms`, as Go programs and
//! Heroku write them. A key without a value is `true`; a key that occurs twice has a list of
//! values. Other values are strings, because a line does not say which of them are numbers; the
//! option `types` names those.
//!
//! `parser = "key_value"`: the same with other separators, such as `user: anna; city: Ulm`, and
//! with spaces around keys and values.

use trunkline_connector::json::write_string;

use super::types::{FieldType, FieldTypes};
use super::{Event, Expected, LineParser};

/// A line with more keys is rejected, because the search for equal keys compares them all.
const MAX_PAIRS: usize = 1000;

/// The separators of pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOptions {
    /// Between two pairs. A space stands for any white space.
    pub pair_separator: u8,
    /// Between a key and its value.
    pub key_separator: u8,
    /// The parser `key_value`.
    pub(crate) is_key_value: bool,
    pub(crate) types: FieldTypes,
}

impl PairOptions {
    pub(crate) fn logfmt() -> Self {
        Self { pair_separator: b' ', key_separator: b'=', is_key_value: false, types: FieldTypes::new() }
    }

    pub(crate) fn key_value() -> Self {
        Self { is_key_value: true, ..Self::logfmt() }
    }

    /// Whether a byte ends a pair.
    fn ends_pair(&self, byte: u8) -> bool {
        if self.pair_separator == b' ' { is_space(byte) } else { byte == self.pair_separator }
    }

    /// Passes over what stands between two pairs.
    fn skip(&self, line: &str, at: usize) -> usize {
        find(line, at, |byte| !is_space(byte) && byte != self.pair_separator)
    }
}

/// A running parser: buffers that lines share.
#[derive(Debug)]
pub(super) struct LogfmtParser {
    options: PairOptions,
    pairs: Vec<Pair>,
    unescaped: String,
}

/// The place of a key in the line, and its values as JSON.
#[derive(Debug, Default)]
struct Pair {
    key: (usize, usize),
    values: Vec<u8>,
    count: usize,
}

impl LineParser for LogfmtParser {
    fn code(&self) -> &'static str {
        if self.options.is_key_value { "parse.key_value" } else { "parse.logfmt" }
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let mut used = 0;
        let mut at = self.options.skip(line, 0);
        if at == line.len() {
            return Ok(Event::Blank);
        }
        let result = loop {
            if at == line.len() {
                break Ok(());
            }
            match self.parse_pair(line, at, &mut used) {
                Ok(end) => at = self.options.skip(line, end),
                Err(expected) => break Err(expected),
            }
        };
        // The pairs before an error, for `partial`.
        write_pairs(line, &self.pairs[..used], out);
        result.map(|()| Event::Record(None))
    }
}

impl LogfmtParser {
    pub(super) fn new(options: &PairOptions) -> Self {
        Self { options: options.clone(), pairs: Vec::new(), unescaped: String::new() }
    }

    /// Parses the pair at a byte, and returns its end.
    fn parse_pair(&mut self, line: &str, at: usize, used: &mut usize) -> Result<usize, Expected> {
        let options = &self.options;
        let separator = options.key_separator;
        let mut key_end = find(line, at, |byte| byte == separator || options.ends_pair(byte));
        let has_value = line.as_bytes().get(key_end) == Some(&separator);
        let after = key_end + 1;
        if options.is_key_value {
            key_end = at + line[at..key_end].trim_end().len();
        }
        let key = &line[at..key_end];
        if key.is_empty() {
            return Err(Expected { at, what: format!("a key before `{}`", char::from(separator)) });
        }
        if let Some(quote) = key.find('"') {
            return Err(Expected { at: at + quote, what: "a key without quotes".to_owned() });
        }
        let is_bare = self.options.is_key_value && !has_value && separator != b'=';
        if is_bare {
            let what = format!("`{}` and a value after the key", char::from(separator));
            return Err(Expected { at: key_end, what });
        }
        let index = self.pair(line, (at, key_end), used);
        if *used > MAX_PAIRS {
            return Err(Expected { at, what: format!("at most {MAX_PAIRS} keys") });
        }
        let Self { options, pairs, unescaped } = self;
        let pair = &mut pairs[index];
        let before = pair.values.len();
        if pair.count > 0 {
            pair.values.push(b',');
        }
        let end = if has_value {
            write_value(line, after, key, options, unescaped, &mut pair.values)
        } else {
            pair.values.extend_from_slice(b"true");
            Ok(key_end)
        };
        match end {
            Ok(_) => pair.count += 1,
            Err(_) => {
                pair.values.truncate(before);
                if pair.count == 0 {
                    *used -= 1;
                }
            }
        }
        end
    }

    /// The pair of a key: a new one, or that of an equal key.
    fn pair(&mut self, line: &str, key: (usize, usize), used: &mut usize) -> usize {
        let text = |(from, to): (usize, usize)| &line[from..to];
        if let Some(index) = self.pairs[..*used].iter().position(|pair| text(pair.key) == text(key)) {
            return index;
        }
        if *used == self.pairs.len() {
            self.pairs.push(Pair::default());
        }
        let pair = &mut self.pairs[*used];
        pair.key = key;
        pair.values.clear();
        pair.count = 0;
        *used += 1;
        *used - 1
    }
}

/// Writes the value that begins at a byte, as JSON. Returns where it ends.
fn write_value(
    line: &str,
    mut at: usize,
    key: &str,
    options: &PairOptions,
    unescaped: &mut String,
    out: &mut Vec<u8>,
) -> Result<usize, Expected> {
    let field_type =
        if options.types.is_empty() { FieldType::String } else { options.types.get(key).copied().unwrap_or_default() };
    let typed = |text: &str, at: usize, out: &mut Vec<u8>| {
        field_type.write(text, out).map_err(|what| Expected { at, what: format!("{what} as the value of `{key}`") })
    };
    if options.is_key_value && options.pair_separator != b' ' {
        at = find(line, at, |byte| !is_space(byte));
    }
    if line.as_bytes().get(at) != Some(&b'"') {
        let end = find(line, at, |byte| options.ends_pair(byte));
        if options.is_key_value {
            typed(line[at..end].trim_end(), at, out)?;
            return Ok(end);
        }
        if let Some(quote) = line[at..end].find('"') {
            return Err(Expected {
                at: at + quote,
                what: "a value without quotes, or in quotes as a whole".to_owned(),
            });
        }
        typed(&line[at..end], at, out)?;
        return Ok(end);
    }
    unescaped.clear();
    let mut characters = line[at + 1..].char_indices();
    while let Some((offset, character)) = characters.next() {
        match character {
            '"' => {
                let end = at + 1 + offset + 1;
                if line.as_bytes().get(end).is_some_and(|byte| !is_space(*byte) && !options.ends_pair(*byte)) {
                    return Err(Expected { at: end, what: "a separator after the value".to_owned() });
                }
                typed(unescaped, at, out)?;
                return Ok(end);
            }
            '\\' => match characters.next() {
                Some((_, 'n')) => unescaped.push('\n'),
                Some((_, 't')) => unescaped.push('\t'),
                Some((_, 'r')) => unescaped.push('\r'),
                Some((_, escaped)) => unescaped.push(escaped),
                None => break,
            },
            other => unescaped.push(other),
        }
    }
    Err(Expected { at: line.len(), what: "the closing quote of the value".to_owned() })
}

fn write_pairs(line: &str, pairs: &[Pair], out: &mut Vec<u8>) {
    if pairs.is_empty() {
        out.push(b'{');
    }
    for (index, Pair { key: (from, to), values, count }) in pairs.iter().enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        write_string(out, &line[*from..*to]);
        out.push(b':');
        if *count > 1 {
            out.push(b'[');
        }
        out.extend_from_slice(values);
        if *count > 1 {
            out.push(b']');
        }
    }
    out.push(b'}');
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// The first byte from `at` on that satisfies a condition, or the end of the line.
fn find(line: &str, at: usize, condition: impl Fn(u8) -> bool) -> usize {
    line.as_bytes()[at..].iter().position(|byte| condition(*byte)).map_or(line.len(), |offset| at + offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<String, Expected> {
        let mut out = Vec::new();
        let event = LogfmtParser::new(&PairOptions::logfmt()).parse(line, &mut out)?;
        assert_eq!(event == Event::Blank, out.is_empty());
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn pairs_become_members() {
        for (line, expected) in [
            ("level=info took=3ms", r#"{"level":"info","took":"3ms"}"#),
            (r#"msg="it \"works\"\n" n=1"#, r#"{"msg":"it \"works\"\n","n":"1"}"#),
            ("  debug a= b=x=y\t", r#"{"debug":true,"a":"","b":"x=y"}"#),
            ("tag=a tag=b tag", r#"{"tag":["a","b",true]}"#),
            ("ключ=значение", r#"{"ключ":"значение"}"#),
            ("", ""),
            (" \t", ""),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn other_lines_are_rejected_with_their_column() {
        for (line, at) in
            [("=x", 0), ("a=1 =x", 4), (r#"a="x"#, 4), (r#"a="x"y"#, 5), (r#"a=x"y""#, 3), (r#""a"=1"#, 0)]
        {
            assert_eq!(parse(line).unwrap_err().at, at, "{line}");
        }
    }

    #[test]
    fn a_parser_keeps_nothing_of_earlier_lines() {
        let mut parser = LogfmtParser::new(&PairOptions::logfmt());
        let mut out = Vec::new();
        parser.parse("a=1 b=2 c=3", &mut out).unwrap();
        assert!(parser.parse("a=1 b=\"", &mut Vec::new()).is_err());
        out.clear();
        parser.parse("b=4", &mut out).unwrap();
        assert_eq!(out, br#"{"b":"4"}"#);
    }

    proptest! {
        #[test]
        fn printed_pairs_are_parsed(values in prop::collection::vec("[^\u{0}]{0,12}", 1..8)) {
            let quoted = |value: &String| {
                let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("\"{escaped}\"")
            };
            let line: Vec<String> =
                values.iter().enumerate().map(|(index, value)| format!("k{index}={}", quoted(value))).collect();
            let json: serde_json::Value = serde_json::from_str(&parse(&line.join(" ")).unwrap()).unwrap();
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(json[format!("k{index}")].as_str().unwrap(), value);
            }
        }

        #[test]
        fn any_line_is_parsed_or_rejected(line in "\\PC{0,60}") {
            if let Ok(json) = parse(&line) && !json.is_empty() {
                serde_json::from_str::<serde_json::Value>(&json).unwrap();
            }
        }
    }
}
