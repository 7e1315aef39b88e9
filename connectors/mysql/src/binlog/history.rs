//! Whether a server's binlog is the one that a stored position refers to.
//!
//! A server whose binlog was reset, or whose data was restored from a backup, starts to assign the
//! same GTIDs and offsets again. Once it has passed the stored position, the numbers alone look
//! right, and the source would miss the transactions before it. So the position has an
//! [anchor](BinlogAnchor), which is compared with the binlog before it is followed.

use std::path::Path;
use std::time::{Duration, Instant};

use mysql_common::packets::{ComBinlogDump, ComRegisterSlave};
use trunkline_connector::{Error, Result};

use super::ReplicaIdentity;
use super::parse::{ParsedEvent, TransactionStart};
use crate::config::MysqlOptions;
use crate::connection::dialect::Dialect;
use crate::connection::query::QueryConnection;
use crate::connection::server_info::ServerInfo;
use crate::position::{BinlogAnchor, BinlogPosition, StreamPosition};
use crate::replication::ReplicationConnection;

/// How long the server may take to send the first events.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Verifies the history of a binlog, as this replica.
pub(crate) struct History<'a> {
    pub(crate) identity: &'a ReplicaIdentity,
    pub(crate) scratch: &'a Path,
}

/// The first events of the binlog at an offset.
#[derive(Default)]
struct FirstEvents {
    created: Option<u32>,
    start: Option<TransactionStart>,
    /// The server does not send the transaction, because `gtid_mode` has changed since.
    is_withheld: bool,
}

impl History<'_> {
    /// Compares a position with the server's binlog. Returns the error if it belongs to another
    /// history.
    pub(crate) async fn verify(
        &self,
        options: &MysqlOptions,
        queries: &mut QueryConnection,
        server: &ServerInfo,
        position: &StreamPosition,
    ) -> Result<Option<Error>> {
        // Another server of the topology has other files. Its GTIDs show whether it has the
        // transactions.
        let Some(anchor) = position.anchor.as_ref().filter(|anchor| anchor.server == server.identity) else {
            return Ok(None);
        };
        let files = queries.query("SHOW BINARY LOGS").await?;
        let files: Vec<(BinlogPosition, u64)> = files
            .iter()
            .filter_map(|row| match row.as_slice() {
                [Some(file), Some(size), ..] => {
                    Some((BinlogPosition { file: file.clone(), pos: 0 }, size.parse().ok()?))
                }
                _ => None,
            })
            .collect();
        let expected = BinlogPosition { file: anchor.file.clone(), pos: 0 };
        let newest = files.iter().map(|(file, _)| file.file_number()).max().unwrap_or(0);
        let Some((_, size)) = files.iter().find(|(file, _)| file.file == anchor.file) else {
            // The file is purged, or there is no such file yet.
            let is_reset = newest < expected.file_number();
            return Ok(is_reset.then(|| reset(queries, position, anchor)));
        };
        let pos = match &anchor.transaction {
            Some(transaction) => transaction.pos,
            None if position.end.file == anchor.file => position.end.pos,
            None => 4,
        };
        // The dump command has 32 bits for the offset.
        let Ok(pos) = u32::try_from(pos) else { return Ok(None) };
        let is_same = u64::from(pos) <= *size && {
            let found = self.first_events(options, server, &anchor.file, pos, anchor.transaction.is_some()).await?;
            let is_transaction = anchor.transaction.as_ref().filter(|_| !found.is_withheld).is_none_or(|transaction| {
                found.start.as_ref().is_some_and(|start| {
                    let gtid = start.gtid.as_ref().map(ToString::to_string);
                    gtid == transaction.gtid && start.written_at == transaction.written_at
                })
            });
            found.created == Some(anchor.created) && is_transaction
        };
        Ok((!is_same).then(|| reset(queries, position, anchor)))
    }

    /// The creation of a file, and with `transaction` the start of the transaction at an offset.
    /// Both are absent where the binlog cannot be read.
    async fn first_events(
        &self,
        options: &MysqlOptions,
        server: &ServerInfo,
        file: &str,
        pos: u32,
        transaction: bool,
    ) -> Result<FirstEvents> {
        let mut connection = ReplicationConnection::open(&options.connection).await?;
        let mut settings = vec![
            "@master_binlog_checksum = @@GLOBAL.binlog_checksum".to_owned(),
            "@source_binlog_checksum = @@GLOBAL.binlog_checksum".to_owned(),
        ];
        for variable in ["slave", "replica"] {
            settings.push(format!("@{variable}_uuid = '{}'", self.identity.uuid));
        }
        if server.flavor.dialect() == Dialect::MariaDb {
            settings.push("@mariadb_slave_capability = 4".to_owned());
        }
        connection.run(&format!("SET {}", settings.join(", "))).await?;
        connection.send(&ComRegisterSlave::new(self.identity.server_id)).await?;
        let command = ComBinlogDump::new(self.identity.server_id).with_filename(file.as_bytes()).with_pos(pos);
        let mut events = connection.events(&command, self.scratch.to_owned()).await?;
        let mut found = FirstEvents::default();
        let started = Instant::now();
        while started.elapsed() < TIMEOUT {
            let Ok(event) = tokio::time::timeout(TIMEOUT, events.next()).await else { break };
            let event = match event {
                Ok(event) => event,
                // What is at this offset is not the start of an event.
                Err(error) if matches!(error.code, "mysql.binlog" | "mysql.checksum" | "mysql.malformed") => break,
                Err(error) if error.code == "mysql.gtid_mode" => {
                    found.is_withheld = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            match ParsedEvent::parse(&event) {
                Ok(ParsedEvent::Rotate(..) | ParsedEvent::Heartbeat(_)) => {}
                Ok(ParsedEvent::Format(created)) => {
                    found.created = Some(created);
                    if !transaction {
                        break;
                    }
                }
                Ok(ParsedEvent::Start(start)) => {
                    found.start = Some(start);
                    break;
                }
                // MariaDB sends its list of GTIDs first.
                Ok(ParsedEvent::Other) => {}
                _ => break,
            }
        }
        Ok(found)
    }
}

/// The error of a position in another history.
fn reset(queries: &QueryConnection, position: &StreamPosition, anchor: &BinlogAnchor) -> Error {
    let server = queries.server_label();
    let BinlogPosition { file, pos } = &position.end;
    let last = match anchor.transaction.as_ref().and_then(|transaction| transaction.gtid.as_ref()) {
        Some(gtid) => format!(", transaction {gtid}"),
        None => String::new(),
    };
    let message = format!(
        "{server}: the binlog was reset, or the server's data was restored, since this source followed it: its position ({file}:{pos}{last}) \
         belongs to the earlier binlog, so changes are lost; set `on_purged = \"resnapshot\"` to restart with a snapshot, or create \
         a source with another name"
    );
    Error::data("mysql.history", message)
}
