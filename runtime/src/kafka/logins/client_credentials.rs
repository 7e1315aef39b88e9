//! Tokens of an OAuth server, by the grant `client_credentials` (RFC 6749, OIDC).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Certificate, StatusCode, Url};
use serde_json::Value;
use trunkline_connector::{Result, io_error};

use super::{Token, failed, refused};

/// A client of an OAuth server.
pub(in crate::kafka) struct ClientCredentials {
    pub(in crate::kafka) url: Url,
    pub(in crate::kafka) id: String,
    pub(in crate::kafka) secret: String,
    pub(in crate::kafka) scope: Option<String>,
    /// Sent to the broker together with each token (RFC 7628).
    pub(in crate::kafka) extensions: Vec<(String, String)>,
    /// A file of certificate authorities, besides those of the system.
    pub(in crate::kafka) ca: Option<PathBuf>,
}

impl ClientCredentials {
    pub(super) async fn fetch(&self) -> Result<Token> {
        let form = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let mut body = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.scope {
            body.push_str(&format!("&scope={}", form(scope)));
        }
        let credentials = STANDARD.encode(format!("{}:{}", form(&self.id), form(&self.secret)));
        let request = self
            .client()?
            .post(self.url.clone())
            .header(AUTHORIZATION, format!("Basic {credentials}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(body);
        let response = request.send().await.map_err(|error| self.no_answer(error))?;
        let status = response.status();
        let body = response.text().await.map_err(|error| self.no_answer(error))?;
        let json: Value = serde_json::from_str(&body).unwrap_or_default();
        if !status.is_success() {
            return Err(self.refusal(status, &json));
        }
        self.token(&json, SystemTime::now())
    }

    fn client(&self) -> Result<reqwest::Client> {
        // A redirect would send the credentials elsewhere.
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
        if self.url.scheme() == "http" {
            // Loading the system's certificates would fail where there are none.
            builder = builder.tls_certs_only(Vec::new());
        } else if let Some(path) = &self.ca {
            let pem = std::fs::read(path).map_err(|error| io_error("read `https.ca.location`", path, &error))?;
            let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|certificates| !certificates.is_empty());
            let certificates = certificates.ok_or_else(|| {
                refused(format!("`https.ca.location` names {}, which has no certificate in PEM format", path.display()))
            })?;
            builder = builder.tls_certs_merge(certificates);
        }
        builder.build().map_err(|error| failed(format!("an HTTP client cannot be created: {error}")))
    }

    /// The address without user, password and query, which may be secrets.
    fn address(&self) -> String {
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{}{port}{}", self.url.scheme(), self.url.host_str().unwrap_or_default(), self.url.path())
    }

    fn no_answer(&self, error: reqwest::Error) -> trunkline_connector::Error {
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        failed(format!("{} does not answer: {reason}", self.address()))
    }

    fn refusal(&self, status: StatusCode, json: &Value) -> trunkline_connector::Error {
        let field = |name: &str| json.get(name).and_then(Value::as_str).map(|text| format!(": {text}"));
        let reason = [field("error"), field("error_description")].into_iter().flatten().collect::<String>();
        let message = format!("{} answered {status}{reason}", self.address());
        // The codes of temporary failures; every other one needs other settings.
        if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
            return failed(message);
        }
        let fix = "check `sasl.oauthbearer.token.endpoint.url`, `sasl.oauthbearer.client.id`, \
                   `sasl.oauthbearer.client.secret` and `sasl.oauthbearer.scope` in the settings `kafka`";
        refused(format!("{message}; {fix}"))
    }

    fn token(&self, json: &Value, now: SystemTime) -> Result<Token> {
        let Some(value) = json.get("access_token").and_then(Value::as_str) else {
            return Err(refused(format!(
                "{} answered without an `access_token`: is it a token endpoint?",
                self.address()
            )));
        };
        let claims = claims(value);
        // The token itself says when it expires; its number may be a fraction.
        let expires = claims.get("exp").and_then(Value::as_f64).map(|seconds| SystemTime::UNIX_EPOCH + time(seconds));
        let expires_in = json.get("expires_in").and_then(Value::as_f64).map(|seconds| now + time(seconds));
        let Some(expires) = expires.or(expires_in) else {
            return Err(refused(format!(
                "{} answered without `expires_in`, and the token has no `exp`",
                self.address()
            )));
        };
        let principal = claims.get("sub").and_then(Value::as_str).unwrap_or(&self.id).to_owned();
        Ok(Token { value: value.to_owned(), principal, expires, extensions: self.extensions.clone() })
    }
}

fn time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The claims of a JSON Web Token; `Null` for other tokens. The broker verifies the signature.
fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    payload.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> ClientCredentials {
        ClientCredentials {
            url: Url::parse("https://user:hunter2@id.example.com/token?key=hunter2").unwrap(),
            id: "worker".to_owned(),
            secret: "hunter2".to_owned(),
            scope: None,
            extensions: Vec::new(),
            ca: None,
        }
    }

    #[test]
    fn lifetime_and_principal_are_those_of_the_token() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let jwt = |claims: &str| format!("e30.{}.", URL_SAFE_NO_PAD.encode(claims));
        let cases = [
            (jwt(r#"{"sub":"alice","exp":1300.5}"#), 1300.5, "alice"),
            (jwt("{}"), 1060.0, "worker"),
            ("opaque".to_owned(), 1060.0, "worker"),
        ];
        for (token, expires, principal) in cases {
            let answer = serde_json::json!({ "access_token": token, "expires_in": 60 });
            let token = source().token(&answer, now).unwrap();
            assert_eq!((token.expires, token.principal.as_str()), (SystemTime::UNIX_EPOCH + time(expires), principal));
        }
    }

    #[test]
    fn refusals_say_whether_another_attempt_helps_and_show_no_secret() {
        let json = serde_json::json!({ "error": "invalid_client", "error_description": "unknown client" });
        let refusal = source().refusal(StatusCode::UNAUTHORIZED, &json);
        let text = refusal.to_string();
        assert_eq!(refusal.retry, trunkline_connector::Retry::Never);
        assert!(text.contains("https://id.example.com/token answered 401"), "{text}");
        assert!(text.contains("invalid_client: unknown client; check `sasl.oauthbearer."), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let busy = source().refusal(StatusCode::SERVICE_UNAVAILABLE, &Value::Null);
        assert_eq!(busy.retry, trunkline_connector::Retry::Backoff);
        let page = source().token(&Value::Null, SystemTime::now()).err().unwrap().to_string();
        assert!(page.contains("without an `access_token`") && !page.contains("hunter2"), "{page}");
    }
}
