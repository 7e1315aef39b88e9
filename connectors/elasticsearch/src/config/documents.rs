//! Options of the documents: where they go, their ids and versions, and what is sent.

use trunkline_connector::Template;
use trunkline_connector::config::{Mismatch, Section, Value};

use super::check;

/// Versions have five bits for the epoch.
const MAX_EPOCH: u64 = 31;

/// How records become documents.
#[derive(Debug, Clone)]
pub(crate) struct DocumentOptions {
    pub(crate) target: Target,
    pub(crate) mode: Mode,
    pub(crate) id: IdRule,
    pub(crate) version: VersionRule,
    /// The highest bits of each version.
    pub(crate) epoch: u64,
    pub(crate) unwrap: bool,
    /// Path of the field that is copied to `@timestamp`.
    pub(crate) timestamp: Option<Vec<String>>,
    pub(crate) routing: Option<Template>,
    pub(crate) require_alias: bool,
    /// A replay takes the place of what the live sink wrote: of equal versions the last write wins.
    pub(crate) supersedes: bool,
}

/// Where documents go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Index(Template),
    DataStream(Template),
}

/// What a record does to a document that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replaces it.
    Index,
    /// Nothing.
    Create,
    /// Merges its fields into it. `upsert`: creates a missing document.
    Update { upsert: bool },
}

/// Where the id of a document is from.
#[derive(Debug, Clone)]
pub(crate) enum IdRule {
    /// The key for change events and tombstones, the offset for other records.
    Automatic,
    Key,
    Offset,
    /// The server gives one.
    None,
    Template(Template),
}

/// Where the external version of a document is from.
#[derive(Debug, Clone)]
pub(crate) enum VersionRule {
    Offset,
    /// The binlog position in a change event.
    Source,
    None,
    Template(Template),
}

impl Target {
    /// The name of the index or data stream as a template.
    pub(crate) fn template(&self) -> &Template {
        match self {
            Self::Index(template) | Self::DataStream(template) => template,
        }
    }

    /// The names that the template gives: each placeholder is `*`.
    pub(crate) fn glob(&self) -> String {
        let mut parts = self.template().source().split('{');
        let start = parts.next().unwrap_or_default().to_owned();
        parts.fold(start, |glob, part| glob + "*" + part.split_once('}').map_or("", |(_, rest)| rest))
    }
}

impl DocumentOptions {
    /// The server does not decide which of two writes of a document is newer in every case, so the
    /// writes of an id must reach it in the order of the records.
    pub(crate) fn needs_order(&self) -> bool {
        let has_ids = !matches!(self.id, IdRule::Offset | IdRule::None);
        let is_update = matches!(self.mode, Mode::Update { .. });
        has_ids
            && (is_update
                || self.mode == Mode::Index && matches!(self.version, VersionRule::None | VersionRule::Source))
    }
}

/// Reads the options of the documents; `None` if one that is required is wrong (reported).
pub(super) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<DocumentOptions> {
    let target = read_target(section, template_variables);
    let is_stream = matches!(target, Some(Target::DataStream(_)));
    let upsert = section.value("upsert");
    let modes = [("index", Mode::Index), ("create", Mode::Create), ("update", Mode::Update { upsert })];
    let mode = section.one_of("mode", &modes);
    let is_update = matches!(mode, Mode::Update { .. });
    check(
        section,
        "mode",
        !(is_stream && is_update),
        "is `update`, but a data stream only takes new documents",
        "`create`",
    );
    check(section, "upsert", is_update, "has no effect without `mode = \"update\"`", "`mode = \"update\"` too");
    let mode = if is_stream { Mode::Create } else { mode };
    let id = read_id(section, template_variables, (mode, is_stream));
    let version = read_version(section, template_variables, mode);
    let epoch: u64 = section.value("version_epoch");
    check(section, "version_epoch", epoch <= MAX_EPOCH, "is out of range", "a number from 0 to 31");
    let unwrap = section.one_of("envelope", &[("unwrap", true), ("keep", false)]);
    let source_version = matches!(version, VersionRule::Source);
    check(
        section,
        "version",
        unwrap || !source_version,
        "is `source`, but `envelope = \"keep\"` does not read change events",
        "`envelope = \"unwrap\"`",
    );
    let timestamp: Option<Vec<String>> =
        section.optional::<String>("timestamp").map(|path| path.split('.').map(str::to_owned).collect());
    let is_path = timestamp.as_ref().is_none_or(|path| path.iter().all(|field| !field.is_empty()));
    check(section, "timestamp", is_path, "is not a path of fields", "a field such as `timestamp`, or `event.created`");
    let routing = read_template(section, "routing", "a template such as `{customer}`", template_variables);
    let require_alias = section.value("require_alias");
    check(
        section,
        "require_alias",
        !(require_alias && is_stream),
        "is true, but a data stream is not an alias",
        "`index` in place of `data_stream`",
    );
    Some(DocumentOptions {
        target: target?,
        mode,
        id,
        version,
        epoch,
        unwrap,
        timestamp,
        routing,
        require_alias,
        supersedes: false,
    })
}

