//! TLS: whom the client trusts, how it identifies itself, and how failures are explained.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use openssl::ssl::{SslAcceptor, SslMethod, SslStream, SslVerifyMode};
use trunkline_broker::TlsFiles;
use trunkline_connector::{Domain, Retry};

use super::certificates::{Identity, file};
use super::*;
use crate::kafka::wire::brokers::Brokers;

const TLS: Setting<'static> = ("security.protocol", "ssl");

/// A server that sends the name in the client's certificate, and then each byte back.
fn server(identity: &Identity, client_authority: Option<&Identity>) -> Server {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_private_key(&identity.key).unwrap();
    acceptor.set_certificate(&identity.certificate).unwrap();
    if let Some(authority) = client_authority {
        acceptor.cert_store_mut().add_cert(authority.certificate.clone()).unwrap();
        acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    let acceptor = acceptor.build();
    Server::start(move |socket| {
        let Ok(mut stream) = acceptor.accept(socket) else { return };
        let _ = stream.write_all(client_name(&stream).as_bytes());
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
}

fn client_name(stream: &SslStream<TcpStream>) -> String {
    let Some(certificate) = stream.ssl().peer_certificate() else { return "anonymous".to_owned() };
    let name = certificate.subject_name().entries().next().unwrap();
    String::from_utf8(name.data().as_slice().to_vec()).unwrap()
}

/// Connects, and returns what the server sends. `Err` is the report of the failure.
fn greeting(cluster: &Cluster, host: &str, port: u16) -> Result<String, String> {
    let mut stream = cluster.transport().unwrap().connect(host, port, deadline())?;
    let text = read_some(&mut stream).map_err(|error| format!("Receive failed: {error}"))?;
    Ok(String::from_utf8(text).unwrap())
}

#[test]
fn trusted_brokers_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Identity::authority("ca"), Identity::authority("other"));
    let broker = server(&Identity::signed("broker", &ca, (-1, 1)), None);
    let hashed = folder.path().join("hashed");
    std::fs::create_dir(&hashed).unwrap();
    file(&hashed, &format!("{:08x}.0", ca.certificate.subject_name_hash()), ca.pem());
    let path = |name: &str, pem: String| file(folder.path(), name, pem).display().to_string();
    let (trusted, untrusted) = (path("ca.pem", other.pem() + &ca.pem()), path("other.pem", other.pem()));
    let (pem, hashed) = (ca.pem(), hashed.display().to_string());
    let cases: [(&str, &[Setting<'_>]); 7] = [
        ("localhost", &[("ssl.ca.location", &trusted)]),
        ("localhost", &[("ssl.ca.location", &hashed)]),
        ("localhost", &[("ssl.ca.pem", &pem)]),
        ("localhost", &[("ssl.ca.location", &untrusted), ("ssl.ca.pem", &pem)]),
        ("127.0.0.1", &[("ssl.ca.pem", &pem), ("ssl.endpoint.identification.algorithm", "none")]),
        ("127.0.0.1", &[("ssl.ca.location", &untrusted), ("enable.ssl.certificate.verification", "false")]),
        (
            "localhost",
            &[
                ("ssl.ca.pem", &pem),
                ("ssl.cipher.suites", "ECDHE-ECDSA-AES256-GCM-SHA384"),
                ("ssl.curves.list", "P-256"),
                ("ssl.sigalgs.list", "ECDSA+SHA256"),
                ("ssl.providers", "default"),
            ],
        ),
    ];
    for (host, settings) in cases {
        let cluster = cluster(broker.port, &[settings, &[TLS]].concat()).unwrap();
        assert_eq!(greeting(&cluster, host, broker.port).as_deref(), Ok("anonymous"), "{host} {settings:?}");
    }
}

#[test]
fn refused_certificates_are_explained() {
    let (ca, other) = (Identity::authority("ca"), Identity::authority("other"));
    let (trusted, untrusted) = (ca.pem(), other.pem());
    let valid = server(&Identity::signed("broker", &ca, (-1, 1)), None);
    let expired = server(&Identity::signed("broker", &ca, (-2, -1)), None);
    let early = server(&Identity::signed("broker", &ca, (1, 2)), None);
    let cases = [
        (&valid, "localhost", &untrusted, "the certificate authority is unknown", "set `ssl.ca.location`"),
        (&valid, "127.0.0.1", &trusted, "the certificate is for another host", "`advertised.listeners`"),
        (&expired, "localhost", &trusted, "the certificate has expired", "renew the certificate"),
        (&early, "localhost", &trusted, "the certificate is not yet valid", "correct the clock"),
    ];
    for (server, host, ca, reason, remedy) in cases {
        let cluster = cluster(server.port, &[TLS, ("ssl.ca.pem", ca)]).unwrap();
        let report = greeting(&cluster, host, server.port).unwrap_err();
        let error = explained(&cluster, &report);
        assert_eq!((error.code, error.retry), ("kafka.connection_rejected", Retry::Never), "{error}");
        let (text, address) = (error.to_string(), format!("ssl://{host}:{}: ", server.port));
        assert!(text.contains(reason) && text.contains(remedy) && text.contains(&address), "{text}");
        assert!(text.contains("(subject=/CN=broker, issuer=/CN=ca)"), "{text}");
    }
}

#[test]
fn revoked_certificates_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let broker = server(&Identity::signed("broker", &ca, (-1, 1)), None);
    file(folder.path(), "ca.pem", ca.pem());
    file(folder.path(), "ca.key", ca.key_pem());
    file(folder.path(), "number", "01\n");
    let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=2\n";
    file(folder.path(), "ca.cnf", config);
    let list = |index: &str, name: &str| {
        file(folder.path(), "index", index);
        let mut openssl = Command::new("openssl");
        openssl.args(["ca", "-gencrl", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-out", name]);
        openssl.current_dir(folder.path()).output().is_ok_and(|output| output.status.success())
    };
    if !list("", "none.pem") || !list("R\t491231235959Z\t201231235959Z\t02\tunknown\t/CN=broker\n", "revoked.pem") {
        eprintln!("SKIP kafka::wire::tls: openssl cannot make a list of revoked certificates");
        return;
    }
    let ca = ca.pem();
    let greeting = |list: &str| {
        let list = folder.path().join(list).display().to_string();
        let cluster = cluster(broker.port, &[TLS, ("ssl.ca.pem", &ca), ("ssl.crl.location", &list)]).unwrap();
        greeting(&cluster, "localhost", broker.port)
    };
    assert_eq!(greeting("none.pem").as_deref(), Ok("anonymous"));
    let report = greeting("revoked.pem").unwrap_err();
    assert!(report.contains("the certificate was revoked"), "{report}");
}

#[test]
fn clients_identify_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let client = Identity::signed("client", &ca, (-1, 1));
    let broker = server(&Identity::signed("broker", &ca, (-1, 1)), Some(&ca));
    let path = |name: &str, content: Vec<u8>| file(folder.path(), name, content).display().to_string();
    let (trusted, pem, key) = (ca.pem(), client.pem(), client.key_pem());
    let encrypted = client.encrypted_key_pem("hunter2");
    let (pem_file, key_file) = (path("client.pem", pem.clone().into()), path("client.key", key.clone().into()));
    let encrypted_file = path("encrypted.key", encrypted.clone().into());
    let store = path("client.p12", client.key_store("hunter2"));
    let cases: [&[Setting<'_>]; 5] = [
        &[("ssl.certificate.location", &pem_file), ("ssl.key.location", &key_file)],
        &[("ssl.certificate.pem", &pem), ("ssl.key.pem", &key)],
        &[("ssl.certificate.pem", &pem), ("ssl.key.location", &encrypted_file), ("ssl.key.password", "hunter2")],
        &[("ssl.certificate.location", &pem_file), ("ssl.key.pem", &encrypted), ("ssl.key.password", "hunter2")],
        &[("ssl.keystore.location", &store), ("ssl.keystore.password", "hunter2")],
    ];
    for settings in cases {
        let cluster = cluster(broker.port, &[settings, &[TLS, ("ssl.ca.pem", &trusted)]].concat()).unwrap();
        assert_eq!(greeting(&cluster, "localhost", broker.port).as_deref(), Ok("client"));
    }
    let cluster = cluster(broker.port, &[TLS, ("ssl.ca.pem", &trusted)]).unwrap();
    let report = greeting(&cluster, "localhost", broker.port).unwrap_err();
    let error = explained(&cluster, &report).to_string();
    assert!(error.contains("requires a client certificate") && error.contains("`ssl.key.location`"), "{error}");
}

#[test]
fn wrong_files_and_passwords_are_reported_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let (client, other) = (Identity::signed("client", &ca, (-1, 1)), Identity::signed("other", &ca, (-1, 1)));
    let path = |name: &str, content: Vec<u8>| file(folder.path(), name, content).display().to_string();
    let encrypted = client.encrypted_key_pem("hunter2");
    let (pem, other_key) = (client.pem(), other.key_pem());
    let encrypted_file = path("encrypted.key", encrypted.clone().into());
    let store = path("client.p12", client.key_store("hunter2"));
    let text = path("text", b"hunter2".to_vec());
    let certificate = ("ssl.certificate.pem", pem.as_str());
    let cases: [(&[Setting<'_>], &[&str]); 12] = [
        (&[("ssl.ca.location", &text)], &["ssl.ca.location failed: ", &text]),
        (&[("ssl.ca.pem", "hunter2")], &["ssl.ca.pem failed: it has no certificate"]),
        (&[("ssl.crl.location", &text)], &["ssl.crl.location failed: ", &text]),
        (&[("ssl.certificate.location", &text)], &["ssl.certificate.location failed: it has no", &text]),
        (&[certificate, ("ssl.key.pem", &encrypted)], &["ssl.key.pem failed: ", "`ssl.key.password`"]),
        (
            &[certificate, ("ssl.key.location", &encrypted_file), ("ssl.key.password", "wrong-hunter2")],
            &["ssl.key.location failed: ", "`ssl.key.password`", &encrypted_file],
        ),
        (&[certificate, ("ssl.key.pem", &other_key)], &["ssl.key.pem failed: ", "key values mismatch"]),
        (
            &[("ssl.keystore.location", &store), ("ssl.keystore.password", "wrong-hunter2")],
            &["ssl.keystore.location failed: ", "`ssl.keystore.password`", &store],
        ),
        (&[("ssl.keystore.location", &text)], &["ssl.keystore.location failed: ", &text]),
        (&[("ssl.cipher.suites", "hunter2")], &["ssl.cipher.suites failed: "]),
        (&[("ssl.providers", "hunter2")], &["ssl.providers failed: "]),
        (&[("ssl.engine.location", &text)], &["ssl.engine.location is not supported"]),
    ];
    for (settings, expected) in cases {
        let error = cluster(1, &[settings, &[TLS]].concat()).err().unwrap();
        assert_eq!((error.code, error.domain), ("kafka.settings", Domain::Config));
        let text = error.to_string();
        assert!(expected.iter().all(|part| text.contains(part)), "{expected:?}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// A certificate is replaced while the worker runs.
#[test]
fn changed_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let broker = server(&Identity::signed("broker", &ca, (-1, 1)), Some(&ca));
    let place = |identity: &Identity, age: u64| {
        for (name, content) in [("client.pem", identity.pem()), ("client.key", identity.key_pem())] {
            let path = file(folder.path(), name, content);
            let time = std::time::SystemTime::now() - Duration::from_secs(age);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    };
    place(&Identity::signed("first", &ca, (-1, 1)), 200);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ca_pem, pem, key) = (ca.pem(), path("client.pem"), path("client.key"));
    let files = [("ssl.certificate.location", pem.as_str()), ("ssl.key.location", &key), ("ssl.ca.pem", &ca_pem)];
    let cluster = cluster(broker.port, &[&files[..], &[TLS]].concat()).unwrap();
    let greeting = || greeting(&cluster, "localhost", broker.port).unwrap();
    assert_eq!(greeting(), "first");
    assert!(Arc::ptr_eq(&cluster.transport().unwrap(), &cluster.transport().unwrap()));
    place(&Identity::signed("second", &ca, (-1, 1)), 100);
    assert_eq!(greeting(), "second");
    // A certificate whose key is not there yet.
    file(folder.path(), "client.pem", Identity::signed("third", &ca, (-1, 1)).pem());
    assert_eq!(greeting(), "second");
}

#[test]
fn wrong_protocols_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Identity::authority("ca");
    let trusted = ca.pem();
    let closing = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
    });
    let answering = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    for server in [&closing, &answering] {
        let cluster = cluster(server.port, &[TLS, ("ssl.ca.pem", &trusted)]).unwrap();
        let report = greeting(&cluster, "localhost", server.port).unwrap_err();
        let error = explained(&cluster, &report);
        assert_eq!(error.code, "kafka.connection_rejected", "{error}");
        assert!(error.to_string().contains("this port of the broker may not use TLS"), "{error}");
    }
    let identity = Identity::signed("broker", &ca, (-1, 1));
    let tls = TlsFiles {
        certificate: file(folder.path(), "broker.pem", identity.pem()),
        key: file(folder.path(), "broker.key", identity.key_pem()),
    };
    let with_tls = SecuredBroker::start(Some(tls));
    let with_users = SecuredBroker::start(None);
    for broker in [&with_tls, &with_users] {
        let cluster = cluster(broker.port, &[]).unwrap();
        let refused = Brokers::new(&cluster, "test").refresh(&["t"], Instant::now() + Duration::from_secs(5));
        let error = refused.err().unwrap().explain("connecting", &cluster);
        assert_eq!(error.code, "kafka.connection_rejected", "{error}");
        assert!(error.to_string().contains("this port of the broker requires TLS or SASL"), "{error}");
    }
}

#[test]
fn brokers_that_cannot_be_reached_are_reported() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let v6 = ("broker.address.family", "v6");
    let cases: [(&str, u16, &[Setting<'_>], &str); 4] = [
        ("127.0.0.1", free, &[], "Connection refused"),
        ("no-such-host.invalid", free, &[], "Failed to resolve 'no-such-host.invalid:"),
        ("127.0.0.1", free, &[v6], "it has no address of the family in `broker.address.family`"),
        ("127.0.0.1", port, &[TLS], "Connection setup timed out in state SSL_HANDSHAKE"),
    ];
    for (host, port, settings, expected) in cases {
        let cluster = cluster(port, settings).unwrap();
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(300);
        let report = cluster.transport().unwrap().connect(host, port, deadline).err().unwrap();
        assert!(report.contains(expected) && report.contains(&format!("{host}:{port}")), "{report}");
        assert!(begun.elapsed() < LIMIT);
        let error = explained(&cluster, &report);
        assert_eq!(error.code, "kafka.unreachable");
        assert!(error.to_string().contains("check the "), "{error}");
    }
}

#[test]
fn streams_carry_more_than_sockets_hold() {
    let ca = Identity::authority("ca");
    let trusted = ca.pem();
    let with_tls = server(&Identity::signed("broker", &ca, (-1, 1)), None);
    let plain = Server::start(|mut stream| {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    let sizes = [("socket.send.buffer.bytes", "65536"), ("socket.receive.buffer.bytes", "32768")];
    let bytes: Vec<u8> = (0..4 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tls = cluster(with_tls.port, &[&sizes[..], &[TLS, ("ssl.ca.pem", &trusted)]].concat()).unwrap();
    let mut stream = tls.transport().unwrap().connect("localhost", with_tls.port, deadline()).unwrap();
    assert_eq!(read_some(&mut stream).unwrap(), b"anonymous");
    assert!(exchange(&mut stream, &bytes) == bytes);
    let cluster = cluster(plain.port, &sizes).unwrap();
    let mut stream = cluster.transport().unwrap().connect("localhost", plain.port, deadline()).unwrap();
    let Stream::Plain(socket) = &stream else { panic!("TLS without being asked for") };
    let options = socket2::SockRef::from(socket);
    // The system doubles the sizes.
    assert_eq!((options.send_buffer_size().unwrap(), options.recv_buffer_size().unwrap()), (131_072, 65_536));
    assert!(options.keepalive().unwrap() && options.tcp_nodelay().unwrap());
    assert!(exchange(&mut stream, &bytes) == bytes);
}

#[test]
fn an_authority_of_the_system_is_found() {
    let Some(_) = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"]
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        eprintln!("SKIP kafka::wire::tls: this system has no certificate authorities");
        return;
    };
    let cluster = Cluster::new("b:1", &BTreeMap::from([("security.protocol".to_owned(), "ssl".to_owned())])).unwrap();
    assert!(cluster.transport().unwrap().trusted_authorities() > 10);
}
