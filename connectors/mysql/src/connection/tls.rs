//! The byte stream below the protocol: TCP, with TLS as the option `tls` demands.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use trunkline_connector::tls::{TlsIdentity, TlsOptions, handshake_problem};
use trunkline_connector::{Error, Retry};

use super::options::{ConnectionOptions, Tls};

/// Interval of TCP keepalives: firewalls forget idle connections.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A failure to open the stream.
#[derive(Debug)]
pub(crate) enum StreamError {
    /// TCP failed.
    Io(io::Error),
    /// TLS failed: the reason and what to do.
    Tls(String),
    /// An option is wrong.
    Config(Error),
}

/// A byte stream to the server.
pub(crate) enum ServerStream {
    Plain(TcpStream),
    // Boxed because it is much larger.
    Secure(Box<TlsStream<TcpStream>>),
}

impl ServerStream {
    /// Opens a connection without TLS.
    pub(crate) async fn connect(options: &ConnectionOptions) -> Result<Self, StreamError> {
        let connect = async {
            let stream = TcpStream::connect((options.address.host.as_str(), options.address.port)).await?;
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
            io::Result::Ok(stream)
        };
        connect.await.map(Self::Plain).map_err(StreamError::Io)
    }

    /// Starts TLS.
    pub(crate) async fn secure(self, options: &ConnectionOptions) -> Result<Self, StreamError> {
        let Self::Plain(stream) = self else { return Ok(self) };
        let host = &options.address.host;
        let name = ServerName::try_from(host.clone());
        let name = name.map_err(|_| {
            StreamError::Tls(format!("`{host}` is not a valid name of a certificate; use the server's name in `url`"))
        })?;
        let connector = TlsConnector::from(Arc::new(client_config(options)?));
        let stream = connector.connect(name, stream).await;
        stream.map(|stream| Self::Secure(Box::new(stream))).map_err(|error| match handshake_problem(&error) {
            Some(problem) => StreamError::Tls(problem),
            None => StreamError::Io(error),
        })
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, out),
            Self::Secure(stream) => Pin::new(stream).poll_read(context, out),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

fn client_config(options: &ConnectionOptions) -> Result<ClientConfig, StreamError> {
    let tls = options.tls;
    // Explicit, so that the process-wide default provider does not matter.
    let provider = Arc::new(ring::default_provider());
    let failed =
        |error: &dyn std::error::Error| StreamError::Tls(format!("{error}; check `tls_ca`, `tls_cert` and `tls_key`"));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let verifier: Arc<dyn ServerCertVerifier> = match tls {
        Tls::Disable | Tls::Prefer | Tls::Require => Arc::new(Unverified(provider)),
        Tls::VerifyCa | Tls::VerifyIdentity => {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&options.files)?), provider).build();
            let verifier = verifier.map_err(|error| failed(&error))?;
            if tls == Tls::VerifyIdentity { verifier } else { Arc::new(AnyName(verifier)) }
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let Some(TlsIdentity { certificate, key }) = options.files.identity().map_err(StreamError::Config)? else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| failed(&error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))
}

/// The authorities to trust.
fn roots(files: &TlsOptions) -> Result<RootCertStore, StreamError> {
    let mut roots = RootCertStore::empty();
    let certificates = match files.authorities().map_err(StreamError::Config)? {
        // They have been checked.
        Some(pem) => CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    // Some certificates of a system cannot be parsed. An empty store fails at the verification.
    roots.add_parsable_certificates(certificates);
    Ok(roots)
}

/// The error of a connection that TLS does not permit. A job does not repeat it: only other files,
/// options or certificates help.
pub(crate) fn tls_error(options: &ConnectionOptions, problem: &str) -> Error {
    Error::external("mysql.tls", format!("{}: {problem}", options.server_label())).retry(Retry::Never)
}

/// The error of a server that demands the password itself from a client without TLS.
pub(crate) fn password_needs_tls(options: &ConnectionOptions) -> Error {
    let (server, user) = (options.server_label(), &options.address.user);
    let message = format!(
        "{server} has not cached the password of `{user}`, and accepts it over TLS only; set `tls` to \"require\" or a \
         stricter value"
    );
    Error::config("mysql.tls", message)
}

/// Accepts any certificate: protects against eavesdroppers, not against impostors.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    // Any certificate is accepted, so any key is. A verification of signatures would only reject
    // old certificates.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies the issuer of the certificate, not its name.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        // The name is verified last, after everything else.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
