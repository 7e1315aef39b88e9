//! The nodes of a cluster: requests take turns between them, and a node that fails is left out for
//! a while.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, ClientBuilder, Identity, Method, Proxy, RequestBuilder, StatusCode};
use trunkline_connector::tls::{TlsIdentity, handshake_problem};
use trunkline_connector::{Error, Result, Retry, root_cause};

use crate::aws::Signer;
use crate::config::{AwsService, ClientOptions, Credentials, ProxyOptions, TLS_CODES};

/// A call ends within this time: see [`trunkline_connector::IdempotentSink::deliver`].
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(50);

/// A request with less time than this is not sent: a busy server would do the work of a request
/// whose answer nothing waits for.
pub(crate) const MIN_ATTEMPT: Duration = Duration::from_secs(5);

/// How long a node is left out after its first failure in a row. It doubles up to the second value.
const DOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The longest part of an answer that an error shows.
const SHOWN_BYTES: usize = 500;

/// Speaks to the nodes of a cluster.
pub(crate) struct Client {
    http: reqwest::Client,
    nodes: Vec<Node>,
    /// The node whose turn is next.
    next: AtomicUsize,
    timeout: Duration,
    gzip: bool,
    /// Signs requests to Amazon's services.
    signer: Option<Signer>,
    pub(crate) pipeline: Option<String>,
    /// OpenSearch Serverless has no version and only a part of the API.
    pub(crate) is_serverless: bool,
}

struct Node {
    url: String,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Left out until then, unless no other node is left.
    down_until: Option<Instant>,
}

/// An answer of a node.
pub(crate) struct Response {
    pub(crate) node: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
pub(crate) struct NoAnswer {
    pub(crate) error: Error,
    /// A node closed the connection while the request was sent or before it was answered. Servers
    /// do that to a request over their size limit, too.
    pub(crate) closed: bool,
}

impl Client {
    /// A client with these options. It connects with the first request.
    pub(crate) async fn new(options: &ClientOptions) -> Result<Self> {
        let nodes = options.nodes.iter().map(|url| Node { url: url.clone(), health: Mutex::default() }).collect();
        let (signer, is_serverless) = match &options.credentials {
            Some(Credentials::Aws(aws)) => {
                (Some(Signer::load(aws, &options.nodes).await?), aws.service == AwsService::Aoss)
            }
            _ => (None, false),
        };
        Ok(Self {
            http: http_client(options)?,
            nodes,
            next: AtomicUsize::new(0),
            timeout: options.timeout,
            gzip: options.gzip,
            signer,
            pipeline: options.pipeline.clone(),
            is_serverless,
        })
    }

    /// A request without a body.
    pub(crate) async fn call(&self, method: Method, path: &str) -> Result<Response> {
        let request = |url: String| self.http.request(method.clone(), url);
        self.send(path, request, Instant::now() + CALL_LIMIT).await.map_err(|failed| failed.error)
    }

    /// A request with a JSON body.
    pub(crate) async fn call_json(&self, method: Method, path: &str, body: &serde_json::Value) -> Result<Response> {
        let body = Bytes::from(body.to_string());
        let request = |url: String| {
            self.http.request(method.clone(), url).header(CONTENT_TYPE, "application/json").body(body.clone())
        };
        self.send(path, request, Instant::now() + CALL_LIMIT).await.map_err(|failed| failed.error)
    }

    /// A `_bulk` request whose answer is wanted as the server gives it.
    pub(crate) async fn probe(&self, body: Bytes) -> Result<Response> {
        let request = |url: String| self.http.post(url).header(CONTENT_TYPE, "application/x-ndjson").body(body.clone());
        self.send("/_bulk", request, Instant::now() + CALL_LIMIT).await.map_err(|failed| failed.error)
    }

    /// Requests are compressed, so that a [packed](Client::packed) body has its own memory.
    pub(crate) fn packs(&self) -> bool {
        self.gzip
    }

