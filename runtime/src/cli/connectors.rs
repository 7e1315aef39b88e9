//! `trunkline connectors`: the connectors and bundled plugins, and their options.

use serde_json::{Value, json};
use trunkline_connector::config::{OptionDefault, OptionSpec, nearest};

use super::output::{Exit, print_data, print_error};
use crate::plan::bundled::{self, Example};
use crate::plan::{Registry, options};

/// A connector or bundled plugin.
struct Entry {
    kind: &'static str,
    name: &'static str,
    summary: &'static str,
    options: &'static [OptionSpec],
    /// The options that all components of its kind share.
    shared: &'static [OptionSpec],
    /// Examples of a plugin.
    examples: &'static [Example],
}

fn entries() -> Vec<Entry> {
    let registry = Registry::new();
    let sources = registry.sources().map(|connector| Entry {
        kind: "source",
        name: connector.name(),
        summary: connector.summary(),
        options: connector.options(),
        shared: options::SOURCE,
        examples: &[],
    });
    let sinks = registry.sinks().map(|connector| Entry {
        kind: "sink",
        name: connector.name(),
        summary: connector.summary(),
        options: connector.options(),
        shared: options::SINK,
        examples: &[],
    });
    let plugins = bundled::PLUGINS.iter().map(|plugin| Entry {
        kind: "plugin",
        name: plugin.name,
        summary: plugin.summary,
        options: plugin.options,
        shared: options::TRANSFORM,
        examples: plugin.examples,
    });
    sources.chain(sinks).chain(plugins).collect()
}

/// Lists connectors and bundled plugins.
pub(super) fn list(as_json: bool) -> Exit {
    let entries = entries();
    if as_json {
        let list: Vec<_> = entries
            .iter()
            .map(|entry| json!({ "kind": entry.kind, "name": entry.name, "summary": entry.summary }))
            .collect();
        return print_data(&format!("{:#}\n", json!(list)));
    }
    let lines = entries.iter().map(|entry| format!("{:<8}{:<20} {}\n", entry.kind, entry.name, entry.summary));
    print_data(&lines.collect::<String>())
}

/// Lists the bundled transforms with their options.
pub(super) fn list_transforms(as_json: bool) -> Exit {
    let entries: Vec<Entry> = entries().into_iter().filter(|entry| entry.kind == "plugin").collect();
    if as_json {
        let list: Vec<Value> = entries
            .iter()
            .map(|entry| {
                let options: Vec<_> = entry.options.iter().map(option_json).collect();
                json!({ "name": entry.name, "summary": entry.summary, "options": options })
            })
            .collect();
        return print_data(&format!("{:#}\n", json!(list)));
    }
    let lines = entries.iter().map(|entry| {
        let options: Vec<&str> = entry.options.iter().map(|option| option.key).collect();
        format!("{:<21} {}\n{:<21} options: {}\n", entry.name, entry.summary, "", options.join(", "))
    });
    print_data(&lines.collect::<String>())
}

/// Prints the options and examples of a bundled transform.
pub(super) fn describe_transform(name: &str, as_json: bool) -> Exit {
    let entries = entries().into_iter().filter(|entry| entry.kind == "plugin").collect();
    describe_one_of(entries, "bundled transform", name, as_json)
}

/// Prints the options of a connector or bundled plugin.
pub(super) fn describe(name: &str, as_json: bool) -> Exit {
    describe_one_of(entries(), "connector or bundled plugin", name, as_json)
}

fn describe_one_of(entries: Vec<Entry>, kind: &str, name: &str, as_json: bool) -> Exit {
    let found: Vec<&Entry> =
        entries.iter().filter(|entry| entry.name == name || entry.name == format!("{name}.wasm")).collect();
    if found.is_empty() {
        let short = |entry: &Entry| entry.name.strip_suffix(".wasm").unwrap_or(entry.name);
        let known: Vec<&str> = entries.iter().map(short).collect();
        let hint = match nearest(name, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known: {}", known.join(", ")),
        };
        print_error(format_args!("error: there is no {kind} `{name}`; {hint}"));
        return Exit::Config;
    }
    if as_json {
        let list: Vec<Value> = found.iter().map(|entry| entry_json(entry)).collect();
        return print_data(&format!("{:#}\n", json!(list)));
    }
    let texts: Vec<String> = found.iter().map(|entry| entry_text(entry)).collect();
    print_data(&texts.join("\n"))
}

fn entry_json(entry: &Entry) -> Value {
    json!({
        "kind": entry.kind,
        "name": entry.name,
        "summary": entry.summary,
        "options": entry.options.iter().map(option_json).collect::<Vec<_>>(),
        "shared_options": entry.shared.iter().map(option_json).collect::<Vec<_>>(),
        "examples": entry.examples.iter().map(example_json).collect::<Vec<_>>(),
    })
}

fn example_json(example: &Example) -> Value {
    json!({ "title": example.title, "toml": example.config, "input": example.input, "outputs": example.outputs })
}

pub(super) fn option_json(option: &OptionSpec) -> Value {
    let default = match option.default {
        OptionDefault::Value(value) => Some(value),
        OptionDefault::Required | OptionDefault::Words(_) => None,
    };
    json!({
        "key": option.key,
        "type": option.value_type,
        "required": option.default == OptionDefault::Required,
        "default": default,
        "default_text": option.default_text(),
        "doc": option.doc,
        "example": option.example,
    })
}

fn entry_text(entry: &Entry) -> String {
    let (own, shared) = match entry.kind {
        "plugin" => ("Options in `config`".to_owned(), "Options of all transforms".to_owned()),
        kind => (format!("Options of `connector = \"{}\"`", entry.name), format!("Options of all {kind}s")),
    };
    let mut text = format!("{} {}: {}\n\n{own}:\n", entry.kind, entry.name, entry.summary);
    entry.options.iter().for_each(|option| push_option(&mut text, option));
    text.push_str(&format!("\n{shared}:\n"));
    entry.shared.iter().for_each(|option| push_option(&mut text, option));
    for example in entry.examples {
        let config = example.config.lines().map(|line| format!("  {line}\n")).collect::<String>();
        text.push_str(&format!(
            "\nExample: {}\n{config}  # {}\n  # {}\n",
            example.title,
            example.input,
            example.outputs.join("\n  # ")
        ));
    }
    text
}

/// Width of the text below a key.
const WIDTH: usize = 92;

pub(super) fn push_option(text: &mut String, option: &OptionSpec) {
    text.push_str(&format!("  {} ({}, {})\n", option.key, option.value_type, default_of(option)));
    let mut line = String::new();
    for word in option.doc.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            text.push_str(&format!("      {line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    text.push_str(&format!("      {line}\n"));
    let has_own_example = !matches!(option.default, OptionDefault::Value(value) if value == option.example);
    if has_own_example {
        text.push_str(&format!("      Example: {} = {}\n", option.key, option.example));
    }
}

fn default_of(option: &OptionSpec) -> String {
    match option.default {
        OptionDefault::Required => "required".to_owned(),
        OptionDefault::Value(value) => format!("default {value}"),
        OptionDefault::Words(words) => format!("default: {words}"),
    }
}
