//! Requests to the service.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Identity, StatusCode, Url};
use serde_json::Value;
use trunkline_connector::tls::{TlsIdentity, TlsOptions, handshake_problem};
use trunkline_connector::{Error, root_cause};
use uuid::Uuid;

use super::answer::Envelope;
use super::error::{ErrorKind, SqlError, SqlResult};

/// The service answers within 45 s: with a result, or with an address to poll.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// The longest part of an unexpected answer that an error shows.
const SHOWN_CHARACTERS: usize = 200;

/// Sends requests to one origin.
#[derive(Clone)]
pub(super) struct Http {
    client: reqwest::Client,
    origin: Url,
}

impl Http {
    pub(super) fn new(origin: &str, tls: &TlsOptions) -> SqlResult<Self> {
        // The binary has installed it already; a test of the connector has not.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let address = Url::parse(origin)
            .map_err(|error| SqlError::new(ErrorKind::Unreachable, format!("{origin} is not an address: {error}")))?;
        // A redirect would send the tokens elsewhere.
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(ANSWER_LIMIT)
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(20))
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
        if address.scheme() == "http" {
            // Loading the system's certificates would fail where there are none.
            builder = builder.tls_certs_only(Vec::new());
        } else {
            builder = with_tls(builder, tls)?;
        }
        let client = builder.build().map_err(|error| {
            let message =
                format!("cannot make an HTTP client: {}; check the system's certificates", root_cause(&error));
            SqlError::new(ErrorKind::Unreachable, message)
        })?;
        Ok(Self { client, origin: address })
    }

    /// An address at the origin, whatever host `path` names.
    fn url(&self, path: &str) -> SqlResult<Url> {
        let malformed = |_| SqlError::new(ErrorKind::StatementFailed, format!("the address `{path}` is malformed"));
        let named = self.origin.join(path).map_err(malformed)?;
        let mut url = self.origin.clone();
        url.set_path(named.path());
        url.set_query(named.query());
        Ok(url)
    }

    /// Posts a JSON body. Returns the answer, which may say that it failed.
    pub(super) async fn post(
        &self,
        path: &str,
        query: &[(&str, String)],
        token: Option<&str>,
        body: &Value,
    ) -> SqlResult<Envelope> {
        let mut url = self.url(path)?;
        url.query_pairs_mut()
            .append_pair("request_guid", &Uuid::new_v4().to_string())
            .extend_pairs(query.iter().map(|(name, value)| (*name, value.as_str())));
        let request = self.client.post(url).header(CONTENT_TYPE, "application/json").body(body.to_string());
        self.send(request, token).await
    }

    /// Gets an address of the service.
    pub(super) async fn get(&self, path: &str, token: &str) -> SqlResult<Envelope> {
        self.send(self.client.get(self.url(path)?), Some(token)).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, token: Option<&str>) -> SqlResult<Envelope> {
        let mut request = request.header(ACCEPT, "application/json");
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Snowflake Token=\"{token}\""));
            let mut value =
                value.map_err(|_| SqlError::new(ErrorKind::SessionLost, "the session's token is malformed"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let response = request.send().await.map_err(|error| self.no_answer(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.no_answer(&error))?;
        self.read(status, &body)
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> SqlResult<Envelope> {
        // Errors with a code arrive with several statuses.
        let parsed = serde_json::from_slice::<Envelope>(body);
        if let Ok(envelope) = parsed
            && (status.is_success() || !envelope.code().is_empty())
        {
            return Ok(envelope);
        }
        let text: String = String::from_utf8_lossy(body).trim().chars().take(SHOWN_CHARACTERS).collect();
        let host = self.host();
        let (kind, message) = match status.as_u16() {
            429 | 503 => (ErrorKind::Busy, format!("{host} is busy ({status})")),
            403 | 404 => (ErrorKind::AccountUnknown, format!("{host} answered {status}")),
            _ => (ErrorKind::SessionLost, format!("{host} answered {status} without a result: {text}")),
        };
        Err(SqlError::new(kind, message))
    }

    fn host(&self) -> String {
        self.origin.host_str().unwrap_or_default().to_owned()
    }

    fn no_answer(&self, error: &reqwest::Error) -> SqlError {
        let host = self.host();
        if let Some(problem) = handshake_problem(error) {
            SqlError::new(ErrorKind::Tls, format!("cannot connect to {host}: {problem}"))
        } else if error.is_connect() {
            SqlError::new(ErrorKind::Unreachable, format!("cannot connect to {host}: {}", root_cause(error)))
        } else if error.is_timeout() {
            SqlError::new(ErrorKind::SessionLost, format!("{host} did not answer within {ANSWER_LIMIT:?}"))
        } else {
            SqlError::new(ErrorKind::SessionLost, format!("the connection to {host} was lost: {}", root_cause(error)))
        }
    }
}

fn with_tls(builder: ClientBuilder, tls: &TlsOptions) -> SqlResult<ClientBuilder> {
    let unusable = |kind: ErrorKind, option: &str, error: &reqwest::Error| {
        SqlError::new(kind, format!("`{option}` cannot be used: {}", root_cause(error)))
    };
    let refused = |kind: ErrorKind, error: &Error| SqlError::new(kind, error.message());
    let mut builder = builder;
    if let Some(pem) = tls.authorities().map_err(|error| refused(ErrorKind::TlsAuthorities, &error))? {
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|error| unusable(ErrorKind::TlsAuthorities, "tls_ca", &error))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some(TlsIdentity { certificate, key }) =
        tls.identity().map_err(|error| refused(ErrorKind::TlsIdentity, &error))?
    {
        let identity = Identity::from_pem(&[certificate, key].join(&b'\n'));
        builder = builder.identity(identity.map_err(|error| unusable(ErrorKind::TlsIdentity, "tls_cert", &error))?);
    }
    Ok(builder)
}
