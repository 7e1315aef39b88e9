//! The client against the stand-in for Snowflake.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use trunkline_connector::Retry;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::tls::TlsOptions;

use super::*;
use crate::config::TLS_CODES;

#[path = "../../tests/common/mod.rs"]
mod common;

use common::{Exclusive, StandIn, exclusive};

/// Keys that openssl makes, so that the repository holds none.
struct Keys {
    plain: String,
    encrypted: String,
    pkcs1: String,
    other: String,
    public: String,
    /// Of the public key, computed with openssl.
    fingerprint: String,
}

const PASSPHRASE: &str = "trunkline";

/// The keys of all tests. Without openssl it prints the reason and returns `None`.
fn keys() -> Option<&'static Keys> {
    static KEYS: OnceLock<Option<Keys>> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let made = Keys::make();
        if let Err(error) = &made {
            eprintln!("SKIP snowflake::keys: openssl cannot make them: {error}");
        }
        made.ok()
    });
    keys.as_ref()
}

impl Keys {
    fn make() -> std::io::Result<Self> {
        let new = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        let (plain, other) = (openssl(&new, b"")?, openssl(&new, b"")?);
        let pass = format!("pass:{PASSPHRASE}");
        let digest =
            openssl(&["dgst", "-sha256", "-binary"], &openssl(&["pkey", "-pubout", "-outform", "DER"], &plain)?)?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(std::io::Error::other);
        Ok(Self {
            encrypted: text(openssl(&["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", &pass], &plain)?)?,
            pkcs1: text(openssl(&["rsa", "-traditional"], &plain)?)?,
            public: text(openssl(&["pkey", "-pubout"], &plain)?)?,
            fingerprint: format!("SHA256:{}", text(openssl(&["base64"], &digest)?)?.trim()),
            plain: text(plain)?,
            other: text(other)?,
        })
    }
}

/// Runs openssl with this input, and returns its output.
fn openssl(arguments: &[&str], input: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn()?;
    if let Some(mut stdin) = process.stdin.take() {
        stdin.write_all(input)?;
    }
    let output = process.wait_with_output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(std::io::Error::other(format!("{arguments:?} failed")))
    }
}

fn options(server: &StandIn, credentials: Credentials) -> ClientOptions {
    ClientOptions {
        account: "xy12345.eu-central-1".to_owned(),
        origin: server.origin(),
        user: "fake".to_owned(),
        credentials,
        role: None,
        warehouse: Some("LOADING".to_owned()),
        database: "DB".to_owned(),
        schema: "RAW".to_owned(),
        statement_timeout: Duration::from_secs(60),
        lock_timeout: Duration::from_secs(30),
        tls: TlsOptions::none(TLS_CODES),
    }
}

/// The server of all tests, for this one alone.
fn server() -> Option<Exclusive<StandIn>> {
    static SHARED: Mutex<Option<StandIn>> = Mutex::new(None);
    exclusive(&SHARED, || StandIn::start(None))
}

