//! Settings of a worker, in layers: defaults, then `trunkline.toml`, then `TRUNKLINE_*` environment variables, then flags.
//!
//! Every layer is read by the same function, so a bad value gets the same words wherever it comes from; only its place differs: file,
//! line and column, the variable's name, or the flag's. figment then lays the layers over one another, tables key by key.
//!
//! The variable of a setting is its path in capitals with `_` between the parts: `TRUNKLINE_COMMIT_INTERVAL`,
//! `TRUNKLINE_TOPICS_PARTITIONS`; what follows `TRUNKLINE_KAFKA_` and `TRUNKLINE_TOPICS_CONFIG_` is a property whose dots are written
//! `_`: `TRUNKLINE_KAFKA_SASL_PASSWORD`. Relative paths in `trunkline.toml` start at its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::Serialized;
use serde::{Deserialize, Deserializer, Serialize};
use trunkline_connector::config::{ByteSize, Key, Mismatch, Node, Report, Section, Table, Text, Value, nearest};

use super::diagnostics::{FileProblems, problem_at};
use super::document::Document;
use super::syntax;

/// Settings of a worker.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Settings {
    /// Bootstrap servers, `host:port` with commas between; `embedded` or nothing is the broker in the process.
    pub brokers: Option<String>,
    /// Folder for what the worker keeps on disk: caches, scratch files, the embedded broker's data.
    pub data: PathBuf,
    /// Name that the workers of one cluster share; part of every group and transactional id.
    pub cluster: String,
    /// Name of this machine, for sources that read what is on it: its host name unless set.
    pub node: String,
    /// What buffers may hold in all (I6).
    #[serde(deserialize_with = "byte_size")]
    pub memory: ByteSize,
    /// How often a source commits at the latest.
    pub commit_interval: Duration,
    /// Folder with one file for each `${secret:NAME}`.
    pub secrets: Option<PathBuf>,
    /// How topics are created.
    pub topics: TopicSettings,
    /// More properties of the Kafka client, such as `security.protocol` and `sasl.password`.
    pub kafka: BTreeMap<String, String>,
    /// What is logged, as a filter: `info`, `warn,trunkline=debug`.
    pub log: String,
}

/// How topics are created; existing ones are left alone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TopicSettings {
    /// Partitions, unless the component says so.
    pub partitions: i32,
    /// Replicas; -1, the default, is the broker's own default.
    pub replication: i16,
    /// Properties of the topic, such as `retention.ms`.
    pub config: BTreeMap<String, String>,
}

/// Flags that set a setting: its key and what was written.
pub type SettingsOverrides = Vec<(&'static str, String)>;

/// Not derived: `kafka` holds passwords (I8).
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden: BTreeMap<&str, &str> = self.kafka.keys().map(|key| (key.as_str(), "***")).collect();
        formatter
            .debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("data", &self.data)
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("memory", &self.memory)
            .field("commit_interval", &self.commit_interval)
            .field("secrets", &self.secrets)
            .field("topics", &self.topics)
            .field("kafka", &hidden)
            .field("log", &self.log)
            .finish()
    }
}

