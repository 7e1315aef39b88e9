//! The TLS side of the listener.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsFiles;

/// Why TLS cannot be offered: a file, and what is wrong with it.
pub(crate) struct TlsError(pub(crate) String);

/// Reads certificate and key. TLS 1.2 and 1.3 are offered.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let failed = |path: &Path, why: &dyn std::fmt::Display| TlsError(format!("{}: {why}", path.display()));
    let (certificate, key) = (files.certificate.as_path(), files.key.as_path());
    let read = |path: &Path| std::fs::read(path).map_err(|error| failed(path, &error));
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(certificate, &format!("it is not a PEM file: {error}")))?;
    if chain.is_empty() {
        return Err(failed(certificate, &"it has no certificate in PEM format"));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| failed(key, &format!("it has no private key in PEM format without encryption: {error}")))?;
    // Explicit, so that the process-wide default provider does not matter.
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(certificate, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map(|config| TlsAcceptor::from(Arc::new(config)))
        .map_err(|error| failed(certificate, &format!("it does not belong to {}: {error}", key.display())))
}
