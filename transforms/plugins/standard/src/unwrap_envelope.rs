//! `unwrap_envelope`: turns change events into rows.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Record, Verdict, json};

use crate::Everyday;
use crate::rows::{self, Event, ObjectWriter};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    deletes: Deletes,
    #[serde(default)]
    add_fields: Vec<String>,
    #[serde(default = "prefix")]
    prefix: String,
    #[serde(default)]
    others: Others,
}

fn prefix() -> String {
    "__".to_owned()
}

/// What happens to deletes, and to the tombstones that follow them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Deletes {
    /// The delete is dropped, the tombstone passes.
    #[default]
    Tombstone,
    /// The delete becomes its old row, and the tombstone is dropped.
    Rewrite,
    /// The delete becomes its old row, and the tombstone passes.
    RewriteWithTombstone,
    /// The delete becomes a tombstone, and the tombstone is dropped.
    DeleteToTombstone,
    /// Both are dropped.
    Drop,
}

/// What happens to values that are not change events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Others {
    #[default]
    Reject,
    Keep,
}

#[derive(Debug)]
pub(crate) struct UnwrapEnvelope {
    config: Config,
    added: Vec<(String, Vec<String>)>,
}

const DELETE: &[u8] = b"d";

impl UnwrapEnvelope {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let mut added = Vec::new();
        for (index, field) in config.add_fields.iter().enumerate() {
            let key = format!("add_fields[{index}]");
            let path = rows::path(field).map_err(|message| ConfigError::at(key, message))?;
            // as in Debezium: `table` is short for `source.table`
            let path = match path.as_slice() {
                [name] if !["op", "ts_ms", "deleted"].contains(&name.as_str()) => {
                    vec!["source".to_owned(), name.clone()]
                }
                _ => path,
            };
            added.push((format!("{}{}", config.prefix, field.replace('.', "_")), path));
        }
        Ok(Self { config, added })
    }

    fn write(&self, value: &[u8], row: &[u8], is_delete: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let mut object = ObjectWriter::new(out);
        for member in json::members(row) {
            let member = member.map_err(|error| error.to_string())?;
            object.raw_key(member.key).extend_from_slice(member.value);
        }
        let mut has_deleted = false;
        for (name, path) in &self.added {
            let out = object.key(name);
            if path.len() == 1 && path[0] == "deleted" {
                out.extend_from_slice(if is_delete { b"true" } else { b"false" });
                has_deleted = true;
                continue;
            }
            out.extend_from_slice(rows::lookup(value, path)?.unwrap_or(b"null"));
        }
        let is_rewritten = matches!(self.config.deletes, Deletes::Rewrite | Deletes::RewriteWithTombstone);
        if is_rewritten && !has_deleted {
            let name = format!("{}deleted", self.config.prefix);
            object.key(&name).extend_from_slice(if is_delete { b"true" } else { b"false" });
        }
        object.finish();
        Ok(())
    }

    fn unwrap(&self, value: &[u8], event: Event<'_>, verdict: Verdict<'_>) -> Done {
        let is_delete = event.operation == DELETE;
        match self.config.deletes {
            Deletes::Drop | Deletes::Tombstone if is_delete => return verdict.drop(),
            Deletes::DeleteToTombstone if is_delete => return verdict.replace(|parts| _ = parts.value(None)),
            _ => {}
        }
        let Some(row) = (if is_delete { event.before } else { event.after }) else {
            let image = if is_delete { "before" } else { "after" };
            let message = format!("the change event has no row in `{image}`");
            return verdict.reject("unwrap_envelope.no_row", &message);
        };
        verdict.try_value_with(DEFAULT_PORT, |out| self.write(value, row, is_delete, out)).unwrap_or_else(
            |(verdict, problem)| {
                verdict.reject("unwrap_envelope.no_row", &format!("the change event is not JSON: {problem}"))
            },
        )
    }
}

/// The payload, if Kafka Connect's JSON converter wrote the event with its schema.
fn payload(value: &[u8]) -> Option<&[u8]> {
    let mut payload = None;
    for member in json::members(value) {
        let member = member.ok()?;
        match member.key {
            b"payload" => payload = Some(member.value).filter(|raw| raw.first() == Some(&b'{')),
            b"schema" => {}
            _ => return None,
        }
    }
    payload
}

impl Everyday for UnwrapEnvelope {
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else {
            return match self.config.deletes {
                Deletes::Tombstone | Deletes::RewriteWithTombstone => verdict.pass(),
                Deletes::Rewrite | Deletes::DeleteToTombstone | Deletes::Drop => verdict.drop(),
            };
        };
        let value = payload(value).unwrap_or(value);
        match rows::event(value) {
            Some(event) => self.unwrap(value, event, verdict),
            None if self.config.others == Others::Keep => verdict.pass(),
            None => verdict.reject(
                "unwrap_envelope.not_an_event",
                "the value is not a change event: an object with `op`, and `before` or `after`",
            ),
        }
    }
}
