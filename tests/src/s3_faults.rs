//! A proxy for an S3 server that breaks selected requests.
//!
//! It forwards requests and responses unchanged: signatures cover the host header, which stays the
//! client's. It parses only as much HTTP/1.1 as it needs to find the boundaries of messages.

use std::io::{self, Error};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::proxy::{self, Stream, TlsFiles};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The proxy answers with this status and S3's error document. The server receives no request.
    Status(u16),
    /// Half of its body reaches the server, then both connections break.
    Cut,
    /// The server executes the request, but the client receives no response: the connection breaks.
    DropReply,
    /// The server receives it after this delay.
    Slow(Duration),
}

/// A request that passed the proxy.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// The fault that was applied to it.
    pub fault: Option<Fault>,
}

/// The proxy. Tests change its rules while requests pass.
pub struct S3Faults {
    address: String,
    url: String,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    requests: Vec<Request>,
}

struct Rule {
    method: String,
    part_of_target: String,
    fault: Fault,
    /// The number of matching requests that pass first.
    skip: u64,
    /// The number of matching requests that are broken after those.
    hits: u64,
}

/// A fault that lasts until this value is dropped.
pub struct FaultWindow {
    state: Arc<Mutex<State>>,
    rule: usize,
}

impl S3Faults {
    /// Starts a proxy for the server at `upstream` (host and port).
    pub fn start(upstream: &str) -> Self {
        Self::start_on(upstream, None)
    }

    /// Starts a proxy that clients reach over TLS, with this certificate. The server has none.
    pub fn start_tls(upstream: &str, tls: &TlsFiles) -> Self {
        Self::start_on(upstream, Some(tls))
    }

    fn start_on(upstream: &str, tls: Option<&TlsFiles>) -> Self {
        let (listener, port) = proxy::listen();
        let state = Arc::new(Mutex::new(State::default()));
        let (upstream, shared) = (upstream.to_owned(), state.clone());
        let stop = proxy::serve(listener, tls.map(TlsFiles::acceptor), move |client| {
            let (upstream, state) = (upstream.clone(), shared.clone());
            // An error is a broken connection, which both sides notice.
            async move { drop(serve_connection(client, &upstream, &state).await) }
        });
        let (scheme, host) = if tls.is_some() { ("https", "localhost") } else { ("http", "127.0.0.1") };
        let address = format!("{host}:{port}");
        Self { url: format!("{scheme}://{address}"), address, state, _stop: stop }
    }

    /// The proxy's host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same with its scheme.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Breaks the `n`-th request, counted from 1 and from now, with this method and with this text
    /// in its path or query.
    pub fn nth(&self, n: u64, method: &str, part_of_target: &str, fault: Fault) {
        self.rule(method, part_of_target, fault, n - 1, 1);
    }

    /// Breaks every request with this method (any method if empty) and with this text in its path
    /// or query, until the window ends.
    pub fn from_now(&self, method: &str, part_of_target: &str, fault: Fault) -> FaultWindow {
        let rule = self.rule(method, part_of_target, fault, 0, u64::MAX);
        FaultWindow { state: self.state.clone(), rule }
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.state).requests.clone()
    }

    /// The number of broken requests so far.
    pub fn broken(&self) -> usize {
        locked(&self.state).requests.iter().filter(|request| request.fault.is_some()).count()
    }

    fn rule(&self, method: &str, part_of_target: &str, fault: Fault, skip: u64, hits: u64) -> usize {
        let rules = &mut locked(&self.state).rules;
        rules.push(Rule { method: method.into(), part_of_target: part_of_target.into(), fault, skip, hits });
        rules.len() - 1
    }
}

impl FaultWindow {
    /// Ends the fault: requests pass again.
    pub fn end(self) {}
}

impl Drop for FaultWindow {
    fn drop(&mut self) {
        locked(&self.state).rules[self.rule].hits = 0;
    }
}

impl State {
    /// Counts a request; returns the fault for it.
    fn fault_for(&mut self, method: &str, target: &str) -> Option<Fault> {
        let mut fault = None;
        for rule in &mut self.rules {
            let matches = (rule.method.is_empty() || rule.method == method) && target.contains(&rule.part_of_target);
            if !matches || rule.hits == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if fault.is_none() {
                rule.hits -= 1;
                fault = Some(rule.fault);
            }
        }
        self.requests.push(Request { method: method.into(), target: target.into(), fault });
        fault
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// Serves a client's connection with one connection to the server.
async fn serve_connection(client: Stream, upstream: &str, state: &Mutex<State>) -> io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = tokio::io::split(client);
    let (from_server, mut to_server) = server.into_split();
    let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
    loop {
        let request = Head::read(&mut from_client).await?;
        let (method, target) = request.first_two_words();
        let fault = locked(state).fault_for(method, target);
        match fault {
            Some(Fault::Status(status)) => return answer(status, &request, &mut from_client, &mut to_client).await,
            Some(Fault::Cut) => return cut(&request, &mut from_client, &mut to_client, &mut to_server).await,
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::DropReply) | None => {}
        }
        let dropped = fault == Some(Fault::DropReply);
        to_server.write_all(&request.bytes).await?;

        if request.expects_continue() && !dropped {
            let first = Head::read(&mut from_server).await?;
            to_client.write_all(&first.bytes).await?;
            to_client.flush().await?;
            if !first.is_interim() {
                return copy_body(first.body(method), &mut from_server, &mut to_client).await;
            }
        } else if request.expects_continue() {
            to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            to_client.flush().await?;
        }
        copy_body(request.body(""), &mut from_client, &mut to_server).await?;

        let mut response = Head::read(&mut from_server).await?;
        while response.is_interim() {
            response = Head::read(&mut from_server).await?;
        }
        if dropped {
            // The complete response shows that the server has executed the request.
            return copy_body(response.body(method), &mut from_server, &mut tokio::io::sink()).await;
        }
        to_client.write_all(&response.bytes).await?;
        let body = response.body(method);
        copy_body(body, &mut from_server, &mut to_client).await?;
        if body == Body::UntilEnd
            || response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
        {
            return to_client.shutdown().await;
        }
    }
}

