//! Options of the sink.

mod connection;
mod documents;
mod index_template;

use trunkline_connector::config::{ByteSize, Mismatch, OptionSpec, Section};
use trunkline_connector::tls;

pub(crate) use connection::{AwsKey, AwsOptions, AwsService, ClientOptions, Credentials, ProxyOptions, TLS_CODES};
pub(crate) use documents::{DocumentOptions, IdRule, Mode, Target, VersionRule, index_name};
pub(crate) use index_template::{DecimalType, IndexTemplate};

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "url",
        "string or array of strings",
        "Addresses of the nodes, with `http://` or `https://` and, behind a reverse proxy, a path. Requests take turns; a node that \
         fails is left out for up to 30 s.",
        "[\"https://search-1:9200\", \"https://search-2:9200\"]",
    ),
    OptionSpec::optional(
        "index",
        "template",
        "required without `data_stream`",
        "Index or alias of each document. Give this or `data_stream`. A record without a value for the template is rejected.",
        "\"logs-web-{timestamp:%Y.%m.%d}\"",
    ),
    OptionSpec::optional(
        "data_stream",
        "template",
        "required without `index`",
        "Data stream of each document. Documents are only created: deletes are rejected. The sink creates a missing data stream \
         whose name has no placeholder.",
        "\"logs-web-default\"",
    ),
    OptionSpec::with_default(
        "mode",
        "`index`, `create` or `update`",
        "\"index\"",
        "`index`: the record replaces the document. `create`: the first record of an id stays, and deletes are rejected. `update`: \
         the record's fields are merged into the document. A `data_stream` always creates.",
    ),
    OptionSpec::with_default(
        "upsert",
        "boolean",
        "true",
        "With `mode = \"update\"`: a missing document is created. If false, a record without a document is rejected.",
    ),
    OptionSpec::optional(
        "id",
        "`key`, `offset`, `none` or template",
        "`key` for change events and tombstones, else `offset`",
        "Identity of a document. `key`: the record's key; a JSON key of one column is that column's value. `offset`: \
         topic+partition+offset. At most 512 bytes. `data_stream` takes `offset`, `none` or a template. `none`: the server gives \
         ids, and a repeated delivery adds its documents again (at least once).",
        "\"{order_id}\"",
    ),
    OptionSpec::optional(
        "version",
        "`offset`, `source`, `none` or template",
        "`offset`",
        "External version of a document whose id is not its offset: an older version never overwrites a newer one. With `offset`, \
         all records of an id must come from one topic partition. `source`: the binlog position in MySQL's change events. `none`: \
         the last delivery wins. A template must give a whole number that grows with each change of a document: a record with an \
         equal one is taken for a repetition.",
        "\"{revision}\"",
    ),
    OptionSpec::with_default(
        "version_epoch",
        "integer",
        "0",
        "Highest bits of each version, 0 to 31. After it is raised by one, every record is newer than what the index has: so that \
         a replay wins, or the changes after a failover of MySQL with `version = \"source\"`.",
    ),
    OptionSpec::with_default(
        "envelope",
        "`unwrap` or `keep`",
        "\"unwrap\"",
        "`unwrap`: a change event in Debezium's format indexes its `after`, and a delete deletes the document. `keep`: the event \
         is the document. Templates always see the record as it is in the topic.",
    ),
    OptionSpec::optional(
        "timestamp",
        "string",
        "none; for `data_stream` the record's time",
        "Field that is copied to `@timestamp`, unless the document has that field. Dots separate nested fields. Without a value for \
         it, the record's time in Kafka is used.",
        "\"timestamp\"",
    ),
    OptionSpec::optional(
        "routing",
        "template",
        "by id",
        "Routing value of a document, which selects its shard.",
        "\"{customer}\"",
    ),
    OptionSpec::optional(
        "pipeline",
        "string",
        "the index's",
        "Ingest pipeline that the server runs for each document.",
        "\"geoip\"",
    ),
    OptionSpec::with_default(
        "require_alias",
        "boolean",
        "false",
        "Documents are only written if `index` is an alias, so that a missing alias does not become an index.",
    ),
    OptionSpec::optional(
        "template.file",
        "path",
        "none",
        "JSON file with an index template, which the sink creates when it starts if the server has none of its name. If both have a \
         `version`, a newer one replaces an older one, and never the other way.",
        "\"index-template.json\"",
    ),
    OptionSpec::optional(
        "template.inline",
        "string",
        "none",
        "The index template as JSON, in place of `template.file`.",
        "'{\"index_patterns\": [\"logs-web-*\"], \"version\": 1}'",
    ),
    OptionSpec::optional(
        "template.name",
        "string",
        "`{pipeline}.{sink}`",
        "Name of the index template on the server.",
        "\"logs-web\"",
    ),
    OptionSpec::optional(
        "template.shards",
        "integer",
        "the template's, or the server's",
        "Primary shards of new indices. This and the next options change the template of `file` or `inline`. Without both, the sink \
         generates a template for its indices, and replaces it after these options change.",
        "2",
    ),
    OptionSpec::optional(
        "template.replicas",
        "integer",
        "the template's, or the server's",
        "Replicas of each shard of new indices.",
        "1",
    ),
    OptionSpec::optional(
        "template.refresh_interval",
        "duration",
        "the template's, or the server's (`1s`)",
        "How long documents of new indices may wait before they are searchable. `0s`: the server does not refresh by itself.",
        "\"5s\"",
    ),
    OptionSpec::optional(
        "template.lifecycle_policy",
        "string",
        "none",
        "ILM policy (Elasticsearch) or ISM policy (OpenSearch) of new indices. It must exist. An ISM policy must name the indices in \
         its `ism_template`.",
        "\"logs-30-days\"",
    ),
    OptionSpec::with_default(
        "template.rollover",
        "boolean",
        "false",
        "`index` is an alias that the policy rolls over. If it does not exist, the sink creates its first index, `INDEX-000001`.",
    ),
    OptionSpec::with_default(
        "template.field_types",
        "`server` or `schema`",
        "\"server\"",
        "Where field types are from that the template does not have. `server`: its dynamic mapping. `schema`: the schemas of \
         records with the header `trunkline.schema`, such as those of the source `mysql`. The sink then creates missing indices, and \
         adds the fields of each new schema once.",
    ),
    OptionSpec::with_default(
        "template.decimals",
        "`keyword` or `double`",
        "\"keyword\"",
        "With `field_types = \"schema\"`: the type of decimals. `keyword` is exact, and `double` can be compared and summed up.",
    ),
    OptionSpec::optional(
        "username",
        "string",
        "none",
        "User for basic authentication, given together with `password`.",
        "\"trunkline\"",
    ),
    OptionSpec::optional(
        "password",
        "string",
        "none",
        "Password of `username`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/search}\"",
    ),
    OptionSpec::optional(
        "api_key",
        "string",
        "none",
        "Encoded API key of Elasticsearch, in place of `username`. Write `${env:..}` or `${file:..}`.",
        "\"${env:SEARCH_API_KEY}\"",
    ),
    OptionSpec::optional(
        "bearer_token",
        "string",
        "none",
        "Token that is sent as `Authorization: Bearer`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/token}\"",
    ),
    OptionSpec::optional(
        "auth",
        "`aws`",
        "by the other options",
        "`aws`: requests are signed (SigV4), for Amazon OpenSearch Service and Serverless.",
        "\"aws\"",
    ),
    OptionSpec::optional(
        "aws.region",
        "string",
        "the one in `url`, else the environment's",
        "Region of the domain or collection.",
        "\"eu-central-1\"",
    ),
    OptionSpec::optional(
        "aws.service",
        "`es` or `aoss`",
        "by `url`",
        "`es`: OpenSearch Service. `aoss`: OpenSearch Serverless.",
        "\"aoss\"",
    ),
    OptionSpec::optional(
        "aws.access_key_id",
        "string",
        "the AWS chain",
        "Access key, given together with `aws.secret_access_key`. The chain: environment, profile, web identity, container, instance.",
        "\"AKIAIOSFODNN7EXAMPLE\"",
    ),
    OptionSpec::optional(
        "aws.secret_access_key",
        "string",
        "none",
        "Secret of `aws.access_key_id`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/search}\"",
    ),
    OptionSpec::optional(
        "aws.session_token",
        "string",
        "none",
        "Token of temporary credentials, which goes with `aws.access_key_id`.",
        "\"${env:AWS_SESSION_TOKEN}\"",
    ),
    tls::CA,
    tls::CERT,
    tls::KEY,
    tls::KEY_PASSWORD,
    OptionSpec::optional(
        "proxy.url",
        "string",
        "the environment's (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`)",
        "HTTP proxy for all requests, with `http://` or `https://`.",
        "\"http://proxy:3128\"",
    ),
    OptionSpec::optional(
        "proxy.username",
        "string",
        "none",
        "User for the proxy, given together with `proxy.password`.",
        "\"trunkline\"",
    ),
    OptionSpec::optional(
        "proxy.password",
        "string",
        "none",
        "Password of `proxy.username`. Write `${env:..}` or `${file:..}`.",
        "\"${file:/run/secrets/proxy}\"",
    ),
    OptionSpec::with_default("compression", "`gzip` or `none`", "\"gzip\"", "Compression of the requests."),
    OptionSpec::with_default(
        "request_bytes",
        "size",
        "\"8MiB\"",
        "Largest request, uncompressed. At least 64 KiB. A larger document is sent in its own request. The server's limit is \
         `http.max_content_length` (100 MB by default, 10 MB on small Amazon instances).",
    ),
    OptionSpec::with_default(
        "in_flight",
        "integer",
        "4",
        "Most concurrent requests of a task, 1 to 64. There are fewer while the server is busy.",
    ),
    OptionSpec::with_default(
        "timeout",
        "duration",
        "\"30s\"",
        "Limit on one request, 1 to 50 seconds. A request without an answer in time is repeated.",
    ),
];

