//! Options of the sink.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::datatypes::Fields;
use parquet::basic::{Compression, ZstdLevel};
use trunkline_connector::config::{ByteSize, Mismatch, OptionSpec, Section, Table, Value};
use trunkline_connector::tls::{self, TlsOptions};
use trunkline_connector::{CommitPolicy, Template};
use trunkline_objects::columns::{TYPES, pinned_column};
use trunkline_objects::{AccessKey, BucketOptions, Checksum, Encryption, TLS_CA_CODE, WriterOptions};

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "url",
        "string",
        "`s3://bucket/prefix`, `file:///directory`, or `file:directory` relative to the pipeline file.",
        "\"s3://lake/orders\"",
    ),
    OptionSpec {
        example: "\"day={timestamp:%Y-%m-%d}\"",
        ..OptionSpec::with_default(
            "path",
            "template",
            "\"\"",
            "Path of the files below `url`. Values are escaped as path segments. A record without a value for it is rejected.",
        )
    },
    OptionSpec::optional(
        "columns",
        "table of types",
        "inferred",
        "Types of columns: `boolean`, `int`, `bigint`, `double`, `decimal(P,S)`, `date`, `timestamp`, `text`, `binary` \
         (base64). `text` holds any value as JSON. A value that its column cannot hold is rejected. Other columns have the \
         type of the record's schema, or one inferred from all values so far.",
        "{ price = \"decimal(10,2)\", details = \"text\" }",
    ),
    OptionSpec::with_default(
        "rotate.bytes",
        "size",
        "\"128MiB\"",
        "Commits the files of a topic partition when one of them has this size, compressed. `rotate` is the earlier name of `commit`.",
    ),
    OptionSpec::with_default(
        "rotate.records",
        "integer",
        "1_000_000",
        "Commits the files of a topic partition when one of them has this number of records.",
    ),
    OptionSpec::with_default(
        "rotate.age",
        "duration",
        "\"5m\"",
        "Commits the files of a topic partition when the first record in them is this old.",
    ),
    OptionSpec::with_default(
        "rotate.idle",
        "duration",
        "\"30s\"",
        "Commits the files of a topic partition when it received no record for this long.",
    ),
    OptionSpec::with_default(
        "compression",
        "`zstd`, `snappy`, `lz4` or `none`",
        "\"zstd\"",
        "Compression of the column chunks.",
    ),
    OptionSpec::optional("compression_level", "integer", "`1` for zstd", "For zstd, 1 to 22.", "3"),
    OptionSpec::with_default(
        "row_group",
        "size",
        "\"16MiB\"",
        "Encoded size of a row group: what an open file may hold in memory. At least 64 KiB.",
    ),
    OptionSpec::with_default(
        "max_open_files",
        "integer",
        "64",
        "Open local files of a task. Above this number the topic partition with the largest file is committed. A path has an open \
         file once it has 1 MiB of rows, or when memory is short.",
    ),
    OptionSpec::optional(
        "endpoint",
        "string",
        "Amazon S3",
        "Address of another store, with `http://` or `https://`. For `s3://` only, as are all options below.",
        "\"https://minio:9000\"",
    ),
    OptionSpec::optional(
        "region",
        "string",
        "environment, profile",
        "Required for Amazon S3; other stores get `us-east-1` if none is given.",
        "\"eu-central-1\"",
    ),
    OptionSpec::with_default(
        "path_style",
        "boolean",
        "false",
        "`https://host/bucket/key` instead of `https://bucket.host/key`. MinIO and most other stores need it.",
    ),
    OptionSpec::optional(
        "access_key_id",
        "string",
        "the AWS chain",
        "Access key, given together with `secret_access_key`. The chain: environment, profile, web identity, container, instance.",
        "\"${env:LAKE_KEY_ID}\"",
    ),
    OptionSpec::optional(
        "secret_access_key",
        "string",
        "the AWS chain",
        "Secret of `access_key_id`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/lake}\"",
    ),
    OptionSpec::optional(
        "session_token",
        "string",
        "none",
        "Token of temporary credentials, which goes with `access_key_id`. Such credentials end after hours: prefer the AWS chain.",
        "\"${env:LAKE_SESSION_TOKEN}\"",
    ),
    tls::CA,
    OptionSpec::optional(
        "server_side_encryption",
        "`AES256` or `aws:kms`",
        "the bucket's setting",
        "Encryption of the objects.",
        "\"aws:kms\"",
    ),
    OptionSpec::optional(
        "sse_kms_key_id",
        "string",
        "the account's key",
        "Key for `aws:kms`, which it implies.",
        "\"arn:aws:kms:eu-central-1:111122223333:key/lake\"",
    ),
    OptionSpec::with_default(
        "part_size",
        "size",
        "\"16MiB\"",
        "Size of a part of a multipart upload, at least 5 MiB. It grows for objects of more than 10,000 parts.",
    ),
    OptionSpec::with_default(
        "checksum",
        "`crc32c`, `crc32`, `sha256` or `none`",
        "\"crc32c\"",
        "Checksum of each part.",
    ),
];

