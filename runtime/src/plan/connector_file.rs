//! A pipeline file of one component, from a flat configuration of Kafka Connect.
//!
//! The keys are the options of the component, those in tables with dotted names (`rotate.age`). The
//! values are texts: the type of the option decides how they stand in the file. `name`,
//! `connector.class`, `tasks.max` and `topics` have Kafka Connect's meaning.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use toml::Value;
use trunkline_connector::config::OptionSpec;
use trunkline_transform_host::{Host, HostOptions};

use super::options;
use super::planned_file::plan;
use super::registry::Registry;
use crate::config::Document;

/// A flat configuration: texts by key.
pub type FlatConfig = BTreeMap<String, String>;

/// The problem of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProblem {
    /// The key of the configuration.
    pub key: String,
    /// The problem, and what is expected.
    pub message: String,
}

/// A pipeline file of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorFile {
    /// Its text.
    pub text: String,
    /// `source` or `sink`.
    pub kind: &'static str,
    /// The key that each line comes from.
    keys: Vec<String>,
}

/// Planning needs a host of plugins, although a file of one component names none.
static HOST: LazyLock<Result<Host, String>> =
    LazyLock::new(|| Host::new(HostOptions::default()).map_err(|error| error.to_string()));

/// Keys that become something else than an option of the same name.
const NAME: &str = "name";
const CLASS: &str = "connector.class";
const TASKS: &str = "tasks.max";
const TOPICS: &str = "topics";

/// Keys that clients of Kafka Connect send to every worker, and that have no effect here: records
/// in topics have one format.
const IGNORED: [&str; 3] = ["key.converter", "value.converter", "header.converter"];

impl ConnectorFile {
    /// The file of the connector `{pipeline}.{component}`.
    pub fn new(name: &str, config: &FlatConfig, registry: &Registry) -> Result<Self, KeyProblem> {
        let problem = |key: &str, message: String| KeyProblem { key: key.to_owned(), message };
        let Some((pipeline, component)) = name.split_once('.').filter(|(pipeline, component)| {
            let is_word = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            is_word(pipeline) && is_word(component)
        }) else {
            let message = format!("the name `{name}` is not of the form PIPELINE.COMPONENT, such as `shop.lake`");
            return Err(problem(NAME, message));
        };
        let class = config.get(CLASS).map(String::as_str).unwrap_or_default();
        let (kind, own, shared) = match (registry.source(class), registry.sink(class)) {
            (Some(source), _) => ("source", source.options(), options::SOURCE),
            (None, Some(sink)) => ("sink", sink.options(), options::SINK),
            (None, None) => {
                let known = [registry.source_names(), registry.sink_names()].concat().join(", ");
                return Err(problem(CLASS, format!("there is no connector `{class}`; known: {known}")));
            }
        };
        let mut file = Self { text: String::new(), kind, keys: Vec::new() };
        file.add(NAME, &format!("name = {}", quoted(pipeline)));
        file.add(NAME, &format!("[{kind}s.{}]", quoted(component)));
        file.add(CLASS, &format!("connector = {}", quoted(class)));
        for (key, value) in config {
            match key.as_str() {
                NAME | CLASS => {}
                key if IGNORED.iter().any(|ignored| key == *ignored || key.starts_with(&format!("{ignored}."))) => {}
                // A source has one task for each of its parts, whatever a client asks for.
                TASKS if kind == "source" => {}
                TASKS => file.add(key, &format!("tasks = {}", bare(value))),
                TOPICS if kind == "sink" => {
                    let topics = list(value).map(|topic| quoted(&format!("topic:{topic}")));
                    file.add(key, &format!("inputs = [{}]", topics.collect::<Vec<_>>().join(", ")));
                }
                _ => {
                    let parts: Vec<String> = key.split('.').map(quoted).collect();
                    let value = written(value, value_type(key, &[own, shared]));
                    file.add(key, &format!("{} = {value}", parts.join(".")));
                }
            }
        }
        Ok(file)
    }

    /// Adds a line.
    fn add(&mut self, key: &str, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.keys.push(key.to_owned());
    }

    /// The problems of the file by itself. References are resolved on this machine.
    pub fn problems(&self, secrets: Option<&Path>, registry: &Registry) -> Vec<KeyProblem> {
        let host = match HOST.as_ref() {
            Ok(host) => host,
            Err(message) => return vec![KeyProblem { key: CLASS.to_owned(), message: message.clone() }],
        };
        let document = Document::parse(Path::new("connector.toml"), self.text.clone(), secrets);
        let Some(found) = plan(document, host, registry).file_problems() else { return Vec::new() };
        let shown = found.problems.into_iter().map(|problem| {
            let line = self.text[..problem.span.start.min(self.text.len())].matches('\n').count();
            let key = self.keys.get(line).cloned().unwrap_or_else(|| NAME.to_owned());
            let parts = [Some(problem.message), Some(problem.expected).filter(|text| !text.is_empty()), problem.help];
            KeyProblem { key, message: parts.into_iter().flatten().collect::<Vec<_>>().join("; ") }
        });
        shown.collect()
    }
}

