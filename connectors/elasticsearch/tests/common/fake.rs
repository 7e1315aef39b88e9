//! A server that breaks chosen requests. Its answers without a fault are those of OpenSearch 2.19,
//! as recorded in `bulk_answer`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// What happens to one `_bulk` request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No fault.
    None,
    /// Each document whose `n` is in the list is answered with this status, and not written.
    Items(u16, &'static str, Vec<i64>),
    /// The request is answered with this status, perhaps with `Retry-After`, and nothing is
    /// written.
    Whole(u16, Option<u64>),
    /// All is written, and the connection is closed without an answer.
    DropReply,
    /// All is written, and the answer ends in its middle.
    CutReply,
    /// All is written, and no answer comes until the client has given up.
    Late,
}

#[derive(Default)]
struct State {
    /// Versions and documents by id. A version of -1: the document was deleted.
    documents: BTreeMap<String, (i64, Value)>,
    faults: VecDeque<Fault>,
    /// Faults from here on are this one.
    always: Option<Fault>,
    /// Documents and unpacked bytes of each request.
    requests: Vec<(usize, usize)>,
    /// Larger requests are answered with 413.
    max_bytes: Option<usize>,
    /// Requests with a document of this `n` are answered with 400.
    malformed: Option<i64>,
    headers: Vec<String>,
    /// The next answer is late.
    is_late: bool,
    /// The last request as it was received.
    raw: RawRequest,
    /// Answers to requests other than `_bulk`, by method and path without the query.
    answers: BTreeMap<String, (u16, Value)>,
}

/// A request as it was received.
#[derive(Clone, Debug, Default)]
pub struct RawRequest {
    pub line: String,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

/// A running fake server; it ends with the process.
#[derive(Clone)]
pub struct Fake {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn start() -> Self {
        Self::share(&Arc::default())
    }

    /// Another node of the same cluster.
    pub fn another_node(&self) -> Self {
        Self::share(&self.state)
    }

    /// A server with TLS. The file holds its certificate and key.
    pub fn start_tls(pem: &[u8]) -> Self {
        Self::start_tls_for(pem, None)
    }

    /// A server with TLS that only takes clients with this certificate.
    pub fn start_tls_for(pem: &[u8], client: Option<&[u8]>) -> Self {
        let certificate = CertificateDer::from_pem_slice(pem).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = match client {
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(client).unwrap()).unwrap();
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap()
            }
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        Self::accept(&Arc::default(), move |stream, state| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            serve(StreamOwned::new(connection, stream), state);
        })
    }

    fn share(state: &Arc<Mutex<State>>) -> Self {
        Self::accept(state, serve)
    }

    fn accept(state: &Arc<Mutex<State>>, serve: impl Fn(TcpStream, &Mutex<State>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::clone(state);
        let (shared, serve) = (Arc::clone(&state), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, serve, stream) = (Arc::clone(&shared), Arc::clone(&serve), stream.unwrap());
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    pub fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    /// From now on, all requests have this fault.
    pub fn always(&self, fault: Option<Fault>) {
        self.state.lock().unwrap().always = fault;
    }

    pub fn limit_bytes(&self, bytes: usize) {
        self.state.lock().unwrap().max_bytes = Some(bytes);
    }

    pub fn refuse_requests_with(&self, n: i64) {
        self.state.lock().unwrap().malformed = Some(n);
    }

    /// The numbers `n` of the documents, in order.
    pub fn numbers(&self) -> Vec<i64> {
        let state = self.state.lock().unwrap();
        let mut numbers: Vec<i64> =
            state.documents.values().filter_map(|(_, document)| document["n"].as_i64()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Documents of each request so far.
    pub fn requests(&self) -> Vec<usize> {
        self.state.lock().unwrap().requests.iter().map(|(documents, _)| *documents).collect()
    }

    /// The answer to requests such as `GET /_alias/a`. Without one it is 404.
    pub fn answer(&self, request: &str, status: u16, body: Value) {
        self.state.lock().unwrap().answers.insert(request.to_owned(), (status, body));
    }

    /// Answers nothing while the function runs.
    pub fn paused(&self, run: impl FnOnce()) {
        let state = self.state.lock().unwrap();
        run();
        drop(state);
    }

    /// The last request as it was received.
    pub fn raw(&self) -> RawRequest {
        self.state.lock().unwrap().raw.clone()
    }

    /// Headers of the last request, in lower case.
    pub fn headers(&self) -> Vec<String> {
        self.state.lock().unwrap().headers.clone()
    }
}

/// Answers the requests of one connection until one side closes it.
fn serve(stream: impl Read + Write, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        // A proxy gets the whole address.
        let is_bulk = line.split(' ').nth(1).unwrap().contains("/_bulk?");
        let mut raw_headers = Vec::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            match header.trim() {
                "" => break,
                header => raw_headers.push(header.to_owned()),
            }
        }
        let headers: Vec<String> = raw_headers.iter().map(|header| header.to_lowercase()).collect();
        let value = |name: &str| headers.iter().find_map(|header| header.strip_prefix(name)).map(str::trim);
        let mut body = vec![0; value("content-length:").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let raw = RawRequest { line: line.trim().to_owned(), headers: raw_headers, body: body.clone() };
        if value("content-encoding:") == Some("gzip") {
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut unpacked).unwrap();
            body = unpacked;
        }
        let mut state = state.lock().unwrap();
        state.headers = headers;
        state.raw = raw;
        let (status, extra, answer) = match is_bulk {
            true => match state.bulk(&String::from_utf8(body).unwrap()) {
                Some(answer) => answer,
                None => return,
            },
            false => state.other(&line),
        };
        let is_late = std::mem::take(&mut state.is_late);
        drop(state);
        if is_late {
            // Ends when the client closes the connection.
            let _ = reader.fill_buf();
            return;
        }
        let cut = answer.ends_with("...");
        let length = answer.len() + if cut { 100 } else { 0 };
        let head = format!("HTTP/1.1 {status} X\r\n{extra}Content-Length: {length}\r\n\r\n");
        let writer = reader.get_mut();
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(answer.as_bytes())).is_err() || cut {
            return;
        }
    }
}

