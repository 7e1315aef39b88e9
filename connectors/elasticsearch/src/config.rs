//! Options of the sink.

use std::path::PathBuf;
use std::time::Duration;

use trunkline_connector::Template;
use trunkline_connector::config::{ByteSize, FromNode, Mismatch, Node, OptionSpec, Section, Value};

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
    OptionSpec::optional(
        "id",
        "`key`, `offset` or template",
        "`key` for change events and tombstones, else `offset`",
        "Identity of a document. `key`: the record's key; a JSON key of one column is that column's value. `offset`: \
         topic+partition+offset. At most 512 bytes. `data_stream` takes `offset` or a template.",
        "\"{order_id}\"",
    ),
    OptionSpec::optional(
        "version",
        "`offset` or template",
        "`offset`",
        "External version of a document whose id is not its offset: an older version never overwrites a newer one. With `offset`, \
         all records of an id must come from one topic partition. A template must give a whole number that grows with each change \
         of a document: a record with an equal one is taken for a repetition.",
        "\"{revision}\"",
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
        "tls_ca",
        "path",
        "the system's",
        "PEM file of certificate authorities that are trusted besides those of the system.",
        "\"/etc/ssl/search-ca.pem\"",
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
    /// Largest request, uncompressed.
    pub(crate) request_bytes: usize,
    pub(crate) in_flight: usize,
}

/// How the nodes are reached. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// Addresses without a slash at the end.
    pub(crate) nodes: Vec<String>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) gzip: bool,
    pub(crate) timeout: Duration,
    pub(crate) pipeline: Option<String>,
}

/// Authentication. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) enum Credentials {
    Basic { username: String, password: String },
    ApiKey(String),
}

/// How records become documents.
#[derive(Debug, Clone)]
pub(crate) struct DocumentOptions {
    pub(crate) target: Target,
    pub(crate) id: IdRule,
    pub(crate) version: VersionRule,
    pub(crate) unwrap: bool,
    /// Path of the field that is copied to `@timestamp`.
    pub(crate) timestamp: Option<Vec<String>>,
    pub(crate) routing: Option<Template>,
}

/// Where documents go.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Index(Template),
    DataStream(Template),
}

/// Where the id of a document is from.
#[derive(Debug, Clone)]
pub(crate) enum IdRule {
    /// The key for change events and tombstones, the offset for other records.
    Automatic,
    Key,
    Offset,
    Template(Template),
}

/// Where the external version of a document is from.
#[derive(Debug, Clone)]
pub(crate) enum VersionRule {
    Offset,
    Template(Template),
}

impl Config {
    /// Reads the component's section; `None` if a problem was reported.
    pub(crate) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        section.declare(OPTIONS);
        let before = section.report.len();
        let client = read_client(section);
        let documents = read_documents(section, template_variables);
        let request_bytes = section.value::<ByteSize>("request_bytes").0;
        check(section, "request_bytes", request_bytes >= 64 << 10, "is too small", "64 KiB or more");
        let in_flight: u64 = section.value("in_flight");
        check(section, "in_flight", (1..=64).contains(&in_flight), "is out of range", "a number from 1 to 64");
        (section.report.len() == before).then_some(())?;
        Some(Self {
            client: client?,
            documents: documents?,
            request_bytes: usize::try_from(request_bytes).unwrap_or(usize::MAX),
            in_flight: usize::try_from(in_flight).unwrap_or(1),
        })
    }
}

fn check(section: &Section<'_>, key: &'static str, holds: bool, message: &str, expected: &str) {
    if let (false, Some(node)) = (holds, section.node(key)) {
        section.mismatch(key, node, Mismatch::new(message), expected.to_owned());
    }
}

/// One address or several.
struct Urls(Vec<String>);

