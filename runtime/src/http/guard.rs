//! Who may ask. The server listens on loopback; any other address needs a token or client
//! certificates, because the answers name tables, files and errors.
//!
//! A web page in a browser on this machine can send requests to loopback. It can name the server by
//! a host that it controls (DNS rebinding), and then read the answers: this `Host` is refused. It
//! can also send requests without reading the answers (CSRF): a request that changes something is
//! refused if its `Origin` is another one, or if it has a body of a type that forms can send.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::connect::failure;
use super::page::is_browser;
use super::peer::{PATH, is_signed, own_addresses};
use super::{Client, Served};

/// Refuses requests of clients that do not prove who they are, if the settings have a token or
/// authorities of clients. Either proof is enough.
pub(super) async fn require_proof(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    let has_certificate =
        request.extensions().get::<ConnectInfo<Client>>().is_some_and(|client| client.has_certificate);
    let is_known = match &served.token {
        Some(token) => has_token(request.headers(), token) || is_of_worker(&served, &request, token),
        None => false,
    };
    if is_known || has_certificate || !served.has_authentication() {
        return next.run(request).await;
    }
    if served.token.is_none() {
        let message = "the connection has no client certificate of the authorities in the setting `http_tls_client_ca`";
        return failure(StatusCode::UNAUTHORIZED, message);
    }
    let message =
        "send the token of the setting `http_token`: Authorization: Bearer TOKEN, or as the password of Basic";
    // A browser asks for a user name and a password. Clients of REST must not.
    let scheme = if is_browser(request.headers()) { "Basic realm=\"trunkline\"" } else { "Bearer" };
    ([(header::WWW_AUTHENTICATE, scheme)], failure(StatusCode::UNAUTHORIZED, message)).into_response()
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    // Of Basic, the password is the token: browsers cannot send another scheme by themselves.
    let basic = given.strip_prefix(b"Basic ").and_then(|login| STANDARD.decode(login).ok()).unwrap_or_default();
    let password = basic.iter().position(|byte| *byte == b':').map(|colon| &basic[colon + 1..]);
    let given = given.strip_prefix(b"Bearer ").or(password).unwrap_or_default();
    // The time does not depend on how many bytes are right.
    let differences = given.iter().zip(token.as_bytes()).fold(0, |sum, (left, right)| sum | (left ^ right));
    given.len() == token.len() && differences == 0
}

/// Whether another worker of the cluster asks for the status of this one.
fn is_of_worker(served: &Served, request: &Request, token: &str) -> bool {
    let is_status = request.uri().path_and_query().is_some_and(|asked| asked.as_str() == PATH);
    let header = value(request.headers(), "authorization").unwrap_or_default();
    request.method() == Method::GET && is_status && {
        let (node, http) = served.control.place();
        is_signed(header, token, &own_addresses(&node, http.as_deref()), SystemTime::now())
    }
}

/// Refuses host names that are not of this machine.
pub(super) async fn require_local_host(request: Request, next: Next) -> Response {
    if is_local(value(request.headers(), "host").unwrap_or_default()) {
        return next.run(request).await;
    }
    failure(StatusCode::FORBIDDEN, "this server answers to `localhost` and to addresses only")
}

/// Whether a `Host` is `localhost` or an address, with or without a port.
fn is_local(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok()
}

/// Refuses requests that may change something, if a page of another site may have sent them, or if
/// other machines could send them without a token.
pub(super) async fn protect_writes(
    State((served, on_loopback)): State<(Arc<Served>, bool)>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    if !on_loopback && !served.has_authentication() {
        let message = "requests that change something need the setting `http_token` or `http_tls_client_ca`";
        return failure(StatusCode::FORBIDDEN, message);
    }
    match refusal(request.headers()) {
        Some((status, message)) => failure(status, message),
        None => next.run(request).await,
    }
}

fn refusal(headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let host = value(headers, "host").unwrap_or_default();
    if let Some(origin) = value(headers, "origin")
        && origin.split_once("://").map(|(_, place)| place) != Some(host)
    {
        return Some((
            StatusCode::FORBIDDEN,
            "a page of another site may not change pipelines: the Origin is not this server",
        ));
    }
    if value(headers, "sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Some((StatusCode::FORBIDDEN, "a page of another site may not change pipelines"));
    }
    let kind = value(headers, "content-type").map(|kind| kind.split(';').next().unwrap_or_default().trim());
    let has_body = value(headers, "content-length").is_some_and(|length| length.trim() != "0")
        || headers.contains_key(header::TRANSFER_ENCODING);
    let is_json = kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    if !is_json && (has_body || kind.is_some()) {
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body as JSON: Content-Type: application/json"));
    }
    None
}

fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    // A value that is not text is no match for anything.
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        values.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in ["localhost", "localhost:8083", "127.0.0.1:8083", "127.0.0.1", "[::1]:8083", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8083", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_token_must_be_equal() {
        let with = |value: &str| headers(&[("authorization", value)]);
        assert!(has_token(&with("Bearer abc"), "abc"));
        // user:abc, and abc without a user.
        assert!(has_token(&with("Basic dXNlcjphYmM="), "abc") && !has_token(&with("Basic YWJj"), "abc"));
        for wrong in ["Bearer abd", "Bearer ab", "Bearer abcd", "abc", "Basic abc", "Bearer "] {
            assert!(!has_token(&with(wrong), "abc"), "{wrong}");
        }
        assert!(!has_token(&HeaderMap::new(), "abc"));
    }

    #[test]
    fn requests_of_other_sites_are_refused() {
        let host = ("host", "127.0.0.1:8083");
        let refused = |values: &[(&'static str, &str)]| {
            refusal(&headers(&[&[host], values].concat())).map(|(status, _)| status.as_u16())
        };
        let allowed: [&[(&str, &str)]; 6] = [
            &[],
            &[("origin", "http://127.0.0.1:8083")],
            &[("sec-fetch-site", "same-origin")],
            &[("content-type", "application/json")],
            &[("content-type", "application/json; charset=utf-8"), ("content-length", "9")],
            &[("content-length", "0")],
        ];
        for values in allowed {
            assert_eq!(refused(values), None, "{values:?}");
        }
        let foreign: [&[(&str, &str)]; 5] = [
            &[("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1:8084")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
        ];
        for values in foreign {
            assert_eq!(refused(values), Some(403), "{values:?}");
        }
        let forms: [&[(&str, &str)]; 4] = [
            &[("content-type", "text/plain")],
            &[("content-type", "application/x-www-form-urlencoded"), ("content-length", "0")],
            &[("content-length", "9")],
            &[("transfer-encoding", "chunked")],
        ];
        for values in forms {
            assert_eq!(refused(values), Some(415), "{values:?}");
        }
    }
}
