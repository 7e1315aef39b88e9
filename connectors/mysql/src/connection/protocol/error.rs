//! Errors of a connection.

use std::fmt::{self, Display, Formatter};

use trunkline_connector::Error;

use crate::connection::tls::StreamError;
use crate::decode::little;

/// The reason why a connection could not be opened or ended, or why a statement failed.
#[derive(Debug)]
pub(crate) enum ProtocolError {
    /// The server reported an error.
    Server(ServerError),
    /// The connection broke, or its bytes violate the protocol.
    Broken(String),
    /// TLS failed.
    Tls(String),
    /// The server demands the password itself, and the connection has no TLS.
    PasswordNeedsTls,
    /// An error that already has its message for the user.
    Connector(Error),
}

/// An error that the server reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) number: u16,
    /// The SQLSTATE; the server omits it before the authentication.
    pub(crate) state: Option<String>,
    pub(crate) message: String,
}

impl ProtocolError {
    pub(crate) fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }

    /// The error that the server reported.
    pub(crate) fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the server reported the error with this number.
    pub(crate) fn is_server_error(&self, number: u16) -> bool {
        self.server().is_some_and(|error| error.number == number)
    }
}

impl Display for ServerError {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match &self.state {
            Some(state) => write!(out, "error {} ({state}): {}", self.number, self.message),
            None => write!(out, "error {}: {}", self.number, self.message),
        }
    }
}

impl From<StreamError> for ProtocolError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Io(error) => Self::Broken(error.to_string()),
            StreamError::Tls(why) => Self::Tls(why),
            StreamError::Config(error) => Self::Connector(error),
        }
    }
}

/// Decodes an error packet, after its first byte.
pub(crate) fn server_error(bytes: &[u8]) -> ProtocolError {
    const STATE: usize = 5;
    let Some((number, rest)) = bytes.split_first_chunk::<2>() else {
        return ProtocolError::broken("the server sent an error without a number");
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (state, message) = match rest.split_first() {
        Some((b'#', rest)) => {
            let (state, message) = rest.split_at_checked(STATE).unwrap_or((rest, &[]));
            (Some(text(state)), message)
        }
        _ => (None, rest),
    };
    ProtocolError::Server(ServerError { number: little(number) as u16, state, message: text(message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_packet_is_decoded_with_and_without_sql_state() {
        for (bytes, state) in [(&b"\xd4\x04#HY000gone"[..], Some("HY000")), (b"\xd4\x04gone", None)] {
            let error = server_error(bytes);
            let expected = ServerError { number: 1236, state: state.map(str::to_owned), message: "gone".to_owned() };
            assert_eq!(error.server(), Some(&expected));
        }
        for bytes in [&b""[..], b"\xd4", b"\xd4\x04", b"\xd4\x04#", b"\xd4\x04#HY00"] {
            server_error(bytes);
        }
    }
}
