//! Logins with temporary credentials that AWS issues for an IAM identity:
//! `redshift:GetClusterCredentialsWithIAM` for provisioned clusters, and
//! `redshift-serverless:GetCredentials` for workgroups.
//!
//! A session keeps its login after the credentials have expired, so only a new session needs valid
//! ones. They are kept until shortly before they expire, and are fetched again if the server
//! refuses them. Both actions are one signed request: the SDKs of the services would add two large
//! crates.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::{Certificate, Client, StatusCode, Url};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use trunkline_connector::aws::http_client;
use trunkline_connector::tls::authorities_in;
use trunkline_connector::{Error, Result, with_causes};
use trunkline_warehouse::AccessKey;

use crate::config::{IamOptions, IamTarget};

/// The credentials are used no longer than this before they expire.
const MARGIN: Duration = Duration::from_secs(60);
/// The longest lifetime that can be asked for.
const LIFETIME: Duration = Duration::from_secs(3600);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A user and password. No `Debug`: it is a secret (I8).
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// The temporary logins of a sink.
pub(crate) struct IamLogins {
    options: IamOptions,
    database: String,
    known: Mutex<Option<Known>>,
}

struct Known {
    login: Login,
    until: SystemTime,
}

/// A request to one of the services.
struct Action {
    service: &'static str,
    content_type: &'static str,
    target: Option<&'static str>,
    body: String,
}

impl IamLogins {
    pub(crate) fn new(options: IamOptions, database: String) -> Self {
        Self { options, database, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A login that is valid now, and whether it was kept from an earlier call.
    pub(crate) fn get(&self, runtime: &Handle) -> Result<(Login, bool)> {
        if let Some(known) = self.known().as_ref().filter(|known| SystemTime::now() + MARGIN < known.until) {
            return Ok((known.login.clone(), true));
        }
        Ok((self.renew(runtime)?, false))
    }

    /// Another login: the server has refused the last one.
    pub(crate) fn renew(&self, runtime: &Handle) -> Result<Login> {
        let fetched = runtime.block_on(self.fetch())?;
        let login = fetched.login.clone();
        *self.known() = Some(fetched);
        Ok(login)
    }

    /// The user of the last login.
    pub(crate) fn user(&self) -> Option<String> {
        self.known().as_ref().map(|known| known.login.user.clone())
    }

    async fn fetch(&self) -> Result<Known> {
        let config = self.chain().await?;
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            let message = "the region of the cluster is not known: set `aws = { region = \"..\" }`, or AWS_REGION";
            Error::config("redshift.no_region", message)
        })?;
        let action = self.action();
        let url = self.address(&region, action.service)?;
        let credentials = credentials(&config).await?;
        let headers = signature(&url, &action, &credentials, &region)?;
        let mut request = client(&url)?.post(url.clone()).header("content-type", action.content_type);
        if let Some(target) = action.target {
            request = request.header("x-amz-target", target);
        }
        request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let doing = format!("cannot get a temporary login for {} from {}", self.options.target, origin(&url));
        let unreachable = |error: reqwest::Error| {
            let why = with_causes(&error.without_url());
            let message = format!("{doing}: {why}; check the network, the region and `aws.endpoint`");
            Error::external("redshift.aws_unavailable", message)
        };
        let answer = request.body(action.body.clone()).send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.text().await.map_err(unreachable)?;
        if !status.is_success() {
            return Err(refused(&doing, &self.options.target, status, &body));
        }
        let found = match self.options.target {
            IamTarget::Cluster(_) => login_of_xml(&body),
            IamTarget::Workgroup(_) => login_of_json(&body),
        };
        // The body may have a part of a password (I8).
        found.ok_or_else(|| {
            let message = format!("{doing}: the answer has no user, password and expiration; check `aws.endpoint`");
            Error::external("redshift.aws_unavailable", message)
        })
    }

