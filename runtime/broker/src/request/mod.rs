//! The interface between `server` and `api`: `server` reads a [`Call`], `api` answers it.

pub(crate) mod response;
pub(crate) mod supported;
pub(crate) mod wire_outline;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::protocol::Request;
use thiserror::Error;

use self::response::Envelope;
use crate::state::BrokerState;

/// What an API function needs besides its request.
#[derive(Debug, Clone)]
pub(crate) struct Call<'call> {
    pub(crate) broker: &'call Arc<BrokerState>,
    pub(crate) peer: Peer,
    pub(crate) version: i16,
    pub(crate) client_id: String,
    pub(crate) envelope: Envelope,
}

/// The addresses of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The broker's end, which is also the default advertised address.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Why the broker closes a connection.
#[derive(Debug, Error)]
pub(crate) enum Close {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client violates the protocol.
    #[error("{0}")]
    ProtocolViolation(String),
    /// The broker could not encode its own response.
    #[error("cannot encode a response: {0}")]
    Bug(String),
    /// A produce request with acks=0 failed: it has no response that could carry the error.
    #[error("a request without a response failed: {0}")]
    Unanswerable(String),
    #[cfg(feature = "fault-injection")]
    #[error("an injected fault drops the reply")]
    Injected,
}

impl Close {
    pub(crate) fn protocol_violation(reason: impl Into<String>) -> Self {
        Self::ProtocolViolation(reason.into())
    }

    pub(crate) fn bug(error: impl std::fmt::Display) -> Self {
        Self::Bug(error.to_string())
    }
}

/// Decodes a request whose outline was checked.
pub(crate) fn decode<R: Request>(mut frame: Bytes, version: i16) -> Result<R, Close> {
    R::decode(&mut frame, version).map_err(malformed)
}

pub(crate) fn malformed(error: impl std::fmt::Display) -> Close {
    Close::protocol_violation(format!("malformed request: {error}"))
}
