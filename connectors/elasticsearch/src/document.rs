//! A record to an operation of a `_bulk` request: index, id, version and document.
//!
//! Whatever makes the server refuse a whole request is found here: ids over 512 bytes, versions
//! that are not 63-bit numbers, values that are not one line.

use std::borrow::Cow;

use trunkline_connector::{Error, Escape, Reason, RecordRef, Template, json};

use crate::change_event::{BinlogPosition, ChangeEvent, Members};
use crate::config::{DocumentOptions, IdRule, Mode, Target, VersionRule, index_name};
use crate::failover::FailoverGuard;
use crate::field_types::IndexSchemas;

/// The longest id that servers take.
const MAX_ID_BYTES: usize = 512;

/// The epoch has the bits of a version from here on: versions have 63 bits.
const EPOCH_SHIFT: u32 = 58;

/// A document that can change: later records may have it too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    index: String,
    id: String,
}

/// What a record added to a body.
#[derive(Debug)]
pub(crate) enum Appended {
    /// An operation, with the identity of its document unless only this record has it.
    Operation(Option<Identity>),
    /// Nothing: an earlier record did the same.
    Nothing,
    /// Nothing: the record must not be written now.
    Held(Error),
}

/// What sees the records before they are written.
#[derive(Debug, Default)]
pub(crate) struct Observers<'a> {
    pub(crate) failover: Option<&'a FailoverGuard>,
    /// With field types from schemas.
    pub(crate) schemas: Option<IndexSchemas>,
}

/// What a record does to its document.
enum Change<'a> {
    Write { document: &'a [u8], has_timestamp: bool, is_empty: bool },
    Delete,
}

/// A record as a change.
struct ReadRecord<'a> {
    change: Change<'a>,
    /// It is a change event or a tombstone.
    is_event: bool,
    event: Option<ChangeEvent<'a>>,
}

/// Appends the operation of a record to `body`: an action line and, unless it is a delete, the
/// document. `ordinal` is the number of earlier records with the same offset.
///
/// On an error `body` is left with a part of the operation.
pub(crate) fn append(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    ordinal: usize,
    observers: &mut Observers<'_>,
    body: &mut Vec<u8>,
) -> Result<Appended, Reason> {
    let ReadRecord { change, is_event, event } = read_record(options, record)?;
    if let (Some(guard), Some(event)) = (observers.failover, &event)
        && let Err(error) = guard.check(record, event)
    {
        return Ok(Appended::Held(error));
    }
    if matches!(options.version, VersionRule::Source) && record.value().is_none() {
        // A tombstone has no position. The change event before it deleted the document.
        return Ok(Appended::Nothing);
    }
    let template = options.target.template();
    let mut index = String::new();
    render(template, record, "elasticsearch.no_index", &mut index)?;
    if template.constant().is_none() {
        index_name(&index).map_err(|message| {
            Reason::new("elasticsearch.bad_index", format!("the index `{index}` of the record {message}"))
        })?;
    }
    let id = id_of(options, record, is_event, ordinal)?;
    let version = match (&id, options.mode) {
        (Id::Changing(_), Mode::Index) => version_of(options, record, event.as_ref())?,
        _ => None,
    };
    let action = action_of(options.mode, &change, &id)?;
    let has_document = matches!(change, Change::Write { .. });
    write_action(options, record, action, &Metadata { index: &index, id: id.text(), version, has_document }, body)?;
    if let Change::Write { document, has_timestamp, is_empty } = change {
        if let Some(schemas) = &mut observers.schemas {
            schemas.add(&index, record);
        }
        let is_stream = matches!(options.target, Target::DataStream(_));
        let needs_timestamp = !has_timestamp && (is_stream || options.timestamp.is_some());
        let timestamp = if needs_timestamp { timestamp_of(options, record, document)? } else { None };
        let around = match options.mode {
            Mode::Update { upsert: true } => ("{\"doc\":", ",\"doc_as_upsert\":true}"),
            Mode::Update { upsert: false } => ("{\"doc\":", "}"),
            Mode::Index | Mode::Create => ("", ""),
        };
        body.extend_from_slice(around.0.as_bytes());
        write_document(document, timestamp.as_deref(), is_empty, body)?;
        body.extend_from_slice(around.1.as_bytes());
        body.push(b'\n');
    }
    Ok(Appended::Operation(match id {
        Id::Changing(id) => Some(Identity { index, id }),
        Id::Unique(_) | Id::Assigned => None,
    }))
}