impl FromNode for Urls {
    fn expected() -> String {
        "an address such as `https://search:9200`, or an array of addresses".to_owned()
    }

    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        let nodes = match &node.value {
            Value::Array(nodes) => nodes.as_slice(),
            _ => std::slice::from_ref(node),
        };
        if nodes.is_empty() {
            return Err(Mismatch::new("is empty"));
        }
        let read = |node: &Node| {
            let address = String::from_node(node)?;
            node_address(&address).map_err(|message| Mismatch {
                message: message.to_owned(),
                span: Some(node.span.clone()),
                help: None,
            })
        };
        nodes.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// The address of a node without a slash at its end, or what is wrong with it.
fn node_address(text: &str) -> Result<String, &'static str> {
    let url = reqwest::Url::parse(text).map_err(|_| "is not an address")?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err("has no `http://` or `https://`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user in it: use `username` and `password`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn read_client(section: &Section<'_>) -> Option<ClientOptions> {
    let nodes = section.required::<Urls>("url");
    let credentials = read_credentials(section);
    let tls_ca = section.optional::<PathBuf>("tls_ca").map(|path| section.base.join(path));
    let gzip = section.one_of("compression", &[("gzip", true), ("none", false)]);
    let timeout: Duration = section.value("timeout");
    let in_range = (Duration::from_secs(1)..=Duration::from_secs(50)).contains(&timeout);
    check(section, "timeout", in_range, "is out of range", "a duration from `1s` to `50s`");
    let pipeline: Option<String> = section.optional("pipeline");
    check(section, "pipeline", pipeline.as_deref() != Some(""), "is empty", "the name of an ingest pipeline");
    Some(ClientOptions { nodes: nodes?.0, credentials, tls_ca, gzip, timeout, pipeline })
}

fn read_credentials(section: &Section<'_>) -> Option<Credentials> {
    let username = section.optional::<String>("username");
    let password = section.optional::<String>("password");
    let api_key = section.optional::<String>("api_key");
    let given = |key| section.table.get(key).is_some();
    match (given("username"), given("password")) {
        (true, false) => section.missing("password", "it goes with `username`"),
        (false, true) => section.missing("username", "it goes with `password`"),
        _ => {}
    }
    if given("api_key") && (given("username") || given("password")) {
        check(section, "api_key", false, "is given together with `username` or `password`", "only one of the two");
    }
    match (username.zip(password), api_key) {
        (Some((username, password)), _) => Some(Credentials::Basic { username, password }),
        (None, api_key) => api_key.map(Credentials::ApiKey),
    }
}

fn read_documents(section: &Section<'_>, template_variables: &[&str]) -> Option<DocumentOptions> {
    let index = read_template(section, "index", "an index such as `logs-{timestamp:%Y.%m.%d}`", template_variables);
    let stream = read_template(section, "data_stream", "a data stream such as `logs-web-default`", template_variables);
    let given = |key| section.table.get(key).is_some();
    if given("index") && given("data_stream") {
        check(section, "data_stream", false, "is given together with `index`", "only one of the two");
    } else if !given("index") && !given("data_stream") {
        section.missing("index", "an index, or `data_stream`");
    }
    for (key, template) in [("index", &index), ("data_stream", &stream)] {
        let name = template.as_ref().and_then(Template::constant);
        if let Some(Err(message)) = name.map(index_name) {
            check(section, key, false, message, "a lower-case name without spaces and `\\ / * ? \" < > | , #`");
        }
    }
    let target = match (index, stream) {
        (_, Some(stream)) => Some(Target::DataStream(stream)),
        (index, None) => index.map(Target::Index),
    };
    let mut id = match section.table.get("id").map(|node| &node.value) {
        Some(Value::String(text)) if text.resolved == "key" => IdRule::Key,
        Some(Value::String(text)) if text.resolved == "offset" => IdRule::Offset,
        _ => read_template(section, "id", "`key`, `offset` or a template", template_variables)
            .map_or(IdRule::Automatic, IdRule::Template),
    };
    let constant = matches!(&id, IdRule::Template(template) if template.constant().is_some());
    check(
        section,
        "id",
        !constant,
        "is the same for all records",
        "`key`, `offset` or a template such as `{order_id}`",
    );
    if matches!(target, Some(Target::DataStream(_))) {
        // The second document of an id would be taken for a repetition of the first.
        check(
            section,
            "id",
            !matches!(id, IdRule::Key),
            "is `key`, but a data stream keeps only the first document of a key",
            "`offset` or a template that differs for each record",
        );
        if matches!(id, IdRule::Automatic) {
            id = IdRule::Offset;
        }
    }
    let version = match section.table.get("version").map(|node| &node.value) {
        Some(Value::String(text)) if text.resolved == "offset" => VersionRule::Offset,
        _ => read_template(section, "version", "`offset` or a template", template_variables)
            .map_or(VersionRule::Offset, VersionRule::Template),
    };
    let constant = matches!(&version, VersionRule::Template(template) if template.constant().is_some());
    check(section, "version", !constant, "is the same for all records", "`offset` or a template such as `{revision}`");
    // Known also where no template was read.
    let _ = (section.node("id"), section.node("version"));
    let unwrap = section.one_of("envelope", &[("unwrap", true), ("keep", false)]);
    let timestamp: Option<Vec<String>> =
        section.optional::<String>("timestamp").map(|path| path.split('.').map(str::to_owned).collect());
    let is_path = timestamp.as_ref().is_none_or(|path| path.iter().all(|field| !field.is_empty()));
    check(section, "timestamp", is_path, "is not a path of fields", "a field such as `timestamp`, or `event.created`");
    let routing = read_template(section, "routing", "a template such as `{customer}`", template_variables);
    Some(DocumentOptions { target: target?, id, version, unwrap, timestamp, routing })
}

/// Checks the name of an index as the server does.
pub(crate) fn index_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Err("is not a name");
    }
    if name.starts_with(['-', '_', '+']) {
        return Err("starts with `-`, `_` or `+`");
    }
    if name.chars().any(|character| "\\/*?\"<>|,# :".contains(character)) {
        return Err("has a character that the name of an index cannot have");
    }
    if name.chars().any(char::is_uppercase) {
        return Err("has an upper-case letter");
    }
    if name.len() > 255 {
        return Err("is longer than 255 bytes");
    }
    Ok(())
}