const MIB: u64 = 1 << 20;

/// The configured sink.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) destination: Destination,
    /// Template of the path below the destination.
    pub(crate) path: Template,
    /// Columns with pinned types.
    pub(crate) columns: Fields,
    /// When the open objects of a topic partition are committed.
    pub(crate) commit: CommitPolicy,
    pub(crate) writer: WriterOptions,
}

/// The destination of the objects.
#[derive(Clone)]
pub(crate) enum Destination {
    /// A local directory.
    Directory(PathBuf),
    /// A bucket. Boxed: it has many options.
    Bucket(Box<BucketOptions>),
}

impl Config {
    /// Reads the component's section; `None` if a problem was reported.
    pub(crate) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        section.declare(OPTIONS);
        let before = section.report.len();
        let destination = read_destination(section);
        let path = read_path(section, template_variables);
        let columns = read_columns(section);
        let commit = read_commit_policy(section);
        let writer = read_writer(section);
        (section.report.len() == before).then_some(())?;
        Some(Self { destination: destination?, path: path?, columns, commit, writer })
    }
}

const URL_FORMS: &str = "`s3://bucket/prefix`, `file:///directory`, or `file:directory` relative to this file";

fn read_destination(section: &Section<'_>) -> Option<Destination> {
    let url = section.required::<String>("url");
    // Read before the address is checked, so that a wrong address does not make the bucket's
    // options unknown.
    let bucket_options = url.as_ref().is_none_or(|url| !url.starts_with("file:")).then(|| read_bucket(section));
    let url = url?;
    let wrong = |message: &str, help: Option<&str>| {
        if let Some(node) = section.node("url") {
            let mismatch = Mismatch { message: message.to_owned(), span: None, help: help.map(str::to_owned) };
            section.mismatch("url", node, mismatch, URL_FORMS.to_owned());
        }
        None
    };
    if let Some(rest) = url.strip_prefix("file:") {
        return match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => Some(Destination::Directory(PathBuf::from(path))),
            Some(_) => wrong("names a host", Some("a local directory has three slashes: `file:///directory`")),
            None if rest.is_empty() => wrong("names no directory", None),
            None if rest == "~" || rest.starts_with("~/") => {
                let help = format!("write `file:${{env:HOME}}{}`", &rest[1..]);
                wrong("begins with `~`, which only a shell replaces", Some(&help))
            }
            None => Some(Destination::Directory(section.base.join(rest))),
        };
    }
    let Some(rest) = url.strip_prefix("s3://") else {
        let help = Path::new(&url).is_absolute().then(|| format!("did you mean `file://{url}`?"));
        return wrong("is not the address of a bucket or directory", help.as_deref());
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    if bucket.is_empty() || !bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return wrong("names no bucket", None);
    }
    if prefix.split('/').any(|segment| matches!(segment, "." | "..")) {
        return wrong("has a prefix with a segment of dots", None);
    }
    let bucket_options = bucket_options?;
    if let (Some(endpoint), Some(node)) = (&bucket_options.endpoint, section.node("endpoint"))
        && contains_bucket(endpoint, bucket)
    {
        let mismatch = Mismatch::new(format!("contains the bucket `{bucket}`, which is in `url` already"));
        section.mismatch(
            "endpoint",
            node,
            mismatch,
            "the address of the store alone, such as `https://minio:9000`".to_owned(),
        );
    }
    Some(Destination::Bucket(Box::new(BucketOptions {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        ..bucket_options
    })))
}

/// Whether the address of a store names the bucket too: in its path, or before Amazon's host.
fn contains_bucket(endpoint: &str, bucket: &str) -> bool {
    let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address);
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let rest = host.strip_prefix(bucket).and_then(|rest| rest.strip_prefix('.')).unwrap_or_default();
    path.split('/').next() == Some(bucket) || rest.starts_with("s3.") || rest.starts_with("s3-")
}

