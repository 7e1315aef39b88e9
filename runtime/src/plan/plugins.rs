//! Finds, loads and starts the plugin of a transform. Each error is reported at the key that causes
//! it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trunkline_connector::config::{ByteSize, Mismatch, Node, Problem, Section, Value, nearest};
use trunkline_transform_host::{Host, Limits, Plugin, StartError};

use super::bundled::{self, BundledPlugin};
use crate::config::Document;

/// A plugin that accepted its configuration.
pub(super) struct Started {
    pub(super) plugin: Plugin,
    pub(super) config: serde_json::Value,
    /// The configuration as written: references are not resolved.
    pub(super) written: serde_json::Value,
    pub(super) limits: Limits,
    /// The first is `default`.
    pub(super) ports: Vec<String>,
    /// Values that it changes still fit their schema.
    pub(super) keeps_schema: bool,
    /// `None` for a plugin from a file.
    pub(super) bundled: Option<&'static BundledPlugin>,
}

/// Reads `plugin`, `config` and the limits, and starts the plugin once: it checks its configuration
/// and names its ports.
pub(super) fn start(document: &Document, section: &Section<'_>, host: &Host) -> Option<Started> {
    let limits = limits(section);
    let config = match section.node("config") {
        Some(node) if !matches!(node.value, Value::Table(_)) => {
            let mismatch = Mismatch::new(format!("is {}", node.value.kind()));
            section.mismatch("config", node, mismatch, "a table".to_owned());
            return None;
        }
        Some(node) => node.to_json(),
        None => serde_json::Value::Object(serde_json::Map::new()),
    };
    let written = section.node("config").map_or(serde_json::Value::Null, Node::to_written_json);
    let Some(node) = section.node("plugin") else {
        section.missing(
            "plugin",
            &format!("the path of a plugin, or a bundled one: {}", Host::bundled_names().join(", ")),
        );
        return None;
    };
    let name = section.optional::<String>("plugin")?;
    let plugin = find(section, node, &name, host)?;
    match plugin.start(&config, &limits) {
        Ok(instance) => {
            let ports = instance.ports().to_vec();
            let keeps_schema = instance.keeps_schema();
            let bundled = if section.base.join(&name).is_file() { None } else { bundled::find(&name) };
            Some(Started { plugin, config, written, limits, ports, keeps_schema, bundled })
        }
        Err(error) => {
            section.report.add(rejected(document, section, &name, error));
            None
        }
    }
}

/// The path that `plugin` names; a bundled plugin has no file there.
pub(super) fn path(section: &Section<'_>) -> Option<PathBuf> {
    match &section.node("plugin")?.value {
        Value::String(name) => Some(section.base.join(&name.resolved)),
        _ => None,
    }
}

fn limits(section: &Section<'_>) -> Limits {
    Limits {
        memory: usize::try_from(section.value::<ByteSize>("memory").0).unwrap_or(usize::MAX),
        timeout: section.value::<Duration>("timeout"),
        trusted: section.value("trusted"),
        ..Limits::default()
    }
}

fn find(section: &Section<'_>, node: &Node, name: &str, host: &Host) -> Option<Plugin> {
    let path = section.base.join(name);
    // A file next to the pipeline file takes precedence over a bundled plugin of the same name.
    let loaded = match path.is_file() {
        true => host.load(&path),
        false => match host.bundled(name) {
            Some(loaded) => loaded,
            None => {
                section.report.add(missing(section, node, name, &path));
                return None;
            }
        },
    };
    match loaded {
        Ok(plugin) => Some(plugin),
        Err(error) => {
            let (message, expected) = split_expected(&error.to_string(), "expected a transform plugin");
            // The instructions in parentheses are too long for a label.
            let (expected, help) = match expected.strip_suffix(')').and_then(|expected| expected.split_once(" (")) {
                Some((expected, help)) => (expected.to_owned(), Some(help.to_owned())),
                None => (expected, None),
            };
            let span = node.span.clone();
            section.report.add(Problem { code: "plan.bad_plugin", message, span, expected, help });
            None
        }
    }
}

