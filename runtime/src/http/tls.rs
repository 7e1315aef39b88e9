//! HTTPS of the worker's server, and the clients that reach it.
//!
//! The server has a certificate, and may ask clients for theirs (`http_tls_client_ca`). A client
//! without one is let in, because the probes need none; `guard.rs` refuses its other requests.
//!
//! Commands on the worker's machine trust the certificate that the settings name, and no other:
//! it need not be issued for `127.0.0.1`. Workers among each other do not verify certificates: they
//! send no secret, and the address of the other one is not to be trusted either (ADR 027).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::server::TlsStream;
use trunkline_connector::tls::{TlsCodes, TlsIdentity, TlsOptions, authorities_in};
use trunkline_connector::{Error, Result};

use crate::config::Settings;

/// What the address of a worker with HTTPS begins with where workers show it.
pub(crate) const HTTPS: &str = "https://";

const CODE: &str = "http.tls";
const CODES: TlsCodes = TlsCodes { ca: CODE, cert: CODE };

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 256;

/// Connections that wait for the server after their handshakes.
const WAITING: usize = 64;

/// Wait after an error of the listener, such as too many open files.
const RETRY: Duration = Duration::from_millis(200);

/// The certificate of the server. Clones share it.
#[derive(Clone)]
pub struct HttpTls {
    shared: Arc<Shared>,
}

struct Shared {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    current: RwLock<Arc<ServerConfig>>,
    /// Grows with each reload.
    generation: AtomicU64,
}

impl HttpTls {
    /// Reads the files that the settings name. `None`: the server speaks HTTP.
    pub fn load(settings: &Settings) -> Result<Option<Self>> {
        let (certificate, key) = match (&settings.http_tls_cert, &settings.http_tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) if settings.http_tls_client_ca.is_none() => return Ok(None),
            (certificate, _) => {
                let missing = if certificate.is_none() { "http_tls_cert" } else { "http_tls_key" };
                let message = format!(
                    "`{missing}` is missing: HTTPS needs a certificate (`http_tls_cert`) and its private key (`http_tls_key`)"
                );
                return Err(Error::config(CODE, message));
            }
        };
        let client_ca = settings.http_tls_client_ca.clone();
        let current = RwLock::new(Arc::new(server_config(&certificate, &key, client_ca.as_deref())?));
        let generation = AtomicU64::new(0);
        Ok(Some(Self { shared: Arc::new(Shared { certificate, key, client_ca, current, generation }) }))
    }

    /// Whether clients can prove who they are by a certificate.
    pub fn knows_clients(&self) -> bool {
        self.shared.client_ca.is_some()
    }

    /// Reads the files again. New connections use them; if one is wrong, the earlier ones stay.
    pub fn reload(&self) {
        let Shared { certificate, key, client_ca, current, generation } = &*self.shared;
        match server_config(certificate, key, client_ca.as_deref()) {
            Ok(config) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                generation.fetch_add(1, Ordering::Relaxed);
                tracing::info!("the certificate of the HTTP server was read again");
            }
            Err(error) => tracing::warn!(%error, "the HTTP server keeps its earlier certificate"),
        }
    }

    /// Differs after a reload.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Relaxed)
    }

    /// This worker's certificate, for servers of other workers that ask for one.
    pub(super) fn client_identity(&self) -> Option<reqwest::Identity> {
        let TlsIdentity { certificate, key } = identity(&self.shared.certificate, &self.shared.key).ok()?;
        reqwest::Identity::from_pem(&[certificate, key].join(&b'\n')).ok()
    }

    fn current(&self) -> Arc<ServerConfig> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn identity(certificate: &std::path::Path, key: &std::path::Path) -> Result<TlsIdentity> {
    let found = TlsOptions::of_files(CODES, "http_", None, Some((certificate, key))).identity()?;
    found.ok_or_else(|| Error::internal(CODE, "no certificate was read"))
}

/// The certificate with its chain, and the key, of checked files.
fn parsed(identity: &TlsIdentity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let unusable =
        |error: &dyn std::fmt::Display| Error::config(CODE, format!("`http_tls_cert` cannot be used: {error}"));
    let chain = CertificateDer::pem_slice_iter(&identity.certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|error| unusable(&error))?;
    Ok((chain, key))
}

fn server_config(
    certificate: &std::path::Path,
    key: &std::path::Path,
    client_ca: Option<&std::path::Path>,
) -> Result<ServerConfig> {
    let (chain, key) = parsed(&identity(certificate, key)?)?;
    let provider = Arc::new(ring::default_provider());
    let unusable = |error: &dyn std::fmt::Display| Error::config(CODE, format!("HTTPS cannot be started: {error}"));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let wrong = |problem: String| {
                let expected = "name a PEM file with the certificate authorities of the clients";
                Error::config(CODE, format!("`http_tls_client_ca`: {problem}; {expected}"))
            };
            let pem = authorities_in(path).map_err(wrong)?;
            let mut roots = RootCertStore::empty();
            for authority in CertificateDer::pem_slice_iter(&pem).flatten() {
                roots.add(authority).map_err(|error| wrong(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Connections after their TLS handshakes, which happen aside: a slow client delays no other one.
pub(super) struct TlsListener {
    accepted: Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Starts to accept connections.
    pub(super) fn start(listener: TcpListener, tls: HttpTls) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, accepted) = channel(WAITING);
        tokio::spawn(accept(listener, tls, sender));
        Ok(Self { accepted, address })
    }
}

async fn accept(listener: TcpListener, tls: HttpTls, sender: Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while !sender.is_closed() {
        // The semaphore is never closed.
        let permit = handshakes.clone().acquire_owned().await.ok();
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection to the HTTP server was not accepted");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let (acceptor, sender) = (TlsAcceptor::from(tls.current()), sender.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    drop(permit);
                    // The server has ended if this fails.
                    let _ = sender.send((stream, address)).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, %address, "a TLS handshake of the HTTP server failed"),
                Err(_) => tracing::debug!(%address, "a TLS handshake of the HTTP server took too long"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

/// What is known of the client of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// It has a certificate of `http_tls_client_ca`.
    pub(super) has_certificate: bool,
}

impl Connected<IncomingStream<'_, TlsListener>> for Client {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        // The handshake has verified it.
        Self { has_certificate: stream.io().get_ref().1.peer_certificates().is_some() }
    }
}

/// A client of the worker on this machine, for commands. It accepts the certificate of the settings
/// only, and sends it where the server asks for one.
pub(crate) fn client_of_own_worker(settings: &Settings) -> Result<reqwest::ClientBuilder> {
    let (Some(certificate), Some(key)) = (&settings.http_tls_cert, &settings.http_tls_key) else {
        let message = "the worker speaks HTTPS: the command needs its settings `http_tls_cert` and `http_tls_key`, so use the same \
                       settings file (`--config`)";
        return Err(Error::config(CODE, message));
    };
    let (chain, key) = parsed(&identity(certificate, key)?)?;
    let pinned = chain.first().cloned().ok_or_else(|| Error::internal(CODE, "a chain without certificates"))?;
    let provider = Arc::new(ring::default_provider());
    let unusable = |error: TlsError| Error::config(CODE, format!("`http_tls_cert` cannot be used: {error}"));
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { certificate: pinned, provider }))
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    Ok(reqwest::Client::builder().tls_backend_preconfigured(config))
}

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
