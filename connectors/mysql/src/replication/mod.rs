//! The replication protocol: a connection as a replica opens it, and the events that the server
//! sends over it.
//!
//! The implementation is ours because a client library's choices decide whether changes are lost:
//! it must verify the checksum of every event and the number of every packet, and unpack a
//! compressed transaction event by event up to its announced end. [`event_stream`] reads events
//! from the packets of a [connection](crate::connection::protocol), and [`payload`] unpacks
//! compressed transactions.

mod error;
pub(crate) mod event_frame;
pub(crate) mod event_stream;
pub(crate) mod payload;

use std::path::PathBuf;
use std::sync::Arc;

use mysql_common::proto::MySerialize;
use trunkline_connector::Result;

pub(crate) use self::error::ReplicationError;
use self::event_stream::EventStream;
use crate::connection::dialect::Dialect;
use crate::connection::options::ConnectionOptions;
use crate::connection::protocol::handshake::{self, KeyUse, bytes_of};
use crate::connection::protocol::packet::Packets;
use crate::connection::protocol::{ERROR, OK, ProtocolError, server_error};
use crate::connection::tls::ServerStream;
use crate::connection::{call_with_deadline, session};

/// An authenticated connection.
pub(crate) struct ReplicationConnection {
    options: Arc<ConnectionOptions>,
    dialect: Dialect,
    packets: Packets<ServerStream>,
}

impl ReplicationConnection {
    /// Connects, authenticates, and sets the [session variables](session).
    pub(crate) async fn open(options: &Arc<ConnectionOptions>) -> Result<Self> {
        let connected = call_with_deadline(options, handshake::connect(options, KeyUse::Allowed)).await?;
        let (packets, dialect) =
            connected.map_err(|error| ReplicationError::from(error).into_error(options, Dialect::MySql))?;
        let mut connection = Self { options: Arc::clone(options), dialect, packets };
        for sql in session::common_statements().into_iter().chain(session::vendor_statements(dialect)) {
            connection.run(&sql).await?;
        }
        Ok(connection)
    }

    /// Runs a statement that has no result.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<()> {
        const QUERY: u8 = 3;
        let mut command = vec![QUERY];
        command.extend_from_slice(sql.as_bytes());
        self.command(&command).await
    }

    /// Sends a command that the server acknowledges.
    pub(crate) async fn send(&mut self, command: &impl MySerialize) -> Result<()> {
        self.command(&bytes_of(command)).await
    }

    async fn command(&mut self, command: &[u8]) -> Result<()> {
        let packets = &mut self.packets;
        let call = async {
            packets.start_command();
            packets.send(command).await?;
            let answer = packets.packet().await?;
            match answer.split_first() {
                Some((&OK, _)) => Ok(()),
                Some((&ERROR, rest)) => Err(server_error(rest)),
                _ => Err(ProtocolError::broken("the server sent an invalid answer to a command")),
            }
        };
        let answered = call_with_deadline(&self.options, call).await?;
        answered.map_err(|error| ReplicationError::from(error).into_error(&self.options, self.dialect))
    }

    /// Sends the command that starts the stream of events. Events too large for memory go to the
    /// scratch folder.
    pub(crate) async fn events(mut self, command: &impl MySerialize, scratch: PathBuf) -> Result<BinlogEvents> {
        let packets = &mut self.packets;
        let call = async {
            packets.start_command();
            packets.send(&bytes_of(command)).await
        };
        let sent = call_with_deadline(&self.options, call).await?;
        sent.map_err(|error| ReplicationError::from(error).into_error(&self.options, self.dialect))?;
        let events = EventStream::new(self.packets, scratch);
        Ok(BinlogEvents { options: self.options, dialect: self.dialect, events })
    }
}

/// The events of the binlog.
pub(crate) struct BinlogEvents {
    options: Arc<ConnectionOptions>,
    dialect: Dialect,
    events: EventStream<ServerStream>,
}

impl BinlogEvents {
    /// The next event. The caller may drop the future at any await, and call again.
    pub(crate) async fn next(&mut self) -> Result<event_frame::Event> {
        self.events.next().await.map_err(|error| error.into_error(&self.options, self.dialect))
    }

    /// The number of received bytes.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.events.received_bytes()
    }
}
