//! Authentication, TLS and proxies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use common::certificate::certificate;
use common::fake::{Fake, RawRequest};
use common::{Setup, numbered};
use sha2::{Digest, Sha256};
use trunkline_connector::{Domain, Retry};

#[test]
fn credentials_are_sent() {
    let (setup, fake) = (Setup::new(), Fake::start());
    for (line, expected) in [
        ("username = \"u\"\npassword = \"p\"", "authorization: basic dtpw"),
        ("api_key = \"abc\"", "authorization: apikey abc"),
        ("bearer_token = \"abc\"", "authorization: bearer abc"),
    ] {
        drop(setup.open(&format!("{}{line}", options(&fake))));
        assert!(fake.headers().contains(&expected.to_owned()), "{:?}", fake.headers());
    }
}

#[test]
fn authorities_of_tls_ca_are_trusted_and_others_are_not() {
    let Some(certificate) = certificate() else { return };
    let (setup, fake) = (Setup::new(), Fake::start_tls(&std::fs::read(certificate.path()).unwrap()));
    let options = format!("url = \"https://{}\"\nindex = \"a\"\n", fake.address);
    let trusted = setup.open(&format!("{options}tls_ca = {:?}\n", certificate.path()));
    trusted.deliver(&mut numbered(0..3)).unwrap();
    assert_eq!(fake.numbers(), [0, 1, 2]);
    let error = setup.try_open(&options).err().unwrap();
    assert_eq!((error.code, error.retry), ("elasticsearch.tls", Retry::Never), "{error}");
    assert!(error.message().contains("set `tls_ca`"), "{error}");
    let missing = setup.try_open(&format!("{options}tls_ca = \"/nonexistent.pem\"\n")).err().unwrap();
    assert_eq!((missing.code, missing.domain), ("elasticsearch.tls_ca", Domain::Config), "{missing}");
}

#[test]
fn the_certificate_of_the_client_is_sent() {
    let (Some(certificate), Some(client)) = (certificate(), certificate()) else { return };
    let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path()).unwrap();
    let setup = Setup::new();
    let fake = Fake::start_tls_for(&read(&certificate), Some(&read(&client)));
    let options = format!("url = \"https://{}\"\nindex = \"a\"\ntls_ca = {:?}\n", fake.address, certificate.path());
    let file = client.path();
    let sink = setup.open(&format!("{options}tls_cert = {file:?}\ntls_key = {file:?}\n"));
    sink.deliver(&mut numbered(0..3)).unwrap();
    assert_eq!(fake.numbers(), [0, 1, 2]);
    assert!(setup.try_open(&options).is_err(), "a client without a certificate");
    let wrong = "Cargo.toml";
    let error = setup.try_open(&format!("{options}tls_cert = {wrong:?}\ntls_key = {wrong:?}\n")).err().unwrap();
    assert_eq!(error.code, "elasticsearch.tls_cert", "{error}");
}

#[test]
fn requests_go_through_the_proxy() {
    let (setup, proxy) = (Setup::new(), Fake::start());
    let address = &proxy.address;
    let sink = setup.open(&format!(
        "url = \"http://search.invalid:9200\"\nindex = \"a\"\nproxy = {{ url = \"http://{address}\", username = \"u\", \
         password = \"p\" }}\n"
    ));
    sink.deliver(&mut numbered(0..3)).unwrap();
    assert_eq!(proxy.numbers(), [0, 1, 2]);
    assert!(proxy.raw().line.starts_with("POST http://search.invalid:9200/_bulk?"), "{}", proxy.raw().line);
    assert!(proxy.headers().contains(&"proxy-authorization: basic dtpw".to_owned()), "{:?}", proxy.headers());
}

fn options(fake: &Fake) -> String {
    format!("url = \"http://{}\"\nindex = \"a\"\n", fake.address)
}

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

#[test]
fn requests_are_signed_for_amazon_services() {
    for (service, compression) in [("es", "gzip"), ("aoss", "none")] {
        let (setup, fake) = (Setup::new(), Fake::start());
        fake.answer("GET /_ingest/pipeline/a%20b%2Fc", 200, serde_json::json!({}));
        let sink = setup.open(&format!(
            "{}compression = \"{compression}\"\nauth = \"aws\"\npipeline = \"a b/c\"\n[aws]\nregion = \"eu-central-1\"\n\
             service = \"{service}\"\naccess_key_id = \"AKIAIOSFODNN7EXAMPLE\"\nsecret_access_key = \"{SECRET}\"\n",
            options(&fake)
        ));
        let opened = fake.raw();
        assert!(opened.line.starts_with("GET /_ingest/pipeline/a%20b%2Fc "), "{}", opened.line);
        check_signature(&opened, service);
        sink.deliver(&mut numbered(0..3)).unwrap();
        assert_eq!(fake.numbers(), [0, 1, 2]);
        let sent = fake.raw();
        assert!(!sent.body.is_empty() && sent.line.starts_with("POST /_bulk?filter_path="), "{}", sent.line);
        check_signature(&sent, service);
    }
}

/// Recomputes the signature of a request as the documentation of SigV4 says.
fn check_signature(request: &RawRequest, service: &str) {
    let header = |name: &str| {
        let named = |header: &&String| header.split(':').next().unwrap().eq_ignore_ascii_case(name);
        let found = request.headers.iter().find(named).unwrap_or_else(|| panic!("no {name} in {request:?}"));
        found.split_once(':').unwrap().1.trim().to_owned()
    };
    let authorization = header("authorization");
    let part = |name: &str| {
        let rest = authorization.split_once(name).unwrap().1;
        rest.split(',').next().unwrap().trim().to_owned()
    };
    let (scope, signed, signature) = (part("Credential="), part("SignedHeaders="), part("Signature="));
    let time = header("x-amz-date");
    let day = time.split_once('T').unwrap().0;
    let scope = scope.split_once('/').unwrap().1.to_owned();
    assert_eq!(scope, format!("{day}/eu-central-1/{service}/aws4_request"));
    let names: Vec<&str> = signed.split(';').collect();
    assert!(names.contains(&"host") && names.contains(&"x-amz-date") && names.is_sorted(), "{signed}");

    let mut line = request.line.split(' ');
    let (method, target) = (line.next().unwrap(), line.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // The path is encoded twice, except for S3.
    let path: Vec<String> = path.split('/').map(encode).collect();
    let mut query: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            format!("{}={}", encode(&decode(key)), encode(&decode(value)))
        })
        .collect();
    query.sort();
    let hash = hex(&Sha256::digest(&request.body));
    assert_eq!(header("x-amz-content-sha256"), hash);
    let headers: String = names.iter().map(|name| format!("{name}:{}\n", header(name))).collect();
    let canonical = format!("{method}\n{}\n{}\n{headers}\n{signed}\n{hash}", path.join("/"), query.join("&"));
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let key = scope.split('/').fold(format!("AWS4{SECRET}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    assert_eq!(signature, hex(&hmac(&key, to_sign.as_bytes())), "{canonical}");
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::digest([block.map(|byte| byte ^ 0x36).as_slice(), message].concat());
    Sha256::digest([block.map(|byte| byte ^ 0x5c).as_slice(), inner.as_slice()].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap().to_owned();
    for part in parts {
        decoded.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        decoded.push_str(&part[2..]);
    }
    decoded
}
