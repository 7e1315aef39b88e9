//! The layers of settings that come from a file, from the environment, and from flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use trunkline_connector::config::{ByteSize, Key, Mismatch, Node, Report, Section, Table, Text, Value, nearest};
use trunkline_connector::host_name;

use super::diagnostics::{FileProblems, problem_at};
use super::document::Document;
use super::references::default_secrets;
use super::setting_options::{PREFIX, SETTINGS, variable_names};
use super::settings::{LogFormat, SettingsOverrides};
use super::syntax;

/// A smaller budget leaves no room for a batch in each stage.
const MIN_MEMORY: ByteSize = ByteSize(4 << 20);

/// The value of `http` that turns the server off.
const HTTP_OFF: &str = "off";

/// The replication factor that stands for the brokers' default.
const BROKER_DEFAULT: i16 = -1;

/// The values that one layer sets. All of them are valid.
#[derive(Debug, Default, Serialize)]
pub(super) struct Layer {
    #[serde(skip_serializing_if = "Option::is_none")]
    brokers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_folder: Option<PathBuf>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_cache: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_interval: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_initial_failures: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_token: Option<String>,
    topics: TopicLayer,
    kafka: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Default, Serialize)]
struct TopicLayer {
    #[serde(skip_serializing_if = "Option::is_none")]
    create: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<i16>,
    config: BTreeMap<String, String>,
}

impl Layer {
    /// The declared defaults.
    pub(super) fn declared_defaults() -> Self {
        let nested = Node { value: Value::Table(Table::default()), span: 0..0 };
        let table = Table { entries: vec![(Key { name: "topics".to_owned(), span: 0..0 }, nested)] };
        let report = Report::default();
        let section = Section::new(&table, 0..0, "", Path::new("."), &report);
        section.declare(SETTINGS);
        let topics = section.section("topics");
        Self {
            data: Some(section.value("data")),
            cluster: Some(section.value("cluster")),
            prefix: Some(String::new()),
            node: Some(host_name().unwrap_or_else(|| "localhost".to_owned())),
            memory: Some(section.value::<ByteSize>("memory").0),
            commit_interval: Some(section.value("commit_interval")),
            max_initial_failures: Some(section.value("max_initial_failures")),
            topics: TopicLayer {
                create: topics.as_ref().map(|topics| topics.value("create")),
                partitions: topics.and_then(|topics| topics.value::<i64>("partitions").try_into().ok()),
                replication: Some(BROKER_DEFAULT),
                config: BTreeMap::new(),
            },
            secrets: default_secrets(),
            log: Some(section.value("log")),
            log_format: Some(section.one_of("log_format", &LOG_FORMATS)),
            ..Self::default()
        }
    }

    /// Whether the layer sets `node`.
    pub(super) fn sets_node(&self) -> bool {
        self.node.is_some()
    }

    /// Reads a layer and reports its unknown keys. Relative paths start from the section's base.
    fn read(section: Section<'_>) -> Self {
        let path = |key| section.optional::<PathBuf>(key).map(|path| from_base(section.base, path));
        let mut layer = Self {
            brokers: section.optional("brokers"),
            data: path("data"),
            cluster: identifier(&section, "cluster"),
            prefix: identifier(&section, "prefix"),
            node: identifier(&section, "node"),
            memory: memory(&section),
            state_folder: path("state_folder"),
            state_cache: section.optional::<ByteSize>("state_cache").map(|size| size.0),
            commit_interval: section.optional("commit_interval"),
            max_initial_failures: section.optional("max_initial_failures"),
            secrets: path("secrets"),
            http: http_address(&section),
            http_token: section.optional("http_token"),
            topics: TopicLayer::default(),
            kafka: properties(&section, "kafka"),
            log: section.optional("log"),
            log_format: log_format(&section),
        };
        if let Some(mut topics) = section.section("topics") {
            // Without the leading dot: the top level has no name.
            topics.path = "topics".to_owned();
            layer.topics = TopicLayer {
                create: topics.optional("create"),
                partitions: whole_number(&topics, "partitions", i64::from(i32::MAX)).and_then(|n| n.try_into().ok()),
                replication: whole_number(&topics, "replication", i64::from(i16::MAX)).and_then(|n| n.try_into().ok()),
                config: properties(&topics, "config"),
            };
            topics.finish();
        }
        section.finish();
        layer
    }
}

fn memory(section: &Section<'_>) -> Option<u64> {
    let size = section.optional::<ByteSize>("memory")?;
    if size.0 >= MIN_MEMORY.0 {
        return Some(size.0);
    }
    let node = section.node("memory")?;
    let mismatch = Mismatch::new(format!("is {} bytes", size.0));
    section.mismatch("memory", node, mismatch, "a size of at least 4MiB, such as `256MiB`".to_owned());
    None
}

