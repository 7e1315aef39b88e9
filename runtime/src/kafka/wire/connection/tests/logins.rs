//! Logins at the embedded broker, and with tokens.

use std::io::{BufRead as _, BufReader};
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};
use kafka_protocol::protocol::StrBytes;
use trunkline_connector::Retry;

use super::certificates::{Identity, file};
use super::*;
use crate::kafka::wire::Lost;
use crate::kafka::wire::brokers::Brokers;
use crate::kafka::wire::connection::login::LoginExchange;

/// Connects, logs in, and asks for metadata.
fn ask(cluster: &Cluster) -> Result<(), Error> {
    let asked = Brokers::new(cluster, "test").refresh(&[], deadline());
    asked.map_err(|error| error.explain("connecting", cluster))
}

#[test]
fn the_embedded_broker_accepts_each_mechanism_with_and_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let identity = Identity::signed("broker", &ca, (-1, 1));
    let tls = TlsFiles {
        certificate: file(folder.path(), "broker.pem", identity.pem()),
        key: file(folder.path(), "broker.key", identity.key_pem()),
    };
    let trusted = ca.pem();
    let with_tls = SecuredBroker::start(Some(tls));
    let without_tls = SecuredBroker::start(None);
    for (broker, protocol) in [(&with_tls, "sasl_ssl"), (&without_tls, "SASL_PLAINTEXT")] {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let settings = |user, password| {
                cluster(
                    broker.port,
                    &[
                        ("security.protocol", protocol),
                        ("sasl.mechanisms", mechanism),
                        ("sasl.username", user),
                        ("sasl.password", password),
                        ("ssl.ca.pem", &trusted),
                    ],
                )
                .unwrap()
            };
            ask(&settings("worker", PASSWORD)).unwrap();
            for (user, password) in [("worker", "wrong-hunter2"), ("anonymous", PASSWORD)] {
                let error = ask(&settings(user, password)).unwrap_err();
                assert_eq!((error.code, error.retry), ("kafka.connection_rejected", Retry::Never), "{error}");
                let text = error.to_string();
                assert!(text.contains("invalid user name or password; check `sasl.username`"), "{text}");
                assert!(text.contains(&format!("{}://localhost:{}: ", protocol.to_lowercase(), broker.port)), "{text}");
                assert!(!text.contains("hunter2"), "{text}");
            }
        }
    }
}

#[test]
fn changed_passwords_count_from_the_next_connection_on() {
    let broker = SecuredBroker::start(None);
    let settings = |user: &str, password: &str| {
        BTreeMap::from(
            [
                ("security.protocol", "sasl_plaintext"),
                ("sasl.mechanism", "SCRAM-SHA-512"),
                ("sasl.username", user),
                ("sasl.password", password),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        )
    };
    let cluster = Cluster::new(&format!("localhost:{}", broker.port), &settings("worker", "old-hunter2")).unwrap();
    assert!(ask(&cluster).is_err());
    cluster.change_credentials(&settings("worker", PASSWORD)).unwrap();
    ask(&cluster).unwrap();
    cluster.change_credentials(&settings("other", "secret2")).unwrap();
    ask(&cluster).unwrap();
}

#[test]
fn a_mechanism_that_the_broker_lacks_is_explained() {
    let broker = SecuredBroker::start(None);
    let settings = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ("sasl.oauthbearer.config", "principal=worker"),
    ];
    let cluster = cluster(broker.port, &settings).unwrap();
    let error = ask(&cluster).unwrap_err();
    assert_eq!(error.retry, Retry::Never);
    let text = error.to_string();
    assert!(text.contains("SASL OAUTHBEARER mechanism handshake failed: "), "{text}");
    assert!(text.contains("PLAIN,SCRAM-SHA-256,SCRAM-SHA-512; set `sasl.mechanism`"), "{text}");
}