impl Settings {
    /// Loads the settings. `config` is a file that must exist; without it `trunkline.toml` is read if it is there.
    pub fn load(config: Option<&Path>, flags: &SettingsOverrides) -> Result<Self, Vec<FileProblems>> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::layered(config, &variables, flags)
    }

    /// The file that is read if no other one is named.
    pub const DEFAULT_FILE: &str = "trunkline.toml";

    /// Names of the settings that are others there.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self { brokers, data, cluster, node, memory, commit_interval, secrets, topics, kafka, log } = self;
        let differ = [
            ("brokers", *brokers != other.brokers),
            ("data", *data != other.data),
            ("cluster", *cluster != other.cluster),
            ("node", *node != other.node),
            ("memory", *memory != other.memory),
            ("commit_interval", *commit_interval != other.commit_interval),
            ("secrets", *secrets != other.secrets),
            ("topics", *topics != other.topics),
            ("kafka", *kafka != other.kafka),
            ("log", *log != other.log),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// The same with the environment given.
    fn layered(
        config: Option<&Path>,
        variables: &[(String, String)],
        flags: &SettingsOverrides,
    ) -> Result<Self, Vec<FileProblems>> {
        let mut problems = Vec::new();
        let environment = environment_layer(variables, &mut problems);
        let flags = flag_layer(flags, &mut problems);
        let file = match config {
            Some(path) => file_layer(path, &environment, &mut problems),
            None if Path::new(Self::DEFAULT_FILE).exists() => {
                file_layer(Path::new(Self::DEFAULT_FILE), &environment, &mut problems)
            }
            None => Layer::default(),
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let settings = Figment::from(Serialized::defaults(Layer::defaults()))
            .merge(Serialized::defaults(file))
            .merge(Serialized::defaults(environment))
            .merge(Serialized::defaults(flags))
            .extract();
        settings.map_err(|error| vec![problem_at(None, "config.settings", error.to_string(), None)])
    }
}

const PREFIX: &str = "TRUNKLINE_";

/// What one layer sets. All values have been checked.
#[derive(Debug, Default, Serialize)]
struct Layer {
    #[serde(skip_serializing_if = "Option::is_none")]
    brokers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_interval: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<PathBuf>,
    topics: TopicLayer,
    kafka: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct TopicLayer {
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication: Option<i16>,
    config: BTreeMap<String, String>,
}

impl Layer {
    fn defaults() -> Self {
        Self {
            data: Some(PathBuf::from("trunkline-data")),
            cluster: Some("trunkline".to_owned()),
            node: Some(host_name()),
            memory: Some(256 << 20),
            commit_interval: Some(Duration::from_millis(200)),
            topics: TopicLayer { partitions: Some(4), replication: Some(-1), config: BTreeMap::new() },
            log: Some("info".to_owned()),
            ..Self::default()
        }
    }

    /// Reads a layer and reports its unknown keys. Paths start at the section's base.
    fn read(section: Section<'_>) -> Self {
        let path = |key| section.optional::<PathBuf>(key).map(|path| from_base(section.base, path));
        let mut layer = Self {
            brokers: section.optional("brokers"),
            data: path("data"),
            cluster: identifier(&section, "cluster"),
            node: identifier(&section, "node"),
            memory: section.optional::<ByteSize>("memory").map(|size| size.0),
            commit_interval: section.optional("commit_interval"),
            secrets: path("secrets"),
            topics: TopicLayer::default(),
            kafka: properties(&section, "kafka"),
            log: section.optional("log"),
        };
        if let Some(mut topics) = section.section("topics") {
            // Not ".topics": the top level has no name.
            topics.path = "topics".to_owned();
            layer.topics = TopicLayer {
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
fn whole_number(section: &Section<'_>, key: &'static str, most: i64) -> Option<i64> {
    let node = section.node(key)?;
    match node.value {
        Value::Integer(number) if (1..=most).contains(&number) => Some(number),
        _ => {
            let found = match node.value {
                Value::Integer(number) => format!("is {number}"),
                _ => format!("is {}", node.value.kind()),
            };
            section.mismatch(key, node, Mismatch::new(found), format!("a whole number from 1 to {most}"));
            None
        }
    }
}

/// Properties of Kafka: strings to its client, but numbers and booleans may be written as such.
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

/// `security.protocol = ".."` without quotes around the key is a table in a table.
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

fn file_layer(path: &Path, environment: &Layer, problems: &mut Vec<FileProblems>) -> Layer {
    let document = match read_settings_file(path, environment.secrets.as_deref()) {
        Ok(document) => document,
        Err(unreadable) => {
            problems.push(unreadable);
            return Layer::default();
        }
    };
    let report = Report::default();
    let layer = Layer::read(document.section(&report));
    let reported = if document.whole { report.into_problems() } else { Vec::new() };
    problems.extend(document.finish(reported));
    layer
}

/// Its own strings may name secrets, and the folder they lie in may be named in it too.
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
        _ => Ok(document),
    }
}

/// A value that comes from outside a file: its setting as a path of keys, what it is called, and the value.
struct Outside<'a> {
    keys: Vec<String>,
    called: String,
    value: &'a str,
}

fn environment_layer(variables: &[(String, String)], problems: &mut Vec<FileProblems>) -> Layer {
    let mut outside = Vec::new();
    for (variable, value) in variables {
        let Some(name) = variable.strip_prefix(PREFIX) else { continue };
        match setting_of_variable(name) {
            Some(keys) => {
                outside.push(Outside { keys, called: format!("the environment variable `{variable}`"), value });
            }
            // Other variables that happen to start so are somebody else's, but one that is nearly a setting is a typo.
            None => {
                if let Some(meant) = nearest(&name.to_lowercase(), &PLAIN_VARIABLES) {
                    let message = format!("the environment variable `{variable}` is not a known setting");
                    let help = format!("did you mean `{PREFIX}{}`?", meant.to_uppercase());
                    problems.push(problem_at(None, "config.unknown_key", message, Some(help)));
                }
            }
        }
    }
    outside_layer(&outside, problems)
}

/// Settings with a variable of their own name.
const PLAIN_VARIABLES: [&str; 10] = [
    "brokers",
    "data",
    "cluster",
    "node",
    "memory",
    "commit_interval",
    "secrets",
    "log",
    "topics_partitions",
    "topics_replication",
];

fn setting_of_variable(name: &str) -> Option<Vec<String>> {
    let name = name.to_lowercase();
    // Kubernetes sets such variables in every pod beside a service called "trunkline-kafka".
    if name.ends_with("_service_host") || name.contains("_service_port") || name.contains("_port_") {
        return None;
    }
    if let Some(property) = name.strip_prefix("kafka_").filter(|property| *property != "port") {
        return Some(vec!["kafka".to_owned(), property.replace('_', ".")]);
    }
    if let Some(property) = name.strip_prefix("topics_config_") {
        return Some(vec!["topics".to_owned(), "config".to_owned(), property.replace('_', ".")]);
    }
    if !PLAIN_VARIABLES.contains(&name.as_str()) {
        return None;
    }
    Some(match name.strip_prefix("topics_") {
        Some(rest) => vec!["topics".to_owned(), rest.to_owned()],
        None => vec![name],
    })
}

fn flag_layer(flags: &SettingsOverrides, problems: &mut Vec<FileProblems>) -> Layer {
    let outside: Vec<Outside<'_>> = flags
        .iter()
        .map(|(key, value)| Outside {
            keys: vec![(*key).to_owned()],
            called: format!("the flag `--{}`", key.replace('_', "-")),
            value,
        })
        .collect();
    outside_layer(&outside, problems)
}

/// Reads values from outside a file with the file's own reader: they become a table in which the "place" of a value is its index.
fn outside_layer(outside: &[Outside<'_>], problems: &mut Vec<FileProblems>) -> Layer {
    let mut table = Table::default();
    for (index, setting) in outside.iter().enumerate() {
        let text = Text { raw: setting.value.to_owned(), resolved: setting.value.to_owned() };
        let value = match (setting.keys.last().map(String::as_str), setting.value.parse()) {
            (Some("partitions" | "replication"), Ok(number)) => Value::Integer(number),
            _ => Value::String(text),
        };
        insert(&mut table, &setting.keys, Node { value, span: index..index });
    }
    let report = Report::default();
    let layer = Layer::read(Section::new(&table, 0..0, "", Path::new("."), &report));
    for problem in report.into_problems() {
        let Some(setting) = outside.get(problem.span.start) else { continue };
        let message = match problem.message.strip_prefix(&format!("`{}`", setting.keys.join("."))) {
            Some(rest) => format!("{}{rest}", setting.called),
            None => format!("{}: {}", setting.called, problem.message),
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

fn byte_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    u64::deserialize(deserializer).map(ByteSize)
}

/// The machine's name; `localhost` if it has none that can be used.
fn host_name() -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer outlives the call, and its true length is given.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let name = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(name) if result == 0 && !name.is_empty() => name.to_owned(),
        _ => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: &[(&str, &str)], flags: SettingsOverrides) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "hunter2\n").unwrap();
        let path = folder.path().join("trunkline.toml");
        std::fs::write(&path, file).unwrap();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let problems = |files: Vec<FileProblems>| {
            let text: String = files.iter().map(FileProblems::to_string).collect();
            text.replace(&format!("{}/", folder.path().display()), "")
        };
        Settings::layered(Some(&path), &variables, &flags).map_err(problems)
    }

    #[test]
    fn later_layers_win_and_tables_are_merged() {
        let file = r#"
            brokers = "file:1"
            memory = "64MiB"
            commit_interval = "1s"
            secrets = "."
            [topics]
            partitions = 2
            config."retention.ms" = 5
            [kafka]
            security.protocol = "sasl_ssl"
            "sasl.password" = "${secret:password}"
            "sasl.username" = "file"
        "#;
        let variables = [
            ("TRUNKLINE_BROKERS", "variable:2"),
            ("TRUNKLINE_MEMORY", "32MiB"),
            ("TRUNKLINE_NODE", "7"),
            ("TRUNKLINE_TOPICS_REPLICATION", "3"),
            ("TRUNKLINE_KAFKA_SASL_USERNAME", "variable"),
            ("TRUNKLINE_KAFKA_SERVICE_HOST", "10.0.0.1"),
            ("TRUNKLINE_BIN", "/bin/trunkline"),
        ];
        let settings = load(file, &variables, vec![("brokers", "flag:3".to_owned())]).unwrap();
        assert_eq!(settings.brokers.as_deref(), Some("flag:3"));
        assert_eq!(settings.memory, ByteSize(32 << 20));
        assert_eq!(settings.commit_interval, Duration::from_secs(1));
        assert_eq!(settings.node, "7");
        assert_eq!(settings.cluster, "trunkline");
        assert_eq!((settings.topics.partitions, settings.topics.replication), (2, 3));
        assert_eq!(settings.topics.config["retention.ms"], "5");
        let kafka: Vec<_> = settings.kafka.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [("sasl.password", "hunter2"), ("sasl.username", "variable"), ("security.protocol", "sasl_ssl")];
        assert_eq!(kafka, expected);
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2") && shown.contains("sasl.password"), "{shown}");
    }

    #[test]
    fn every_layer_reports_all_its_problems() {
        let file = "memroy = \"64MiB\"\ncommit_interval = \"5 parsecs\"\n[topics]\npartitions = 0\nreplicas = 3\n";
        let variables = [("TRUNKLINE_MEMORY", "lots"), ("TRUNKLINE_BROKER", "x:1")];
        let problems = load(file, &variables, vec![("cluster", "my cluster".to_owned())]).unwrap_err();
        insta::assert_snapshot!(problems);
    }
}
