//! `project`: selects, renames, casts, drops and computes members.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Inputs, Record, Verdict, json};

use crate::Everyday;
use crate::expression::{self, Expression, Scope};
use crate::number::Decimal;
use crate::rows::{self, ObjectWriter};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    fields: Option<Vec<String>>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    rename: BTreeMap<String, String>,
    #[serde(default)]
    cast: BTreeMap<String, Cast>,
    #[serde(default)]
    compute: BTreeMap<String, String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    drop_headers: Vec<String>,
}

/// The type that a member is converted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cast {
    String,
    Number,
    Integer,
    Boolean,
}

#[derive(Debug)]
pub(crate) struct Project {
    rules: Rule,
    /// Whether only the members of `fields` stay.
    selects: bool,
    compute: Vec<(String, Expression)>,
    /// New headers.
    headers: Vec<(String, Expression)>,
    drop_headers: Vec<String>,
    changes_value: bool,
}

/// What happens to a member, and to the members in it.
#[derive(Debug, Default)]
struct Rule {
    keep: bool,
    drop: bool,
    rename: Option<String>,
    cast: Option<Cast>,
    members: Vec<(String, Rule)>,
}

impl Rule {
    fn at(&mut self, path: &[String]) -> &mut Self {
        let Some((first, rest)) = path.split_first() else { return self };
        let position = self.members.iter().position(|(name, _)| name == first).unwrap_or_else(|| {
            self.members.push((first.clone(), Self::default()));
            self.members.len() - 1
        });
        self.members[position].1.at(rest)
    }

    fn of(&self, key: &[u8]) -> Option<&Self> {
        self.members.iter().find(|(name, _)| json::key_is(key, name)).map(|(_, rule)| rule)
    }

    /// Whether a selected member is below this one.
    fn keeps_some(&self) -> bool {
        self.keep || self.members.iter().any(|(_, rule)| rule.keeps_some())
    }
}

impl Project {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut rules = Rule::default();
        let path = |key: String, field: &str| rows::path(field).map_err(|message| ConfigError::at(key, message));
        for (index, field) in config.fields.iter().flatten().enumerate() {
            rules.at(&path(format!("fields[{index}]"), field)?).keep = true;
        }
        for (index, field) in config.drop.iter().enumerate() {
            rules.at(&path(format!("drop[{index}]"), field)?).drop = true;
        }
        for (field, name) in &config.rename {
            if name.is_empty() {
                return Err(ConfigError::at(format!("rename.{field}"), "is empty; expected a name"));
            }
            rules.at(&path(format!("rename.{field}"), field)?).rename = Some(name.clone());
        }
        for (field, cast) in &config.cast {
            rules.at(&path(format!("cast.{field}"), field)?).cast = Some(*cast);
        }
        let mut compute = Vec::new();
        for (name, source) in &config.compute {
            compute.push((name.clone(), expression::compile(&format!("compute.{name}"), source)?));
        }
        let mut headers = Vec::new();
        for (name, source) in &config.headers {
            headers.push((name.clone(), expression::compile(&format!("headers.{name}"), source)?));
        }
        let changes_value = config.fields.is_some() || !rules.members.is_empty() || !compute.is_empty();
        if !changes_value && headers.is_empty() && config.drop_headers.is_empty() {
            return Err(ConfigError::new(
                "has no effect; expected `fields`, `drop`, `rename`, `cast`, `compute`, `headers` or `drop_headers`",
            ));
        }
        let drop_headers = config.drop_headers.clone();
        Ok(Self { rules, selects: config.fields.is_some(), compute, headers, drop_headers, changes_value })
    }

    fn row(&self, record: Record<'_>, row: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let mut object = ObjectWriter::new(out);
        self.members(row, &self.rules, self.selects, true, &mut object)?;
        let scope = Scope { record, row: Some(row) };
        for (name, expression) in &self.compute {
            let value = expression.evaluate(scope).map_err(|problem| format!("`compute.{name}`: {problem}"))?;
            value.write_json(object.key(name));
        }
        object.finish();
        Ok(())
    }

    /// The values of the new headers; `None` removes a header. A tombstone has no members, so an
    /// expression that fails for it sets nothing.
    fn new_headers<'a>(&'a self, record: Record<'a>) -> Result<Vec<(&'a str, Option<String>)>, String> {
        let mut headers = Vec::new();
        for (name, expression) in &self.headers {
            match expression.evaluate(Scope::of(record)) {
                Ok(value) => headers.push((name.as_str(), value.into_text().map(Cow::into_owned))),
                Err(_) if record.value().is_none() => {}
                Err(problem) => return Err(format!("`headers.{name}`: {problem}")),
            }
        }
        Ok(headers)
    }

    fn with_headers(&self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let mut value = None;
        let projected = match record.value().filter(|_| self.changes_value) {
            Some(old) => {
                let out = value.insert(Vec::with_capacity(old.len()));
                rows::rewrite(old, out, |row, out| self.row(record, row, out))
            }
            None => Ok(()),
        };
        let headers = match projected.and_then(|()| self.new_headers(record)) {
            Ok(headers) => headers,
            Err(problem) => return reject(verdict, &problem),
        };
        let is_replaced = |name: &str| {
            self.drop_headers.iter().any(|dropped| dropped == name) || headers.iter().any(|(new, _)| *new == name)
        };
        let old = record.headers().filter(|(name, _)| !is_replaced(name));
        let new = headers.iter().filter_map(|(name, value)| Some((*name, Some(value.as_deref()?.as_bytes()))));
        verdict.replace(|parts| {
            parts.headers(old.chain(new));
            if let Some(value) = value {
                parts.value_owned(value);
            }
        })
    }

    fn members(
        &self,
        raw: &[u8],
        rules: &Rule,
        selects: bool,
        is_top: bool,
        object: &mut ObjectWriter<'_>,
    ) -> Result<(), String> {
        for member in json::members(raw) {
            let member = member.map_err(|error| error.to_string())?;
            let rule = rules.of(member.key);
            let is_selected = !selects || rule.is_some_and(Rule::keeps_some);
            if !is_selected || rule.is_some_and(|rule| rule.drop) {
                continue;
            }
            let renamed = rule.and_then(|rule| rule.rename.as_deref());
            // a computed member replaces the one of the same name
            let is_replaced = is_top
                && self.compute.iter().any(|(name, _)| match renamed {
                    Some(renamed) => renamed == name,
                    None => json::key_is(member.key, name),
                });
            if is_replaced {
                continue;
            }
            let out = match renamed {
                Some(name) => object.key(name),
                None => object.raw_key(member.key),
            };
            match rule {
                Some(rule) => self
                    .value(member.value, rule, selects && !rule.keep, out)
                    .map_err(|problem| format!("`{}`: {problem}", String::from_utf8_lossy(member.key)))?,
                None => out.extend_from_slice(member.value),
            }
        }
        Ok(())
    }

    fn value(&self, raw: &[u8], rule: &Rule, selects: bool, out: &mut Vec<u8>) -> Result<(), String> {
        match raw.first() {
            Some(b'{') if !rule.members.is_empty() => {
                let mut object = ObjectWriter::new(out);
                self.members(raw, rule, selects, false, &mut object)?;
                object.finish();
                Ok(())
            }
            // a path continues into every object of an array
            Some(b'[') if !rule.members.is_empty() => {
                out.push(b'[');
                for (index, item) in json::items(raw).enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    self.value(item.map_err(|error| error.to_string())?, rule, selects, out)?;
                }
                out.push(b']');
                Ok(())
            }
            _ => match rule.cast {
                Some(cast) => cast.write(raw, out),
                None => {
                    out.extend_from_slice(raw);
                    Ok(())
                }
            },
        }
    }
}