    /// The AWS chain. It is read again for each login: its files and variables may name other
    /// credentials.
    async fn chain(&self) -> Result<SdkConfig> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client(None)?);
        if let Some(AccessKey { id, secret, session_token }) = &self.options.key {
            let credentials = Credentials::new(id, secret, session_token.clone(), None, "pipeline file");
            loader = loader.credentials_provider(credentials);
        }
        if let Some(region) = &self.options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        Ok(loader.load().await)
    }

    fn action(&self) -> Action {
        let seconds = LIFETIME.as_secs();
        match &self.options.target {
            IamTarget::Cluster(cluster) => {
                let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                Action {
                    service: "redshift",
                    content_type: "application/x-www-form-urlencoded; charset=utf-8",
                    target: None,
                    body: format!(
                        "Action=GetClusterCredentialsWithIAM&Version=2012-12-01&ClusterIdentifier={}&DbName={}&DurationSeconds={seconds}",
                        encoded(cluster),
                        encoded(&self.database)
                    ),
                }
            }
            IamTarget::Workgroup(workgroup) => Action {
                service: "redshift-serverless",
                content_type: "application/x-amz-json-1.1",
                target: Some("RedshiftServerless.GetCredentials"),
                body: json!({"workgroupName": workgroup, "dbName": self.database, "durationSeconds": seconds})
                    .to_string(),
            },
        }
    }

    fn address(&self, region: &str, service: &str) -> Result<Url> {
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let address = self.options.endpoint.clone().unwrap_or_else(|| format!("https://{service}.{region}.{domain}"));
        Url::parse(&address).map_err(|error| {
            let message = format!("the address {address} of the service is not valid: {error}; check `aws`");
            Error::config("redshift.no_region", message)
        })
    }
}

/// Scheme, host and port.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn client(url: &Url) -> Result<Client> {
    // The binary has installed it already; a test of the connector has not.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    // A redirect would send the request elsewhere.
    let mut builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .timeout(ANSWER_LIMIT)
        .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
    let of_file = |problem: String| {
        let message = format!("AWS_CA_BUNDLE: {problem}; name a PEM file of certificate authorities");
        Error::config("environment.aws_ca_bundle", message)
    };
    if url.scheme() == "http" {
        // Loading the system's certificates would fail where there are none.
        builder = builder.tls_certs_only(Vec::new());
    } else if let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        let pem = authorities_in(std::path::Path::new(&path)).map_err(of_file)?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| of_file(with_causes(&error)))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| {
        let message = format!("cannot make an HTTP client: {}; check the system's certificates", with_causes(&error));
        Error::external("redshift.aws_unavailable", message)
    })
}

async fn credentials(config: &SdkConfig) -> Result<Credentials> {
    let none = |why: &str| {
        let message = format!(
            "there are no AWS credentials to get a temporary login with: {why}; give the worker a role, set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY in its environment, or set `aws = {{ access_key_id, secret_access_key }}`"
        );
        Error::external("redshift.aws_credentials", message)
    };
    let provider = config.credentials_provider().ok_or_else(|| none("the AWS chain is empty"))?;
    // The chain lists its providers in lines.
    let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    provider.provide_credentials().await.map_err(|error| none(&one_line(with_causes(&error))))
}

/// The headers of the request's signature (SigV4).
fn signature(url: &Url, action: &Action, credentials: &Credentials, region: &str) -> Result<Vec<(String, String)>> {
    let failed = |error: &dyn std::error::Error| {
        let message = format!("a request to {} cannot be signed: {error}; check `aws`", origin(url));
        Error::config("redshift.no_region", message)
    };
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(action.service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| failed(&error))?;
    let target = action.target.map(|target| ("x-amz-target", target));
    let headers = std::iter::once(("content-type", action.content_type)).chain(target);
    let body = SignableBody::Bytes(action.body.as_bytes());
    let request = SignableRequest::new("POST", url.as_str(), headers, body).map_err(|error| failed(&error))?;
    let (instructions, _) = sign(request, &SigningParams::V4(params)).map_err(|error| failed(&error))?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The answer of `GetClusterCredentialsWithIAM`.
fn login_of_xml(body: &str) -> Option<Known> {
    let login = Login { user: element(body, "DbUser")?, password: element(body, "DbPassword")? };
    let nanos = string_to_timestamp_nanos(&element(body, "Expiration")?).ok()?;
    Some(Known { login, until: SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).ok()?) })
}

/// The answer of `GetCredentials`.
fn login_of_json(body: &str) -> Option<Known> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let text = |name: &str| answer.get(name)?.as_str().map(str::to_owned);
    let login = Login { user: text("dbUser")?, password: text("dbPassword")? };
    let until = Duration::try_from_secs_f64(answer.get("expiration")?.as_f64()?).ok()?;
    Some(Known { login, until: SystemTime::UNIX_EPOCH + until })
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let mut parts = text.split('&');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (entity, after) = part.split_once(';')?;
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            other => match other.strip_prefix("#x") {
                Some(digits) => number(digits, 16)?,
                None => number(other.strip_prefix('#')?, 10)?,
            },
        });
        plain.push_str(after);
    }
    Some(plain)
}

