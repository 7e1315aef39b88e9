//! Declarations of the options that the runtime reads in pipeline files. Connectors declare their
//! own options.

use trunkline_connector::config::OptionSpec;

/// The top level of a pipeline file.
pub const PIPELINE: &[OptionSpec] = &[
    OptionSpec::required(
        "name",
        "string",
        "Name of the pipeline, unique in a cluster: letters, digits, `_` and `-`. It is part of topics, groups and \
         transactional ids.",
        "\"access-logs\"",
    ),
    OptionSpec::optional("description", "string", "none", "A note for readers of the file.", "\"logs of the shop\""),
    OptionSpec::optional(
        "dead_letter_topic",
        "topic",
        "`{pipeline}.dead-letters`",
        "Topic of the records that its components reject.",
        "\"rejected\"",
    ),
    OptionSpec::optional("sources", "tables", "none", "Sources by name: `[sources.NAME]`.", "{}"),
    OptionSpec::optional("transforms", "tables", "none", "Transforms by name: `[transforms.NAME]`.", "{}"),
    OptionSpec::optional("sinks", "tables", "none", "Sinks by name: `[sinks.NAME]`.", "{}"),
    OptionSpec::optional(
        "tests",
        "array of tables",
        "none",
        "Tests of the transforms, which `trunkline test` runs: see the [guide](../guides/testing.md).",
        "[]",
    ),
];

const ON_ERROR: OptionSpec = OptionSpec::with_default(
    "on_error",
    "`dead_letter`, `stop`, `skip`",
    "\"dead_letter\"",
    "What happens to a record that the component rejects: it goes to the dead letters, the stage stops before it, or \
     it is counted as dropped.",
);

const STOP_AFTER_ERRORS: OptionSpec = OptionSpec::optional(
    "stop_after.errors",
    "integer",
    "none",
    "The stage stops when the component sends this number of the last `stop_after.of` records to the dead letters, and \
     commits none of the records that are not committed yet.",
    "100",
);

const STOP_AFTER_OF: OptionSpec = OptionSpec::optional(
    "stop_after.of",
    "integer",
    "none",
    "The records of which `stop_after.errors` stop the stage: `stop_after = { errors = 100, of = 1000 }`.",
    "1_000",
);

const PARTITIONS: OptionSpec = OptionSpec::optional(
    "partitions",
    "number",
    "the setting `topics.partitions`",
    "Partitions of the topics that Trunkline creates for the component. An existing topic keeps its partitions.",
    "12",
);

const TASKS: OptionSpec = OptionSpec::with_default(
    "tasks",
    "number",
    "1",
    "Tasks per worker, from 1 to 1000. They share the partitions of the inputs.",
);

/// Options that all sources share.
pub const SOURCE: &[OptionSpec] = &[
    OptionSpec::required("connector", "string", "Name of the connector.", "\"logfile\""),
    OptionSpec::optional(
        "topic",
        "template",
        "`{pipeline}.{source}`; mysql: `{pipeline}.{@database}.{@table}`",
        "Topic of each record. Template variables of the connector may be used.",
        "\"access.{@path}\"",
    ),
    OptionSpec::optional(
        "topics",
        "table",
        "`{pipeline}.{port}`",
        "Topics of the other output ports, for a connector that has any.",
        "{ ddl = \"schema-changes\" }",
    ),
    PARTITIONS,
    OptionSpec::optional(
        "apply",
        "array of names",
        "none",
        "Transforms before the topic, in order. Data that must not reach Kafka is removed here.",
        "[\"mask\"]",
    ),
    ON_ERROR,
    STOP_AFTER_ERRORS,
    STOP_AFTER_OF,
    OptionSpec::optional(
        "commit_interval",
        "duration",
        "the setting `commit_interval`",
        "Longest time between commits.",
        "\"1s\"",
    ),
];