const LOG_FORMATS: [(&str, LogFormat); 3] =
    [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];

fn log_format(section: &Section<'_>) -> Option<LogFormat> {
    section.node("log_format")?;
    Some(section.choice("log_format", &LOG_FORMATS, LogFormat::Auto))
}

/// An address and a port, or `off`.
fn http_address(section: &Section<'_>) -> Option<String> {
    let address = section.optional::<String>("http")?;
    if address == HTTP_OFF || address.parse::<SocketAddr>().is_ok() {
        return Some(address);
    }
    let node = section.node("http")?;
    let mismatch = Mismatch::new(format!("is `{address}`"));
    section.mismatch("http", node, mismatch, "an address and a port, such as `127.0.0.1:8083`, or `off`".to_owned());
    None
}

fn from_base(base: &Path, path: PathBuf) -> PathBuf {
    if base == Path::new(".") { path } else { base.join(path) }
}

/// A name that becomes part of group and transactional ids.
fn identifier(section: &Section<'_>, key: &'static str) -> Option<String> {
    let name = section.optional::<String>(key)?;
    let legal = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if !name.is_empty() && name.chars().all(legal) {
        return Some(name);
    }
    let node = section.node(key)?;
    let mismatch = Mismatch::new(format!("is `{name}`"));
    section.mismatch(key, node, mismatch, "letters, digits, `.`, `_` and `-`".to_owned());
    None
}

/// A whole number from 1.
fn whole_number(section: &Section<'_>, key: &'static str, max: i64) -> Option<i64> {
    let node = section.node(key)?;
    match node.value {
        Value::Integer(number) if (1..=max).contains(&number) => Some(number),
        _ => {
            let found = match node.value {
                Value::Integer(number) => format!("is {number}"),
                _ => format!("is {}", node.value.kind()),
            };
            section.mismatch(key, node, Mismatch::new(found), format!("a whole number from 1 to {max}"));
            None
        }
    }
}

/// Properties of Kafka. Its client takes strings; the file may use numbers and booleans, too.
fn properties(section: &Section<'_>, key: &'static str) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    if let Some(mut inner) = section.section(key) {
        if section.path.is_empty() {
            inner.path = key.to_owned();
        }
        collect_properties(&inner, inner.table, "", &mut properties);
    }
    properties
}

/// An unquoted key such as `security.protocol` is a table in a table.
fn collect_properties(section: &Section<'_>, table: &Table, prefix: &str, into: &mut BTreeMap<String, String>) {
    for (key, node) in &table.entries {
        let name = format!("{prefix}{}", key.name);
        match &node.value {
            Value::String(text) => drop(into.insert(name, text.resolved.clone())),
            Value::Integer(number) => drop(into.insert(name, number.to_string())),
            Value::Boolean(flag) => drop(into.insert(name, flag.to_string())),
            Value::Table(inner) => collect_properties(section, inner, &format!("{name}."), into),
            other => {
                let mismatch = Mismatch::new(format!("is {}", other.kind()));
                section.mismatch(&name, node, mismatch, "a string, a number or a boolean".to_owned());
            }
        }
    }
}

/// Reads the settings file. `secrets` is the folder of secrets that the environment sets.
pub(super) fn file_layer(path: &Path, secrets: Option<&Path>, problems: &mut Vec<FileProblems>) -> Layer {
    let document = match read_settings_file(path, secrets) {
        Ok(document) => document,
        Err(unreadable) => {
            problems.push(unreadable);
            return Layer::default();
        }
    };
    let report = Report::default();
    let layer = Layer::read(document.section(&report));
    let reported = if document.complete { report.into_problems() } else { Vec::new() };
    problems.extend(document.finish(reported));
    layer
}

/// The strings of the file may name secrets, and the file may set the folder of the secrets.
fn read_settings_file(path: &Path, secrets: Option<&Path>) -> Result<Document, FileProblems> {
    let document = Document::read(path, secrets)?;
    if secrets.is_some() {
        return Ok(document);
    }
    match syntax::parse(&document.source).table.get("secrets").map(|node| &node.value) {
        Some(Value::String(folder)) => {
            let folder = from_base(&document.base, PathBuf::from(&folder.raw));
            Ok(Document::parse(path, document.source.to_string(), Some(&folder)))
        }
        _ => match default_secrets() {
            Some(folder) => Ok(Document::parse(path, document.source.to_string(), Some(&folder))),
            None => Ok(document),
        },
    }
}

