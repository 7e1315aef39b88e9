//! The options of a connection.

use trunkline_connector::tls::{TlsCodes, TlsOptions};

use super::address::Address;

/// The server, the user, and the protection of the connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionOptions {
    pub(crate) address: Address,
    pub(crate) tls: Tls,
    pub(crate) files: TlsOptions,
}

/// The codes of errors about the files of TLS.
pub(crate) const TLS_CODES: TlsCodes = TlsCodes { ca: "mysql.tls_ca", cert: "mysql.tls_cert" };

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