    /// The body as it is sent.
    pub(crate) fn packed(&self, body: Bytes) -> Bytes {
        if self.gzip { compress(&body) } else { body }
    }

    /// A `_bulk` request with a [packed](Client::packed) body.
    pub(crate) async fn bulk(&self, body: Bytes, deadline: Instant) -> Result<Response, NoAnswer> {
        let encoding = self.gzip.then_some("gzip");
        let mut path = "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason,\
                        items.*.error.caused_by.reason"
            .to_owned();
        if let Some(pipeline) = &self.pipeline {
            path.push_str(&format!("&pipeline={}", path_segment(pipeline)));
        }
        let request = |url: String| {
            let request = self.http.post(url).header(CONTENT_TYPE, "application/x-ndjson").body(body.clone());
            match encoding {
                Some(encoding) => request.header(CONTENT_ENCODING, encoding),
                None => request,
            }
        };
        self.send(&path, request, deadline).await
    }

    /// Sends a request to the nodes, one after the other, until one answers. An answer that says
    /// that the node cannot serve (502, 503, 504) is returned only if no node has a better one.
    async fn send(
        &self,
        path: &str,
        request: impl Fn(String) -> RequestBuilder,
        deadline: Instant,
    ) -> Result<Response, NoAnswer> {
        let mut unavailable = None;
        let mut failed = None;
        for node in self.turn() {
            let timeout = self.timeout.min(deadline.saturating_duration_since(Instant::now()));
            if timeout < MIN_ATTEMPT.min(self.timeout) {
                break;
            }
            let url = format!("{}{path}", node.url);
            let request = self.prepare(request(url).timeout(timeout), node).await?;
            let answer = async {
                let response = self.http.execute(request).await?;
                let (status, headers) = (response.status(), response.headers().clone());
                Ok(Response { node: node.url.clone(), status, headers, body: response.bytes().await? })
            };
            match answer.await {
                Ok(response) if matches!(response.status.as_u16(), 502..=504) => {
                    node.failed();
                    unavailable = Some(response);
                }
                Ok(response) => {
                    node.answered();
                    return Ok(response);
                }
                Err(error) => {
                    node.failed();
                    failed = Some(no_answer(&node.url, timeout, &error));
                }
            }
        }
        match (unavailable, failed) {
            (Some(response), _) => Ok(response),
            (None, Some(failed)) => Err(failed),
            (None, None) => Err(NoAnswer {
                error: Error::external(
                    "elasticsearch.timeout",
                    "the nodes did not answer in time; the records are sent again",
                ),
                closed: false,
            }),
        }
    }

    /// The request as it is sent: with its signature.
    async fn prepare(&self, request: RequestBuilder, node: &Node) -> Result<reqwest::Request, NoAnswer> {
        let failed = |error| NoAnswer { error, closed: false };
        let mut request = request.build().map_err(|error| {
            let message = format!("a request to {} cannot be made: {}; check `url`", node.url, root_cause(&error));
            failed(Error::config("elasticsearch.client", message))
        })?;
        if let Some(signer) = &self.signer {
            signer.sign(&mut request).await.map_err(failed)?;
        }
        Ok(request)
    }

    /// The nodes in the order in which a request tries them.
    fn turn(&self) -> Vec<&Node> {
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.nodes.len().max(1);
        let now = Instant::now();
        let mut nodes: Vec<&Node> = self.nodes[first..].iter().chain(&self.nodes[..first]).collect();
        // Stable: nodes that are up keep their turns; of those that are down, the one that comes
        // back first is first.
        nodes.sort_by_key(|node| node.down_until().filter(|until| *until > now));
        nodes
    }
}

impl Node {
    fn down_until(&self) -> Option<Instant> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).down_until
    }

    fn answered(&self) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::default();
    }

    fn failed(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = DOWN.0.saturating_mul(1 << health.failures.min(8)).min(DOWN.1);
        *health = Health { failures: health.failures + 1, down_until: Some(Instant::now() + pause) };
    }
}

