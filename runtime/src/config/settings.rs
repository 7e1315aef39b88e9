//! Settings of a worker, in layers: defaults, `trunkline.toml`, `TRUNKLINE_*` environment
//! variables, flags.
//!
//! One function reads every layer, so that an invalid value has the same message in each of them;
//! only its place differs: file, line and column, the name of the variable, or that of the flag.
//! figment merges the layers, and tables key by key. Relative paths in `trunkline.toml` start from
//! its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::Serialized;
use serde::{Deserialize, Deserializer, Serialize};
use trunkline_connector::config::ByteSize;
use trunkline_transform_host::StateDisk;

use super::diagnostics::{FileProblems, problem_at};
use super::setting_layers::{Layer, environment_layer, file_layer, flag_layer};

/// Settings of a worker.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Settings {
    /// Bootstrap servers, `host:port` separated by commas; `embedded` or `None` stands for the
    /// broker in the process.
    pub brokers: Option<String>,
    /// The worker's folder: caches, scratch files, the data of the embedded broker.
    pub data: PathBuf,
    /// Name that the workers of one cluster share; part of every group and transactional id.
    pub cluster: String,
    /// Start of the names of the state topics, groups and transactional ids.
    pub prefix: String,
    /// Name of this machine, for sources that read its files: the host name by default.
    pub node: String,
    /// No layer sets `node`.
    #[serde(skip)]
    pub is_default_node: bool,
    /// The byte budget of all buffers (I6).
    #[serde(deserialize_with = "byte_size")]
    pub memory: ByteSize,
    /// Folder for the state of transforms on disk.
    pub state_folder: Option<PathBuf>,
    /// Memory for the caches of these states.
    #[serde(default, deserialize_with = "optional_byte_size")]
    pub state_cache: Option<ByteSize>,
    /// Longest time between commits of a source or transform.
    pub commit_interval: Duration,
    /// A stage stops if its first records, as many as this, all fail; 0 turns the check off.
    pub max_initial_failures: u64,
    /// Folder that contains one file for each `${secret:NAME}`.
    pub secrets: Option<PathBuf>,
    /// Address of the HTTP server, or `off`.
    pub http: Option<String>,
    /// The token that the HTTP server requires.
    pub http_token: Option<String>,
    /// How topics are created.
    pub topics: TopicSettings,
    /// Properties of the Kafka client, such as `security.protocol` and `sasl.password`.
    pub kafka: BTreeMap<String, String>,
    /// What is logged, as a filter: `info`, `warn,trunkline=debug`.
    pub log: String,
    /// The form of the log.
    pub log_format: LogFormat,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// How topics are created. Existing topics are not changed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TopicSettings {
    /// Whether missing topics are created. Otherwise they are errors.
    pub create: bool,
    /// Partitions, unless the component sets them.
    pub partitions: i32,
    /// Replicas; -1, the default, stands for the brokers' default.
    pub replication: i16,
    /// Properties of the topic, such as `retention.ms`.
    pub config: BTreeMap<String, String>,
}

/// Settings given as flags: key and value.
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
            .field("prefix", &self.prefix)
            .field("node", &self.node)
            .field("memory", &self.memory)
            .field("state_folder", &self.state_folder)
            .field("state_cache", &self.state_cache)
            .field("commit_interval", &self.commit_interval)
            .field("max_initial_failures", &self.max_initial_failures)
            .field("secrets", &self.secrets)
            .field("http", &self.http)
            .field("http_token", &self.http_token.as_ref().map(|_| "***"))
            .field("topics", &self.topics)
            .field("kafka", &hidden)
            .field("log", &self.log)
            .field("log_format", &self.log_format)
            .finish()
    }
}

/// What the setting `http` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpSetting {
    /// No server.
    Off,
    /// This address; if another process has it, a free port.
    Preferred(SocketAddr),
    /// This address, or an error.
    Required(SocketAddr),
}

/// The port of Kafka Connect's REST server.
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8083);

impl Settings {
    /// Where the HTTP server listens. Without the setting, a job (`until_idle`) has none.
    pub fn http_address(&self, until_idle: bool) -> HttpSetting {
        match self.http.as_deref() {
            None if until_idle => HttpSetting::Off,
            None => HttpSetting::Preferred(DEFAULT_HTTP),
            // The layers have checked it: everything else is `off`.
            Some(address) => address.parse().map_or(HttpSetting::Off, HttpSetting::Required),
        }
    }

