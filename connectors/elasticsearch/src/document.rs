//! A record to an operation of a `_bulk` request: index, id, version and document.
//!
//! Whatever makes the server refuse a whole request is found here: ids over 512 bytes, versions
//! that are not 63-bit numbers, values that are not one line.

use std::borrow::Cow;

use trunkline_connector::{Escape, Reason, RecordRef, Template, json};

use crate::change_event::Members;
use crate::config::{DocumentOptions, IdRule, Target, VersionRule, index_name};

/// The longest id that servers take.
const MAX_ID_BYTES: usize = 512;

/// A document that can change, in one version. A later record of the same offset may have it too.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    index: String,
    id: String,
    version: u64,
}

/// What a record does to its document.
enum Change<'a> {
    Write { document: &'a [u8], has_timestamp: bool, is_empty: bool },
    Delete,
}

/// Appends the operation of a record to `body`: an action line and, unless it is a delete, the
/// document. `ordinal` is the number of earlier records with the same offset. Returns the identity
/// of a document that has a version.
///
/// On an error `body` is left with a part of the operation.
pub(crate) fn append(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    ordinal: usize,
    body: &mut Vec<u8>,
) -> Result<Option<Identity>, Reason> {
    let (change, is_event) = change_of(options, record)?;
    let (template, append_only) = match &options.target {
        Target::Index(template) => (template, false),
        Target::DataStream(template) => (template, true),
    };
    let mut index = String::new();
    render(template, record, "elasticsearch.no_index", &mut index)?;
    if template.constant().is_none() {
        index_name(&index).map_err(|message| {
            Reason::new("elasticsearch.bad_index", format!("the index `{index}` of the record {message}"))
        })?;
    }
    let id = id_of(options, record, is_event, ordinal)?;
    let version = match &id {
        Id::Versioned(_) if !append_only => Some(version_of(options, record)?),
        _ => None,
    };
    let action = match (&change, append_only, &version) {
        (Change::Write { .. }, true, _) => "create",
        (Change::Write { .. }, false, _) => "index",
        (Change::Delete, true, _) => {
            return Err(Reason::new(
                "elasticsearch.delete_in_data_stream",
                "the record is a delete, and a data stream only takes new documents; write to an index, or drop deletes with a transform",
            ));
        }
        (Change::Delete, false, Some(_)) => "delete",
        (Change::Delete, false, None) => {
            return Err(Reason::new(
                "elasticsearch.delete_without_id",
                "the record is a delete without a key, so its document is unknown; set `id` to a template that names the document",
            ));
        }
    };
    let id = id.into_text();
    write_action(options, record, action, (&index, &id, version), body)?;
    if let Change::Write { document, has_timestamp, is_empty } = change {
        let needs_timestamp = !has_timestamp && (append_only || options.timestamp.is_some());
        let timestamp = if needs_timestamp { timestamp_of(options, record, document)? } else { None };
        write_document(document, timestamp.as_deref(), is_empty, body)?;
    }
    Ok(version.map(|version| Identity { index, id, version }))
}

/// Reads the value: the change, and whether the record is a change event.
fn change_of<'a>(options: &DocumentOptions, record: RecordRef<'a>) -> Result<(Change<'a>, bool), Reason> {
    let Some(value) = record.value() else {
        if record.key().is_none() {
            return Err(Reason::new("elasticsearch.no_value", "the record has neither a value nor a key"));
        }
        return Ok((Change::Delete, true));
    };
    let walk = |value: &'a [u8]| {
        let members = Members::of(value).map_err(|malformed| {
            Reason::new("elasticsearch.not_an_object", format!("a document must be a JSON object: {malformed}"))
        })?;
        if std::str::from_utf8(value).is_err() {
            return Err(Reason::new("elasticsearch.not_utf8", "the value is not UTF-8"));
        }
        Ok(members)
    };
    let whole = walk(value)?;
    let Some(event) = whole.change_event().filter(|_| options.unwrap) else {
        let Members { has_timestamp, is_empty, .. } = whole;
        return Ok((Change::Write { document: value, has_timestamp, is_empty }, false));
    };
    match (event.op, event.after) {
        (b'd', _) => Ok((Change::Delete, true)),
        (b'c' | b'u' | b'r', Some(after)) => {
            let Members { has_timestamp, is_empty, .. } = walk(after)?;
            Ok((Change::Write { document: after, has_timestamp, is_empty }, true))
        }
        (op, after) => {
            let row = if after.is_some() { "with" } else { "without" };
            let message = format!(
                "a change event with `op` = `{}` {row} a row cannot be applied to a document",
                char::from(op).escape_default()
            );
            Err(Reason::new("elasticsearch.unsupported_event", message))
        }
    }
}

