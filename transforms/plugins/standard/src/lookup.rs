//! `lookup`: adds the row of a table to records.
//!
//! The host keeps the table: the last record of each key of a topic. It is read like state, in the
//! collection `table`, and is never changed here. The key of a row is the key of its record.

use std::borrow::Cow;

use serde::Deserialize;
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, Inputs, Port, Record, Verdict, Verdicts, json};

use crate::Everyday;
use crate::distinct::DistinctKeys;
use crate::key::{Key, KeyFormat};
use crate::rows::{self, ObjectWriter};

/// The collection that the host fills.
const TABLE: &str = "table";
/// The port of records without a row.
const MISSING: Port = 1;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    #[serde(default)]
    format: KeyFormat,
    into: Option<String>,
    #[serde(default)]
    merge: bool,
    take: Option<Vec<String>>,
    #[serde(default)]
    missing: Missing,
}

/// What happens to a record without a row in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Missing {
    #[default]
    Keep,
    Drop,
    Reject,
    Port,
}

#[derive(Debug)]
pub(crate) struct Lookup {
    /// `None`: the key of the record.
    key: Option<Key>,
    /// `None`: the members of the row become members of the record.
    into: Option<String>,
    take: Option<Vec<String>>,
    missing: Missing,
    table: State<()>,
}

impl Lookup {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let key = Key::new(&config.fields, config.expression.as_deref(), config.format)?;
        match (&config.into, config.merge) {
            (Some(_), true) => {
                return Err(ConfigError::at("into", "has no effect with `merge`; expected one of both"));
            }
            (None, false) => {
                return Err(ConfigError::new(
                    "has neither `into` nor `merge`; expected the member for the row, `into`",
                ));
            }
            _ => {}
        }
        if config.take.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::at("take", "is empty; expected names of members, or no `take` for all of them"));
        }
        Ok(Self { key, into: config.into, take: config.take, missing: config.missing, table: State::new(TABLE) })
    }

    /// The key of a record's row; `None` if it has none.
    fn key<'a>(&'a self, record: Record<'a>) -> Result<Option<Cow<'a, [u8]>>, String> {
        match (&self.key, record.value()) {
            (_, None) => Ok(None),
            (None, _) => Ok(record.key().map(Cow::Borrowed)),
            (Some(key), Some(value)) => key.of(record, value),
        }
    }

    /// The verdict on a record with this value.
    fn enrich(&self, value: &[u8], row: Option<&[u8]>, verdict: Verdict<'_>) {
        let row = match row.map(current_row).transpose() {
            Ok(row) => row.flatten(),
            Err(problem) => {
                let _ = verdict.reject("lookup.bad_row", &format!("the row of the table cannot be added: {problem}"));
                return;
            }
        };
        let _ = match (row, self.missing) {
            (None, Missing::Drop) => verdict.drop(),
            (None, Missing::Port) => verdict.pass_to(MISSING),
            (None, Missing::Reject) => {
                verdict.reject("lookup.missing", "the table has no row with the key of the record")
            }
            (None, Missing::Keep) if self.into.is_none() => verdict.pass(),
            (row, _) => {
                let written = verdict.try_value_with(trunkline_plugin::DEFAULT_PORT, |out| {
                    rows::rewrite(value, out, |image, out| self.write_image(image, row, out))
                });
                match written {
                    Ok(done) => done,
                    Err((verdict, problem)) => {
                        verdict.reject("lookup.not_json", &format!("the record cannot take a row: {problem}"))
                    }
                }
            }
        };
    }

    /// Appends an image with the row; `None`: with null.
    fn write_image(&self, image: &[u8], row: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), String> {
        if image.first() != Some(&b'{') {
            return Err("the value is not a JSON object".to_owned());
        }
        let mut taken = Vec::new();
        for member in json::members(row.unwrap_or(b"{}")) {
            let member = member.map_err(|error| format!("the row of the table: {error}"))?;
            if self.take.as_ref().is_none_or(|take| take.iter().any(|name| json::key_is(member.key, name))) {
                taken.push(member);
            }
        }
        let mut object = ObjectWriter::new(out);
        for member in json::members(image) {
            let member = member.map_err(|error| error.to_string())?;
            let is_replaced = match &self.into {
                Some(into) => json::key_is(member.key, into),
                None => taken.iter().any(|taken| taken.key == member.key),
            };
            if !is_replaced {
                object.raw_key(member.key).extend_from_slice(member.value);
            }
        }
        match &self.into {
            None => taken.iter().for_each(|member| object.raw_key(member.key).extend_from_slice(member.value)),
            Some(into) if row.is_none() => object.key(into).extend_from_slice(b"null"),
            Some(into) => {
                let mut nested = ObjectWriter::new(object.key(into));
                taken.iter().for_each(|member| nested.raw_key(member.key).extend_from_slice(member.value));
                nested.finish();
            }
        }
        object.finish();
        Ok(())
    }
}

/// The row in the value of a table's record; `None` if it was deleted.
fn current_row(value: &[u8]) -> Result<Option<&[u8]>, String> {
    let row = match rows::event(value) {
        Some(event) => event.after,
        None => Some(rows::trim(value)),
    };
    match row {
        Some([b'{', ..]) | None => Ok(row),
        Some(_) => Err("it is not a JSON object".to_owned()),
    }
}

impl Everyday for Lookup {
    fn ports(&self) -> Vec<String> {
        if self.missing == Missing::Port { vec!["missing".to_owned()] } else { Vec::new() }
    }

    fn inputs(&self) -> Inputs {
        Inputs::VALUE.and(self.key.as_ref().map_or(Inputs::KEY, Key::inputs))
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<_> = batch.iter().map(|record| self.key(record)).collect();
        let mut distinct = DistinctKeys::default();
        let positions: Vec<_> = keys.iter().map(|key| Some(distinct.add(key.as_ref().ok()?.as_deref()?))).collect();
        let table = self.table.get_all_bytes(distinct.keys());
        for ((record, key), position) in batch.iter().zip(&keys).zip(positions) {
            let verdict = verdicts.next_verdict();
            match (record.value(), key) {
                (None, _) => _ = verdict.pass(),
                (Some(value), Ok(_)) => {
                    let row = position.and_then(|position| table.get(position)?.as_deref());
                    self.enrich(value, row, verdict);
                }
                (Some(_), Err(problem)) => {
                    _ = verdict.reject("lookup.no_key", &format!("the record has no key for the table: {problem}"));
                }
            }
        }
        Ok(())
    }
}