/// An error that the service answers.
fn refused(doing: &str, target: &IamTarget, status: StatusCode, body: &str) -> Error {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let member = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    // `com.amazonaws.redshiftserverless#AccessDeniedException`, or only its last part.
    let kind = element(body, "Code").or_else(|| member("__type")).unwrap_or_default();
    let kind = kind.rsplit('#').next().unwrap_or_default();
    let message = element(body, "Message").or_else(|| member("message")).or_else(|| member("Message"));
    let text = format!("{doing}: {status} {kind}: {}", message.unwrap_or_default().trim());
    let action = match target {
        IamTarget::Cluster(_) => "redshift:GetClusterCredentialsWithIAM",
        IamTarget::Workgroup(_) => "redshift-serverless:GetCredentials",
    };
    match kind {
        "ClusterNotFound" | "ClusterNotFoundFault" | "ResourceNotFoundException" => {
            Error::config("redshift.no_cluster", format!("{text}; check {} and the region", target.option()))
        }
        // A policy may follow: the sink continues without a restart.
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => Error::external(
            crate::session::PERMISSION_DENIED,
            format!("{text}; allow the identity `{action}` on {target}"),
        ),
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException" => Error::external(
            "redshift.aws_credentials",
            format!(
                "{text}; the AWS credentials are not accepted: check the role, AWS_ACCESS_KEY_ID, or `aws`, and this machine's clock"
            ),
        ),
        _ => Error::external(
            "redshift.aws_unavailable",
            format!("{text}; the login is tried again: check {} and the region if it lasts", target.option()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Domain;

    use super::*;

    #[test]
    fn answers_have_user_password_and_expiration() {
        let xml = "<GetClusterCredentialsWithIAMResponse xmlns=\"http://redshift.amazonaws.com/doc/2012-12-01/\">\
                   <GetClusterCredentialsWithIAMResult><DbPassword>a&lt;b&amp;c&#x2F;&#61;=</DbPassword><DbUser>IAMR:loader</DbUser>\
                   <Expiration>2024-02-29T23:59:59.500Z</Expiration><NextRefreshTime>2024-02-29T23:40:00Z</NextRefreshTime>\
                   </GetClusterCredentialsWithIAMResult></GetClusterCredentialsWithIAMResponse>";
        let known = login_of_xml(xml).unwrap();
        assert_eq!((known.login.user.as_str(), known.login.password.as_str()), ("IAMR:loader", "a<b&c/=="));
        assert_eq!(known.until, SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_251_199_500));
        let json = r#"{"dbPassword":"p","dbUser":"IAM:x","expiration":1.7092511995E9,"nextRefreshTime":1.7E9}"#;
        let known = login_of_json(json).unwrap();
        assert_eq!((known.login.user.as_str(), known.login.password.as_str()), ("IAM:x", "p"));
        assert_eq!(known.until, SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_251_199_500));
        assert!(login_of_xml("<DbUser>x</DbUser>").is_none() && login_of_json("{}").is_none());
    }

    #[test]
    fn refusals_name_the_cause_and_the_next_step() {
        let cluster = IamTarget::Cluster("shop".to_owned());
        let workgroup = IamTarget::Workgroup("shop".to_owned());
        let of = |target: &IamTarget, status: u16, body: &str| {
            refused("cannot", target, StatusCode::from_u16(status).unwrap(), body)
        };
        let xml = |code: &str| {
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
            )
        };
        for (error, domain, code, text) in [
            (
                of(&cluster, 403, &xml("AccessDenied")),
                Domain::External,
                "redshift.permission_denied",
                "cannot: 403 Forbidden AccessDenied: no; allow the identity `redshift:GetClusterCredentialsWithIAM` on the cluster `shop`",
            ),
            (of(&cluster, 404, &xml("ClusterNotFound")), Domain::Config, "redshift.no_cluster", "check `aws.cluster`"),
            (of(&cluster, 403, &xml("ExpiredToken")), Domain::External, "redshift.aws_credentials", "are not accepted"),
            (of(&cluster, 503, "busy"), Domain::External, "redshift.aws_unavailable", "the login is tried again"),
            (
                of(&workgroup, 400, r#"{"__type":"com.x#AccessDeniedException","message":"no"}"#),
                Domain::External,
                "redshift.permission_denied",
                "`redshift-serverless:GetCredentials` on the workgroup `shop`",
            ),
            (
                of(&workgroup, 400, r#"{"__type":"ResourceNotFoundException","message":"no"}"#),
                Domain::Config,
                "redshift.no_cluster",
                "check `aws.workgroup`",
            ),
        ] {
            assert_eq!((error.domain, error.code), (domain, code), "{error}");
            assert!(error.message().contains(text), "{error}");
        }
    }
}