/// The id of a document.
enum Id {
    /// Only one record has it, so the document never changes.
    Unique(String),
    /// Later records may have it too.
    Versioned(String),
}

impl Id {
    fn into_text(self) -> String {
        match self {
            Self::Unique(id) | Self::Versioned(id) => id,
        }
    }
}

fn id_of(options: &DocumentOptions, record: RecordRef<'_>, is_event: bool, ordinal: usize) -> Result<Id, Reason> {
    let id = match (&options.id, record.key()) {
        (IdRule::Template(template), _) => {
            let mut id = String::new();
            render(template, record, "elasticsearch.no_id", &mut id)?;
            Id::Versioned(id)
        }
        (IdRule::Key, None) => {
            return Err(Reason::new("elasticsearch.no_id", "`id` is `key`, and the record has no key"));
        }
        (IdRule::Key, Some(key)) => Id::Versioned(key_text(key)?),
        (IdRule::Automatic, Some(key)) if is_event => Id::Versioned(key_text(key)?),
        (IdRule::Automatic | IdRule::Offset, _) => {
            let (topic, entry) = (record.topic(), record.entry());
            let mut id = format!("{topic}+{}+{}", entry.partition, entry.offset);
            // A transform may emit several records for one.
            if ordinal > 0 {
                id.push_str(&format!("+{ordinal}"));
            }
            Id::Unique(id)
        }
    };
    let (Id::Unique(text) | Id::Versioned(text)) = &id;
    match text.len() {
        0 => Err(Reason::new("elasticsearch.no_id", "the id of the document is empty")),
        1..=MAX_ID_BYTES => Ok(id),
        len => {
            let message = format!("the id of the document has {len} bytes, and servers take {MAX_ID_BYTES}");
            Err(Reason::new("elasticsearch.id_too_long", message))
        }
    }
}

/// The text of a key. The JSON key of a table with one key column is `{"id":1}`: its id is `1`.
/// Keys of several columns stay JSON, so that no two of them are equal.
fn key_text(key: &[u8]) -> Result<String, Reason> {
    let mut members = json::members(key);
    let only = match (members.next(), members.next()) {
        (Some(Ok(member)), None) if !matches!(member.value.first(), Some(b'{' | b'[')) => member.value,
        _ => key,
    };
    let text = json::text(only).map(Cow::into_owned);
    text.ok_or_else(|| {
        Reason::new("elasticsearch.bad_key", "the key is not UTF-8, so it cannot be the id of a document")
    })
}

fn version_of(options: &DocumentOptions, record: RecordRef<'_>) -> Result<u64, Reason> {
    let template = match &options.version {
        VersionRule::Offset => return Ok(record.entry().offset.unsigned_abs()),
        VersionRule::Template(template) => template,
    };
    let mut text = String::new();
    render(template, record, "elasticsearch.no_version", &mut text)?;
    match text.parse() {
        Ok(version) if version <= i64::MAX as u64 => Ok(version),
        _ => {
            let message =
                format!("the version of the document is `{text}`, and must be a whole number from 0 to {}", i64::MAX);
            Err(Reason::new("elasticsearch.bad_version", message))
        }
    }
}

/// The value of `@timestamp` as JSON: the field that the option names, else the record's time.
fn timestamp_of<'a>(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    document: &'a [u8],
) -> Result<Option<Cow<'a, [u8]>>, Reason> {
    if let Some(path) = &options.timestamp {
        // The walk over the whole document succeeded before.
        match json::lookup(document, path).unwrap_or_default().filter(|raw| *raw != b"null") {
            Some(raw) if matches!(raw.first(), Some(b'{' | b'[' | b't' | b'f')) => {
                let message = format!("the field `{}` is not a time", path.join("."));
                return Err(Reason::new("elasticsearch.bad_timestamp", message));
            }
            Some(raw) => return Ok(Some(Cow::Borrowed(raw))),
            None => {}
        }
    }
    Ok(record.timestamp().map(|milliseconds| Cow::Owned(milliseconds.to_string().into_bytes())))
}

fn render(template: &Template, record: RecordRef<'_>, code: &'static str, out: &mut String) -> Result<(), Reason> {
    template.render(record, Escape::None, out).map_err(|error| Reason::new(code, error.to_string()))
}