/// Options of transforms.
pub const TRANSFORM: &[OptionSpec] = &[
    OptionSpec::optional(
        "inputs",
        "array of inputs",
        "none: for `apply`",
        "The inputs: a component, `component.port` or `topic:NAME`. A transform without inputs is for a source's \
         `apply`.",
        "[\"web\"]",
    ),
    OptionSpec::optional(
        "table",
        "input",
        "none; required for `lookup.wasm`",
        "The table of `lookup.wasm`: a component, `component.port` or `topic:NAME`. The last record of each key is a row.",
        "\"accounts\"",
    ),
    OptionSpec::required(
        "plugin",
        "path or name",
        "Path of a WASM plugin, relative to the pipeline file, or the name of a bundled plugin.",
        "\"mask.wasm\"",
    ),
    OptionSpec::optional("config", "table", "`{}`", "Configuration of the plugin.", "{ fields = [\"card_number\"] }"),
    OptionSpec::with_default(
        "memory",
        "size",
        "\"256MiB\"",
        "Memory that an instance of the plugin may use. JavaScript needs most: about 200 MiB before it collects garbage.",
    ),
    OptionSpec::with_default(
        "timeout",
        "duration",
        "\"5s\"",
        "Time that a call of the plugin may take; a record that exceeds it alone is rejected.",
    ),
    OptionSpec::with_default(
        "trusted",
        "boolean",
        "false",
        "Runs the plugin without the checks that interrupt endless loops. Only for plugins that you wrote.",
    ),
    OptionSpec::optional(
        "state.max_bytes",
        "size",
        "`1GiB`; `64MiB` for the table of `lookup.wasm`",
        "Limit on the state of each topic partition, for a plugin that keeps state; for `lookup.wasm`, on its table. State \
         is on disk with a cache (setting `state_cache`), a table in memory. The stage stops with `plugin.state_full` or \
         `plugin.table_full` when the limit is reached.",
        "\"4GiB\"",
    ),
    OptionSpec::optional(
        "fuse",
        "boolean",
        "`true` with one reading stage and without state, else `false`",
        "`true` runs the transform inside the stage that reads it; only one stage may read it, and its plugin keeps no \
         state. `false` makes it a separate stage with its own topics.",
        "false",
    ),
    OptionSpec::optional(
        "topic",
        "template",
        "`{pipeline}.{transform}` for a separate stage",
        "Topic of the default port; makes the transform a separate stage.",
        "\"scored\"",
    ),
    OptionSpec::optional(
        "topics",
        "table",
        "`{topic}.{port}`",
        "Topics of the other output ports of a separate stage.",
        "{ alerts = \"fraud-alerts\" }",
    ),
    PARTITIONS,
    TASKS,
    ON_ERROR,
    STOP_AFTER_ERRORS,
    STOP_AFTER_OF,
];

/// Options that all sinks share.
pub const SINK: &[OptionSpec] = &[
    OptionSpec::required("connector", "string", "Name of the connector.", "\"s3\""),
    OptionSpec::required(
        "inputs",
        "array of inputs",
        "The inputs: a component, `component.port` or `topic:NAME`.",
        "[\"clean\", \"topic:orders\"]",
    ),
    OptionSpec::optional(
        "commit.bytes",
        "size",
        "the connector's",
        "Commits a topic partition when one of its outputs (a file, a request) has this size.",
        "\"128MiB\"",
    ),
    OptionSpec::optional(
        "commit.records",
        "integer",
        "the connector's",
        "Commits a topic partition when one of its outputs has this number of records.",
        "1_000_000",
    ),
    OptionSpec::optional(
        "commit.age",
        "duration",
        "the connector's",
        "Commits a topic partition when its first uncommitted record is this old.",
        "\"5m\"",
    ),
    OptionSpec::optional(
        "commit.idle",
        "duration",
        "the connector's",
        "Commits a topic partition when it received no record for this long.",
        "\"30s\"",
    ),
    TASKS,
    ON_ERROR,
    STOP_AFTER_ERRORS,
    STOP_AFTER_OF,
    OptionSpec::optional(
        "replay.forbid",
        "string",
        "none",
        "Why `trunkline replay` must not replay this sink. It refuses, and shows the reason.",
        "\"the auditors have signed these files\"",
    ),
    OptionSpec::optional(
        "replay.rate",
        "integer",
        "no limit",
        "The most records per second of a replay. `--rate` can only lower it.",
        "5_000",
    ),
];

#[cfg(test)]
mod tests {
    use trunkline_connector::config::OptionDefault;
    use trunkline_transform_host::Limits;

    use super::*;

    /// JavaScript plugins ran out of a smaller default on ordinary records.
    #[test]
    fn the_default_memory_of_transforms_is_what_the_host_recommends() {
        let memory = TRANSFORM.iter().find(|option| option.key == "memory").unwrap();
        let expected = format!("\"{}MiB\"", Limits::default().memory >> 20);
        assert!(matches!(memory.default, OptionDefault::Value(default) if default == expected), "{memory:?}");
    }
}