impl State {
    /// The answer to a request other than `_bulk`.
    fn other(&self, line: &str) -> (u16, String, String) {
        let request = line.rsplit_once(' ').unwrap().0;
        let request = request.split('?').next().unwrap();
        let version = (200, json!({"version": {"distribution": "opensearch", "number": "2.19.1"}}));
        let known = self.answers.get(request).cloned();
        let is_root = request.starts_with("GET ") && request.ends_with('/');
        let (status, body) = known.or(is_root.then_some(version)).unwrap_or((404, json!({})));
        (status, String::new(), body.to_string())
    }

    /// Status, headers and body; `None` closes the connection.
    fn bulk(&mut self, body: &str) -> Option<(u16, String, String)> {
        let mut operations = Vec::new();
        let mut lines = body.lines();
        while let Some(action) = lines.next() {
            let action: Value = serde_json::from_str(action).unwrap();
            let (kind, meta) = action.as_object().unwrap().iter().next().unwrap();
            let document =
                if kind == "delete" { Value::Null } else { serde_json::from_str(lines.next().unwrap()).unwrap() };
            operations.push((kind.clone(), meta.clone(), document));
        }
        self.requests.push((operations.len(), body.len()));
        if self.max_bytes.is_some_and(|limit| body.len() > limit) {
            return Some((413, String::new(), String::new()));
        }
        if self.malformed.is_some_and(|n| operations.iter().any(|(_, _, document)| document["n"] == n)) {
            let error =
                json!({"error": {"type": "illegal_argument_exception", "reason": "Malformed action/metadata line"}});
            return Some((400, String::new(), error.to_string()));
        }
        let fault = self.always.clone().or_else(|| self.faults.pop_front()).unwrap_or(Fault::None);
        if let Fault::Whole(status, retry_after) = fault {
            let extra = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            return Some((status, extra, String::new()));
        }
        let items: Vec<Value> = operations
            .into_iter()
            .map(|(kind, meta, document)| json!({&kind: self.apply(&kind, &meta, document, &fault)}))
            .collect();
        let answer = json!({"errors": true, "items": items}).to_string();
        match fault {
            Fault::DropReply => None,
            Fault::Late => {
                self.is_late = true;
                Some((200, String::new(), answer))
            }
            Fault::CutReply => Some((200, String::new(), format!("{}...", &answer[..answer.len() / 2]))),
            _ => Some((200, String::new(), answer)),
        }
    }

    fn apply(&mut self, kind: &str, meta: &Value, document: Value, fault: &Fault) -> Value {
        if let Fault::Items(status, name, numbers) = fault
            && document["n"].as_i64().is_some_and(|n| numbers.contains(&n))
        {
            return json!({"status": status, "error": {"type": name, "reason": "as the test asked"}});
        }
        let assigned = self.documents.len().to_string();
        let id = meta["_id"].as_str().unwrap_or(&assigned).to_owned();
        // The version of a deleted document is remembered.
        let known = self.documents.get(&id).map(|(version, _)| *version);
        let exists = self.documents.get(&id).is_some_and(|(_, document)| !document.is_null());
        let version = meta["version"].as_i64();
        let conflict = match (kind, version, known) {
            ("create", _, _) => exists,
            (_, Some(version), Some(known)) if meta["version_type"] == "external_gte" => version < known,
            (_, Some(version), Some(known)) => version <= known,
            _ => false,
        };
        if conflict {
            return json!({"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "version conflict"}});
        }
        self.documents.insert(id, (version.unwrap_or(1), document));
        let status = match (kind, exists) {
            ("delete", false) => 404,
            (_, true) => 200,
            (_, false) => 201,
        };
        json!({ "status": status })
    }
}