fn action_of(mode: Mode, change: &Change<'_>, id: &Id) -> Result<&'static str, Reason> {
    match (change, mode, id) {
        (Change::Write { .. }, Mode::Create, _) => Ok("create"),
        (Change::Write { .. }, Mode::Index, _) => Ok("index"),
        (Change::Write { .. }, Mode::Update { .. }, _) => Ok("update"),
        (Change::Delete, Mode::Create, _) => Err(Reason::new(
            "elasticsearch.delete_in_data_stream",
            "the record is a delete, and a data stream or `mode = \"create\"` only takes new documents; write to an index, or \
             drop deletes with a transform",
        )),
        (Change::Delete, _, Id::Changing(_)) => Ok("delete"),
        (Change::Delete, _, Id::Unique(_) | Id::Assigned) => Err(Reason::new(
            "elasticsearch.delete_without_id",
            "the record is a delete without a key, so its document is unknown; set `id` to a template that names the document",
        )),
    }
}

/// Reads the value of a record.
fn read_record<'a>(options: &DocumentOptions, record: RecordRef<'a>) -> Result<ReadRecord<'a>, Reason> {
    let Some(value) = record.value() else {
        if record.key().is_none() {
            return Err(Reason::new("elasticsearch.no_value", "the record has neither a value nor a key"));
        }
        return Ok(ReadRecord { change: Change::Delete, is_event: true, event: None });
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
        let change = Change::Write { document: value, has_timestamp, is_empty };
        return Ok(ReadRecord { change, is_event: false, event: None });
    };
    let change = match (event.op, event.after) {
        (b'd', _) => Change::Delete,
        (b'c' | b'u' | b'r', Some(after)) => {
            let Members { has_timestamp, is_empty, .. } = walk(after)?;
            Change::Write { document: after, has_timestamp, is_empty }
        }
        (op, after) => {
            let row = if after.is_some() { "with" } else { "without" };
            let message = format!(
                "a change event with `op` = `{}` {row} a row cannot be applied to a document",
                char::from(op).escape_default()
            );
            return Err(Reason::new("elasticsearch.unsupported_event", message));
        }
    };
    Ok(ReadRecord { change, is_event: true, event: Some(event) })
}

/// The id of a document.
enum Id {
    /// Only one record has it, so the document never changes.
    Unique(String),
    /// Later records may have it too.
    Changing(String),
    /// The server gives one.
    Assigned,
}

impl Id {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Unique(id) | Self::Changing(id) => Some(id),
            Self::Assigned => None,
        }
    }
}