/// The sink as configured.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) client: ClientOptions,
    pub(crate) documents: DocumentOptions,
    pub(crate) template: Option<IndexTemplate>,
    /// Largest request, uncompressed.
    pub(crate) request_bytes: usize,
    pub(crate) in_flight: usize,
}

impl Config {
    /// Reads the component's section; `None` if a problem was reported.
    pub(crate) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        section.declare(OPTIONS);
        let before = section.report.len();
        let client = connection::read(section);
        let documents = documents::read(section, template_variables);
        let template = section
            .section("template")
            .and_then(|section| index_template::read(section, documents.as_ref().map(|documents| &documents.target)));
        let request_bytes = section.value::<ByteSize>("request_bytes").0;
        check(section, "request_bytes", request_bytes >= 64 << 10, "is too small", "64 KiB or more");
        let in_flight: u64 = section.value("in_flight");
        check(section, "in_flight", (1..=64).contains(&in_flight), "is out of range", "a number from 1 to 64");
        (section.report.len() == before).then_some(())?;
        Some(Self {
            client: client?,
            documents: documents?,
            template,
            request_bytes: usize::try_from(request_bytes).unwrap_or(usize::MAX),
            in_flight: usize::try_from(in_flight).unwrap_or(1),
        })
    }
}

/// Reports the value of `key` unless the condition holds.
fn check(section: &Section<'_>, key: &'static str, holds: bool, message: &str, expected: &str) {
    if let (false, Some(node)) = (holds, section.node(key)) {
        section.mismatch(key, node, Mismatch::new(message), expected.to_owned());
    }
}