#[test]
fn logins_that_cannot_be_made_are_config_errors() {
    let sasl = ("security.protocol", "sasl_plaintext");
    let cases: [(&[Setting<'_>], &str); 5] = [
        (&[sasl], "sasl.mechanism is not supported: set it to PLAIN, SCRAM-SHA-256"),
        (&[sasl, ("sasl.mechanism", "hunter2")], "sasl.mechanism is not supported"),
        (&[sasl, ("sasl.mechanism", "PLAIN"), ("sasl.username", "u")], "sasl.username and sasl.password must be set"),
        (&[sasl, ("sasl.mechanism", "OAUTHBEARER")], "needs a source of tokens: set `kafka.security` to"),
        (
            &[
                sasl,
                ("sasl.mechanism", "OAUTHBEARER"),
                ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
                ("sasl.oauthbearer.config", "hunter2"),
            ],
            "sasl.oauthbearer.config is not valid: ",
        ),
    ];
    for (settings, expected) in cases {
        let error = cluster(1, settings).err().unwrap();
        assert_eq!(error.code, "kafka.settings");
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
    }
}

/// An exchange whose answers are known before. It keeps what the client sends.
struct Scripted {
    answers: Vec<Result<SaslAuthenticateResponse, Lost>>,
    sent: Vec<Vec<u8>>,
}

impl LoginExchange for Scripted {
    fn handshake(&mut self, mechanism: &str) -> Result<SaslHandshakeResponse, Lost> {
        self.sent.push(mechanism.into());
        Ok(SaslHandshakeResponse::default())
    }

    fn authenticate(&mut self, bytes: Vec<u8>) -> Result<SaslAuthenticateResponse, Lost> {
        self.sent.push(bytes);
        self.answers.remove(0)
    }
}

fn log_in(
    cluster: &Cluster,
    answers: Vec<Result<SaslAuthenticateResponse, Lost>>,
) -> (Result<Option<Instant>, String>, Vec<Vec<u8>>) {
    let mut exchange = Scripted { answers, sent: Vec::new() };
    let transport = cluster.transport().unwrap();
    let result = transport.login().unwrap().log_in(cluster, &mut exchange, deadline());
    (result, exchange.sent)
}

/// A token server that sends one answer after the other; each as soon as the test permits it.
fn token_server() -> (Server, Sender<&'static str>) {
    let (sender, answers): (_, Receiver<&str>) = channel();
    let server = Server::start(move |stream| {
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                if line.starts_with("POST ") {
                    continue;
                }
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap();
            }
        }
        let _ = reader.read_exact(&mut vec![0; length]);
        // Without an answer, the test is over.
        let Ok(answer) = answers.recv_timeout(LIMIT) else { return };
        let (status, body) = if answer.is_empty() { ("401 Unauthorized", "{}") } else { ("200 OK", answer) };
        let _ = write!(
            reader.into_inner(),
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
    });
    (server, sender)
}

fn with_tokens(port: u16) -> Cluster {
    // Every client of HTTP needs one, also without TLS.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let url = format!("http://127.0.0.1:{port}/token");
    let settings = [
        ("security", "oauth"),
        ("security.protocol", "sasl_plaintext"),
        ("sasl.oauthbearer.token.endpoint.url", url.as_str()),
        ("sasl.oauthbearer.client.id", "worker"),
        ("sasl.oauthbearer.client.secret", "hunter2"),
        ("sasl.oauthbearer.extensions", "pool=a"),
    ];
    cluster(1, &settings).unwrap()
}

#[test]
fn logins_wait_for_a_token_and_tell_when_the_session_ends() {
    let (server, answers) = token_server();
    let cluster = with_tokens(server.port);
    let other = cluster.clone();
    let accepted = || Ok(SaslAuthenticateResponse::default().with_session_lifetime_ms(100_000));
    let waiting = std::thread::spawn(move || log_in(&other, vec![accepted()]));
    answers.send(r#"{"access_token":"t0k3n","expires_in":3600}"#).unwrap();
    let begun = Instant::now();
    let (due, sent) = waiting.join().unwrap();
    assert_eq!(sent, [&b"OAUTHBEARER"[..], b"n,,\x01auth=Bearer t0k3n\x01pool=a\x01\x01"]);
    let due = due.unwrap().unwrap().saturating_duration_since(begun);
    assert!(due > Duration::from_secs(60) && due <= Duration::from_secs(91), "{due:?}");
    // A session without an end, and one that is too short for a second login.
    for lifetime in [0, 1000] {
        let answer = SaslAuthenticateResponse::default().with_session_lifetime_ms(lifetime);
        assert_eq!(log_in(&cluster, vec![Ok(answer)]).0, Ok(None));
    }
    // The broker says why, and refuses the login after the client's last message.
    let reason = SaslAuthenticateResponse::default().with_auth_bytes(Bytes::from_static(b"{\"status\":\"invalid\"}"));
    let refusal = SaslAuthenticateResponse::default()
        .with_error_code(ResponseError::SaslAuthenticationFailed.code())
        .with_error_message(Some(StrBytes::from_static_str("{\"status\":\"invalid_token\"}")));
    let (refused, sent) = log_in(&cluster, vec![Ok(reason), Ok(refusal)]);
    assert_eq!(sent.last().unwrap(), b"\x01");
    let error = explained(&cluster, &format!("sasl_ssl://b:1: {}", refused.unwrap_err())).to_string();
    assert!(error.contains("invalid_token") && error.contains("the broker refused the token"), "{error}");
    assert!(!error.contains("t0k3n") && !error.contains("hunter2"), "{error}");
    // A connection that ends is no refusal.
    let (lost, _) = log_in(&cluster, vec![Err(Lost("closed".to_owned()))]);
    let error = explained(&cluster, &lost.unwrap_err()).to_string();
    assert!(error.contains("the connection ended during the login"), "{error}");
}

#[test]
fn a_token_that_is_refused_is_not_waited_for() {
    let (server, answers) = token_server();
    let cluster = with_tokens(server.port);
    answers.send("").unwrap();
    let begun = Instant::now();
    let (refused, sent) = log_in(&cluster, Vec::new());
    assert!(refused.unwrap_err().contains("answered 401") && sent.is_empty());
    assert!(begun.elapsed() < LIMIT / 2);
    // At once, without another attempt.
    assert!(log_in(&cluster, Vec::new()).0.is_err());
    assert!(cluster.connection().is_hopeless());
}
