//! HTTP requests to a store of secrets.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, RequestBuilder, StatusCode, Url};
use serde_json::Value;
use trunkline_connector::with_causes;

use super::FetchError;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A client for the host of `url`. The variable `ca_variable` may name a file of certificate
/// authorities, besides those of the system.
pub(super) fn client(url: &Url, ca_variable: &str) -> Result<reqwest::Client, FetchError> {
    // A redirect would send the credentials elsewhere.
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "http" {
        // Loading the system's certificates would fail where there are none.
        builder = builder.tls_certs_only(Vec::new());
    } else if let Some(path) = variable(ca_variable).map(PathBuf::from) {
        let pem = std::fs::read(&path).map_err(|error| {
            let reason = format!("{ca_variable} names {}, which cannot be read: {error}", path.display());
            FetchError::permanent(reason, "name a file of certificate authorities in PEM format")
        })?;
        let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|certificates| !certificates.is_empty());
        let certificates = certificates.ok_or_else(|| {
            let reason = format!("{ca_variable} names {}, which has no certificate", path.display());
            FetchError::permanent(reason, "name a file of certificate authorities in PEM format")
        })?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| {
        FetchError::permanent(format!("an HTTP client cannot be created: {error}"), "check the system's certificates")
    })
}

/// Sends a request. Returns the status and the body, `Null` if it is not JSON.
pub(super) async fn send(request: RequestBuilder, url: &Url) -> Result<(StatusCode, Value), FetchError> {
    let failed = |error: reqwest::Error| FetchError {
        reason: format!("{} does not answer: {}", origin(url), with_causes(&error.without_url())),
        help: "check the address, the network and the certificate authorities".to_owned(),
        is_temporary: true,
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let body = response.bytes().await.map_err(failed)?;
    Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Scheme, host and port: the rest of an address may be secret.
pub(super) fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Is a failure with this status temporary?
pub(super) fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// A variable of the environment that is set and not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