/// The type of an option in words; of a member of a table, the type of the table.
fn value_type<'s>(key: &str, specs: &[&'s [OptionSpec]]) -> &'s str {
    let mut known = key;
    loop {
        let found = specs.iter().copied().flatten().find(|option| option.key == known);
        match (found, known.rsplit_once('.')) {
            (Some(option), _) => return option.value_type,
            (None, Some((table, _))) => known = table,
            (None, None) => return "",
        }
    }
}

/// A value as it stands in the file.
fn written(value: &str, value_type: &str) -> String {
    let is = |words: &[&str]| words.iter().any(|word| value_type.starts_with(word));
    let holds = |words: &[&str]| words.iter().any(|word| value_type.contains(word));
    if is(&["integer", "number", "boolean"]) {
        return bare(value);
    }
    let value_is_structured = value.trim_start().starts_with(['[', '{']) && holds(&["array", "list", "table"]);
    if value_is_structured && parsed(value).is_some() {
        return value.trim().to_owned();
    }
    if is(&["array", "list", "table of arrays"]) {
        return format!("[{}]", list(value).map(quoted).collect::<Vec<_>>().join(", "));
    }
    quoted(value)
}

/// The parts of a text with commas.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// A number or boolean; any other text stays one, so that its type is reported as wrong.
fn bare(value: &str) -> String {
    match parsed(value) {
        Some(Value::Integer(_) | Value::Float(_) | Value::Boolean(_)) => value.trim().to_owned(),
        _ => quoted(value),
    }
}

/// The text as one TOML value.
fn parsed(value: &str) -> Option<Value> {
    let is_one_line = !value.trim().contains(['\n', '\r']);
    is_one_line.then(|| value.trim().parse().ok()).flatten()
}

/// A text in quotes, on one line. The escapes of JSON are those of TOML, which escapes DEL, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> FlatConfig {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn problems(name: &str, pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let registry = Registry::new();
        let found = match ConnectorFile::new(name, &config(pairs), &registry) {
            Ok(file) => file.problems(None, &registry),
            Err(problem) => vec![problem],
        };
        found.into_iter().map(|problem| (problem.key, problem.message)).collect()
    }

    #[test]
    fn texts_get_the_types_of_their_options() {
        let pairs = [
            ("name", "shop.lake"),
            ("connector.class", "s3"),
            ("tasks.max", "2"),
            ("topics", "orders, customers"),
            ("key.converter", "org.apache.kafka.connect.json.JsonConverter"),
            ("key.converter.schemas.enable", "false"),
            ("url", "s3://lake/\"a\"\nb"),
            ("access_key_id", "0123"),
            ("secret_access_key", "${file:/run/secrets/lake}"),
            ("rotate.records", "1000"),
            ("rotate.age", "5m"),
            ("columns", "{ price = \"decimal(10,2)\" }"),
        ];
        let file = ConnectorFile::new("shop.lake", &config(&pairs), &Registry::new()).unwrap();
        let expected = r#"name = "shop"
[sinks."lake"]
connector = "s3"
"access_key_id" = "0123"
"columns" = { price = "decimal(10,2)" }
"rotate"."age" = "5m"
"rotate"."records" = 1000
"secret_access_key" = "${file:/run/secrets/lake}"
tasks = 2
inputs = ["topic:orders", "topic:customers"]
"url" = "#;
        let (start, url) = file.text.split_at(expected.len());
        assert_eq!((start, file.kind), (expected, "sink"));
        // On one line, whatever the quotes are: each line belongs to a key.
        assert_eq!(parsed(url).and_then(|url| url.as_str().map(str::to_owned)).unwrap(), "s3://lake/\"a\"\nb");
        let pairs = [("connector.class", "logfile"), ("paths", "/a.log,/b/*.log"), ("tasks.max", "9")];
        let file = ConnectorFile::new("web.log", &config(&pairs), &Registry::new()).unwrap();
        assert!(file.text.ends_with("\"paths\" = [\"/a.log\", \"/b/*.log\"]\n"), "{}", file.text);
        assert_eq!(file.problems(None, &Registry::new()), []);
        let hostile = [("connector.class", "logfile"), ("paths", "/a\"]\n[sinks.x]\nconnector = \"s3")];
        let file = ConnectorFile::new("web.log", &config(&hostile), &Registry::new()).unwrap();
        assert_eq!(file.text.lines().count(), 4, "{}", file.text);
    }

    #[test]
    fn problems_name_the_key() {
        let of = |name: &str, pairs: &[(&str, &str)], key: &str, message: &str| {
            let found = problems(name, pairs);
            assert!(found.iter().any(|(at, text)| at == key && text.contains(message)), "{pairs:?}: {found:?}");
        };
        let source = ("connector.class", "logfile");
        of("shop", &[source], "name", "PIPELINE.COMPONENT");
        of("shop.a.b", &[source], "name", "PIPELINE.COMPONENT");
        of("shop.a\"b", &[source], "name", "PIPELINE.COMPONENT");
        of("shop.a", &[], "connector.class", "known: logfile, mysql");
        of("shop.a", &[source], "name", "paths");
        of("shop.a", &[source, ("paths", "/a"), ("max_open_files", "many")], "max_open_files", "number");
        of("shop.a", &[source, ("paths", "/a"), ("nonsense", "1")], "nonsense", "nonsense");
        of("shop.a", &[source, ("paths", "/a"), ("charset", "${env:NO_SUCH_VARIABLE}")], "charset", "NO_SUCH_VARIABLE");
    }
}
