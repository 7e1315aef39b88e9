//! The client/server protocol of MySQL and MariaDB.
//!
//! [`packet`] frames bytes, [`handshake`] and [`auth`] open a connection, [`client`] runs
//! statements on it, and [`result_set`] finds the values of their rows. [`crate::replication`]
//! reads the binlog over the same packets.
//!
//! The implementation is ours because a client library's choices decide whether changes are lost
//! (ADR 009), and what a row of a snapshot costs (ADR 041).

mod auth;
pub(crate) mod client;
mod error;
pub(crate) mod handshake;
pub(crate) mod packet;
pub(crate) mod result_set;

pub(crate) use self::error::{ProtocolError, ServerError, server_error};

/// The maximum packet size of a client, which no server exceeds; a row can be as large.
pub(crate) const MAX_PACKET: u32 = 1 << 30;

/// The first byte of a successful answer.
pub(crate) const OK: u8 = 0;
/// The first byte of an error.
pub(crate) const ERROR: u8 = 0xff;
