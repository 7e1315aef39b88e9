//! The JSON Schema of pipeline files and of `trunkline.toml`, for editors: completion, texts and
//! errors while a person writes.
//!
//! It is generated from the declarations of options ([`OptionSpec`]), so a new option is in it
//! without more work. A schema cannot express what needs several values (inputs that exist, a
//! template's variables): `trunkline validate` checks these. What a schema refuses, `validate`
//! refuses, too.
//!
//! The form suits language servers for TOML. They complete keys from `anyOf` and not from
//! `if`/`then`; validators report a mismatch in `then` at its key and one in `anyOf` at the whole
//! table. So each component lists the connectors in an `anyOf` that accepts every table, and an
//! `if`/`then`/`else` chain selects the connector that applies. Options with choices have the same
//! form.

mod value_type;

use serde_json::{Map, Value, json};
use trunkline_connector::config::{OptionDefault, OptionSpec};

use super::bundled::PLUGINS;
use super::names::NAME_PATTERN;
use super::options::{PIPELINE, SINK, SOURCE, TRANSFORM};
use super::registry::Registry;
use crate::config::SETTINGS;

/// The dialect: the one that editors for TOML support.
const DIALECT: &str = "http://json-schema.org/draft-07/schema#";

/// A string with a reference such as `${env:X}`.
const REFERENCE: &str = r"\$\{";

/// The schema of pipeline files.
pub fn pipeline_schema(registry: &Registry) -> Value {
    let sources: Vec<(&str, Value)> = registry
        .sources()
        .map(|it| (it.name(), component("connector", it.name(), it.summary(), &[SOURCE, it.options()])))
        .collect();
    let sinks: Vec<(&str, Value)> = registry
        .sinks()
        .map(|it| (it.name(), component("connector", it.name(), it.summary(), &[SINK, it.options()])))
        .collect();
    let transforms: Vec<(&str, Value)> = PLUGINS
        .iter()
        .map(|plugin| {
            let mut schema = component("plugin", plugin.name, plugin.summary, &[TRANSFORM]);
            let config = table(&[plugin.options], plugin.summary);
            if config.get("required").is_some() {
                add(&mut schema["required"], "config");
            }
            schema["properties"]["config"] = config;
            (plugin.name, schema)
        })
        .collect();
    let any_transform = table(&[TRANSFORM], "A transform.");
    let mut definitions = Map::new();
    let mut kind = |kind: &str, key: &str, known: Vec<(&str, Value)>, otherwise: Option<Value>| {
        let choice = choice(kind, key, &known, otherwise.is_some());
        for (name, schema) in known {
            definitions.insert(definition(kind, name), schema);
        }
        if let Some(otherwise) = otherwise {
            definitions.insert(kind.to_owned(), otherwise);
        }
        choice
    };
    let kinds = [
        ("sources", kind("source", "connector", sources, None)),
        ("transforms", kind("transform", "plugin", transforms, Some(any_transform))),
        ("sinks", kind("sink", "connector", sinks, None)),
    ];
    let mut schema = table(&[PIPELINE], "A pipeline file of Trunkline.");
    for (key, component) in kinds {
        let property = &mut schema["properties"][key];
        property["additionalProperties"] = component;
        property["propertyNames"] = json!({ "pattern": NAME_PATTERN });
    }
    schema["properties"]["name"]["pattern"] = json!(format!("{NAME_PATTERN}|{REFERENCE}"));
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("Trunkline pipeline");
    schema["definitions"] = Value::Object(definitions);
    schema
}

/// The schema of `trunkline.toml`.
pub fn settings_schema() -> Value {
    let mut schema = table(&[SETTINGS], "Settings of a Trunkline worker.");
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("Trunkline settings");
    schema
}

fn definition(kind: &str, name: &str) -> String {
    format!("{kind}.{}", name.strip_suffix(".wasm").unwrap_or(name))
}

/// The schema of a component whose option `key` has the value `name`.
fn component(key: &str, name: &str, summary: &str, options: &[&[OptionSpec]]) -> Value {
    let mut schema = table(options, summary);
    schema["properties"][key] = json!({ "const": name, "description": summary });
    schema
}

/// The schema of a component that one of the definitions describes: the one that `key` names.
fn choice(kind: &str, key: &str, known: &[(&str, Value)], is_open: bool) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let mut chain = match is_open {
        // A plugin by its path.
        true => reference(kind),
        false => json!({ "required": [key], "properties": { key: value_type::one_of(&names) } }),
    };
    for name in names.iter().rev() {
        chain = json!({
            "if": { "required": [key], "properties": { key: { "const": name } } },
            "then": reference(&definition(kind, name)),
            "else": chain,
        });
    }
    let mut suggestions: Vec<Value> = names.iter().map(|name| reference(&definition(kind, name))).collect();
    suggestions.push(json!(true));
    chain["anyOf"] = Value::Array(suggestions);
    chain["type"] = json!("object");
    chain
}