fn password() -> Credentials {
    Credentials::Password("snow".to_owned())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn open(runtime: &Runtime, options: &ClientOptions) -> Result<Session, SqlError> {
    runtime.block_on(Session::open(options, "test", runtime.handle()))
}

fn run(runtime: &Runtime, session: &mut Session, sql: &str) -> Result<Answer, SqlError> {
    runtime.block_on(session.execute(sql))
}

fn single(answer: &Answer) -> &str {
    answer.rows[0][0].as_deref().unwrap()
}

fn count(runtime: &Runtime, session: &mut Session, table: &str) -> String {
    let answer = run(runtime, session, &format!("SELECT COUNT(*) AS \"n\" FROM {table}")).unwrap();
    single(&answer).to_owned()
}

#[test]
fn keys_are_read_in_all_forms() {
    let Some(keys) = keys() else { return };
    for (text, passphrase) in [(&keys.plain, None), (&keys.pkcs1, None), (&keys.encrypted, Some(PASSPHRASE))] {
        assert_eq!(
            KeyPair::from_pem(text, passphrase).map(|key| key.fingerprint().to_owned()),
            Ok(keys.fingerprint.clone())
        );
    }
    let in_variable = keys.plain.replace('\n', "\\n");
    assert!(KeyPair::from_pem(&in_variable, None).is_ok());
    for (text, passphrase, message) in [
        (keys.encrypted.as_str(), Some("wrong"), "private_key_passphrase"),
        (&keys.encrypted, None, "private_key_passphrase"),
        (&keys.public, None, "PUBLIC KEY"),
        ("/run/secrets/key.p8", None, "PEM"),
    ] {
        let error = KeyPair::from_pem(text, passphrase).err().unwrap();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn accounts_have_names_and_addresses() {
    let name = |account: &str| {
        let options = ClientOptions {
            account: account.to_owned(),
            origin: String::new(),
            user: String::new(),
            credentials: password(),
            role: None,
            warehouse: None,
            database: String::new(),
            schema: String::new(),
            statement_timeout: Duration::ZERO,
            lock_timeout: Duration::ZERO,
            tls: TlsOptions::none(TLS_CODES),
        };
        options.account_name()
    };
    assert_eq!(name("xy12345.eu-central-1"), "XY12345");
    assert_eq!(name("my_org-my_account"), "MY_ORG-MY_ACCOUNT");
    assert_eq!(name("acme-k7f3.global"), "ACME");
    assert_eq!(ClientOptions::origin_of("My_Org-acct"), "https://my-org-acct.snowflakecomputing.com");
}

#[test]
fn logins_are_checked() {
    let (Some(server), Some(keys)) = (server(), keys()) else { return };
    let runtime = runtime();
    let key = |text: &str| Credentials::KeyPair(Arc::new(KeyPair::from_pem(text, None).unwrap()));
    let public_key = keys.public.replace('\n', "\\n");
    server.control(&format!("{{\"user\":\"fake\",\"pubkey\":\"{public_key}\",\"token\":\"tok\"}}"));
    for credentials in
        [password(), key(&keys.plain), Credentials::OAuth("tok".to_owned()), Credentials::AccessToken("tok".to_owned())]
    {
        let mut session = open(&runtime, &options(&server, credentials)).unwrap();
        assert_eq!(single(&run(&runtime, &mut session, "SELECT 1 AS A").unwrap()), "1");
    }
    for (credentials, kind) in [
        (Credentials::Password("wrong".to_owned()), ErrorKind::LoginRefused),
        (key(&keys.other), ErrorKind::LoginRefused),
        (Credentials::OAuth("expired".to_owned()), ErrorKind::TokenRefused),
        (Credentials::AccessToken("expired".to_owned()), ErrorKind::TokenRefused),
    ] {
        let error = open(&runtime, &options(&server, credentials)).err().unwrap();
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[test]
fn results_are_read() {
    let Some(server) = server() else { return };
    let runtime = runtime();
    let mut session = open(&runtime, &options(&server, password())).unwrap();
    run(&runtime, &mut session, "CREATE OR REPLACE TABLE T (ID NUMBER(38, 0), \"Name\" VARCHAR)").unwrap();
    let inserted = run(&runtime, &mut session, "INSERT INTO T VALUES (1, 'x'), (-2, NULL)").unwrap();
    assert_eq!(inserted.rows, [[Some("2".to_owned())]]);
    let answer = run(&runtime, &mut session, "SELECT ID, \"Name\" FROM T ORDER BY ID").unwrap();
    assert_eq!(answer.columns, ["ID", "Name"]);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(answer.rows, [[text("-2"), None], [text("1"), text("x")]]);
    // Statements that fail by themselves leave the session usable, after the end of their
    // transaction.
    run(&runtime, &mut session, "COMMIT").unwrap();
    let missing = run(&runtime, &mut session, "SELECT * FROM MISSING").unwrap_err();
    assert_eq!((missing.kind, missing.code.as_str()), (ErrorKind::AccessDenied, "002003"));
    assert!(missing.query_id.is_some());
    run(&runtime, &mut session, "ROLLBACK").unwrap();
    assert_eq!(count(&runtime, &mut session, "T"), "2");
}

#[test]
fn slow_statements_are_polled_and_limited() {
    let Some(server) = server() else { return };
    let runtime = runtime();
    let mut session = open(&runtime, &options(&server, password())).unwrap();
    server.control("{\"slow\":3}");
    assert_eq!(single(&run(&runtime, &mut session, "SELECT 7 AS A").unwrap()), "7");
    let limited = ClientOptions { statement_timeout: Duration::from_millis(300), ..options(&server, password()) };
    let mut session = open(&runtime, &limited).unwrap();
    server.control("{\"slow\":1000}");
    let error = run(&runtime, &mut session, "SELECT 7 AS A").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(run(&runtime, &mut session, "SELECT 1").unwrap_err(), error, "the session is of no further use");
}

#[test]
fn expired_tokens_are_renewed_in_a_transaction() {
    let Some(server) = server() else { return };
    let runtime = runtime();
    let mut session = open(&runtime, &options(&server, password())).unwrap();
    run(&runtime, &mut session, "CREATE OR REPLACE TABLE T (ID NUMBER(38, 0))").unwrap();
    run(&runtime, &mut session, "BEGIN").unwrap();
    run(&runtime, &mut session, "INSERT INTO T VALUES (1)").unwrap();
    server.control("{\"expire\":\"token\"}");
    run(&runtime, &mut session, "INSERT INTO T VALUES (2)").unwrap();
    run(&runtime, &mut session, "ROLLBACK").unwrap();
    assert_eq!(count(&runtime, &mut session, "T"), "0", "the transaction was split by the renewal");
}

/// A statement of a session that ended must fail, not run in another session: it would be committed
/// without the rest of its transaction.
fn transaction_is_lost(fault: &str) {
    let Some(server) = server() else { return };
    let runtime = runtime();
    let mut session = open(&runtime, &options(&server, password())).unwrap();
    run(&runtime, &mut session, "CREATE OR REPLACE TABLE T (ID NUMBER(38, 0))").unwrap();
    run(&runtime, &mut session, "BEGIN").unwrap();
    run(&runtime, &mut session, "INSERT INTO T VALUES (1)").unwrap();
    server.control(fault);
    for sql in ["INSERT INTO T VALUES (2)", "COMMIT", "INSERT INTO T VALUES (3)"] {
        let error = run(&runtime, &mut session, sql).unwrap_err();
        assert_eq!(error.kind, ErrorKind::SessionLost, "{error}");
    }
    let mut next = open(&runtime, &options(&server, password())).unwrap();
    assert_eq!(count(&runtime, &mut next, "T"), "0");
}

#[test]
fn a_killed_session_takes_no_further_statements() {
    transaction_is_lost("{\"kill\":true}");
}

#[test]
fn a_session_that_cannot_be_renewed_takes_no_further_statements() {
    transaction_is_lost("{\"expire\":\"master\"}");
}

#[test]
fn a_replaced_session_takes_no_further_statements() {
    transaction_is_lost("{\"expire\":\"token\",\"replace\":true}");
}

#[test]
fn a_lost_reply_ends_the_session() {
    for (when, rows) in [("before", "0"), ("after", "1")] {
        let Some(server) = server() else { return };
        let runtime = runtime();
        let mut session = open(&runtime, &options(&server, password())).unwrap();
        run(&runtime, &mut session, "CREATE OR REPLACE TABLE T (ID NUMBER(38, 0))").unwrap();
        run(&runtime, &mut session, "BEGIN").unwrap();
        run(&runtime, &mut session, "INSERT INTO T VALUES (1)").unwrap();
        server.control(&format!("{{\"drop\":\"commit\",\"when\":\"{when}\"}}"));
        let error = run(&runtime, &mut session, "COMMIT").unwrap_err();
        assert_eq!(error.kind, ErrorKind::SessionLost, "{error}");
        assert!(run(&runtime, &mut session, "COMMIT").is_err());
        drop(session);
        let mut next = open(&runtime, &options(&server, password())).unwrap();
        // The owner decides by what it reads.
        assert_eq!(count(&runtime, &mut next, "T"), rows);
    }
}

#[test]
fn missing_privileges_name_the_next_step() {
    let Some(server) = server() else { return };
    let runtime = runtime();
    let mut session = open(&runtime, &options(&server, password())).unwrap();
    server.control(
        "{\"refuse\":\"create table\",\"code\":\"003001\",\"message\":\"SQL access control error:\\nInsufficient privileges to operate on schema 'RAW'.\"}",
    );
    let error = run(&runtime, &mut session, "CREATE TABLE T (ID NUMBER)").unwrap_err();
    assert_eq!(error.kind, ErrorKind::AccessDenied);
    let shown = error.into_error("creating the table `T`").to_string();
    assert!(shown.contains("creating the table `T`: SQL access control error: Insufficient privileges"), "{shown}");
    assert!(shown.contains("grant the privilege") && shown.ends_with("[snowflake.access_denied]"), "{shown}");
}

#[test]
fn an_unreachable_service_is_named() {
    let runtime = runtime();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(server) = server() else { return };
    let options = ClientOptions { origin: format!("http://127.0.0.1:{port}"), ..options(&server, password()) };
    let error = open(&runtime, &options).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
}

/// A server on which each TLS handshake is followed by the end of the connection.
fn serve_handshakes(runtime: &Runtime, pem: &[u8]) -> u16 {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate ends the handshake.
            drop(acceptor.accept(stream).await);
        }
    });
    port
}

#[test]
fn authorities_of_tls_ca_are_trusted_and_others_end_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, key) = (folder.path().join("ca.pem"), folder.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=snow", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&authority)
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP snowflake tls: openssl cannot make certificates");
        return;
    }
    let runtime = runtime();
    let pem = [std::fs::read(&authority).unwrap(), std::fs::read(&key).unwrap()].concat();
    let port = serve_handshakes(&runtime, &pem);
    let login = |toml: &str| {
        let (table, report) = (read_toml(toml), Report::default());
        let section = Section::new(&table, 0..0, "sinks.snow", folder.path(), &report);
        let options = ClientOptions {
            account: "xy12345".to_owned(),
            origin: format!("https://127.0.0.1:{port}"),
            user: "fake".to_owned(),
            credentials: password(),
            role: None,
            warehouse: None,
            database: "DB".to_owned(),
            schema: "RAW".to_owned(),
            statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(30),
            tls: TlsOptions::read(&section, TLS_CODES),
        };
        open(&runtime, &options).err().unwrap().into_error("cannot log in")
    };
    let untrusted = login("");
    assert_eq!((untrusted.code, untrusted.retry), ("snowflake.tls", Retry::Never), "{untrusted}");
    assert!(untrusted.message().contains("set `tls_ca`"), "{untrusted}");
    let missing = login("tls_ca = \"none.pem\"");
    assert!(missing.code == TLS_CODES.ca && missing.message().contains("none.pem"), "{missing}");
    // The handshake succeeds, and the connection ends without an answer.
    let trusted = login("tls_ca = \"ca.pem\"");
    assert_eq!((trusted.code, trusted.retry), ("snowflake.session_lost", Retry::Backoff), "{trusted}");
}
