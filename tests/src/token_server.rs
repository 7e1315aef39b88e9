//! An OAuth server for the grant `client_credentials`, whose tokens `tests/services/kafka-secured`
//! accepts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// The server. It knows one client, [`TokenServer::ID`] with [`TokenServer::SECRET`].
pub struct TokenServer {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    key: PathBuf,
    lifetime: Duration,
    issued: AtomicUsize,
    is_stopped: AtomicBool,
}

impl TokenServer {
    /// The name of its client.
    pub const ID: &'static str = "worker";

    /// The secret of its client, with characters that must be encoded.
    pub const SECRET: &'static str = "token+secret/%&hunter2";

    /// Starts a server that signs tokens with an RSA key and this lifetime.
    pub fn start(key: &Path, lifetime: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            key: key.to_owned(),
            lifetime,
            issued: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let serve = move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that breaks off gets no answer.
                let _ = serving.answer(stream);
            }
        };
        Self { port, shared, thread: Some(std::thread::spawn(serve)) }
    }

    /// The address of its token endpoint.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// The number of tokens that it has issued.
    pub fn issued(&self) -> usize {
        self.shared.issued.load(Ordering::Relaxed)
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream);
        let (mut line, mut length, mut authorization) = (String::new(), 0, String::new());
        reader.read_line(&mut line)?;
        let is_token = line.starts_with("POST /token ");
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => authorization = value.to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let is_grant = body == b"grant_type=client_credentials&scope=kafka";
        // The secret as RFC 6749 encodes it.
        let expected = STANDARD.encode(format!("{}:token%2Bsecret%2F%25%26hunter2", TokenServer::ID));
        let (status, answer) = match authorization.strip_prefix("Basic ") {
            Some(credentials) if credentials == expected && is_token && is_grant => {
                self.issued.fetch_add(1, Ordering::Relaxed);
                let seconds = self.lifetime.as_secs();
                let token = self.token();
                ("200 OK", format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{seconds}}}"#))
            }
            _ => ("401 Unauthorized", r#"{"error":"invalid_client"}"#.to_owned()),
        };
        write!(
            reader.into_inner(),
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        )
    }

    /// A token of the user `admin`.
    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let end = (now + self.lifetime).as_secs();
        let claims = format!(
            r#"{{"iss":"tests","sub":"admin","aud":"trunkline-tests","scope":"kafka","iat":{},"exp":{end}}}"#,
            now.as_secs()
        );
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","typ":"JWT","kid":"test"}"#);
        let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let mut openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let signature = openssl.wait_with_output().unwrap().stdout;
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