fn write_action(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    action: &str,
    (index, id, version): (&str, &str, Option<u64>),
    body: &mut Vec<u8>,
) -> Result<(), Reason> {
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(action.as_bytes());
    body.extend_from_slice(b"\":{\"_index\":");
    json::write_string(body, index);
    body.extend_from_slice(b",\"_id\":");
    json::write_string(body, id);
    if let Some(template) = &options.routing {
        let mut routing = String::new();
        render(template, record, "elasticsearch.no_routing", &mut routing)?;
        body.extend_from_slice(b",\"routing\":");
        json::write_string(body, &routing);
    }
    if let Some(version) = version {
        body.extend_from_slice(format!(",\"version\":{version},\"version_type\":\"external\"").as_bytes());
    }
    body.extend_from_slice(b"}}\n");
    Ok(())
}

/// Appends the document as one line.
fn write_document(document: &[u8], timestamp: Option<&[u8]>, is_empty: bool, body: &mut Vec<u8>) -> Result<(), Reason> {
    let start = body.len();
    match timestamp {
        Some(timestamp) => {
            body.extend_from_slice(b"{\"@timestamp\":");
            body.extend_from_slice(timestamp);
            if !is_empty {
                body.push(b',');
            }
            let brace = document.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
            body.extend_from_slice(&document[brace..]);
        }
        None => body.extend_from_slice(document),
    }
    let document = &mut body[start..];
    if memchr::memchr2(b'\n', b'\r', document).is_some() {
        // In valid JSON, line breaks stand between tokens only, where a space means the same.
        serde_json::from_slice::<serde::de::IgnoredAny>(document)
            .map_err(|error| Reason::new("elasticsearch.not_json", format!("the value is not JSON: {error}")))?;
        document.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
    }
    body.push(b'\n');
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    fn options(target: Target) -> DocumentOptions {
        DocumentOptions {
            target,
            id: IdRule::Automatic,
            version: VersionRule::Offset,
            unwrap: true,
            timestamp: None,
            routing: None,
        }
    }

    fn template(source: &str) -> Template {
        Template::parse(source, &[]).unwrap()
    }

    fn index() -> DocumentOptions {
        options(Target::Index(template("a")))
    }

    /// The lines of the operation, or the code of the reason.
    fn lines(options: &DocumentOptions, key: Option<&str>, value: Option<&str>) -> Result<Vec<String>, String> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("web");
        let mut record = batch.record();
        record.timestamp(1_431_857_103_000).read_from(topic, 3, 42);
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        record.finish();
        let mut body = Vec::new();
        append(options, batch.get(0), 0, &mut body).map_err(|reason| reason.code)?;
        Ok(String::from_utf8(body).unwrap().lines().map(str::to_owned).collect())
    }

    const UPDATE: &str = r#"{"before":null,"after":{"id":7,"name":"x"},"source":{"pos":9},"op":"u"}"#;
    const DELETE: &str = r#"{"before":{"id":7},"after":null,"source":{"pos":9},"op":"d"}"#;

    #[test]
    fn records_without_an_envelope_have_the_id_of_their_offset() {
        assert_eq!(
            lines(&index(), Some("k"), Some(r#"{"n":1}"#)).unwrap(),
            [r#"{"index":{"_index":"a","_id":"web+3+42"}}"#, r#"{"n":1}"#]
        );
    }

    #[test]
    fn change_events_index_the_row_by_key_and_version() {
        let versioned = r#""version":42,"version_type":"external"}}"#;
        assert_eq!(
            lines(&index(), Some(r#"{"id":7}"#), Some(UPDATE)).unwrap(),
            [format!(r#"{{"index":{{"_index":"a","_id":"7",{versioned}"#), r#"{"id":7,"name":"x"}"#.to_owned()]
        );
        let deleted = [format!(r#"{{"delete":{{"_index":"a","_id":"7",{versioned}"#)];
        assert_eq!(lines(&index(), Some(r#"{"id":7}"#), Some(DELETE)).unwrap(), deleted);
        // The tombstone after it.
        assert_eq!(lines(&index(), Some(r#"{"id":7}"#), None).unwrap(), deleted);
        // A table without primary key has no keys.
        assert!(lines(&index(), None, Some(UPDATE)).unwrap()[0].contains("web+3+42"));
        assert_eq!(lines(&index(), None, Some(DELETE)).unwrap_err(), "elasticsearch.delete_without_id");
        assert_eq!(
            lines(&index(), None, Some(r#"{"after":null,"source":{},"op":"t"}"#)).unwrap_err(),
            "elasticsearch.unsupported_event"
        );
        let keep = DocumentOptions { unwrap: false, ..index() };
        assert_eq!(lines(&keep, Some("k"), Some(DELETE)).unwrap()[1], DELETE);
    }

    #[test]
    fn keys_of_one_column_are_unwrapped() {
        for (key, id) in [
            (r#"{"id":1}"#, "1"),
            (r#"{"id":"a\"b"}"#, "a\"b"),
            (r#"{"a":1,"b":2}"#, r#"{"a":1,"b":2}"#),
            (r#""text""#, "text"),
            ("plain text", "plain text"),
            ("{", "{"),
            (r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        ] {
            assert_eq!(key_text(key.as_bytes()).unwrap(), id);
        }
        assert_eq!(key_text(b"\xff").unwrap_err().code, "elasticsearch.bad_key");
    }

    #[test]
    fn requests_that_a_server_refuses_whole_are_never_made() {
        let by_key = DocumentOptions { id: IdRule::Key, ..index() };
        let value = Some("{}");
        assert_eq!(lines(&by_key, Some(&"k".repeat(513)), value).unwrap_err(), "elasticsearch.id_too_long");
        assert_eq!(lines(&by_key, Some(""), value).unwrap_err(), "elasticsearch.no_id");
        assert_eq!(lines(&by_key, None, value).unwrap_err(), "elasticsearch.no_id");
        assert!(lines(&by_key, Some(&"k".repeat(512)), value).is_ok());
        let version = |source| DocumentOptions { version: VersionRule::Template(template(source)), ..by_key.clone() };
        assert!(lines(&version("{v}"), Some("k"), Some(r#"{"v":9223372036854775807}"#)).is_ok());
        for wrong in ["-1", "9223372036854775808", "1.5", "\"x\""] {
            let value = format!("{{\"v\":{wrong}}}");
            assert_eq!(lines(&version("{v}"), Some("k"), Some(&value)).unwrap_err(), "elasticsearch.bad_version");
        }
        let by_field = options(Target::Index(template("logs-{kind}")));
        assert_eq!(lines(&by_field, None, Some(r#"{"kind":"A"}"#)).unwrap_err(), "elasticsearch.bad_index");
        assert_eq!(lines(&by_field, None, Some("{}")).unwrap_err(), "elasticsearch.no_index");
        assert_eq!(lines(&by_field, None, Some("")).unwrap_err(), "elasticsearch.not_an_object");
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        let lines_of = |value| lines(&index(), None, Some(value));
        assert_eq!(lines_of("{\r\n  \"a\": \"x\\ny\"\n}").unwrap()[1], "{    \"a\": \"x\\ny\" }");
        assert_eq!(lines_of("{\"a\": \"x\ny\"}").unwrap_err(), "elasticsearch.not_json");
    }

    #[test]
    fn the_timestamp_is_copied_unless_the_document_has_one() {
        let copied = DocumentOptions { timestamp: Some(vec!["t".to_owned(), "at".to_owned()]), ..index() };
        let document =
            |options: &DocumentOptions, value| Ok::<_, String>(lines(options, None, Some(value))?[1].clone());
        let value = r#"{"t":{"at":"2015-05-17T10:05:03Z"}}"#;
        let with_time = format!(r#"{{"@timestamp":"2015-05-17T10:05:03Z",{}"#, &value[1..]);
        assert_eq!(document(&copied, value).unwrap(), with_time);
        let own = r#"{"t":{"at":1},"@timestamp":2}"#;
        assert_eq!(document(&copied, own).unwrap(), own);
        assert_eq!(document(&copied, " {}").unwrap(), r#"{"@timestamp":1431857103000}"#);
        assert_eq!(document(&copied, r#"{"t":{"at":{}}}"#).unwrap_err(), "elasticsearch.bad_timestamp");
        assert_eq!(document(&index(), "{}").unwrap(), "{}");
    }

    #[test]
    fn data_streams_only_create() {
        let mut stream = options(Target::DataStream(template("logs")));
        stream.id = IdRule::Offset;
        assert_eq!(
            lines(&stream, None, Some(r#"{"n":1}"#)).unwrap(),
            [r#"{"create":{"_index":"logs","_id":"web+3+42"}}"#, r#"{"@timestamp":1431857103000,"n":1}"#]
        );
        assert_eq!(lines(&stream, Some("k"), None).unwrap_err(), "elasticsearch.delete_in_data_stream");
        // The server refuses a `create` with an external version.
        stream.id = IdRule::Template(template("{n}"));
        assert!(!lines(&stream, None, Some(r#"{"n":1}"#)).unwrap()[0].contains("version"));
    }
}
