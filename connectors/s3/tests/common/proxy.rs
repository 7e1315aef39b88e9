//! A proxy between the sink and a real server that injects faults of networks and stores.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// A fault of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Answered with this status and error code without reaching the server.
    Refuse(u16, &'static str),
    /// Executed by the server, but answered with this status and error code.
    Lie(u16, &'static str),
    /// Executed by the server; the connection breaks instead of the reply.
    LoseReply,
}

/// A kind of request, by method and query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Create,
    Part,
    Complete,
    Abort,
    ListUploads,
    Head,
    Other,
}

type Rule = Box<dyn FnMut(Kind) -> Option<Fault> + Send>;

pub struct Proxy {
    pub endpoint: String,
    state: Arc<State>,
}

struct State {
    upstream: String,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Kind>>,
    head: Mutex<String>,
}

impl Proxy {
    /// In front of the server at `endpoint`.
    pub fn start(runtime: &Handle, endpoint: &str) -> Self {
        let upstream = endpoint.strip_prefix("http://").unwrap().to_owned();
        let state = Arc::new(State {
            upstream,
            rule: Mutex::new(Box::new(|_| None)),
            seen: Mutex::default(),
            head: Mutex::default(),
        });
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { endpoint, state }
    }

    /// Later requests follow this rule.
    pub fn rule(&self, rule: impl FnMut(Kind) -> Option<Fault> + Send + 'static) {
        *self.state.rule.lock().unwrap() = Box::new(rule);
    }

    /// The first `times` requests of a kind get the fault.
    pub fn fault(&self, kind: Kind, times: usize, fault: Fault) {
        let mut left = times;
        self.rule(move |seen| {
            let hit = seen == kind && left > 0;
            left -= usize::from(hit);
            hit.then(|| fault.clone())
        });
    }

    /// The head of the last request.
    pub fn headers(&self) -> String {
        self.state.head.lock().unwrap().clone()
    }

    /// Number of requests of a kind since the last call.
    pub fn count(&self, kind: Kind) -> usize {
        let mut seen = self.state.seen.lock().unwrap();
        let count = seen.iter().filter(|known| **known == kind).count();
        seen.retain(|known| *known != kind);
        count
    }
}

/// One request per connection: head and body are read, and forwarded with `connection: close`
/// (which no signature covers).
async fn serve(mut client: TcpStream, state: Arc<State>) -> Option<()> {
    let mut request = Vec::new();
    let head_end = loop {
        if let Some(at) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(request[..head_end].to_vec()).ok()?;
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)))
            .map(|(_, value)| value)
    };
    let length: usize = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    if header("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    while request.len() < head_end + length {
        if client.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
    let kind = kind(head.lines().next()?);
    state.seen.lock().unwrap().push(kind);
    state.head.lock().unwrap().clone_from(&head);
    let fault = (state.rule.lock().unwrap())(kind);
    if let Some(Fault::Refuse(status, code)) = fault {
        return client.write_all(&answer(status, code)).await.ok();
    }
    let mut server = TcpStream::connect(&state.upstream).await.ok()?;
    let kept = head.lines().filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        !line.is_empty() && !["connection", "expect"].iter().any(|other| name.eq_ignore_ascii_case(other))
    });
    let head: String = kept.map(|line| format!("{line}\r\n")).collect();
    server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.ok()?;
    server.write_all(&request[head_end..]).await.ok()?;
    let mut reply = Vec::new();
    server.read_to_end(&mut reply).await.ok()?;
    match fault {
        Some(Fault::Lie(status, code)) => client.write_all(&answer(status, code)).await.ok(),
        Some(_) => Some(()),
        None => client.write_all(&reply).await.ok(),
    }
}

fn kind(line: &str) -> Kind {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let has = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
    match method {
        "POST" if has("uploads") => Kind::Create,
        "PUT" if has("partNumber") => Kind::Part,
        "POST" if has("uploadId") => Kind::Complete,
        "DELETE" if has("uploadId") => Kind::Abort,
        "GET" if has("uploads") => Kind::ListUploads,
        "HEAD" => Kind::Head,
        _ => Kind::Other,
    }
}

fn answer(status: u16, code: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
    format!(
        "HTTP/1.1 {status} Fault\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
