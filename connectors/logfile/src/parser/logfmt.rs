//! `parser = "logfmt"`: pairs such as `level=info msg="it works" took=3ms`, as Go programs and
//! Heroku write them. A key without a value is `true`; a key that occurs twice has a list of
//! values. All other values are strings, because a line does not say which of them are numbers.

use trunkline_connector::json::write_string;

use super::{Event, Expected};

/// A running parser: buffers that lines share.
#[derive(Debug, Default)]
pub(super) struct LogfmtParser {
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

impl LogfmtParser {
    pub(super) fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let mut used = 0;
        let mut at = skip_space(line, 0);
        if at == line.len() {
            return Ok(Event::Blank);
        }
        while at < line.len() {
            let key_end = find(line, at, |byte| byte == b'=' || is_space(byte));
            let key = &line[at..key_end];
            if key.is_empty() {
                return Err(Expected { at, what: "a key before `=`".to_owned() });
            }
            if let Some(quote) = key.find('"') {
                return Err(Expected { at: at + quote, what: "a key without quotes".to_owned() });
            }
            let index = self.pair(line, (at, key_end), &mut used);
            let pair = &mut self.pairs[index];
            if pair.count > 0 {
                pair.values.push(b',');
            }
            pair.count += 1;
            at = if line.as_bytes().get(key_end) == Some(&b'=') {
                write_value(line, key_end + 1, &mut self.unescaped, &mut pair.values)?
            } else {
                pair.values.extend_from_slice(b"true");
                key_end
            };
            at = skip_space(line, at);
        }
        write_pairs(line, &self.pairs[..used], out);
        Ok(Event::Record(None))
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
fn write_value(line: &str, at: usize, unescaped: &mut String, out: &mut Vec<u8>) -> Result<usize, Expected> {
    if line.as_bytes().get(at) != Some(&b'"') {
        let end = find(line, at, is_space);
        if let Some(quote) = line[at..end].find('"') {
            return Err(Expected {
                at: at + quote,
                what: "a value without quotes, or in quotes as a whole".to_owned(),
            });
        }
        write_string(out, &line[at..end]);
        return Ok(end);
    }
    unescaped.clear();
    let mut characters = line[at + 1..].char_indices();
    while let Some((offset, character)) = characters.next() {
        match character {
            '"' => {
                let end = at + 1 + offset + 1;
                if line.as_bytes().get(end).is_some_and(|byte| !is_space(*byte)) {
                    return Err(Expected { at: end, what: "a space after the value".to_owned() });
                }
                write_string(out, unescaped);
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

fn skip_space(line: &str, at: usize) -> usize {
    find(line, at, |byte| !is_space(byte))
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
        let event = LogfmtParser::default().parse(line, &mut out)?;
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
        let mut parser = LogfmtParser::default();
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
