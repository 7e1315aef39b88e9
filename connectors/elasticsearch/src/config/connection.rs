//! Options of the connection: nodes, authentication, TLS, proxy.

use std::time::Duration;

use trunkline_connector::config::{FromNode, Mismatch, Node, Section, Value};
use trunkline_connector::tls::{TlsCodes, TlsOptions};

use super::{check, pair};

/// How the nodes are reached. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// Addresses without a slash at the end.
    pub(crate) nodes: Vec<String>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls: TlsOptions,
    pub(crate) proxy: Option<ProxyOptions>,
    pub(crate) gzip: bool,
    pub(crate) timeout: Duration,
    pub(crate) pipeline: Option<String>,
}

/// Authentication. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) enum Credentials {
    Basic { username: String, password: String },
    ApiKey(String),
    Bearer(String),
    Aws(AwsOptions),
}

/// Signatures of requests to Amazon's services. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct AwsOptions {
    /// `None`: the one in the address, else the environment's.
    pub(crate) region: Option<String>,
    pub(crate) service: AwsService,
    /// `None`: the AWS chain.
    pub(crate) key: Option<AwsKey>,
}

/// An access key. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct AwsKey {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// Of temporary credentials.
    pub(crate) session_token: Option<String>,
}

/// A service, by its name in signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AwsService {
    /// Amazon OpenSearch Service.
    Es,
    /// Amazon OpenSearch Serverless.
    Aoss,
}

/// A proxy for all requests. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) struct ProxyOptions {
    pub(crate) url: String,
    /// User and password.
    pub(crate) credentials: Option<(String, String)>,
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

/// The codes of errors about the files of TLS.
pub(crate) const TLS_CODES: TlsCodes = TlsCodes { ca: "elasticsearch.tls_ca", cert: "elasticsearch.tls_cert" };

/// Reads the options of the connection; `None` if one that is required is wrong (reported).
pub(super) fn read(section: &Section<'_>) -> Option<ClientOptions> {
    let nodes = section.required::<Urls>("url").map(|urls| urls.0);
    let credentials = read_credentials(section, nodes.as_deref().unwrap_or_default());
    let tls = TlsOptions::read(section, TLS_CODES);
    let proxy = section.section("proxy").and_then(read_proxy);
    let gzip = section.one_of("compression", &[("gzip", true), ("none", false)]);
    let timeout: Duration = section.value("timeout");
    let in_range = (Duration::from_secs(1)..=Duration::from_secs(50)).contains(&timeout);
    check(section, "timeout", in_range, "is out of range", "a duration from `1s` to `50s`");
    let pipeline: Option<String> = section.optional("pipeline");
    check(section, "pipeline", pipeline.as_deref() != Some(""), "is empty", "the name of an ingest pipeline");
    Some(ClientOptions { nodes: nodes?, credentials, tls, proxy, gzip, timeout, pipeline })
}

fn read_proxy(section: Section<'_>) -> Option<ProxyOptions> {
    let url = section.required::<String>("url");
    if let Some(Err(message)) = url.as_deref().map(node_address) {
        let message = message.replace("`username` and `password`", "`proxy.username` and `proxy.password`");
        check(&section, "url", false, &message, "the address of a proxy such as `http://proxy:3128`");
    }
    let credentials = pair(&section, "username", "password");
    section.finish();
    Some(ProxyOptions { url: url?, credentials })
}

fn read_credentials(section: &Section<'_>, nodes: &[String]) -> Option<Credentials> {
    let basic = pair(section, "username", "password");
    let api_key = section.optional::<String>("api_key");
    let bearer = section.optional::<String>("bearer_token");
    let is_aws = section.choice("auth", &[("aws", true)], false);
    let aws = section.section("aws");
    let given = |key| section.table.get(key).is_some();
    if aws.is_some() && !given("auth") {
        check(section, "aws", false, "has no effect without `auth = \"aws\"`", "`auth = \"aws\"` too");
    }
    let kinds = ["username", "api_key", "bearer_token", "auth"];
    let mut kinds = kinds.into_iter().filter(|key| given(key) || *key == "username" && given("password"));
    if let (Some(first), Some(second)) = (kinds.next(), kinds.next()) {
        check(section, second, false, &format!("is given together with `{first}`"), "one way to authenticate");
    }
    let aws = aws.map(|aws| read_aws(aws, nodes));
    match (basic, api_key, bearer) {
        (Some((username, password)), ..) => Some(Credentials::Basic { username, password }),
        (_, Some(key), _) => Some(Credentials::ApiKey(key)),
        (.., Some(token)) => Some(Credentials::Bearer(token)),
        _ if is_aws => Some(Credentials::Aws(aws.unwrap_or_else(|| AwsOptions::of(nodes)))),
        _ => None,
    }
}

fn read_aws(section: Section<'_>, nodes: &[String]) -> AwsOptions {
    let found = AwsOptions::of(nodes);
    let service = section.choice("service", &[("es", AwsService::Es), ("aoss", AwsService::Aoss)], found.service);
    let region = section.optional::<String>("region");
    let key = pair(&section, "access_key_id", "secret_access_key");
    let session_token = section.optional::<String>("session_token");
    let is_alone = session_token.is_some() && section.table.get("access_key_id").is_none();
    check(&section, "session_token", !is_alone, "has no effect without `access_key_id`", "`access_key_id` too");
    section.finish();
    AwsOptions { region, service, key: key.map(|(id, secret)| AwsKey { id, secret, session_token }) }
}

impl AwsOptions {
    /// What the addresses say.
    fn of(nodes: &[String]) -> Self {
        let is_serverless = nodes.iter().any(|node| node.contains(".aoss."));
        let service = if is_serverless { AwsService::Aoss } else { AwsService::Es };
        Self { region: None, service, key: None }
    }
}

impl AwsService {
    /// Its name in signatures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Es => "es",
            Self::Aoss => "aoss",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_may_have_a_path_and_no_user() {
        assert_eq!(node_address("https://proxy/search/").as_deref(), Ok("https://proxy/search"));
        assert_eq!(node_address("http://search:9200").as_deref(), Ok("http://search:9200"));
        for wrong in ["search:9200", "s3://bucket", "http://user:secret@search", "http://search/?pretty", ""] {
            assert!(node_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_aws_service_is_known_by_the_address() {
        let service = |node: &str| AwsOptions::of(&[node.to_owned()]).service;
        assert_eq!(service("https://abc.eu-central-1.aoss.amazonaws.com"), AwsService::Aoss);
        assert_eq!(service("https://search-a.eu-central-1.es.amazonaws.com"), AwsService::Es);
    }
}
