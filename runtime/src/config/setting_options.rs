//! Declarations of the worker settings. Each one can be set in `trunkline.toml`, in its environment
//! variable, and, where [`FLAGS`] lists it, by a flag.

use trunkline_connector::config::{OptionDefault, OptionSpec};

/// What the environment variables of settings start with.
pub const PREFIX: &str = "TRUNKLINE_";

/// All settings.
pub const SETTINGS: &[OptionSpec] = &[
    OptionSpec::optional(
        "brokers",
        "addresses",
        "`embedded`",
        "Bootstrap servers, separated by commas. `embedded` runs a broker in the process; it listens on \
         127.0.0.1:9092, or on a free port if that one is taken, and the log names the port.",
        "\"kafka-1:9092,kafka-2:9092\"",
    ),
    OptionSpec::with_default(
        "data",
        "path",
        "\"trunkline-data\"",
        "The worker's folder, for one worker at a time: its id, scratch files, compiled plugins, the data of the \
         embedded broker.",
    ),
    OptionSpec::with_default(
        "cluster",
        "name",
        "\"trunkline\"",
        "Workers with the same name share the work. The name is part of all groups and transactional ids.",
    ),
    OptionSpec::optional(
        "prefix",
        "name",
        "none",
        "Start of the names of the state topics, groups and transactional ids, for a Kafka that several teams share with \
         prefixed ACLs. Do not change it later: a worker finds its positions by these names.",
        "\"team-a.\"",
    ),
    OptionSpec::optional(
        "node",
        "name",
        "host name",
        "Name of this machine. Log files are read per node: workers of one node share its files. The data directory keeps the host name of its first run.",
        "\"web-1\"",
    ),
    OptionSpec::with_default(
        "memory",
        "size",
        "\"256MiB\"",
        "The byte budget of all buffers, at least 4MiB. At the limit, reading pauses and files are closed early.",
    ),
    OptionSpec::optional(
        "state_folder",
        "path",
        "`state` in the folder `data`",
        "Folder for the state of transforms on disk: a copy that Kafka restores when it is lost. Each worker needs its own.",
        "\"/mnt/fast/trunkline-state\"",
    ),
    OptionSpec::optional(
        "state_cache",
        "size",
        "an eighth of `memory`",
        "Memory for the caches of all states, at most half of `memory`; part of it. State that fits into the cache is as \
         fast as one in memory.",
        "\"1GiB\"",
    ),
    OptionSpec::with_default(
        "commit_interval",
        "duration",
        "\"200ms\"",
        "Longest time between commits of sources and transforms. The first record after a pause is committed at \
         once. Commits take at most half of the time: with slow brokers they are rarer.",
    ),
    OptionSpec::with_default(
        "max_initial_failures",
        "number",
        "1000",
        "A stage stops if this many records, the first of a run, are all rejected: then its configuration is probably \
         wrong. 0 turns the check off.",
    ),
    OptionSpec::optional(
        "secrets",
        "path",
        "`$CREDENTIALS_DIRECTORY`",
        "Folder that contains one file for each `${secret:NAME}`, such as a mounted secret of Kubernetes. The default is \
         that of systemd's credentials. SIGHUP reads the files again.",
        "\"/run/secrets\"",
    ),
    OptionSpec::optional(
        "http",
        "address",
        "`127.0.0.1:8083`, or a free port if that one is taken; `off` with `--until-idle`",
        "Where the worker answers `/metrics`, `/health`, `/ready` and [REST](rest.md); `off` turns it off. An address that \
         other machines reach needs `http_token` or `http_tls_client_ca`.",
        "\"127.0.0.1:8083\"",
    ),
    OptionSpec::optional(
        "http_token",
        "string",
        "none",
        "Token that all paths require: `Authorization: Bearer TOKEN`. The probes `/health` and `/ready` need none.",
        "\"a-long-random-text\"",
    ),
    OptionSpec::optional(
        "http_tls_cert",
        "path",
        "none: the server speaks HTTP",
        "PEM file with the certificate of the HTTP server and its chain. The server then speaks HTTPS only. SIGHUP reads the file \
         again. Given with `http_tls_key`.",
        "\"worker.pem\"",
    ),
    OptionSpec::optional(
        "http_tls_key",
        "path",
        "none",
        "PEM file with the private key of `http_tls_cert`.",
        "\"worker-key.pem\"",
    ),
    OptionSpec::optional(
        "http_tls_client_ca",
        "path",
        "none",
        "PEM file with certificate authorities: a client with a certificate of one of them needs no token.",
        "\"clients-ca.pem\"",
    ),
    OptionSpec::with_default("log", "filter", "\"info\"", "What is logged, for example `warn,trunkline=debug`."),
    OptionSpec::with_default(
        "log_format",
        "`auto`, `text` or `json`",
        "\"auto\"",
        "The form of the log on stderr. `json`: one object for each line. `auto`: text on a terminal, and JSON of a worker \
         (`trunkline run`) whose stderr is a file or a pipe.",
    ),
    OptionSpec::with_default(
        "topics.create",
        "boolean",
        "true",
        "Create missing topics. With `false`, missing topics are errors that name the commands which create them.",
    ),
    OptionSpec::with_default(
        "topics.partitions",
        "number",
        "4",
        "Partitions of topics that Trunkline creates. Existing topics are not changed; the log names differences.",
    ),
    OptionSpec::optional(
        "topics.replication",
        "number",
        "the brokers' default",
        "Replicas of topics that Trunkline creates.",
        "3",
    ),
    OptionSpec::optional(
        "topics.config",
        "table",
        "the brokers' defaults",
        "Properties of topics that Trunkline creates.",
        "{ \"retention.ms\" = 604800000 }",
    ),
    OptionSpec::optional(
        "kafka",
        "table",
        "none",
        "`security` (`aws_msk_iam`, `scram`, `plain`, `mtls` or `oauth`), `region` (of an MSK cluster), and properties of \
         librdkafka, such as `security.protocol`, `sasl.*` or `compression.type`. Properties override Trunkline's defaults, \
         except those that exactly-once delivery requires.",
        "{ \"security.protocol\" = \"sasl_ssl\" }",
    ),
    OptionSpec::optional(
        "otlp.endpoint",
        "address",
        "none: nothing is exported",
        "Address of an OpenTelemetry collector for OTLP over HTTP. Traces go to `/v1/traces` under it, metrics to `/v1/metrics`. See \
         [metrics](metrics.md#opentelemetry).",
        "\"http://localhost:4318\"",
    ),
    OptionSpec::optional(
        "otlp.traces_endpoint",
        "address",
        "`v1/traces` under `otlp.endpoint`",
        "Whole address for traces; `off` exports no traces.",
        "\"off\"",
    ),
    OptionSpec::optional(
        "otlp.metrics_endpoint",
        "address",
        "`v1/metrics` under `otlp.endpoint`",
        "Whole address for metrics; `off` exports no metrics.",
        "\"https://collector.example:4318/v1/metrics\"",
    ),
    OptionSpec::optional(
        "otlp.headers",
        "table",
        "none",
        "Headers of each request, such as the key of a service. Write `${env:..}`, `${file:..}` or `${secret:..}`. In variables, `_` \
         stands for `-`.",
        "{ api-key = \"a-long-random-text\" }",
    ),
    OptionSpec::with_default(
        "otlp.protocol",
        "`http/protobuf`",
        "\"http/protobuf\"",
        "The protocol. There is no other one: a collector listens for it on port 4318, and for gRPC on port 4317.",
    ),
    OptionSpec::with_default("otlp.compression", "`none` or `gzip`", "\"none\"", "Compression of requests."),
    OptionSpec::with_default(
        "otlp.interval",
        "duration",
        "\"60s\"",
        "Time between two exports of the metrics, at least 1s.",
    ),
    OptionSpec::with_default("otlp.timeout", "duration", "\"10s\"", "Time for the collector to answer a request."),
    OptionSpec::with_default(
        "otlp.sample_ratio",
        "number",
        "0.1",
        "The share of traces that is exported, from 0 to 1. Traces of failures are always exported.",
    ),
    OptionSpec::optional(
        "otlp.resource",
        "table",
        "none",
        "More attributes of this process, next to `service.name` (`trunkline`), `service.version`, `service.instance.id` (the \
         worker's id), `host.name` (`node`) and `trunkline.cluster`, or in their place.",
        "{ \"deployment.environment.name\" = \"production\" }",
    ),
    OptionSpec::optional(
        "otlp.tls_ca",
        "path",
        "the system's authorities",
        "PEM file with the certificate authorities to trust.",
        "\"ca.pem\"",
    ),
    OptionSpec::optional(
        "otlp.tls_cert",
        "path",
        "none",
        "PEM file with the client's certificate and its chain, for a collector that asks for one. Given with `otlp.tls_key`.",
        "\"client-cert.pem\"",
    ),
    OptionSpec::optional(
        "otlp.tls_key",
        "path",
        "none",
        "PEM file with the private key of `otlp.tls_cert`.",
        "\"client-key.pem\"",
    ),
];