impl Cast {
    fn write(self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        if raw == b"null" {
            out.extend_from_slice(raw);
            return Ok(());
        }
        let text = json::text(raw).ok_or("the text is not valid UTF-8")?;
        let shown = |kind: &str| format!("{text:?} is not {kind}");
        match self {
            Self::String if raw.first() == Some(&b'"') => out.extend_from_slice(raw),
            Self::String => json::write_string(out, &text),
            Self::Number if matches!(raw.first(), Some(b'-' | b'0'..=b'9')) => out.extend_from_slice(raw),
            Self::Number => {
                let number = Decimal::parse(text.trim()).ok_or_else(|| shown("a number of up to 38 digits"))?;
                out.extend_from_slice(number.to_string().as_bytes());
            }
            Self::Integer => {
                let boolean = match raw {
                    b"true" => Some(Decimal::from(1)),
                    b"false" => Some(Decimal::from(0)),
                    _ => None,
                };
                let number = boolean.or_else(|| Decimal::parse(text.trim()).and_then(|number| number.truncate().ok()));
                let number = number.ok_or_else(|| shown("a number of up to 38 digits"))?;
                out.extend_from_slice(number.to_string().as_bytes());
            }
            Self::Boolean => {
                let boolean = match text.trim() {
                    "true" => Some(true),
                    "false" => Some(false),
                    number => Decimal::parse(number).map(|number| !number.is_zero()),
                };
                let boolean = boolean.ok_or_else(|| shown("a boolean"))?;
                out.extend_from_slice(if boolean { b"true" } else { b"false" });
            }
        }
        Ok(())
    }
}

impl Everyday for Project {
    fn keeps_schema(&self) -> bool {
        !self.changes_value
    }

    fn inputs(&self) -> Inputs {
        let changes_headers = !self.headers.is_empty() || !self.drop_headers.is_empty();
        let inputs = if changes_headers { Inputs::VALUE.and(Inputs::HEADERS) } else { Inputs::VALUE };
        self.compute.iter().chain(&self.headers).fold(inputs, |inputs, (_, value)| inputs.and(value.inputs()))
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        if !self.headers.is_empty() || !self.drop_headers.is_empty() {
            return self.with_headers(record, verdict);
        }
        let Some(value) = record.value() else { return verdict.pass() };
        let projected = verdict
            .try_value_with(DEFAULT_PORT, |out| rows::rewrite(value, out, |row, out| self.row(record, row, out)));
        projected.unwrap_or_else(|(verdict, problem)| reject(verdict, &problem))
    }
}

fn reject(verdict: Verdict<'_>, problem: &str) -> Done {
    verdict.reject("project.failed", &format!("the record cannot be projected: {problem}"))
}