impl Response {
    /// The wait that the server asks for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The answer for an error: the status, and the server's reason or the beginning of the body.
    pub(crate) fn describe(&self) -> String {
        let reason = serde_json::from_slice::<serde_json::Value>(&self.body).ok().and_then(|body| {
            let error = &body["error"];
            let of_object = error["type"].as_str().zip(error["reason"].as_str());
            of_object.map(|(kind, reason)| format!("{kind}: {reason}")).or_else(|| error.as_str().map(str::to_owned))
        });
        let text = reason.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned());
        match shorten(&text) {
            "" => format!("{} answered {}", self.node, self.status),
            text => format!("{} answered {}: {text}", self.node, self.status),
        }
    }
}

/// The beginning of a text from a server.
pub(crate) fn shorten(text: &str) -> &str {
    let end = (0..=SHOWN_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Escapes a name for a path or a query.
pub(crate) fn path_segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn http_client(options: &ClientOptions) -> Result<reqwest::Client> {
    // The binary has installed it already; a test of the connector has not.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(authorization) = options.credentials.as_ref().map(authorization).transpose()?.flatten() {
        headers.insert(AUTHORIZATION, authorization);
    }
    // A redirect would send the credentials elsewhere.
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10).min(options.timeout))
        .tcp_nodelay(true)
        // Shorter than the limit of most proxies: a request must not meet a connection that is
        // being closed.
        .pool_idle_timeout(Duration::from_secs(20))
        .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = &options.proxy {
        builder = builder.proxy(proxy_for(proxy)?);
    }
    builder = with_tls(builder, options)?;
    builder.build().map_err(|error| {
        let message = format!(
            "cannot make an HTTP client: {}; check `tls_ca`, `tls_cert`, `tls_key`, and the certificate authorities of the system",
            root_cause(&error)
        );
        Error::config("elasticsearch.client", message)
    })
}

fn proxy_for(options: &ProxyOptions) -> Result<Proxy> {
    let proxy = Proxy::all(&options.url).map_err(|error| {
        let message = format!("the address `{}` of the proxy cannot be used: {}", options.url, root_cause(&error));
        Error::config("elasticsearch.proxy", message)
    })?;
    Ok(match &options.credentials {
        Some((username, password)) => proxy.basic_auth(username, password),
        None => proxy,
    })
}