/// Settings with a flag.
pub const FLAGS: [&str; 5] = ["brokers", "data", "cluster", "node", "memory"];

/// The environment variable of a setting; of a table, the variables of its properties.
pub fn variable(setting: &OptionSpec) -> String {
    let name = format!("{PREFIX}{}", setting.key.replace('.', "_").to_uppercase());
    if is_table(setting) { format!("{name}_*") } else { name }
}

/// The settings whose variable is `PREFIX` and their name, in lower case with `_` for dots.
pub(super) fn variable_names() -> impl Iterator<Item = (&'static OptionSpec, String)> {
    SETTINGS.iter().filter(|setting| !is_table(setting)).map(|setting| (setting, setting.key.replace('.', "_")))
}

fn is_table(setting: &OptionSpec) -> bool {
    setting.value_type == "table"
}

/// The reference table of the settings, as Markdown.
pub fn settings_table() -> String {
    let mut table =
        String::from("| setting | variable | flag | type | default | meaning |\n|---|---|---|---|---|---|\n");
    for setting in SETTINGS {
        let flag = if FLAGS.contains(&setting.key) { format!("`--{}`", setting.key) } else { String::new() };
        table.push_str(&format!(
            "| `{}` | `{}` | {flag} | {} | {} | {} |\n",
            setting.key,
            variable(setting),
            setting.value_type,
            setting.default_text(),
            setting.doc
        ));
    }
    table
}

/// An example of `trunkline.toml`: every setting, commented out, with its default or an example.
pub fn example_file() -> String {
    let mut text = String::from(
        "# trunkline.toml: settings of a worker. It is read from the current folder, or from --config FILE.\n\
         # Environment variables and flags override it.\n",
    );
    // TOML requires tables after plain keys.
    for setting in SETTINGS.iter().filter(|setting| !setting.key.contains('.')) {
        push_example(&mut text, setting, setting.key);
    }
    for table in ["topics", "otlp"] {
        text.push_str(&format!("\n# [{table}]\n"));
        for setting in SETTINGS {
            if let Some((_, key)) = setting.key.split_once('.').filter(|(name, _)| *name == table) {
                push_example(&mut text, setting, key);
            }
        }
    }
    text
}

fn push_example(text: &mut String, setting: &OptionSpec, key: &str) {
    let absent = match setting.default {
        OptionDefault::Value(_) => String::new(),
        OptionDefault::Required | OptionDefault::Words(_) => format!(" Default: {}.", setting.default_text()),
    };
    text.push_str(&format!("\n# {}{absent}\n# {key} = {}\n", setting.doc, setting.example));
}
