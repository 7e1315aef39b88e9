//! Options of the connector.

use percent_encoding::percent_decode_str;
use trunkline_connector::config::{Mismatch, OptionSpec, Section};
use trunkline_connector::tls::{self, TlsCodes, TlsOptions};
use trunkline_warehouse::{BucketOptions, Options, read_stage};
use url::Url;

/// The connector's own options.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "url",
        "string",
        "`postgres://USER:PASSWORD@HOST:5439/DATABASE` of the cluster or the serverless workgroup. Write `${env:..}` or `${file:..}` \
         for the password; special characters in it need percent encoding.",
        "\"postgres://loader:${env:REDSHIFT_PASSWORD}@cluster.eu-central-1.redshift.amazonaws.com:5439/dev\"",
    ),
    OptionSpec::with_default("schema", "string", "\"public\"", "The schema of the tables. It must exist."),
    OptionSpec::with_default(
        "tls",
        "`verify-full`, `verify-ca`, `require` or `disable`",
        "\"verify-full\"",
        "`verify-full` checks the server's certificate and its name, `verify-ca` only the certificate, `require` neither.",
    ),
    tls::CA,
    tls::CERT,
    tls::KEY,
    tls::KEY_PASSWORD,
    OptionSpec::optional(
        "dist_key",
        "string",
        "`DISTSTYLE AUTO`",
        "Column by which new tables are distributed, where they have it.",
        "\"customer_id\"",
    ),
    OptionSpec::optional(
        "sort_key",
        "array of strings",
        "`SORTKEY AUTO`",
        "Columns by which new tables are sorted, where they have them all.",
        "[\"created_at\"]",
    ),
    OptionSpec::optional(
        "stage.iam_role",
        "string",
        "the stage's access key, else the cluster's default role",
        "Role with which Redshift reads the stage.",
        "\"arn:aws:iam::111122223333:role/redshift-copy\"",
    ),
];

/// The configured sink. No `Debug`: it holds secrets (I8).
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) schema: String,
    pub(crate) dist_key: Option<String>,
    pub(crate) sort_key: Vec<String>,
    pub(crate) stage: BucketOptions,
    pub(crate) iam_role: Option<String>,
    pub(crate) options: Options,
}

/// Where and how to log in.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) tls: Tls,
    pub(crate) files: TlsOptions,
}

/// How the server proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    VerifyFull,
    VerifyCa,
    Require,
    Disable,
}

impl Config {
    /// Reads the component's section; `None` if a problem was reported.
    pub(crate) fn read(section: &Section<'_>, template_variables: &[&str]) -> Option<Self> {
        let before = section.report.len();
        let server = read_server(section);
        let schema = section.value("schema");
        let dist_key = section.optional("dist_key");
        let sort_key = section.or("sort_key", Vec::new());
        let mut iam_role = None;
        let stage = read_stage(section, |stage| iam_role = stage.optional("iam_role"));
        let options = Options::read(section, template_variables);
        (section.report.len() == before).then_some(())?;
        Some(Self { server: server?, schema, dist_key, sort_key, stage: stage?, iam_role, options: options? })
    }

    /// The schema that the sink loads, without secrets.
    pub(crate) fn place(&self) -> String {
        let Server { host, port, database, .. } = &self.server;
        format!("redshift://{host}:{port}/{database}/{}", self.schema.to_lowercase())
    }
}

/// The codes of errors about the files of TLS.
const TLS_CODES: TlsCodes = TlsCodes { ca: "redshift.tls_ca", cert: "redshift.tls_cert" };

const URL_FORM: &str = "`postgres://USER:PASSWORD@HOST:5439/DATABASE`";

fn read_server(section: &Section<'_>) -> Option<Server> {
    let text = section.required::<String>("url");
    let choices = [
        ("verify-full", Tls::VerifyFull),
        ("verify-ca", Tls::VerifyCa),
        ("require", Tls::Require),
        ("disable", Tls::Disable),
    ];
    let tls = section.one_of("tls", &choices);
    let files = TlsOptions::read(section, TLS_CODES);
    let wrong = |message: &str| {
        if let Some(node) = section.node("url") {
            section.mismatch("url", node, Mismatch::new(message), URL_FORM.to_owned());
        }
        None
    };
    let Ok(url) = Url::parse(&text?) else { return wrong("is not a url") };
    if !matches!(url.scheme(), "postgres" | "postgresql" | "redshift") {
        return wrong("does not begin with `postgres://`");
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let (Some(host), Some(user), Some(password)) =
        (url.host_str(), decoded(url.username()), decoded(url.password().unwrap_or_default()))
    else {
        return wrong("has no host, or a user or password that is not UTF-8");
    };
    let Some(database) = decoded(url.path().trim_start_matches('/')).filter(|name| !name.is_empty()) else {
        return wrong("names no database");
    };
    if user.is_empty() || host.is_empty() {
        return wrong("names no user");
    }
    if url.query().is_some() {
        return wrong("has parameters: use the options `tls` and `tls_ca` instead");
    }
    let port = url.port().unwrap_or(5439);
    Some(Server { host: host.to_owned(), port, database, user, password, tls, files })
}