/// Two options that are given together or not at all.
fn pair(section: &Section<'_>, first: &'static str, second: &'static str) -> Option<(String, String)> {
    let values = (section.optional::<String>(first), section.optional::<String>(second));
    let given = |key| section.table.get(key).is_some();
    match (given(first), given(second)) {
        (true, false) => section.missing(second, &format!("it is given together with `{first}`")),
        (false, true) => section.missing(first, &format!("it is given together with `{second}`")),
        _ => {}
    }
    values.0.zip(values.1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trunkline_connector::config::Report;
    use trunkline_connector::conformance::{check_options_are_read, check_options_table, read_toml};

    use super::*;

    fn problems(options: &str) -> Vec<String> {
        let table = read_toml(options);
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.search", Path::new("."), &report);
        drop(Config::read(&section, &[]));
        section.finish();
        report.into_problems().into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn the_readme_has_the_declared_options() {
        check_options_table(&Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), OPTIONS);
    }

    #[test]
    fn every_declared_option_is_read() {
        check_options_are_read(OPTIONS, |section| drop(Config::read(section, &[])));
    }

    #[test]
    fn wrong_options_are_reported() {
        let good = "url = \"http://search:9200\"\nindex = \"a\"\n";
        assert_eq!(problems(good), [""; 0]);
        let cases = [
            ("password = \"x\"", "`sinks.search.username` is missing"),
            ("data_stream = \"x\"", "`sinks.search.data_stream` is given together with `index`"),
            ("id = \"all\"", "`sinks.search.id` is the same for all records"),
            ("version = \"3\"", "`sinks.search.version` is the same for all records"),
            ("timestamp = \"a..b\"", "`sinks.search.timestamp` is not a path of fields"),
            ("in_flight = 0", "`sinks.search.in_flight` is out of range"),
            ("timeout = \"5m\"", "`sinks.search.timeout` is out of range"),
            ("request_bytes = 5", "`sinks.search.request_bytes` is too small"),
            ("tls_cert = \"x\"", "`sinks.search.tls_key` is missing"),
            ("auth = \"aws\"\nbearer_token = \"x\"", "`sinks.search.auth` is given together with `bearer_token`"),
            ("aws = { region = \"x\" }", "`sinks.search.aws` has no effect without `auth = \"aws\"`"),
            (
                "proxy = { url = \"http://a:b@c\" }",
                "`sinks.search.proxy.url` has a user in it: use `proxy.username` and `proxy.password`",
            ),
            (
                "mode = \"update\"\nid = \"offset\"",
                "`sinks.search.id` names a new document for each record, so `mode = \"update\"` has nothing to update",
            ),
            (
                "mode = \"create\"\nversion = \"source\"",
                "`sinks.search.version` is given, but servers compare versions only with `mode = \"index\"`",
            ),
            (
                "version = \"source\"\nenvelope = \"keep\"",
                "`sinks.search.version` is `source`, but `envelope = \"keep\"` does not read change events",
            ),
            ("version_epoch = 32", "`sinks.search.version_epoch` is out of range"),
            ("upsert = false", "`sinks.search.upsert` has no effect without `mode = \"update\"`"),
            ("routing = \"{\"", "`sinks.search.routing` has a `{` that is never closed"),
            (
                "api_key = \"a\"\nusername = \"b\"\npassword = \"c\"",
                "`sinks.search.api_key` is given together with `username`",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(problems(&format!("{good}{line}")), [expected], "{line}");
        }
        assert_eq!(problems("url = \"http://search\""), ["`sinks.search.index` is missing"]);
        let upper = problems("url = \"http://search\"\nindex = \"Logs\"");
        assert_eq!(upper, ["`sinks.search.index` has an upper-case letter"]);
        let key = problems("url = \"http://search\"\ndata_stream = \"logs\"\nid = \"key\"");
        assert_eq!(key, ["`sinks.search.id` is `key`, but a data stream keeps only the first document of a key"]);
    }
}