fn read_template(
    section: &Section<'_>,
    key: &'static str,
    expected: &str,
    template_variables: &[&str],
) -> Option<Template> {
    let source: String = section.optional(key)?;
    match Template::parse(&source, template_variables) {
        Ok(template) => Some(template),
        Err(error) => {
            let node = section.node(key)?;
            // The template's text starts after the quote, if it stands in the file as it is.
            let span = match &node.value {
                Value::String(text) if text.raw == text.resolved && node.span.len() == text.raw.len() + 2 => {
                    Some(node.span.start + 1 + error.span.start..node.span.start + 1 + error.span.end)
                }
                _ => None,
            };
            section.mismatch(
                key,
                node,
                Mismatch { message: error.message, span, help: error.help },
                expected.to_owned(),
            );
            None
        }
    }
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
            ("routing = \"{\"", "`sinks.search.routing` has a `{` that is never closed"),
            (
                "api_key = \"a\"\nusername = \"b\"\npassword = \"c\"",
                "`sinks.search.api_key` is given together with `username` or `password`",
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

    #[test]
    fn addresses_may_have_a_path_and_no_user() {
        assert_eq!(node_address("https://proxy/search/").as_deref(), Ok("https://proxy/search"));
        assert_eq!(node_address("http://search:9200").as_deref(), Ok("http://search:9200"));
        for wrong in ["search:9200", "s3://bucket", "http://user:secret@search", "http://search/?pretty", ""] {
            assert!(node_address(wrong).is_err(), "{wrong}");
        }
    }
}
