//! How a store is reached: TLS, and temporary credentials.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use aws_sdk_s3::types::ServerSideEncryption;
use common::s3::{self, Server};
use common::{Setup, commit, write};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use trunkline_connector::{Domain, Retry};

/// Creates `ca.pem`, the certificate of 127.0.0.1 that is its own authority, and its key.
fn certificate(folder: &Path) -> bool {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "ca.pem"])
        .current_dir(folder)
        .output();
    let made = output.is_ok_and(|output| output.status.success());
    if !made {
        eprintln!("SKIP s3 tls: openssl cannot make a certificate");
    }
    made
}

/// Ends TLS in front of the server at `upstream`. Returns its address.
fn serve_tls(setup: &Setup, folder: &Path, upstream: &str) -> String {
    let chain = CertificateDer::pem_file_iter(folder.join("ca.pem")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
    let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
    let listener = setup.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    setup.runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                // A client that does not trust the certificate ends the handshake.
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let Ok(mut server) = TcpStream::connect(upstream).await else { return };
                // An error is a connection that one of the two has closed.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[test]
fn authorities_of_tls_ca_are_trusted_and_others_end_a_job() {
    let setup = Setup::new();
    let folder = tempfile::tempdir().unwrap();
    let (true, Some(server)) = (certificate(folder.path()), Server::find()) else { return };
    let bucket = server.bucket();
    let options = s3::options(&serve_tls(&setup, folder.path(), &server.endpoint), &bucket);
    let error = setup.try_open(&options).err().unwrap();
    assert_eq!((error.code, error.domain, error.retry), ("s3.tls", Domain::External, Retry::Never), "{error}");
    assert!(error.message().contains("set `tls_ca`"), "{error}");

    let file = |name: &str| format!("{options}tls_ca = {:?}\n", folder.path().join(name));
    let mut sink = setup.try_open(&file("ca.pem")).unwrap();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    commit(sink.as_mut());
    assert_eq!(server.read(&bucket).iter().map(|file| file.rows()).sum::<usize>(), 1);

    for name in ["none.pem", "key.pem"] {
        let error = setup.try_open(&file(name)).err().unwrap();
        assert_eq!((error.code, error.domain), ("s3.tls_ca", Domain::Config), "{error}");
        assert!(error.message().contains("`tls_ca`") && error.message().contains(name), "{error}");
    }
}

/// The store of the tests knows no temporary credentials, so it refuses the token that it gets.
#[test]
fn the_session_token_is_sent() {
    let setup = Setup::new();
    let Some(server) = Server::find() else { return };
    let proxy = common::proxy::Proxy::start(setup.runtime.handle(), &server.endpoint);
    let options = s3::options(&proxy.endpoint, &server.bucket());
    drop(setup.try_open(&format!("{options}session_token = \"temporary\"\n")));
    assert!(proxy.headers().contains("x-amz-security-token: temporary"), "{}", proxy.headers());
}

/// The store encrypts each object with the key of the options, and refuses a key that it does not
/// have.
#[test]
fn objects_are_encrypted_with_the_kms_key() {
    let setup = Setup::new();
    let Some(server) = Server::with_kms() else { return };
    let bucket = server.bucket();
    let options = s3::options(&server.endpoint, &bucket);
    let mut sink = setup.try_open(&format!("{options}sse_kms_key_id = \"k1\"\n")).unwrap();
    write(sink.as_mut(), 0, &[r#"{"a":1}"#]);
    commit(sink.as_mut());
    let keys = server.keys(&bucket);
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let head = server.runtime.block_on(server.client.head_object().bucket(&bucket).key(key).send()).unwrap();
    let encryption = head.server_side_encryption().map(ServerSideEncryption::as_str);
    let named = head.ssekms_key_id().unwrap_or_default();
    assert!(encryption == Some("aws:kms") && named.ends_with("k1"), "{encryption:?} {named}");
    assert_eq!(server.read(&bucket)[0].rows(), 1);

    let error = setup.try_open(&format!("{options}sse_kms_key_id = \"unknown\"\n")).err().unwrap();
    assert_eq!((error.code, error.retry), ("s3.kms", Retry::Never), "{error}");
    assert!(error.message().contains("`sse_kms_key_id`"), "{error}");
}
