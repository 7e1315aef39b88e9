//! The options that all warehouse sinks have.

use std::time::Duration;

use trunkline_connector::config::{Mismatch, OptionSpec, Section, Table, Value};
use trunkline_connector::tls::{self, TlsOptions};
use trunkline_connector::{CommitPolicy, Template};
use trunkline_objects::{AccessKey, BucketOptions, Checksum, Encryption, TLS_CA_CODE};

use crate::intent::LoadMode;
use crate::order::OrderBy;
use crate::tables::OnTypeChange;

/// Declarations of the options that all warehouse sinks have. A connector puts its own before them.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        example: "\"{@table}\"",
        ..OptionSpec::with_default(
            "table",
            "template",
            "\"{@topic}\"",
            "Name of the table. Characters other than letters, digits, `_` and `$` become `_`.",
        )
    },
    OptionSpec::with_default(
        "mode",
        "`append`, `upsert` or `history`",
        "\"append\"",
        "`append`: every record is a row. `upsert`: the table holds the newest row of each key. `history`: the table holds every \
         version, with `valid_from`, `valid_to` and `is_current`.",
    ),
    OptionSpec::optional(
        "key",
        "array of strings",
        "the schema's primary key, else the fields of the record's key",
        "Fields that identify a row, for `upsert` and `history`.",
        "[\"id\"]",
    ),
    OptionSpec::with_default(
        "deletes",
        "`hard` or `soft`",
        "\"hard\"",
        "With `upsert`: a delete removes the row, or sets its column `deleted_at`.",
    ),
    OptionSpec::with_default(
        "remember_deletes",
        "duration",
        "\"7d\"",
        "With `order`, for `upsert` with `deletes = \"hard\"` and for `history`: how long the sink remembers the keys of deleted rows, so \
         that a change from before the delete that arrives late does not bring the row back. `0s`: not at all.",
    ),
    OptionSpec::with_default(
        "takeover_timeout",
        "duration",
        "\"20s\"",
        "How long a task waits for the session of an earlier task that holds locks, before it ends that session: the earlier worker \
         hangs, or its network does.",
    ),
    OptionSpec::with_default(
        "order",
        "`source`, `position` or `arrival`",
        "\"source\"",
        "With `upsert` and `history`: which of two changes of a row is newer. `source`: the later one in the source, for changes that \
         Trunkline's `mysql` source read; others in the order of arrival. `position`: also Debezium's changes from MySQL, by their \
         position in the binlog; only for a connector that always reads the same server. `arrival`: the one that arrives last.",
    ),
    OptionSpec::with_default(
        "lineage",
        "boolean",
        "true",
        "Adds the columns `_topic`, `_partition`, `_offset` and `_loaded_at`.",
    ),
    OptionSpec::with_default(
        "on_type_change",
        "`stop`, `new_column` or `text`",
        "\"stop\"",
        "When a column's values no longer fit its type, and no wider type keeps both: the sink stops, the values go to another \
         column, or the column becomes text.",
    ),
    OptionSpec::with_default(
        "every",
        "duration",
        "\"1m\"",
        "Time between the loads of a topic partition, which also end at 64 MiB or 1,000,000 records. Sets `commit.age` and `commit.idle`.",
    ),
    OptionSpec::required(
        "stage",
        "string or table",
        "Where the files wait for their load: `s3://bucket/prefix`, or a table with the keys below. `snowflake`: also a stage of the \
         service, `@NAME/folder`.",
        "\"s3://lake/stage\"",
    ),
    OptionSpec::optional(
        "stage.url",
        "string",
        "`stage` is the url itself",
        "`s3://bucket/prefix`.",
        "\"s3://lake/stage\"",
    ),
    OptionSpec::optional(
        "stage.endpoint",
        "string",
        "Amazon S3",
        "Address of another store, with `http://` or `https://`. The warehouse must reach it, too.",
        "\"https://minio:9000\"",
    ),
    OptionSpec::optional("stage.region", "string", "environment, profile", "Region of the bucket.", "\"eu-central-1\""),
    OptionSpec::with_default(
        "stage.path_style",
        "boolean",
        "false",
        "`https://host/bucket/key` instead of `https://bucket.host/key`.",
    ),
    OptionSpec::optional(
        "stage.access_key_id",
        "string",
        "the AWS chain",
        "Access key of the stage, given together with `secret_access_key`.",
        "\"${env:LAKE_KEY_ID}\"",
    ),
    OptionSpec::optional(
        "stage.secret_access_key",
        "string",
        "the AWS chain",
        "Secret of `access_key_id`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/lake}\"",
    ),
    OptionSpec::optional(
        "stage.session_token",
        "string",
        "none",
        "Token of temporary credentials, which goes with `access_key_id`.",
        "\"${env:LAKE_SESSION_TOKEN}\"",
    ),
    OptionSpec::optional("stage.tls_ca", tls::CA.value_type, "the system's authorities", tls::CA.doc, tls::CA.example),
];

/// The configured part that all warehouse sinks have.
#[derive(Clone)]
pub struct Options {
    pub(crate) table: Template,
    pub(crate) mode: LoadMode,
    /// Fields of the key, as the records name them; empty: that of the schema or the record.
    pub(crate) key: Vec<String>,
    pub(crate) order: OrderBy,
    pub(crate) lineage: bool,
    pub(crate) on_type_change: OnTypeChange,
    /// How long deleted keys are remembered; `None`: not at all.
    pub(crate) remember_deletes: Option<Duration>,
    /// How long the session of an earlier task may be in the way.
    pub(crate) takeover_timeout: Duration,
    every: Duration,
}