/// The options of a bucket without its address.
fn read_bucket(section: &Section<'_>) -> BucketOptions {
    let encryption = read_encryption(section);
    let part_size = size_at_least(section, "part_size", 5 * MIB, "object stores refuse smaller parts");
    let choices = [
        ("crc32c", Checksum::Crc32c),
        ("crc32", Checksum::Crc32),
        ("sha256", Checksum::Sha256),
        ("none", Checksum::None),
    ];
    let checksum = section.one_of("checksum", &choices);
    BucketOptions {
        bucket: String::new(),
        prefix: String::new(),
        endpoint: read_endpoint(section),
        region: section.optional("region"),
        path_style: section.value("path_style"),
        credentials: AccessKey::read(section),
        tls: TlsOptions::read_ca(section, TLS_CA_CODE),
        encryption,
        part_size,
        checksum,
    }
}

fn read_endpoint(section: &Section<'_>) -> Option<String> {
    let endpoint = section.optional::<String>("endpoint")?;
    if let Some(node) = section.node("endpoint")
        && !endpoint.starts_with("http://")
        && !endpoint.starts_with("https://")
    {
        let mismatch = Mismatch::new("has no `http://` or `https://`");
        section.mismatch("endpoint", node, mismatch, "an address such as `https://minio:9000`".to_owned());
    }
    Some(endpoint)
}

fn read_encryption(section: &Section<'_>) -> Encryption {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Bucket,
        Aes256,
        Kms,
    }
    let key = section.optional::<String>("sse_kms_key_id");
    let default = if key.is_some() { Kind::Kms } else { Kind::Bucket };
    let kind = section.choice("server_side_encryption", &[("AES256", Kind::Aes256), ("aws:kms", Kind::Kms)], default);
    if let Some(node) = section.node("sse_kms_key_id")
        && kind == Kind::Aes256
    {
        let mismatch = Mismatch::new("names a KMS key, but `server_side_encryption` is `AES256`");
        section.mismatch("sse_kms_key_id", node, mismatch, "`server_side_encryption = \"aws:kms\"`".to_owned());
    }
    match kind {
        Kind::Bucket => Encryption::Bucket,
        Kind::Aes256 => Encryption::Aes256,
        Kind::Kms => Encryption::Kms(key),
    }
}

fn read_path(section: &Section<'_>, template_variables: &[&str]) -> Option<Template> {
    let source: String = section.value("path");
    let report = |mismatch: Mismatch| {
        if let Some(node) = section.node("path") {
            section.mismatch("path", node, mismatch, "a template such as `day={timestamp:%Y-%m-%d}`".to_owned());
        }
        None
    };
    if source.starts_with('/') || source.ends_with('/') || source.contains("//") {
        return report(Mismatch::new("has an empty segment: leave out slashes at the ends and double ones"));
    }
    if source.split('/').any(|segment| matches!(segment, "." | "..")) {
        return report(Mismatch::new("has a segment of dots"));
    }
    match Template::parse(&source, template_variables) {
        Ok(template) => Some(template),
        Err(error) => {
            // The template's text starts after the quote, if it stands in the file as it is.
            let span = section.node("path").and_then(|node| match &node.value {
                Value::String(text) if text.raw == text.resolved && node.span.len() == text.raw.len() + 2 => {
                    Some(node.span.start + 1 + error.span.start..node.span.start + 1 + error.span.end)
                }
                _ => None,
            });
            report(Mismatch { message: error.message, span, help: error.help })
        }
    }
}

fn read_columns(section: &Section<'_>) -> Fields {
    let columns: BTreeMap<String, String> = section.optional("columns").unwrap_or_default();
    let mut pinned = Vec::new();
    for (name, written) in &columns {
        match (pinned_column(name, written), section.node("columns")) {
            (Some(column), _) => pinned.push(column),
            (None, Some(node)) => {
                let mismatch = Mismatch::new(format!("has the unknown type `{written}` for `{name}`"));
                section.mismatch("columns", node, mismatch, TYPES.to_owned());
            }
            (None, None) => {}
        }
    }
    pinned.into()
}

/// Reads `rotate`, the connector's earlier name of the option `commit`, and `max_open_files`.
fn read_commit_policy(section: &Section<'_>) -> CommitPolicy {
    let max_open_files = usize::try_from(at_least(section, "max_open_files", 1)).unwrap_or(usize::MAX);
    let empty = Table::default();
    let rotate = match section.section("rotate") {
        Some(rotate) => {
            refuse_with_commit(section);
            rotate
        }
        None => section.nested("rotate", &empty),
    };
    let policy = CommitPolicy {
        bytes: size_at_least(&rotate, "bytes", 1, "every record would be a file"),
        records: at_least(&rotate, "records", 1),
        age: positive(&rotate, "age"),
        idle: positive(&rotate, "idle"),
        max_open_files,
    };
    rotate.finish();
    policy
}

