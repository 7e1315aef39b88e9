//! HTTPS of the server, with and without client certificates.

use std::path::Path;
use std::process::Command;

use super::*;

/// An authority, certificates for the server and a client that it has signed, and a certificate
/// that no authority has signed: `ca`, `server`, `client`, `stranger`, each with `.pem` and `.key`.
fn files() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder.path()).output();
        output.is_ok_and(|output| output.status.success())
    };
    std::fs::write(folder.path().join("names"), "subjectAltName=DNS:localhost").unwrap();
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let signed = |name: &str| {
        run(&format!("req {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"))
            && run(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
            ))
    };
    let own = |name: &str| run(&format!("req -x509 {new} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"));
    let made = own("ca") && signed("server") && signed("client") && own("stranger");
    if !made {
        eprintln!("SKIP http::tls: openssl cannot make certificates");
    }
    made.then_some(folder)
}

fn settings(folder: &Path, certificate: &str, client_ca: Option<&str>) -> Settings {
    let path = |name: String| Some(folder.join(name));
    let mut settings = Settings::load(None, &Vec::new()).unwrap();
    settings.http_tls_cert = path(format!("{certificate}.pem"));
    settings.http_tls_key = path(format!("{certificate}.key"));
    settings.http_tls_client_ca = client_ca.and_then(|name| path(format!("{name}.pem")));
    settings
}

/// A running server. Returns its port.
fn serve(fixture: Fixture, token: Option<&str>, tls: &HttpTls) -> (tokio::runtime::Runtime, u16) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let served = Arc::into_inner(fixture.served).unwrap();
    let served = Served { token: token.map(str::to_owned), tls: Some(tls.clone()), ..served };
    let address = start(runtime.handle(), "127.0.0.1:0".parse().unwrap(), served).unwrap();
    (runtime, address.port())
}

fn pem(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap()
}

/// A client that trusts the authority, with a certificate.
fn client(folder: &Path, identity: Option<&str>) -> reqwest::Client {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let ca = reqwest::Certificate::from_pem(&pem(folder, "ca.pem")).unwrap();
    let mut builder = reqwest::Client::builder().no_proxy().tls_certs_only([ca]);
    if let Some(name) = identity {
        let pem = [pem(folder, &format!("{name}.pem")), pem(folder, &format!("{name}.key"))].concat();
        builder = builder.identity(reqwest::Identity::from_pem(&pem).unwrap());
    }
    builder.build().unwrap()
}

/// The status code of an answer; `None` if the connection fails.
async fn code(request: reqwest::RequestBuilder) -> Option<u16> {
    request.send().await.ok().map(|answer| answer.status().as_u16())
}

#[test]
fn a_server_with_a_certificate_speaks_https_only() {
    let Some(folder) = files() else { return };
    let folder = folder.path();
    let tls = HttpTls::load(&settings(folder, "server", None)).unwrap().unwrap();
    let (runtime, port) = serve(fixture(), Some("abc"), &tls);
    runtime.block_on(async {
        let client = client(folder, None);
        let get = |path: &str| client.get(format!("https://localhost:{port}{path}"));
        assert_eq!(code(get("/health")).await, Some(200));
        assert_eq!(code(get("/api/v1/status")).await, Some(401));
        assert_eq!(code(get("/api/v1/status").bearer_auth("abc")).await, Some(200));
        assert_eq!(code(get("/metrics").basic_auth("any", Some("abc"))).await, Some(200));
        assert_eq!(code(client.get(format!("http://localhost:{port}/health"))).await, None, "plain HTTP");
    });
    // The command on the same machine accepts this certificate, for any name, and no other one.
    let own = |certificate: &str| {
        let builder = client_of_own_worker(&settings(folder, certificate, None)).unwrap();
        let client = builder.no_proxy().build().unwrap();
        runtime.block_on(code(client.get(format!("https://127.0.0.1:{port}/health"))))
    };
    assert_eq!((own("server"), own("stranger")), (Some(200), None));
    runtime.shutdown_background();
}

#[test]
fn a_client_certificate_takes_the_place_of_the_token() {
    let Some(folder) = files() else { return };
    let folder = folder.path();
    let tls = HttpTls::load(&settings(folder, "server", Some("ca"))).unwrap().unwrap();
    let (runtime, port) = serve(fixture(), None, &tls);
    let ask = |identity: Option<&str>, path: &str| {
        let request = client(folder, identity).get(format!("https://localhost:{port}{path}"));
        runtime.block_on(code(request))
    };
    assert_eq!((ask(Some("client"), "/metrics"), ask(None, "/metrics")), (Some(200), Some(401)));
    assert_eq!(ask(Some("stranger"), "/metrics"), None, "its authority is unknown");
    assert_eq!(ask(None, "/health"), Some(200), "probes have no certificate");
    let pause = client(folder, Some("client")).put(format!("https://localhost:{port}/connectors/shop.lake/pause"));
    assert_eq!(runtime.block_on(code(pause)), Some(202));
    let pause = client(folder, None).put(format!("https://localhost:{port}/connectors/shop.lake/pause"));
    assert_eq!(runtime.block_on(code(pause)), Some(401));
    runtime.shutdown_background();
}

#[test]
fn certificates_are_reloaded_and_wrong_files_change_nothing() {
    let Some(folder) = files() else { return };
    let folder = folder.path();
    for (from, to) in [("server.pem", "live.pem"), ("server.key", "live.key")] {
        std::fs::copy(folder.join(from), folder.join(to)).unwrap();
    }
    let tls = HttpTls::load(&settings(folder, "live", None)).unwrap().unwrap();
    let (runtime, port) = serve(fixture(), None, &tls);
    let accepts = |certificate: &str| {
        let client = client_of_own_worker(&settings(folder, certificate, None)).unwrap().no_proxy().build().unwrap();
        runtime.block_on(code(client.get(format!("https://127.0.0.1:{port}/health")))) == Some(200)
    };
    assert!(accepts("server"));
    std::fs::write(folder.join("live.pem"), "no certificate").unwrap();
    tls.reload();
    assert!(accepts("server"));
    for (from, to) in [("stranger.pem", "live.pem"), ("stranger.key", "live.key")] {
        std::fs::copy(folder.join(from), folder.join(to)).unwrap();
    }
    tls.reload();
    assert!(accepts("stranger") && !accepts("server"));
    runtime.shutdown_background();
}

#[test]
fn wrong_files_are_named() {
    let Some(folder) = files() else { return };
    let folder = folder.path();
    let problem = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings(folder, "server", None);
        change(&mut settings);
        let error = HttpTls::load(&settings).err().unwrap();
        assert_eq!(error.code, "http.tls");
        error.message().to_owned()
    };
    let path = |name: &str| Some(folder.join(name));
    for (message, part) in [
        (problem(&|it| it.http_tls_cert = path("none.pem")), "`http_tls_cert`: cannot read"),
        (problem(&|it| it.http_tls_cert = path("server.key")), "server.key has no certificate in PEM format"),
        (problem(&|it| it.http_tls_key = path("client.key")), "name a certificate and its private key"),
        (problem(&|it| it.http_tls_key = None), "`http_tls_key` is missing"),
        (problem(&|it| it.http_tls_client_ca = path("ca.key")), "`http_tls_client_ca`: "),
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(HttpTls::load(&Settings::load(None, &Vec::new()).unwrap()).unwrap().is_none());
}