/// A value from outside of a file: the path of keys of its setting, its name in messages, and the
/// value.
struct Outside<'a> {
    keys: Vec<String>,
    label: String,
    value: &'a str,
}

/// Reads the `TRUNKLINE_*` variables.
pub(super) fn environment_layer(variables: &[(String, String)], problems: &mut Vec<FileProblems>) -> Layer {
    let mut outside = Vec::new();
    for (variable, value) in variables {
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        match setting_of_variable(name) {
            Some(keys) => {
                outside.push(Outside { keys, label: format!("the environment variable `{variable}`"), value });
            }
            // Other programs may use other variables with this prefix, but one that is close to a
            // setting is a typo.
            None => {
                let known: Vec<String> = variable_names().map(|(_, name)| name).collect();
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                if let Some(meant) = nearest(&name.to_lowercase(), &known) {
                    let message = format!("the environment variable `{variable}` is not a known setting");
                    let help = format!("did you mean `{PREFIX}{}`?", meant.to_uppercase());
                    problems.push(problem_at(None, "config.unknown_key", message, Some(help)));
                }
            }
        }
    }
    outside_layer(&outside, problems)
}

/// The path of keys of the setting that a variable sets. What follows `KAFKA_` and `TOPICS_CONFIG_`
/// is a property with `_` for its dots.
fn setting_of_variable(name: &str) -> Option<Vec<String>> {
    let name = name.to_lowercase();
    // Kubernetes sets such variables in every pod if a service is called "trunkline-kafka".
    if name.ends_with("_service_host") || name.contains("_service_port") || name.contains("_port_") {
        return None;
    }
    if let Some(property) = name.strip_prefix("kafka_").filter(|property| *property != "port") {
        return Some(vec!["kafka".to_owned(), property.replace('_', ".")]);
    }
    if let Some(property) = name.strip_prefix("topics_config_") {
        return Some(vec!["topics".to_owned(), "config".to_owned(), property.replace('_', ".")]);
    }
    let (setting, _) = variable_names().find(|(_, known)| *known == name)?;
    Some(setting.key.split('.').map(str::to_owned).collect())
}

/// Reads the flags.
pub(super) fn flag_layer(flags: &SettingsOverrides, problems: &mut Vec<FileProblems>) -> Layer {
    let outside: Vec<Outside<'_>> = flags
        .iter()
        .map(|(key, value)| Outside {
            keys: vec![(*key).to_owned()],
            label: format!("the flag `--{}`", key.replace('_', "-")),
            value,
        })
        .collect();
    outside_layer(&outside, problems)
}

/// Reads values from outside of a file in the same way as a file: they become a table in which the
/// "place" of a value is its index.
fn outside_layer(outside: &[Outside<'_>], problems: &mut Vec<FileProblems>) -> Layer {
    let mut table = Table::default();
    for (index, setting) in outside.iter().enumerate() {
        let text = Text { raw: setting.value.to_owned(), resolved: setting.value.to_owned() };
        let value = match (setting.keys.last().map(String::as_str), setting.value.parse()) {
            (Some("partitions" | "replication" | "max_initial_failures"), Ok(number)) => Value::Integer(number),
            (Some("create"), _) if setting.value == "true" => Value::Boolean(true),
            (Some("create"), _) if setting.value == "false" => Value::Boolean(false),
            _ => Value::String(text),
        };
        insert(&mut table, &setting.keys, Node { value, span: index..index });
    }
    let report = Report::default();
    let layer = Layer::read(Section::new(&table, 0..0, "", Path::new("."), &report));
    for problem in report.into_problems() {
        let Some(setting) = outside.get(problem.span.start) else { continue };
        let message = match problem.message.strip_prefix(&format!("`{}`", setting.keys.join("."))) {
            Some(rest) => format!("{}{rest}", setting.label),
            None => format!("{}: {}", setting.label, problem.message),
        };
        problems.push(problem_at(None, problem.code, message, problem.help.or(Some(problem.expected))));
    }
    layer
}

fn insert(table: &mut Table, keys: &[String], node: Node) {
    let Some((first, rest)) = keys.split_first() else { return };
    if rest.is_empty() {
        table.entries.push((Key { name: first.clone(), span: node.span.clone() }, node));
        return;
    }
    let index = match table.entries.iter().position(|(key, _)| key.name == *first) {
        Some(index) => index,
        None => {
            let inner = Node { value: Value::Table(Table::default()), span: node.span.clone() };
            table.entries.push((Key { name: first.clone(), span: node.span.clone() }, inner));
            table.entries.len() - 1
        }
    };
    if let Value::Table(inner) = &mut table.entries[index].1.value {
        insert(inner, rest, node);
    }
}
