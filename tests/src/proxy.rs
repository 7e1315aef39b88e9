//! Accepting connections for the proxies of this crate, with or without TLS.

use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate of `localhost` with its key, and the authority that signed it: PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl TlsFiles {
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates(&self.certificate), key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client that trusts the authority only.
    pub(crate) fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        certificates(&self.ca).into_iter().for_each(|authority| roots.add(authority).unwrap());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Both directions of a connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A connection, with or without TLS.
pub(crate) type Stream = Box<dyn Duplex>;

/// Listens on a free port of 127.0.0.1.
pub(crate) fn listen() -> (StdListener, u16) {
    let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Serves each connection by a task, on a thread that ends when the returned sender is dropped.
pub(crate) fn serve<F>(
    listener: StdListener,
    tls: Option<TlsAcceptor>,
    connection: impl Fn(Stream) -> F + Send + Sync + 'static,
) -> oneshot::Sender<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connection = Arc::new(connection);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let serve = async {
                while let Ok((client, _)) = listener.accept().await {
                    let (tls, connection) = (tls.clone(), connection.clone());
                    tokio::spawn(async move {
                        // A failed handshake is a broken connection, which the client notices.
                        if let Ok(client) = accept(client, tls).await {
                            connection(client).await;
                        }
                    });
                }
            };
            tokio::select! { _ = stopped => {}, () = serve => {} }
        });
    });
    stop
}

async fn accept(client: TcpStream, tls: Option<TlsAcceptor>) -> std::io::Result<Stream> {
    client.set_nodelay(true)?;
    Ok(match tls {
        Some(tls) => Box::new(tls.accept(client).await?),
        None => Box::new(client),
    })
}