/// The schema of a table with the options of some lists.
fn table(options: &[&[OptionSpec]], description: &str) -> Value {
    let mut schema = json!({
        "type": "object", "description": description, "properties": {}, "additionalProperties": false,
    });
    // A table that may also be written as something else (`stage`) comes before its own options.
    let (nested, plain): (Vec<&OptionSpec>, Vec<&OptionSpec>) =
        options.iter().copied().flatten().partition(|option| option.key.contains('.'));
    for option in plain.into_iter().chain(nested) {
        insert(&mut schema, option.key, option);
    }
    schema
}

/// Adds an option to the schema of a table; a dotted key is an option of a table in it.
fn insert(schema: &mut Value, key: &str, option: &OptionSpec) {
    let Some((first, rest)) = key.split_once('.') else {
        if option.default == OptionDefault::Required {
            add(&mut schema["required"], key);
        }
        schema["properties"][key] = option_schema(option);
        return;
    };
    let properties = &mut schema["properties"];
    if properties.get(first).is_none() {
        properties[first] = table(&[], "");
    }
    let parent = &mut properties[first];
    match parent.get_mut("anyOf").and_then(Value::as_array_mut) {
        // The parent is a table, or something else.
        Some(forms) => {
            if let Some(form) = forms.iter_mut().find(|form| form["type"] == "object") {
                close(form);
                insert(form, rest, option);
            }
        }
        None => {
            close(parent);
            insert(parent, rest, option);
        }
    }
}

/// Makes a table that may have any keys one with known keys.
fn close(table: &mut Value) {
    if table.get("properties").is_none() {
        table["properties"] = json!({});
        table["additionalProperties"] = json!(false);
    }
}

fn add(list: &mut Value, name: &str) {
    match list {
        Value::Array(names) => names.push(json!(name)),
        _ => *list = json!([name]),
    }
}

/// The schema of an option's value.
pub fn option_schema(option: &OptionSpec) -> Value {
    // An unknown type accepts any value; a test finds it.
    let mut schema = value_type::schema(option.value_type).unwrap_or_else(|| json!({}));
    let absent = match option.default {
        OptionDefault::Required => "Required.".to_owned(),
        OptionDefault::Value(_) | OptionDefault::Words(_) => format!("Default: {}.", option.default_text()),
    };
    let text = format!("{}\n\n{absent} Type: {}.", option.doc, option.value_type);
    schema["description"] = json!(without_links(&text));
    if let OptionDefault::Value(default) = option.default
        && let Some(value) = toml_value(default)
    {
        // The language server inserts the default of the form that it suggests.
        if schema["anyOf"][1] == true {
            schema["anyOf"][0]["default"] = value.clone();
        }
        schema["default"] = value;
    }
    if let Some(example) = toml_value(option.example) {
        schema["examples"] = json!([example]);
    }
    schema
}

/// A Markdown text without the targets of its links: they are relative to the reference.
pub(crate) fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (Some((outside, label)), Some((_, after))) = (before.rsplit_once('['), after.split_once(')')) else {
            break;
        };
        plain.push_str(outside);
        plain.push_str(label);
        rest = after;
    }
    plain + rest
}

/// A TOML value as JSON.
fn toml_value(text: &str) -> Option<Value> {
    let mut table: toml::Table = format!("value = {text}").parse().ok()?;
    serde_json::to_value(table.remove("value")?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_declared_type_is_known() {
        let registry = Registry::new();
        let connectors = registry.sources().map(|it| it.options()).chain(registry.sinks().map(|it| it.options()));
        let lists =
            connectors.chain(PLUGINS.iter().map(|it| it.options)).chain([PIPELINE, SOURCE, TRANSFORM, SINK, SETTINGS]);
        let unknown: BTreeSet<&str> = lists
            .flatten()
            .map(|option| option.value_type)
            .filter(|value_type| value_type::schema(value_type).is_none())
            .collect();
        assert_eq!(unknown, BTreeSet::new(), "add these types to `json_schema/value_type.rs`");
    }

    #[test]
    fn links_become_their_labels() {
        let text = "see [Masks](#masks), the [guide](../a.md) and `[sinks.NAME]`";
        assert_eq!(without_links(text), "see Masks, the guide and `[sinks.NAME]`");
        assert_eq!(without_links("a](b"), "a](b");
    }

    #[test]
    fn dotted_options_are_in_tables_and_a_table_may_be_one_of_several_forms() {
        const OPTIONS: &[OptionSpec] = &[
            OptionSpec::optional("stage.region", "string", "none", "The region.", "\"eu\""),
            OptionSpec::required("stage", "string or table", "Where.", "\"s3://a\""),
            OptionSpec::with_default("rotate.bytes", "size", "\"1MiB\"", "The size."),
        ];
        let schema = table(&[OPTIONS], "x");
        assert_eq!(schema["required"], json!(["stage"]));
        let forms = &schema["properties"]["stage"]["anyOf"];
        assert_eq!((&forms[0], &forms[1]["additionalProperties"]), (&json!({ "type": "string" }), &json!(false)));
        assert_eq!(forms[1]["properties"]["region"]["type"], "string");
        let bytes = &schema["properties"]["rotate"]["properties"]["bytes"];
        assert_eq!((&bytes["default"], &bytes["type"]), (&json!("1MiB"), &json!(["string", "integer"])));
        assert_eq!(bytes["description"], "The size.\n\nDefault: `1MiB`. Type: size.");
    }
}