impl Options {
    /// Reads the options other than `stage`; `None` if a problem was reported. The section must
    /// declare [`OPTIONS`].
    pub fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        let before = section.report.len();
        let table = read_table(section, template_variables);
        let modes = [("append", LoadMode::Append), ("upsert", LoadMode::Upsert), ("history", LoadMode::History)];
        let mode = section.one_of("mode", &modes);
        let key = section.or("key", Vec::<String>::new());
        let is_soft = section.one_of("deletes", &[("hard", false), ("soft", true)]);
        if is_soft
            && mode != LoadMode::Upsert
            && let Some(node) = section.node("deletes")
        {
            let mismatch = Mismatch::new("is `soft`, which only `mode = \"upsert\"` has");
            section.mismatch("deletes", node, mismatch, "`mode = \"upsert\"`, or no `deletes`".to_owned());
        }
        let changes =
            [("stop", OnTypeChange::Stop), ("new_column", OnTypeChange::NewColumn), ("text", OnTypeChange::Text)];
        let on_type_change = section.one_of("on_type_change", &changes);
        let orders = [("source", OrderBy::Source), ("position", OrderBy::Position), ("arrival", OrderBy::Arrival)];
        let order = section.one_of("order", &orders);
        let every: Duration = section.value("every");
        if every.is_zero()
            && let Some(node) = section.node("every")
        {
            section.mismatch("every", node, Mismatch::new("is zero"), "a duration such as `1m`".to_owned());
        }
        let remember_deletes: Duration = section.value("remember_deletes");
        let takeover_timeout: Duration = section.value("takeover_timeout");
        if takeover_timeout.is_zero()
            && let Some(node) = section.node("takeover_timeout")
        {
            section.mismatch("takeover_timeout", node, Mismatch::new("is zero"), "a duration such as `20s`".to_owned());
        }
        let lineage = section.value("lineage");
        (section.report.len() == before).then_some(())?;
        let mode = if is_soft { LoadMode::UpsertSoft } else { mode };
        // Appended rows replace none.
        let order = if mode == LoadMode::Append { OrderBy::Arrival } else { order };
        let remembers = matches!(mode, LoadMode::Upsert | LoadMode::History) && order != OrderBy::Arrival;
        let remember_deletes = Some(remember_deletes).filter(|keep| remembers && !keep.is_zero());
        Some(Self {
            table: table?,
            mode,
            key,
            order,
            lineage,
            on_type_change,
            remember_deletes,
            takeover_timeout,
            every,
        })
    }

    /// When a topic partition is loaded.
    pub fn commit_policy(&self) -> CommitPolicy {
        CommitPolicy { bytes: 64 << 20, records: 1_000_000, age: self.every, idle: self.every, max_open_files: 64 }
    }

    /// The templates that every record must have a value for.
    pub fn templates(&self) -> Vec<(&'static str, &Template)> {
        vec![("table", &self.table)]
    }
}

fn read_table(section: &Section<'_>, template_variables: &[&str]) -> Option<Template> {
    let source: String = section.value("table");
    match Template::parse(&source, template_variables) {
        Ok(template) => Some(template),
        Err(error) => {
            if let Some(node) = section.node("table") {
                let mismatch = Mismatch { message: error.message, span: None, help: error.help };
                section.mismatch("table", node, mismatch, "a template such as `{@topic}`".to_owned());
            }
            None
        }
    }
}

/// Reads `stage` as a bucket; `None` if a problem was reported. `more` reads the keys of the table
/// that only one connector has.
pub fn read_stage(section: &Section<'_>, more: impl FnOnce(&Section<'_>)) -> Option<BucketOptions> {
    let before = section.report.len();
    let empty = Table::default();
    let (url, nested) = match section.node("stage").map(|node| &node.value) {
        Some(Value::String(text)) => (Some(text.resolved.clone()), section.nested("stage", &empty)),
        None => {
            section.missing("stage", "`s3://bucket/prefix`");
            (None, section.nested("stage", &empty))
        }
        Some(_) => {
            let nested = section.section("stage")?;
            (nested.required::<String>("url"), nested)
        }
    };
    let options = read_bucket(&nested);
    more(&nested);
    nested.finish();
    let parts =
        url.as_deref().and_then(|url| url.strip_prefix("s3://")).map(|rest| rest.split_once('/').unwrap_or((rest, "")));
    let parts = parts.filter(|(bucket, _)| {
        !bucket.is_empty() && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    });
    match parts {
        Some((bucket, prefix)) if section.report.len() == before => {
            Some(BucketOptions { bucket: bucket.to_owned(), prefix: prefix.trim_matches('/').to_owned(), ..options })
        }
        Some(_) => None,
        None => {
            if let (Some(_), Some(node)) = (url, section.node("stage")) {
                let mismatch = Mismatch::new("is not the address of a bucket");
                section.mismatch("stage", node, mismatch, "`s3://bucket/prefix`".to_owned());
            }
            None
        }
    }
}

fn read_bucket(section: &Section<'_>) -> BucketOptions {
    let endpoint = section.optional::<String>("endpoint");
    if let (Some(address), Some(node)) = (&endpoint, section.node("endpoint"))
        && !address.starts_with("http://")
        && !address.starts_with("https://")
    {
        let mismatch = Mismatch::new("has no `http://` or `https://`");
        section.mismatch("endpoint", node, mismatch, "an address such as `https://minio:9000`".to_owned());
    }
    BucketOptions {
        bucket: String::new(),
        prefix: String::new(),
        endpoint,
        region: section.optional("region"),
        path_style: section.value("path_style"),
        credentials: AccessKey::read(section),
        tls: TlsOptions::read_ca(section, TLS_CA_CODE),
        encryption: Encryption::Bucket,
        part_size: 16 << 20,
        checksum: Checksum::Crc32c,
    }
}