fn missing(section: &Section<'_>, node: &Node, name: &str, path: &Path) -> Problem {
    let bundled = Host::bundled_names();
    let in_folder = modules_in_folder(section.base, name, path);
    let known: Vec<&str> = bundled.iter().copied().chain(in_folder.iter().map(String::as_str)).collect();
    let mut help = format!("bundled plugins: {}", bundled.join(", "));
    if !in_folder.is_empty() {
        help.push_str(&format!("; files: {}", in_folder.join(", ")));
    }
    Problem {
        code: "plan.plugin_missing",
        message: format!("there is no plugin `{name}`"),
        span: node.span.clone(),
        expected: match nearest(name, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "expected a bundled plugin, or a path relative to this file".to_owned(),
        },
        help: Some(help),
    }
}

/// The `.wasm` files in the folder of a path, with the same prefix as the path.
fn modules_in_folder(base: &Path, name: &str, path: &Path) -> Vec<String> {
    let folder = path.parent().unwrap_or(base);
    let prefix = name.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|file| file.ends_with(".wasm"))
        .map(|file| format!("{prefix}{file}"))
        .collect();
    names.sort();
    names
}

/// The problem of a configuration that a plugin rejects, at its key in the section's `config`.
pub(crate) fn rejected(document: &Document, section: &Section<'_>, name: &str, error: StartError) -> Problem {
    let node = match (&error.key, section.node("config")) {
        (Some(key), Some(config)) => node_of_path(config, key),
        _ => None,
    };
    let column = node.and_then(|node| at_column(document, node, &error.message));
    let span_of_node = || match (&error.key, section.node("config")) {
        // The key is the problem, and not its value.
        (Some(key), Some(config)) if error.message.contains("is not a known key") => key_of_path(config, key),
        _ => None,
    };
    let key_span = column.as_ref().map(|(span, _)| span.clone());
    let key_span = key_span.or_else(|| span_of_node().or_else(|| node.map(|node| node.span.clone())));
    let message = column.map_or(error.message.as_str(), |(_, message)| message);
    let config_span = section.table.entry("config").map(|(key, _)| key.span.clone());
    let otherwise = match (&config_span, &error.key, &key_span) {
        (None, ..) => "expected `config = { .. }` here".to_owned(),
        (Some(_), Some(key), None) => format!("expected `{key}` here"),
        _ => format!("`{name}` does not accept this"),
    };
    let (message, expected) = split_expected(message, &otherwise);
    let missing_key = expected.strip_prefix("expected `").and_then(|expected| expected.strip_suffix(" = ..`"));
    let expected = match missing_key.filter(|_| config_span.is_none()) {
        Some(key) => format!("expected `config = {{ {key} = .. }}` here"),
        None => expected,
    };
    Problem {
        code: "plan.plugin_config",
        message: match &error.key {
            None if message.starts_with(&format!("`{name}`: ")) => format!("the plugin does not start: {message}"),
            Some(key) => format!("the plugin `{name}` rejects its configuration: `{key}`: {message}"),
            None => format!("the plugin `{name}` rejects its configuration: {message}"),
        },
        span: key_span.or(config_span).unwrap_or_else(|| section.span.clone()),
        expected,
        help: None,
    }
}

/// Splits "PROBLEM; expected WHAT"; the second part is `otherwise` if the message does not say what
/// was expected.
fn split_expected(message: &str, otherwise: &str) -> (String, String) {
    match message.split_once("; expected ") {
        Some((message, expected)) => (message.to_owned(), format!("expected {expected}")),
        None => (message.to_owned(), otherwise.to_owned()),
    }
}

