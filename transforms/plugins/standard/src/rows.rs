//! Rows: the value of a record, or the images `before` and `after` of a change event.

use trunkline_plugin::json;

/// The images of a change event; `None` if an image is absent or null.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event<'a> {
    pub(crate) before: Option<&'a [u8]>,
    pub(crate) after: Option<&'a [u8]>,
    /// The operation: `c`, `u`, `d`, `r` or `t`.
    pub(crate) operation: &'a [u8],
}

/// The text without the white space around it.
pub(crate) fn trim(raw: &[u8]) -> &[u8] {
    raw.trim_ascii()
}

/// The change event in a value: an object with the text `op`, and `before` or `after`.
pub(crate) fn event(value: &[u8]) -> Option<Event<'_>> {
    if !json::may_have_key(value, "op") {
        return None;
    }
    let mut event = Event { before: None, after: None, operation: b"" };
    let mut has_image = false;
    for member in json::members(value) {
        let member = member.ok()?;
        let image = Some(member.value).filter(|raw| raw.first() == Some(&b'{'));
        match member.key {
            b"before" => (event.before, has_image) = (image, true),
            b"after" => (event.after, has_image) = (image, true),
            b"op" => event.operation = member.value.strip_prefix(b"\"")?.strip_suffix(b"\"")?,
            _ => {}
        }
    }
    (has_image && !event.operation.is_empty()).then_some(event)
}

/// The row of a value.
pub(crate) fn row_of(value: &[u8]) -> &[u8] {
    match event(value) {
        Some(event) => event.after.or(event.before).unwrap_or(value),
        None => value,
    }
}

/// Appends the value with each of its rows replaced by what `rewrite` appends.
pub(crate) fn rewrite(
    value: &[u8],
    out: &mut Vec<u8>,
    mut rewrite: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    if event(value).is_none() {
        return rewrite(trim(value), out);
    }
    let mut object = ObjectWriter::new(out);
    for member in json::members(value) {
        let member = member.map_err(|error| error.to_string())?;
        let out = object.raw_key(member.key);
        match member.key {
            b"before" | b"after" if member.value.first() == Some(&b'{') => rewrite(member.value, out)?,
            _ => out.extend_from_slice(member.value),
        }
    }
    object.finish();
    Ok(())
}

/// Writes an object member by member.
pub(crate) struct ObjectWriter<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> ObjectWriter<'o> {
    pub(crate) fn new(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Starts a member with a key that is escaped already; its value is appended to the result.
    pub(crate) fn raw_key(&mut self, key: &[u8]) -> &mut Vec<u8> {
        self.separate();
        self.out.push(b'"');
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Starts a member; its value is appended to the result.
    pub(crate) fn key(&mut self, name: &str) -> &mut Vec<u8> {
        self.separate();
        json::write_string(self.out, name);
        self.out.push(b':');
        self.out
    }

    pub(crate) fn finish(self) {
        self.out.push(b'}');
    }

    fn separate(&mut self) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
    }
}

/// The parts of a dotted path; a message if a part is empty.
pub(crate) fn path(dotted: &str) -> Result<Vec<String>, String> {
    if dotted.split('.').any(str::is_empty) {
        return Err(format!("`{dotted}` has an empty part; expected a path such as \"customer.email\""));
    }
    Ok(dotted.split('.').map(str::to_owned).collect())
}

/// The raw value at a path; `None` if it does not exist.
pub(crate) fn lookup<'a>(row: &'a [u8], path: &[String]) -> Result<Option<&'a [u8]>, String> {
    json::lookup(row, path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a value is a change event, by its members alone.
    fn is_event(value: &[u8]) -> bool {
        let Ok(members) = json::members(value).collect::<Result<Vec<_>, _>>() else { return false };
        let has = |name: &[u8]| members.iter().any(|member| member.key == name);
        let mut operations = members.iter().filter(|member| member.key == b"op").map(|member| member.value);
        let are_texts = operations.clone().all(|raw| raw.starts_with(b"\"") && raw.len() > 1);
        (has(b"before") || has(b"after")) && are_texts && operations.next_back().is_some_and(|raw| raw.len() > 2)
    }

    #[test]
    fn change_events_are_found_by_their_members() {
        let members = [
            r#""op":"u""#,
            r#""op":"""#,
            r#""op":1"#,
            r#""o\u0070":"u""#,
            r#""after":{"op":"c"}"#,
            r#""after":null"#,
            r#""before":{"id":1}"#,
            r#""note":"an \"op\" and more than sixteen bytes""#,
            r#""a":1"#,
            "broken",
        ];
        for first in members {
            for second in members {
                for third in members {
                    let value = format!("{{{first},{second},{third}}}");
                    assert_eq!(event(value.as_bytes()).is_some(), is_event(value.as_bytes()), "{value}");
                }
            }
        }
        let value = br#"{"before":{"id":1},"after":{"id":2},"op":"u"}"#;
        assert_eq!(row_of(value), br#"{"id":2}"#);
        assert_eq!(row_of(br#"{"before":{"id":1},"after":null,"op":"d"}"#), br#"{"id":1}"#);
    }
}
