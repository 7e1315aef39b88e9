//! The variables that decide how S3 is reached: the proxy, and the file of certificate authorities.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A listener that passes on the first bytes of each connection, and closes it.
fn listen() -> (u16, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut bytes = vec![0; 1024];
            let length = stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(length);
            if sender.send(bytes).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

/// The access key of most tests.
const KEY: &str = "access_key_id = \"a\"\nsecret_access_key = \"b\"\n";

/// Checks a pipeline whose sink is a store at `port`.
fn check(folder: &Path, port: u16, key: &str, variables: &[(&str, &str)]) -> Child {
    let pipeline = format!(
        "name = \"web\"\n[sources.logs]\nconnector = \"logfile\"\npaths = [\"access.log\"]\n[sinks.lake]\nconnector = \"s3\"\n\
         inputs = [\"logs\"]\nurl = \"s3://lake\"\nendpoint = \"https://127.0.0.1:{port}\"\nregion = \"us-east-1\"\n\
         path_style = true\n{key}"
    );
    std::fs::write(folder.join("web.toml"), pipeline).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    command.args(["validate", "web.toml", "--check"]).current_dir(folder).envs(variables.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ends a process that has done what the test looks for.
fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn https_goes_through_the_proxy_unless_no_proxy_lists_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let ((proxy, through_proxy), (store, direct)) = (listen(), listen());
    let address = format!("http://127.0.0.1:{proxy}");
    let child = check(folder.path(), store, KEY, &[("HTTPS_PROXY", &address)]);
    let request = String::from_utf8(through_proxy.recv_timeout(LIMIT).unwrap()).unwrap();
    end(child);
    assert!(request.starts_with(&format!("CONNECT 127.0.0.1:{store} HTTP/1.1\r\n")), "{request}");
    assert!(direct.try_recv().is_err(), "the store was reached without the proxy");
    let _ = through_proxy.try_iter().count();

    let variables = [("HTTPS_PROXY", address.as_str()), ("NO_PROXY", "example.com,127.0.0.1")];
    let child = check(folder.path(), store, KEY, &variables);
    let hello = direct.recv_timeout(LIMIT).unwrap();
    end(child);
    assert_eq!(hello.first(), Some(&0x16), "a TLS handshake");
    assert!(through_proxy.try_recv().is_err(), "the proxy was used for a host of NO_PROXY");
}

#[test]
fn a_ca_bundle_and_a_proxy_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (variable, value, expected) in [
        ("AWS_CA_BUNDLE", "/no/such.pem", "AWS_CA_BUNDLE: cannot read /no/such.pem"),
        ("HTTPS_PROXY", "ftp://hunter2@proxy", "HTTPS_PROXY is not the address of a proxy"),
    ] {
        let output = check(folder.path(), 1, KEY, &[(variable, value)]).wait_with_output().unwrap();
        let shown = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && shown.contains(expected) && !shown.contains("hunter2"), "{shown}");
    }
}

/// The `endpoint` of a sink is that of S3; the token service has its own.
#[test]
fn the_token_service_of_a_web_identity_has_its_own_address() {
    let folder = tempfile::tempdir().unwrap();
    let ((store, _), (tokens, requests)) = (listen(), listen());
    std::fs::write(folder.path().join("identity"), "token-of-the-pod").unwrap();
    let identity = folder.path().join("identity").display().to_string();
    let address = format!("http://127.0.0.1:{tokens}");
    let variables = [
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/lake"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", identity.as_str()),
        ("AWS_ENDPOINT_URL_STS", address.as_str()),
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let child = check(folder.path(), store, "", &variables);
    let request = String::from_utf8(requests.recv_timeout(LIMIT).unwrap()).unwrap();
    end(child);
    assert!(request.starts_with("POST / HTTP/1.1\r\n"), "{request}");
}
