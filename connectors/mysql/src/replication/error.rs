//! Errors of the replication protocol, and their meaning for the user.

use trunkline_connector::Error;

use crate::connection::dialect::Dialect;
use crate::connection::options::ConnectionOptions;
use crate::connection::protocol::{ProtocolError, ServerError};
use crate::connection::tls::{password_needs_tls, tls_error};
use crate::decode::Malformed;

/// The reason why a connection ended or could not be opened.
#[derive(Debug)]
pub(crate) enum ReplicationError {
    Protocol(ProtocolError),
    /// The server ended the stream of events.
    Closed,
    /// The checksum of an event does not match.
    Checksum {
        event_type: u8,
        ends_at: u32,
    },
    /// An event is invalid.
    Malformed(Malformed),
    /// A compressed transaction cannot be unpacked: its end, and the reason.
    Payload {
        file: String,
        ends_at: u32,
        why: String,
    },
    /// The scratch folder cannot be written.
    Scratch(String),
}

impl ReplicationError {
    /// The error for the user.
    pub(crate) fn into_error(self, options: &ConnectionOptions, dialect: Dialect) -> Error {
        let server = options.server_label();
        match self {
            Self::Protocol(ProtocolError::Server(error)) => error_of_server(options, &error),
            Self::Protocol(ProtocolError::Broken(why)) => {
                Error::external("mysql.unreachable", format!("{server}: the replication connection broke: {why}"))
            }
            Self::Protocol(ProtocolError::Tls(why)) => tls_error(options, &why),
            Self::Protocol(ProtocolError::PasswordNeedsTls) => password_needs_tls(options),
            Self::Protocol(ProtocolError::Connector(error)) => error,
            Self::Closed => {
                Error::external("mysql.unreachable", format!("{server}: the server closed the replication connection"))
            }
            Self::Checksum { event_type, ends_at } => {
                let message = format!(
                    "{server}: the checksum of the event of type {event_type} that ends at {ends_at} does not match"
                );
                Error::external("mysql.checksum", message)
            }
            Self::Malformed(error) => {
                Error::data("mysql.malformed", format!("{server}: an event: {error} (please report this)"))
            }
            Self::Payload { file, ends_at, why } => {
                let off = dialect.set_global("binlog_transaction_compression = OFF");
                let message = format!(
                    "{server}: the compressed transaction that ends at {file}:{ends_at} cannot be unpacked: {why}; if the error \
                     persists: {off}, and create a source with another name"
                );
                Error::data("mysql.payload", message)
            }
            Self::Scratch(why) => Error::external("mysql.scratch", format!("{server}: {why}; free up to 1 GiB there")),
        }
    }
}

impl From<Malformed> for ReplicationError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<ProtocolError> for ReplicationError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// The meaning of an error that the server reported.
fn error_of_server(options: &ConnectionOptions, error: &ServerError) -> Error {
    const NO_PRIVILEGE: [u16; 2] = [1227, 1045];
    // One number for every reason to end a replication connection: only the text distinguishes
    // them.
    const REPLICATION: u16 = 1236;
    let server = options.server_label();
    let (code, answer) = (error.number, &error.message);
    let says = |text: &str| code == REPLICATION && answer.contains(text);
    if NO_PRIVILEGE.contains(&code) {
        let user = &options.address.user;
        let message = format!("{server}: {answer}; GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{user}'@'%'");
        return Error::config("mysql.privilege", message);
    }
    // MariaDB's text is the last one. It distinguishes an unknown position from a purged one.
    if ["has more GTIDs", "more GTIDs than", "is not in the master's binlog"].into_iter().any(says) {
        let message = format!(
            "{server} lacks transactions that this source has processed: {answer}; it lost data, or is a different server; \
             point `url` to a server that has them, or create a source with another name"
        );
        return Error::data("mysql.behind_position", message);
    }
    if says("required binlog files have been purged") {
        let message = format!(
            "{server} has purged the binlog after the position of this source, so changes are lost: {answer}; set `on_purged = \
             \"resnapshot\"` to restart with a snapshot"
        );
        return Error::data("mysql.purged", message);
    }
    if says("anonymous transaction") && says("GTID_MODE = ON") {
        let message = format!(
            "{server}: the binlog after the position of this source has transactions without GTIDs, which the server does not send \
             with gtid_mode = ON: {answer}; SET GLOBAL gtid_mode = ON_PERMISSIVE until the source has read them, then SET GLOBAL \
             gtid_mode = ON"
        );
        return Error::data("mysql.gtid_mode", message);
    }
    if says("same server_uuid/server_id") {
        let message = format!(
            "{server}: another replica took over the connection: {answer}; unless it is this source on another worker, set a \
             different `server_id`"
        );
        return Error::external("mysql.server_id", message);
    }
    Error::external("mysql.binlog", format!("{server}: error {code}: {answer}"))
}