    /// Loads the settings. The file `config` must exist; without `config`, `trunkline.toml` is read
    /// if it exists.
    pub fn load(config: Option<&Path>, flags: &SettingsOverrides) -> Result<Self, Vec<FileProblems>> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::layered(config, &variables, flags)
    }

    /// The file that is read if no other one is named.
    pub const DEFAULT_FILE: &str = "trunkline.toml";

    /// Names of the settings that differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            brokers,
            data,
            cluster,
            prefix,
            node,
            is_default_node: _,
            memory,
            state_folder,
            state_cache,
            commit_interval,
            max_initial_failures,
            secrets,
            http,
            http_token,
            topics,
            kafka,
            log,
            log_format,
        } = self;
        let differ = [
            ("brokers", *brokers != other.brokers),
            ("data", *data != other.data),
            ("cluster", *cluster != other.cluster),
            ("prefix", *prefix != other.prefix),
            ("node", *node != other.node),
            ("memory", *memory != other.memory),
            ("state_folder", *state_folder != other.state_folder),
            ("state_cache", *state_cache != other.state_cache),
            ("commit_interval", *commit_interval != other.commit_interval),
            ("max_initial_failures", *max_initial_failures != other.max_initial_failures),
            ("secrets", *secrets != other.secrets),
            ("http", *http != other.http),
            ("http_token", *http_token != other.http_token),
            ("topics", *topics != other.topics),
            ("kafka", *kafka != other.kafka),
            ("log", *log != other.log),
            ("log_format", *log_format != other.log_format),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// Where the state of transforms is on disk, with its cache.
    pub fn state_disk(&self) -> StateDisk {
        let memory = usize::try_from(self.memory.0).unwrap_or(usize::MAX);
        let cache = self.state_cache.map_or(memory / 8, |size| usize::try_from(size.0).unwrap_or(usize::MAX));
        let folder = self.state_folder.clone().unwrap_or_else(|| self.data.join("state"));
        StateDisk::new(&folder, cache.min(memory / 2))
    }

    /// The name of the cluster in Kafka.
    pub fn cluster_name(&self) -> String {
        format!("{}{}", self.prefix, self.cluster)
    }

    /// As [`load`](Self::load), with these environment variables.
    fn layered(
        config: Option<&Path>,
        variables: &[(String, String)],
        flags: &SettingsOverrides,
    ) -> Result<Self, Vec<FileProblems>> {
        let mut problems = Vec::new();
        let environment = environment_layer(variables, &mut problems);
        let flags = flag_layer(flags, &mut problems);
        let default = Path::new(Self::DEFAULT_FILE);
        let file = match config.or_else(|| default.exists().then_some(default)) {
            Some(path) => file_layer(path, environment.secrets.as_deref(), &mut problems),
            None => Layer::default(),
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let is_default_node = ![&file, &environment, &flags].iter().any(|layer| layer.sets_node());
        let settings: Result<Self, _> = Figment::from(Serialized::defaults(Layer::declared_defaults()))
            .merge(Serialized::defaults(file))
            .merge(Serialized::defaults(environment))
            .merge(Serialized::defaults(flags))
            .extract();
        let settings = settings.map(|settings| Self { is_default_node, ..settings });
        settings.map_err(|error| vec![problem_at(None, "config.settings", error.to_string(), None)])
    }
}

fn byte_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    u64::deserialize(deserializer).map(ByteSize)
}

fn optional_byte_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    byte_size(deserializer).map(Some)
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
    fn later_layers_override_earlier_ones_and_tables_are_merged() {
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
            ("TRUNKLINE_TOPICS_CREATE", "false"),
            ("TRUNKLINE_PREFIX", "team-a."),
            ("TRUNKLINE_KAFKA_SASL_USERNAME", "variable"),
            ("TRUNKLINE_KAFKA_SERVICE_HOST", "10.0.0.1"),
            ("TRUNKLINE_BIN", "/bin/trunkline"),
        ];
        let settings = load(file, &variables, vec![("brokers", "flag:3".to_owned())]).unwrap();
        assert_eq!(settings.brokers.as_deref(), Some("flag:3"));
        assert_eq!(settings.memory, ByteSize(32 << 20));
        assert_eq!(settings.commit_interval, Duration::from_secs(1));
        assert_eq!(settings.node, "7");
        assert_eq!(settings.cluster_name(), "team-a.trunkline");
        assert!(!settings.topics.create);
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

    /// `trunkline settings --example` prints a file that sets nothing as it is, and every setting
    /// without its comment marks.
    #[test]
    fn the_example_file_is_valid() {
        let example = crate::config::example_file();
        let lines = example
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with('[') || line.contains(" = "));
        let uncommented: Vec<&str> = lines.collect();
        let settings = load(&uncommented.join("\n"), &[], Vec::new()).unwrap();
        assert_eq!((settings.topics.replication, settings.node.as_str()), (3, "web-1"));
        assert!(load(&example, &[], Vec::new()).is_ok());
    }

    #[test]
    fn a_budget_below_the_minimum_is_rejected() {
        let problems = load("memory = 5\n", &[], Vec::new()).unwrap_err();
        assert!(problems.contains("at least 4MiB"), "{problems}");
        assert!(load("memory = \"4MiB\"\n", &[], Vec::new()).is_ok());
    }

    #[test]
    fn every_setting_has_its_variable() {
        for (setting, name) in super::super::setting_options::variable_names() {
            let value = setting.example.trim_matches('"');
            let variable = format!("TRUNKLINE_{}", name.to_uppercase());
            load("", &[(&variable, value)], Vec::new()).unwrap_or_else(|problems| panic!("{variable}: {problems}"));
        }
    }
}