fn read_target(section: &Section<'_>, template_variables: &[&str]) -> Option<Target> {
    let index = read_template(section, "index", "an index such as `logs-{timestamp:%Y.%m.%d}`", template_variables);
    let stream = read_template(section, "data_stream", "a data stream such as `logs-web-default`", template_variables);
    let given = |key| section.table.get(key).is_some();
    if given("index") && given("data_stream") {
        check(section, "data_stream", false, "is given together with `index`", "only one of the two");
    } else if !given("index") && !given("data_stream") {
        section.missing("index", "an index, or `data_stream`");
    }
    for (key, template) in [("index", &index), ("data_stream", &stream)] {
        let name = template.as_ref().and_then(Template::constant);
        if let Some(Err(message)) = name.map(index_name) {
            check(section, key, false, message, "a lower-case name without spaces and `\\ / * ? \" < > | , #`");
        }
    }
    match (index, stream) {
        (_, Some(stream)) => Some(Target::DataStream(stream)),
        (index, None) => index.map(Target::Index),
    }
}

fn read_id(section: &Section<'_>, template_variables: &[&str], (mode, is_stream): (Mode, bool)) -> IdRule {
    let id = match word(section, "id") {
        Some("key") => IdRule::Key,
        Some("offset") => IdRule::Offset,
        Some("none") => IdRule::None,
        _ => read_template(section, "id", "`key`, `offset`, `none` or a template", template_variables)
            .map_or(IdRule::Automatic, IdRule::Template),
    };
    let constant = matches!(&id, IdRule::Template(template) if template.constant().is_some());
    check(
        section,
        "id",
        !constant,
        "is the same for all records",
        "`key`, `offset`, `none` or a template such as `{order_id}`",
    );
    // The second document of an id would be taken for a repetition of the first.
    check(
        section,
        "id",
        !(is_stream && matches!(id, IdRule::Key)),
        "is `key`, but a data stream keeps only the first document of a key",
        "`offset` or a template that differs for each record",
    );
    check(
        section,
        "id",
        !(matches!(mode, Mode::Update { .. }) && matches!(id, IdRule::Offset | IdRule::None)),
        "names a new document for each record, so `mode = \"update\"` has nothing to update",
        "`key` or a template such as `{order_id}`",
    );
    // Known also where no template was read.
    let _ = section.node("id");
    match id {
        IdRule::Automatic if is_stream => IdRule::Offset,
        id => id,
    }
}

fn read_version(section: &Section<'_>, template_variables: &[&str], mode: Mode) -> VersionRule {
    let version = match word(section, "version") {
        Some("offset") => VersionRule::Offset,
        Some("source") => VersionRule::Source,
        Some("none") => VersionRule::None,
        _ => read_template(section, "version", "`offset`, `source`, `none` or a template", template_variables)
            .map_or(VersionRule::Offset, VersionRule::Template),
    };
    let constant = matches!(&version, VersionRule::Template(template) if template.constant().is_some());
    let expected = "`offset`, `source`, `none` or a template such as `{revision}`";
    check(section, "version", !constant, "is the same for all records", expected);
    let is_versioned = mode == Mode::Index || matches!(version, VersionRule::None);
    let message = "is given, but servers compare versions only with `mode = \"index\"`";
    check(section, "version", is_versioned, message, "`mode = \"index\"`, or no `version`");
    let _ = section.node("version");
    if mode == Mode::Index { version } else { VersionRule::None }
}

/// The option as it is written, if it is a string.
fn word<'a>(section: &Section<'a>, key: &str) -> Option<&'a str> {
    match &section.table.get(key)?.value {
        Value::String(text) => Some(&text.resolved),
        _ => None,
    }
}

/// Checks the name of an index as the server does.
pub(crate) fn index_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Err("is not a name");
    }
    if name.starts_with(['-', '_', '+']) {
        return Err("starts with `-`, `_` or `+`");
    }
    if name.chars().any(|character| "\\/*?\"<>|,# :".contains(character)) {
        return Err("has a character that the name of an index cannot have");
    }
    if name.chars().any(char::is_uppercase) {
        return Err("has an upper-case letter");
    }
    if name.len() > 255 {
        return Err("is longer than 255 bytes");
    }
    Ok(())
}

fn read_template(
    section: &Section<'_>,
    key: &'static str,
    expected: &str,
    template_variables: &[&str],
) -> Option<Template> {
    let source: String = section.optional(key)?;
    match Template::parse(&source, template_variables) {
        Ok(template) => Some(template),
        Err(error) => {
            let node = section.node(key)?;
            // The template's text starts after the quote, if it stands in the file as it is.
            let span = match &node.value {
                Value::String(text) if text.raw == text.resolved && node.span.len() == text.raw.len() + 2 => {
                    Some(node.span.start + 1 + error.span.start..node.span.start + 1 + error.span.end)
                }
                _ => None,
            };
            section.mismatch(
                key,
                node,
                Mismatch { message: error.message, span, help: error.help },
                expected.to_owned(),
            );
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_any_text() {
        for (template, glob) in [("a", "a"), ("logs-{t:%Y.%m}-{@table}", "logs-*-*"), ("{a}-x", "*-x")] {
            assert_eq!(Target::Index(Template::parse(template, &["table"]).unwrap()).glob(), glob);
        }
    }
}
