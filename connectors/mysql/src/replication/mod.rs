//! The replication protocol: a connection as a replica makes it, and the events that come over it.
//!
//! It is our own because what a client library does here decides whether changes are lost: every event is checked against its checksum, every packet against
//! its number, and a compressed transaction is unpacked event by event, to its announced end, or told to be damaged. [`packet`] frames bytes, [`tls`] and [`auth`]
//! and [`handshake`] open the connection, [`events`] reads events, and [`payload`] the transactions that come compressed.

mod auth;
pub(crate) mod event_frame;
pub(crate) mod event_stream;
mod handshake;
pub(crate) mod packet;
pub(crate) mod payload;

use std::path::PathBuf;

use mysql_common::proto::MySerialize;
use trunkline_connector::Error;

use self::event_stream::Events;
use self::handshake::bytes_of;
use self::packet::Packets;
use crate::config::MysqlOptions;
pub(crate) use crate::connection::tls::Link;
use crate::decode::{Malformed, little};

/// The largest packet a client can take, which no server goes beyond: a row can be that large.
pub(crate) const LARGEST: u32 = 1 << 30;

/// With which byte an answer begins.
const OK: u8 = 0;
const ERROR: u8 = 0xff;

/// What ended a connection, or kept it from beginning.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said so.
    Server { code: u16, message: String },
    /// The connection broke, or what came over it is not of the protocol.
    Broken(String),
    /// The server has no more events, and closed the binlog.
    Closed,
    /// TLS did not begin.
    Tls(String),
    /// An event is not as it was sent.
    Checksum { kind: u8, ends_at: u32 },
    /// An event cannot be what it should be.
    Malformed(Malformed),
    /// A compressed transaction cannot be unpacked: where it ends, and why.
    Payload { file: String, ends_at: u32, why: String },
    /// The scratch folder does not take what has to lie there.
    Scratch(String),
    /// All there is to tell.
    Told(Error),
}

impl Failure {
    fn broken(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What the server says in an error, after its first byte.
fn server_error(bytes: &[u8]) -> Failure {
    let Some((code, rest)) = bytes.split_first_chunk::<2>() else {
        return Failure::broken("an error without a number");
    };
    // Five characters that say the same as the number; not before the user is let in.
    const STATE: usize = 6;
    let message = if rest.first() == Some(&b'#') { rest.get(STATE..).unwrap_or_default() } else { rest };
    Failure::Server { code: little(code) as u16, message: String::from_utf8_lossy(message).into_owned() }
}

/// A connection of a user who was let in.
pub(crate) struct Connection {
    packets: Packets<Link>,
}

impl Connection {
    pub(crate) async fn open(options: &MysqlOptions) -> Result<Self, Failure> {
        Ok(Self { packets: handshake::connect(options).await? })
    }

    /// Runs a statement without result.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<(), Failure> {
        const QUERY: u8 = 3;
        let mut command = vec![QUERY];
        command.extend_from_slice(sql.as_bytes());
        self.command(&command).await
    }

    /// Sends a command that is answered by a word.
    pub(crate) async fn send(&mut self, command: &impl MySerialize) -> Result<(), Failure> {
        self.command(&bytes_of(command)).await
    }

    async fn command(&mut self, command: &[u8]) -> Result<(), Failure> {
        self.packets.begin();
        self.packets.send(command).await?;
        let answer = self.packets.packet().await?;
        match answer.split_first() {
            Some((&OK, _)) => Ok(()),
            Some((&ERROR, rest)) => Err(server_error(rest)),
            _ => Err(Failure::broken("an answer to a command that is none")),
        }
    }

    /// Sends the command that is answered by events without end.
    pub(crate) async fn events(
        mut self,
        command: &impl MySerialize,
        scratch: PathBuf,
    ) -> Result<Events<Link>, Failure> {
        self.packets.begin();
        self.packets.send(&bytes_of(command)).await?;
        Ok(Events::new(self.packets, scratch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_with_its_state_and_without() {
        for bytes in [&b"\xd4\x04#HY000gone"[..], b"\xd4\x04gone"] {
            let failure = server_error(bytes);
            assert!(matches!(&failure, Failure::Server { code: 1236, message } if message == "gone"), "{failure:?}");
        }
        for bytes in [&b""[..], b"\xd4", b"\xd4\x04", b"\xd4\x04#", b"\xd4\x04#HY00"] {
            server_error(bytes);
        }
    }
}
