//! `parser = "json"`: the line is a JSON object. The parser checks its syntax and keeps its bytes.

use serde::de::IgnoredAny;

use super::{Event, Expected, LineParser};

/// The parser.
pub(super) struct JsonParser;

impl LineParser for JsonParser {
    fn code(&self) -> &'static str {
        "parse.json"
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        parse(line, out)
    }
}

fn parse(line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
    let space = [' ', '\t', '\r', '\n'];
    let object = line.trim_matches(space);
    if object.is_empty() {
        return Ok(Event::Blank);
    }
    let start = line.len() - line.trim_start_matches(space).len();
    if !object.starts_with('{') {
        return Err(Expected { at: start, what: "a JSON object, `{`".to_owned() });
    }
    serde_json::from_str::<IgnoredAny>(object).map_err(|error| {
        // The column is the byte, counted from 1, unless another delimiter lets the line contain CR
        // or LF.
        let at = if error.line() <= 1 { error.column().saturating_sub(1) } else { object.len() };
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text).to_owned();
        Expected { at: start + at, what: format!("valid JSON ({what})") }
    })?;
    out.extend_from_slice(object.as_bytes());
    Ok(Event::Record(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_their_bytes() {
        let mut out = Vec::new();
        assert_eq!(parse(" {\"a\": 1.50, \"a\":[null,{\"b\":\"\\u00e4\"}]}\t", &mut out), Ok(Event::Record(None)));
        assert_eq!(out, b"{\"a\": 1.50, \"a\":[null,{\"b\":\"\\u00e4\"}]}");
        assert_eq!(parse(" \t", &mut out), Ok(Event::Blank));
    }

    #[test]
    fn lines_that_are_not_objects_are_rejected_with_their_column() {
        let bad = [
            "[1]",
            "1",
            "\"x\"",
            "{",
            "{\"a\":01}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1} x",
            "{\"a\":\"\\x\"}",
            "{\"a\":NaN}",
        ];
        for line in bad {
            assert!(parse(line, &mut Vec::new()).is_err(), "{line}");
        }
        let error = parse("  {\"a\":1,}", &mut Vec::new()).unwrap_err();
        assert_eq!(error.at, 9, "{error:?}");
    }
}