fn refuse_with_commit(section: &Section<'_>) {
    if let (Some(_), Some(node)) = (section.table.get("commit"), section.node("rotate")) {
        let mismatch = Mismatch::new("is another name of `commit`, which is given too");
        section.mismatch("rotate", node, mismatch, "only one of the two".to_owned());
    }
}

fn read_writer(section: &Section<'_>) -> WriterOptions {
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Zstd,
        Snappy,
        Lz4,
        None,
    }
    let choices = [("zstd", Kind::Zstd), ("snappy", Kind::Snappy), ("lz4", Kind::Lz4), ("none", Kind::None)];
    let kind = section.one_of("compression", &choices);
    let level = section.optional::<u64>("compression_level");
    let wrong_level = |message: &str| {
        if let Some(node) = section.node("compression_level") {
            section.mismatch(
                "compression_level",
                node,
                Mismatch::new(message),
                "for zstd a level of 1 to 22".to_owned(),
            );
        }
    };
    if level.is_some() && kind != Kind::Zstd {
        wrong_level("is set, but only zstd has levels");
    }
    let compression = match kind {
        Kind::Zstd => {
            let level = i32::try_from(level.unwrap_or(1)).ok().and_then(|level| ZstdLevel::try_new(level).ok());
            if level.is_none() {
                wrong_level("is out of range");
            }
            Compression::ZSTD(level.unwrap_or_default())
        }
        Kind::Snappy => Compression::SNAPPY,
        Kind::Lz4 => Compression::LZ4_RAW,
        Kind::None => Compression::UNCOMPRESSED,
    };
    let row_group = size_at_least(section, "row_group", 64 << 10, "smaller row groups are slow to read");
    WriterOptions { compression, row_group: usize::try_from(row_group).unwrap_or(usize::MAX) }
}

fn at_least(section: &Section<'_>, key: &'static str, least: u64) -> u64 {
    let value = section.value(key);
    if value < least
        && let Some(node) = section.node(key)
    {
        section.mismatch(key, node, Mismatch::new(format!("is {value}")), format!("a number from {least}"));
    }
    value
}

fn size_at_least(section: &Section<'_>, key: &'static str, least: u64, why: &str) -> u64 {
    let value = section.value::<ByteSize>(key).0;
    if value < least
        && let Some(node) = section.node(key)
    {
        section.mismatch(key, node, Mismatch::new(format!("is too small: {why}")), format!("{least} bytes or more"));
    }
    value
}

fn positive(section: &Section<'_>, key: &'static str) -> Duration {
    let value: Duration = section.value(key);
    if value.is_zero()
        && let Some(node) = section.node(key)
    {
        section.mismatch(key, node, Mismatch::new("is zero"), "a duration longer than that, such as `30s`".to_owned());
    }
    value
}

#[cfg(test)]
mod tests {
    use trunkline_connector::SinkConnector as _;
    use trunkline_connector::config::Report;
    use trunkline_connector::conformance::read_toml;

    use super::*;

    #[test]
    fn destinations_that_cannot_be_meant_are_reported() {
        let problems = |options: &str| {
            let (table, report) = (read_toml(options), Report::default());
            let section = Section::new(&table, 0..0, "sinks.lake", Path::new("/"), &report);
            drop(crate::S3Connector.configure(&section, &[]));
            report.into_problems().into_iter().map(|problem| format!("{problem:?}")).collect::<String>()
        };
        for url in ["file:~/lake", "file:~"] {
            let found = problems(&format!("url = \"{url}\""));
            assert!(found.contains("only a shell") && found.contains("${env:HOME}"), "{url}: {found}");
        }
        assert_eq!(problems("url = \"file:~old/lake\""), "");
        let to =
            |endpoint: &str, bucket: &str| problems(&format!("url = \"s3://{bucket}/x\"\nendpoint = \"{endpoint}\""));
        for endpoint in
            ["https://lake.s3.eu-central-1.amazonaws.com", "http://minio:9000/lake", "http://minio:9000/lake/"]
        {
            let found = to(endpoint, "lake");
            assert!(found.contains("contains the bucket `lake`"), "{endpoint}: {found}");
        }
        for (endpoint, bucket) in
            [("http://minio.local:9000", "minio"), ("https://s3.amazonaws.com", "s3"), ("http://m:9000/", "lake")]
        {
            assert_eq!(to(endpoint, bucket), "", "{endpoint}");
        }
    }
}