fn with_tls(builder: ClientBuilder, options: &ClientOptions) -> Result<ClientBuilder> {
    let is_plain = options.nodes.iter().all(|node| node.starts_with("http://"));
    if is_plain && options.proxy.as_ref().is_none_or(|proxy| proxy.url.starts_with("http://")) {
        // Loading the system's certificates would fail where there are none.
        return Ok(builder.tls_certs_only(Vec::new()));
    }
    let mut builder = builder;
    if let Some(pem) = options.tls.authorities()? {
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|error| Error::config(TLS_CODES.ca, format!("`tls_ca` cannot be used: {}", root_cause(&error))))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some(TlsIdentity { certificate, key }) = options.tls.identity()? {
        let identity = Identity::from_pem(&[certificate, key].join(&b'\n')).map_err(|error| {
            Error::config(TLS_CODES.cert, format!("`tls_cert` and `tls_key` cannot be used: {}", root_cause(&error)))
        })?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

/// The header for credentials that do not depend on the request.
fn authorization(credentials: &Credentials) -> Result<Option<HeaderValue>> {
    let (option, text) = match credentials {
        Credentials::Basic { username, password } => {
            ("password", format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
        }
        Credentials::ApiKey(key) => ("api_key", format!("ApiKey {key}")),
        Credentials::Bearer(token) => ("bearer_token", format!("Bearer {token}")),
        Credentials::Aws(_) => return Ok(None),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        let message =
            format!("`{option}` has a character that cannot be sent; give the key or token as the server shows it");
        Error::config("elasticsearch.api_key", message)
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn compress(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to memory does not fail.
    match encoder.write_all(body).and_then(|()| encoder.finish()) {
        Ok(compressed) => compressed.into(),
        Err(_) => Bytes::new(),
    }
}

fn no_answer(node: &str, timeout: Duration, error: &reqwest::Error) -> NoAnswer {
    let (code, message) = if error.is_timeout() {
        (
            "elasticsearch.timeout",
            format!("{node} did not answer within {timeout:?}; if the cluster is healthy, raise `timeout`"),
        )
    } else if let Some(problem) = handshake_problem(error) {
        // A job does not repeat it: only other files, options or certificates help.
        let error = Error::external("elasticsearch.tls", format!("cannot connect to {node}: {problem}"));
        return NoAnswer { error: error.retry(Retry::Never), closed: false };
    } else if error.is_connect() {
        (
            "elasticsearch.unreachable",
            format!("cannot connect to {node}: {}; check `url`, the network, `proxy` and `tls_ca`", root_cause(error)),
        )
    } else {
        ("elasticsearch.connection_lost", format!("the connection to {node} was lost: {}", root_cause(error)))
    };
    let closed = !error.is_timeout() && !error.is_connect();
    NoAnswer { error: Error::external(code, message), closed }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::tls::TlsOptions;

    use super::*;

    fn client(nodes: usize) -> Client {
        let options = ClientOptions {
            nodes: (0..nodes).map(|node| format!("http://node-{node}")).collect(),
            credentials: None,
            tls: TlsOptions::none(TLS_CODES),
            proxy: None,
            gzip: true,
            timeout: Duration::from_secs(1),
            pipeline: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Client::new(&options)).unwrap()
    }

    fn urls(client: &Client) -> Vec<&str> {
        client.turn().into_iter().map(|node| node.url.trim_start_matches("http://node-")).collect()
    }

    #[test]
    fn nodes_take_turns_and_failed_ones_are_last() {
        let client = client(3);
        assert_eq!(urls(&client), ["0", "1", "2"]);
        assert_eq!(urls(&client), ["1", "2", "0"]);
        client.nodes[2].failed();
        client.nodes[2].failed();
        client.nodes[0].failed();
        assert_eq!(urls(&client), ["1", "0", "2"]);
        assert_eq!(urls(&client), ["1", "0", "2"]);
        client.nodes[0].answered();
        assert_eq!(urls(&client), ["1", "0", "2"]);
        assert_eq!(urls(&client), ["0", "1", "2"]);
    }

    #[test]
    fn credentials_are_not_printed() {
        let basic = Credentials::Basic { username: "user".to_owned(), password: "pass".to_owned() };
        let value = authorization(&basic).unwrap().unwrap();
        assert_eq!((value.to_str().unwrap(), format!("{value:?}").as_str()), ("Basic dXNlcjpwYXNz", "Sensitive"));
        assert!(authorization(&Credentials::ApiKey("a\nb".to_owned())).is_err());
    }

    #[test]
    fn answers_are_described_by_their_reason() {
        let response = |body: &'static str| Response {
            node: "http://node".to_owned(),
            status: StatusCode::BAD_REQUEST,
            headers: HeaderMap::new(),
            body: body.into(),
        };
        let of_object =
            r#"{"error":{"root_cause":[],"type":"illegal_argument_exception","reason":"no such"},"status":400}"#;
        assert_eq!(
            response(of_object).describe(),
            "http://node answered 400 Bad Request: illegal_argument_exception: no such"
        );
        assert_eq!(response(r#"{"error":"closed"}"#).describe(), "http://node answered 400 Bad Request: closed");
        assert_eq!(response("").describe(), "http://node answered 400 Bad Request");
        assert_eq!(shorten(&"é".repeat(400)).len(), 500);
    }
}
