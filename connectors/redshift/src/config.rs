//! Options of the connector.

use percent_encoding::percent_decode_str;
use trunkline_connector::config::{Mismatch, OptionSpec, Section};
use trunkline_connector::tls::{self, TlsCodes, TlsOptions};
use trunkline_warehouse::{AccessKey, BucketOptions, Options, read_stage};
use url::Url;

use crate::iam::Login;

/// The connector's own options.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "url",
        "string",
        "`postgres://USER:PASSWORD@HOST:5439/DATABASE` of the cluster or the serverless workgroup. Write `${env:..}` or `${file:..}` \
         for the password; special characters in it need percent encoding. With `auth = \"aws\"`: without user and password.",
        "\"postgres://loader:${env:REDSHIFT_PASSWORD}@cluster.eu-central-1.redshift.amazonaws.com:5439/dev\"",
    ),
    OptionSpec::optional(
        "auth",
        "`aws`",
        "user and password in `url`",
        "`aws`: logins with temporary credentials of an IAM identity, which are renewed (`redshift:GetClusterCredentialsWithIAM`, or \
         `redshift-serverless:GetCredentials`).",
        "\"aws\"",
    ),
    OptionSpec::optional(
        "aws.cluster",
        "string",
        "the one in `url`",
        "Identifier of the provisioned cluster, where `url` does not have Amazon's address of it.",
        "\"shop\"",
    ),
    OptionSpec::optional(
        "aws.workgroup",
        "string",
        "the one in `url`",
        "Name of the serverless workgroup, where `url` does not have Amazon's address of it.",
        "\"shop\"",
    ),
    OptionSpec::optional(
        "aws.region",
        "string",
        "the one in `url`, else the environment's",
        "Region of the cluster or workgroup.",
        "\"eu-central-1\"",
    ),
    OptionSpec::optional(
        "aws.endpoint",
        "string",
        "the region's",
        "Address of the service that issues the credentials, with `https://` or `http://`: a VPC endpoint.",
        "\"https://vpce-1.redshift.eu-central-1.vpce.amazonaws.com\"",
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
        "\"${file:/run/secrets/loader}\"",
    ),
    OptionSpec::optional(
        "aws.session_token",
        "string",
        "none",
        "Token of temporary credentials, which goes with `aws.access_key_id`.",
        "\"${env:AWS_SESSION_TOKEN}\"",
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
    pub(crate) auth: Auth,
    pub(crate) tls: Tls,
    pub(crate) files: TlsOptions,
}

/// How a session logs in. No `Debug`: it holds secrets (I8).
#[derive(Clone)]
pub(crate) enum Auth {
    Password(Login),
    /// With credentials that AWS issues.
    Aws(IamOptions),
}

/// Where temporary credentials come from. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct IamOptions {
    pub(crate) target: IamTarget,
    /// `None`: that of the AWS chain.
    pub(crate) region: Option<String>,
    /// Another address of the service.
    pub(crate) endpoint: Option<String>,
    /// `None`: the credentials of the AWS chain.
    pub(crate) key: Option<AccessKey>,
}

/// What temporary credentials are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IamTarget {
    /// A provisioned cluster.
    Cluster(String),
    /// A serverless workgroup.
    Workgroup(String),
}

impl IamTarget {
    /// The option that names it.
    pub(crate) fn option(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "`aws.cluster`",
            Self::Workgroup(_) => "`aws.workgroup`",
        }
    }

    /// The target and the region in Amazon's addresses, such as
    /// `shop.abc1.eu-central-1.redshift.amazonaws.com`.
    fn of_host(host: &str) -> Option<(Self, String)> {
        let labels: Vec<&str> = host.split('.').collect();
        let [name, _, region, service, "amazonaws", ..] = labels.as_slice() else { return None };
        let target = match *service {
            "redshift" => Self::Cluster((*name).to_owned()),
            "redshift-serverless" => Self::Workgroup((*name).to_owned()),
            _ => return None,
        };
        Some((target, (*region).to_owned()))
    }
}