/// The place of a problem within a text, if the message begins with `column N: `, as those about
/// expressions do; and the message without it. `None` if the place is not known, because of escapes
/// or `${..}`.
fn at_column<'m>(document: &Document, node: &Node, message: &'m str) -> Option<(Range<usize>, &'m str)> {
    let Value::String(text) = &node.value else { return None };
    let (column, message) = message.strip_prefix("column ")?.split_once(": ")?;
    let column = column.parse::<usize>().ok()?.checked_sub(1)?;
    let at = text.raw.char_indices().nth(column).map_or(text.raw.len(), |(at, _)| at);
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let word = text.raw[at..].chars().take_while(|character| is_word(*character)).map(char::len_utf8).sum::<usize>();
    let length = word.max(text.raw[at..].chars().next().map_or(0, char::len_utf8));
    let mut place = document.within(node, at..at + length);
    if place.is_empty() {
        // After the last character: the quote.
        place.end += 1;
    }
    (place != node.span).then_some((place, message))
}

/// The value at a path of keys such as `rules[2].field`; `None` if the key does not exist.
fn node_of_path<'n>(node: &'n Node, path: &str) -> Option<&'n Node> {
    let mut node = node;
    for part in path.split('.') {
        let (key, indices) = part.split_once('[').unwrap_or((part, ""));
        if !key.is_empty() {
            let Value::Table(table) = &node.value else { return None };
            node = table.get(key)?;
        }
        for index in indices.split('[').filter(|index| !index.is_empty()) {
            let Value::Array(items) = &node.value else { return None };
            node = items.get(index.trim_end_matches(']').parse::<usize>().ok()?)?;
        }
    }
    Some(node)
}

/// The place of the last key of such a path.
fn key_of_path(node: &Node, path: &str) -> Option<Range<usize>> {
    let (table, name) = match path.rsplit_once('.') {
        Some((table, name)) => (node_of_path(node, table)?, name),
        None => (node, path),
    };
    let Value::Table(table) = &table.value else { return None };
    table.entry(name).map(|(key, _)| key.span.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_keys_have_places() {
        let source = r#"config = { fields = ["a", "b"], rules = [{ to = 1 }] }"#.to_owned();
        let document = Document::parse(Path::new("x.toml"), source, None);
        let config = document.table.get("config").unwrap();
        let written = |path: &str| node_of_path(config, path).map(|node| &document.source[node.span.clone()]);
        assert_eq!(written("fields[1]"), Some("\"b\""));
        assert_eq!(written("rules[0].to"), Some("1"));
        assert_eq!(written("fields[2]"), None);
        assert_eq!(written("other"), None);
        let key = |path: &str| key_of_path(config, path).map(|span| &document.source[span]);
        assert_eq!((key("fields"), key("rules[0].to")), (Some("fields"), Some("to")));
        assert_eq!((key("other"), key("rules[1].to"), key("fields[1]")), (None, None, None));
    }

    #[test]
    fn columns_of_expressions_have_places() {
        let source = concat!(
            "a = \"é + valu.x\"\nb = '''\nx &&\n  valu.x'''\nc = \"\\u0061 valu\"\nd = \"x >\"\n",
            "e = \"a == \\\"x\\\" || valu == \\\"x\\\"\"\n"
        )
        .to_owned();
        let document = Document::parse(Path::new("x.toml"), source, None);
        let place = |key: &str, message: &str| {
            let (span, message) = at_column(&document, document.table.get(key).unwrap(), message)?;
            Some((span.start, document.source[span].to_owned(), message.to_owned()))
        };
        let problem = || "problem".to_owned();
        assert_eq!(place("a", "column 5: problem"), Some((10, "valu".to_owned(), problem())));
        assert_eq!(place("a", "column 9: problem"), Some((14, ".".to_owned(), problem())));
        assert_eq!(place("b", "column 8: problem").map(|(_, text, _)| text), Some("valu".to_owned()));
        // After escapes, a text is found if it occurs once.
        assert_eq!(place("c", "column 3: problem").map(|(_, text, _)| text), Some("valu".to_owned()));
        assert_eq!(place("e", "column 13: problem").map(|(_, text, _)| text), Some("valu".to_owned()));
        assert_eq!(place("e", "column 7: problem"), None);
        assert_eq!(place("d", "column 4: problem").map(|(_, text, _)| text), Some("\"".to_owned()));
        assert_eq!(place("d", "problem"), None);
    }
}
