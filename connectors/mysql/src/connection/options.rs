//! The options of a connection.

use std::path::{Path, PathBuf};

use trunkline_connector::{Error, Result};

use super::address::Address;

/// The server, the user, and the protection of the connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionOptions {
    pub(crate) address: Address,
    pub(crate) tls: Tls,
    /// A PEM file with the certificate authorities to trust, instead of the system's.
    pub(crate) tls_ca: Option<PathBuf>,
    /// PEM files with the client's certificate and its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
}

/// The protection of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    Disable,
    /// TLS if the server offers it, without verification.
    Prefer,
    /// TLS without verification.
    Require,
    /// TLS, with verification of the certificate's issuer.
    VerifyCa,
    /// TLS, with verification of the certificate's issuer and host name.
    VerifyIdentity,
}

impl ConnectionOptions {
    /// The beginning of every message about the server.
    pub(crate) fn server_label(&self) -> String {
        format!("MySQL at {}:{}", self.address.host, self.address.port)
    }
}

/// Reads a PEM file that an option names.
pub(crate) fn read_pem(option: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let code = if option == "tls_ca" { "mysql.tls_ca" } else { "mysql.tls_cert" };
        let path = path.display();
        Error::config(code, format!("`{option}`: cannot read {path}: {error}; name a PEM file"))
    })
}