impl std::fmt::Display for IamTarget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(name) => write!(formatter, "the cluster `{name}`"),
            Self::Workgroup(name) => write!(formatter, "the workgroup `{name}`"),
        }
    }
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
const URL_FORM_OF_AWS: &str = "`postgres://HOST:5439/DATABASE`";

fn read_server(section: &Section<'_>) -> Option<Server> {
    let text = section.required::<String>("url");
    let is_aws = section.choice("auth", &[("aws", true)], false);
    let aws = section.section("aws");
    if aws.is_some()
        && !is_aws
        && let Some(node) = section.node("aws")
    {
        let mismatch = Mismatch::new("has no effect without `auth = \"aws\"`");
        section.mismatch("aws", node, mismatch, "`auth = \"aws\"` too".to_owned());
    }
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
            let form = if is_aws { URL_FORM_OF_AWS } else { URL_FORM };
            section.mismatch("url", node, Mismatch::new(message), form.to_owned());
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
    match (user.is_empty() || host.is_empty(), is_aws) {
        (true, false) => return wrong("names no user"),
        (false, true) => return wrong("names a user, and `auth = \"aws\"` logs in with the one that AWS names"),
        _ => {}
    }
    if url.query().is_some() {
        return wrong("has parameters: use the options `tls` and `tls_ca` instead");
    }
    let auth = if is_aws { Auth::Aws(read_aws(section, aws, host)?) } else { Auth::Password(Login { user, password }) };
    let port = url.port().unwrap_or(5439);
    Some(Server { host: host.to_owned(), port, database, auth, tls, files })
}

/// `aws`: what temporary credentials are for, and who asks for them.
fn read_aws(section: &Section<'_>, aws: Option<Section<'_>>, host: &str) -> Option<IamOptions> {
    let found = IamTarget::of_host(host);
    let (mut cluster, mut workgroup) = (None, None);
    let (mut region, mut endpoint, mut key) = (None, None, None);
    if let Some(aws) = aws {
        cluster = aws.optional::<String>("cluster");
        workgroup = aws.optional::<String>("workgroup");
        if cluster.is_some()
            && let Some(node) = aws.node("workgroup")
        {
            let mismatch = Mismatch::new("is given together with `cluster`");
            aws.mismatch("workgroup", node, mismatch, "`cluster` or `workgroup`".to_owned());
        }
        region = aws.optional("region");
        endpoint = aws.optional::<String>("endpoint");
        if let (Some(address), Some(node)) = (&endpoint, aws.node("endpoint"))
            && !address.starts_with("http://")
            && !address.starts_with("https://")
        {
            let mismatch = Mismatch::new("has no `http://` or `https://`");
            aws.mismatch("endpoint", node, mismatch, "an address such as `https://vpce-1.redshift..`".to_owned());
        }
        key = AccessKey::read(&aws);
        aws.finish();
    }
    let region = region.or(found.as_ref().map(|(_, region)| region.clone()));
    let target = cluster.map(IamTarget::Cluster).or(workgroup.map(IamTarget::Workgroup));
    let Some(target) = target.or(found.map(|(target, _)| target)) else {
        if let Some(node) = section.node("url") {
            let mismatch = Mismatch::new("has no address of Amazon's, so `auth = \"aws\"` does not know the cluster");
            let expected = "`aws = { cluster = \"..\" }` or `aws = { workgroup = \"..\" }` too";
            section.mismatch("url", node, mismatch, expected.to_owned());
        }
        return None;
    };
    Some(IamOptions { target, region, endpoint, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_temporary_credentials_is_in_the_address() {
        let of = |host: &str| IamTarget::of_host(host);
        let expected = |target| Some((target, "eu-central-1".to_owned()));
        let cluster = IamTarget::Cluster("shop".to_owned());
        assert_eq!(of("shop.abc1.eu-central-1.redshift.amazonaws.com"), expected(cluster));
        let workgroup = IamTarget::Workgroup("shop".to_owned());
        assert_eq!(of("shop.111122223333.eu-central-1.redshift-serverless.amazonaws.com"), expected(workgroup));
        for other in ["127.0.0.1", "redshift.example.com", "a.b.c.rds.amazonaws.com"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