/// Answers instead of the server.
async fn answer(
    status: u16,
    request: &Head,
    from_client: &mut (impl AsyncBufRead + Unpin),
    to_client: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    if !request.expects_continue() {
        // A client that is still sending would treat an early response as a broken connection.
        copy_body(request.body(""), from_client, &mut tokio::io::sink()).await?;
    }
    let (code, reason) = match status {
        403 => ("AccessDenied", "Forbidden"),
        503 => ("SlowDown", "Service Unavailable"),
        _ => ("InternalError", "Error"),
    };
    let document = format!(
        r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected by a test</Message></Error>"#
    );
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        document.len()
    );
    to_client.write_all(head.as_bytes()).await?;
    let (method, _) = request.first_two_words();
    if method != "HEAD" {
        to_client.write_all(document.as_bytes()).await?;
    }
    to_client.shutdown().await
}

/// Forwards half of a request. The connections break when the caller drops them.
async fn cut(
    request: &Head,
    from_client: &mut (impl AsyncBufRead + Unpin),
    to_client: &mut (impl AsyncWrite + Unpin),
    to_server: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    to_server.write_all(&request.bytes).await?;
    if request.expects_continue() {
        to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        to_client.flush().await?;
    }
    let half = match request.body("") {
        Body::Length(length) => length / 2,
        // The length of a chunked body is unknown: forward its first byte.
        _ => 1,
    };
    tokio::io::copy(&mut from_client.take(half), to_server).await?;
    Ok(())
}

/// The head of a request or response, including the empty line at its end.
struct Head {
    bytes: Vec<u8>,
}

/// The body after a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    UntilEnd,
}

impl Head {
    async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Self> {
        let mut bytes = Vec::new();
        loop {
            let start = bytes.len();
            if from.read_until(b'\n', &mut bytes).await? == 0 {
                return Err(Error::from(io::ErrorKind::UnexpectedEof));
            }
            if bytes[start..] == *b"\r\n" {
                return Ok(Self { bytes });
            }
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }

    /// Method and target of a request; version and status of a response.
    fn first_two_words(&self) -> (&str, &str) {
        let mut words = self.text().split_ascii_whitespace();
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text().split("\r\n").skip(1);
        lines
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    fn expects_continue(&self) -> bool {
        self.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    /// Whether this response is an interim one (1xx), before the final response.
    fn is_interim(&self) -> bool {
        self.first_two_words().1.starts_with('1')
    }

    /// The body after this head. For a response, `method` is the request's method; for a request,
    /// it is empty.
    fn body(&self, method: &str) -> Body {
        let is_response = !method.is_empty();
        if is_response && (method == "HEAD" || matches!(self.first_two_words().1, "204" | "304")) {
            return Body::Length(0);
        }
        if self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return Body::Chunked;
        }
        match self.header("content-length").and_then(|value| value.parse().ok()) {
            Some(length) => Body::Length(length),
            None if is_response => Body::UntilEnd,
            None => Body::Length(0),
        }
    }
}

async fn copy_body(
    body: Body,
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    match body {
        Body::Length(length) => copy_exactly(length, from, to).await?,
        Body::UntilEnd => {
            tokio::io::copy_buf(from, to).await?;
        }
        Body::Chunked => loop {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line).await?;
            to.write_all(&line).await?;
            let size = std::str::from_utf8(&line).ok().and_then(|text| text.trim().split(';').next());
            let size = size.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let size = size.ok_or_else(|| Error::other("a chunk without a size"))?;
            if size == 0 {
                copy_trailers(from, to).await?;
                break;
            }
            copy_exactly(size + 2, from, to).await?; // including the line break
        },
    }
    to.flush().await
}

async fn copy_exactly(
    length: u64,
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let copied = tokio::io::copy(&mut from.take(length), to).await?;
    if copied < length { Err(Error::from(io::ErrorKind::UnexpectedEof)) } else { Ok(()) }
}

async fn copy_trailers(from: &mut (impl AsyncBufRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        if from.read_until(b'\n', &mut line).await? == 0 {
            return Err(Error::from(io::ErrorKind::UnexpectedEof));
        }
        to.write_all(&line).await?;
        if line == b"\r\n" {
            return Ok(());
        }
    }
}