fn id_of(options: &DocumentOptions, record: RecordRef<'_>, is_event: bool, ordinal: usize) -> Result<Id, Reason> {
    let id = match (&options.id, record.key()) {
        (IdRule::Template(template), _) => {
            let mut id = String::new();
            render(template, record, "elasticsearch.no_id", &mut id)?;
            Id::Changing(id)
        }
        (IdRule::None, _) => return Ok(Id::Assigned),
        (IdRule::Key, None) => {
            return Err(Reason::new("elasticsearch.no_id", "`id` is `key`, and the record has no key"));
        }
        (IdRule::Key, Some(key)) => Id::Changing(key_text(key)?),
        (IdRule::Automatic, Some(key)) if is_event => Id::Changing(key_text(key)?),
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
    match id.text().map_or(0, str::len) {
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

/// The external version of a document; `None` if the server compares none.
fn version_of(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    event: Option<&ChangeEvent<'_>>,
) -> Result<Option<u64>, Reason> {
    let version = match &options.version {
        VersionRule::None => return Ok(None),
        VersionRule::Offset => record.entry().offset.unsigned_abs(),
        VersionRule::Source => event.and_then(|event| BinlogPosition::of(event.source)).map(|at| at.version).ok_or_else(|| {
            Reason::new(
                "elasticsearch.no_version",
                "`version` is `source`, and the record is not a change event with a binlog position (`source.file`, \
                 `source.pos`) of up to 4,194,303 files of 64 GiB",
            )
        })?,
        VersionRule::Template(template) => {
            let mut text = String::new();
            render(template, record, "elasticsearch.no_version", &mut text)?;
            text.parse().ok().filter(|version| *version <= i64::MAX as u64).ok_or_else(|| {
                let message = format!(
                    "the version of the document is `{text}`, and must be a whole number from 0 to {}",
                    i64::MAX
                );
                Reason::new("elasticsearch.bad_version", message)
            })?
        }
    };
    if options.epoch > 0 && version >> EPOCH_SHIFT != 0 {
        let message = format!(
            "the version of the document is {version}, and must be below {} with `version_epoch`",
            1_u64 << EPOCH_SHIFT
        );
        return Err(Reason::new("elasticsearch.bad_version", message));
    }
    Ok(Some(version | options.epoch << EPOCH_SHIFT))
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

/// The metadata of an operation.
struct Metadata<'a> {
    index: &'a str,
    id: Option<&'a str>,
    version: Option<u64>,
    has_document: bool,
}

fn write_action(
    options: &DocumentOptions,
    record: RecordRef<'_>,
    action: &str,
    metadata: &Metadata<'_>,
    body: &mut Vec<u8>,
) -> Result<(), Reason> {
    body.extend_from_slice(b"{\"");
    body.extend_from_slice(action.as_bytes());
    body.extend_from_slice(b"\":{\"_index\":");
    json::write_string(body, metadata.index);
    if let Some(id) = metadata.id {
        body.extend_from_slice(b",\"_id\":");
        json::write_string(body, id);
    }
    if let Some(template) = &options.routing {
        let mut routing = String::new();
        render(template, record, "elasticsearch.no_routing", &mut routing)?;
        body.extend_from_slice(b",\"routing\":");
        json::write_string(body, &routing);
    }
    if options.require_alias && metadata.has_document {
        body.extend_from_slice(b",\"require_alias\":true");
    }
    if let Some(version) = metadata.version {
        // Several changes may have one binlog position. The last of them must win, and the order of
        // the records decides which one that is. A record that is replayed has the version that it
        // had before.
        let takes_equal = options.supersedes || matches!(options.version, VersionRule::Source);
        let kind = if takes_equal { "external_gte" } else { "external" };
        body.extend_from_slice(format!(",\"version\":{version},\"version_type\":\"{kind}\"").as_bytes());
    }
    if matches!(options.mode, Mode::Update { .. }) && metadata.has_document {
        body.extend_from_slice(b",\"retry_on_conflict\":3");
    }
    body.extend_from_slice(b"}}\n");
    Ok(())
}

/// Appends the document without line breaks.
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
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    fn options(target: Target) -> DocumentOptions {
        let mode = if matches!(target, Target::DataStream(_)) { Mode::Create } else { Mode::Index };
        DocumentOptions {
            target,
            mode,
            id: IdRule::Automatic,
            version: VersionRule::Offset,
            epoch: 0,
            unwrap: true,
            timestamp: None,
            routing: None,
            require_alias: false,
            supersedes: false,
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
        append(options, batch.get(0), 0, &mut Observers::default(), &mut body).map_err(|reason| reason.code)?;
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

    #[test]
    fn a_replay_that_supersedes_wins_over_equal_versions_only() {
        let superseding = DocumentOptions { supersedes: true, ..index() };
        let action = |options: &DocumentOptions| lines(options, Some("7"), Some(UPDATE)).unwrap().remove(0);
        assert!(action(&index()).contains(r#""version":42,"version_type":"external"}"#), "{}", action(&index()));
        // A version that is newer refuses it.
        let replayed = action(&superseding);
        assert!(replayed.contains(r#""version":42,"version_type":"external_gte"}"#), "{replayed}");
        // A document that only one record has is replaced as it is.
        let unique = lines(&superseding, None, Some(r#"{"n":1}"#)).unwrap().remove(0);
        assert!(unique.starts_with("{\"index\"") && !unique.contains("version"), "{unique}");
    }

    #[test]
    fn binlog_positions_are_versions_and_the_epoch_is_above_them() {
        let by_source = DocumentOptions { version: VersionRule::Source, ..index() };
        let event = |op: &str, file: &str, pos: u64| {
            let after = if op == "d" { "null" } else { "{\"id\":7}" };
            format!(r#"{{"before":null,"after":{after},"source":{{"file":"{file}","pos":{pos}}},"op":"{op}"}}"#)
        };
        let version = |options: &DocumentOptions, value: &str| -> u64 {
            let action = lines(options, Some(r#"{"id":7}"#), Some(value)).unwrap().remove(0);
            let action: serde_json::Value = serde_json::from_str(&action).unwrap();
            let (_, metadata) = action.as_object().unwrap().iter().next().unwrap();
            assert_eq!(metadata["version_type"], "external_gte");
            metadata["version"].as_u64().unwrap()
        };
        // The snapshot was read at position 500: later changes are newer, earlier ones older.
        let snapshot = version(&by_source, &event("r", "binlog.000009", 500));
        assert!(version(&by_source, &event("u", "binlog.000009", 499)) < snapshot);
        assert!(version(&by_source, &event("d", "binlog.000009", 540)) > snapshot);
        assert!(version(&by_source, &event("u", "binlog.000010", 157)) > snapshot);
        // After a failover the files of the new server begin at 1.
        let failover = DocumentOptions { epoch: 1, ..by_source.clone() };
        assert!(
            version(&failover, &event("u", "binlog.000001", 157)) > version(&by_source, &event("u", "b.4194303", 4))
        );
        let last = DocumentOptions { epoch: 31, ..by_source.clone() };
        assert!(version(&last, &event("u", "b.4194303", (1 << 36) - 1)) <= i64::MAX as u64);
        // The tombstone after a delete says nothing new.
        assert_eq!(lines(&by_source, Some("k"), None).unwrap(), [""; 0]);
        assert_eq!(lines(&by_source, Some("k"), Some(UPDATE)).unwrap_err(), "elasticsearch.no_version");
        let field = DocumentOptions { version: VersionRule::Template(template("{v}")), epoch: 1, ..by_source };
        let by_key = DocumentOptions { id: IdRule::Key, ..field };
        assert_eq!(
            lines(&by_key, Some("k"), Some(r#"{"v":288230376151711744}"#)).unwrap_err(),
            "elasticsearch.bad_version"
        );
        assert!(lines(&by_key, Some("k"), Some(r#"{"v":1}"#)).unwrap()[0].contains("\"version\":288230376151711745,"));
    }

    #[test]
    fn updates_merge_fields_into_documents() {
        let mut update = DocumentOptions { mode: Mode::Update { upsert: true }, version: VersionRule::None, ..index() };
        let action = r#"{"update":{"_index":"a","_id":"7","retry_on_conflict":3}}"#;
        assert_eq!(
            lines(&update, Some(r#"{"id":7}"#), Some(UPDATE)).unwrap(),
            [action, r#"{"doc":{"id":7,"name":"x"},"doc_as_upsert":true}"#]
        );
        assert_eq!(
            lines(&update, Some(r#"{"id":7}"#), Some(DELETE)).unwrap(),
            [r#"{"delete":{"_index":"a","_id":"7"}}"#]
        );
        update.mode = Mode::Update { upsert: false };
        assert!(lines(&update, Some("7"), Some(UPDATE)).unwrap()[1].ends_with("}}"));
        assert!(update.needs_order());
    }

    #[test]
    fn documents_may_have_ids_of_the_server_and_require_an_alias() {
        let assigned = DocumentOptions { id: IdRule::None, require_alias: true, ..index() };
        assert_eq!(
            lines(&assigned, Some("k"), Some("{}")).unwrap(),
            [r#"{"index":{"_index":"a","require_alias":true}}"#, "{}"]
        );
        assert_eq!(lines(&assigned, Some("k"), None).unwrap_err(), "elasticsearch.delete_without_id");
        let unversioned = DocumentOptions { id: IdRule::Key, version: VersionRule::None, ..index() };
        assert_eq!(lines(&unversioned, Some("k"), Some("{}")).unwrap()[0], r#"{"index":{"_index":"a","_id":"k"}}"#);
        assert!(unversioned.needs_order() && !assigned.needs_order() && !index().needs_order());
        let create = DocumentOptions { id: IdRule::Key, mode: Mode::Create, ..unversioned };
        assert_eq!(lines(&create, Some("k"), Some("{}")).unwrap()[0], r#"{"create":{"_index":"a","_id":"k"}}"#);
        assert_eq!(lines(&create, Some("k"), None).unwrap_err(), "elasticsearch.delete_in_data_stream");
    }
}
