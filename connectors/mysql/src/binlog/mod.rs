//! The binlog: [`open`] requests its events from a position on, and [`follower`] turns them into
//! records.

mod ddl;
mod effects;
pub(crate) mod follower;
pub(crate) mod parse;
pub(crate) mod table_cache;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mysql_common::packets::{ComBinlogDump, ComBinlogDumpGtid, ComRegisterSlave, GnoInterval, Sid, Tag};
use trunkline_connector::{Error, Result};

use crate::connection::options::ConnectionOptions;
use crate::gtid::{GtidSet, UuidSet};
use crate::position::{BinlogPosition, StreamPosition};
use crate::replication::{BinlogEvents, ReplicationConnection};

/// The interval in which an idle server reports the end of its binlog.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// The identity of the source as a replica. The server ends a connection when another one has the
/// same identity.
pub(crate) struct ReplicaIdentity {
    pub(crate) server_id: u32,
    pub(crate) uuid: String,
}

impl ReplicaIdentity {
    /// Derived from the task's name, so that it is the same on every worker.
    pub(crate) fn new(task: &str, server_id: Option<u32>) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_128(task.as_bytes());
        let hex = format!("{hash:032x}");
        let uuid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        // The upper half of the numbers, because administrators number their servers from 1.
        Self { server_id: server_id.unwrap_or(hash as u32 | 1 << 31), uuid }
    }
}

/// Requests the events after the position. Events too large for memory go to the scratch folder.
pub(crate) async fn open(
    options: &Arc<ConnectionOptions>,
    identity: &ReplicaIdentity,
    position: &StreamPosition,
    scratch: PathBuf,
) -> Result<BinlogEvents> {
    const FIRST_EVENT: u32 = 4;
    let mut connection = ReplicationConnection::open(options).await?;
    let nanoseconds = HEARTBEAT.as_nanos();
    let uuid = &identity.uuid;
    // Old and new names of the same settings. The timeout exceeds every pause of the stream during
    // a snapshot, so that the server does not take the client for dead.
    let settings = format!(
        "SET @master_heartbeat_period = {nanoseconds}, @source_heartbeat_period = {nanoseconds}, @slave_uuid = '{uuid}', \
         @replica_uuid = '{uuid}', @master_binlog_checksum = @@GLOBAL.binlog_checksum, \
         @source_binlog_checksum = @@GLOBAL.binlog_checksum"
    );
    connection.run(&settings).await?;
    if let Some(GtidSet::MariaDb(processed)) = &position.processed {
        // The settings of a replica that supports GTIDs: the server sends GTIDs, and starts after
        // this state.
        let state = processed.connect_state();
        let settings = format!(
            "SET @mariadb_slave_capability = 4, @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0, \
             @slave_connect_state = '{state}'"
        );
        connection.run(&settings).await?;
    }
    connection.send(&ComRegisterSlave::new(identity.server_id)).await?;
    match &position.processed {
        Some(GtidSet::MySql(processed)) => {
            let command = ComBinlogDumpGtid::new(identity.server_id).with_pos(FIRST_EVENT.into());
            connection.events(&command.with_sids(sids(processed)?), scratch).await
        }
        Some(GtidSet::MariaDb(_)) => {
            connection.events(&ComBinlogDump::new(identity.server_id).with_pos(FIRST_EVENT), scratch).await
        }
        None => {
            let pos = dump_offset(options, &position.end)?.max(FIRST_EVENT);
            let file = position.end.file.as_bytes();
            let command = ComBinlogDump::new(identity.server_id).with_filename(file).with_pos(pos);
            connection.events(&command, scratch).await
        }
    }
}

/// The offset in its file, in the 32 bits of the dump command. One large transaction can make a
/// file longer.
fn dump_offset(options: &ConnectionOptions, position: &BinlogPosition) -> Result<u32> {
    let BinlogPosition { file, pos } = position;
    u32::try_from(*pos).map_err(|_| {
        let message = format!(
            "{}: the position {file}:{pos} exceeds 4 GiB, the limit of a request without GTIDs; SET PERSIST gtid_mode = 'ON' (in \
             the steps of MySQL's manual), and create a source with another name",
            options.server_label()
        );
        Error::data("mysql.place", message)
    })
}

fn sids(set: &UuidSet) -> Result<Vec<Sid<'static>>> {
    set.iter()
        .map(|(tsid, ranges)| {
            let intervals = ranges.iter().map(|(from, to)| GnoInterval::new(*from, to + 1)).collect();
            let sid = Sid::new(tsid.server).with_intervals(intervals);
            if tsid.tag.is_empty() {
                return Ok(sid);
            }
            let tag = Tag::new(tsid.tag.clone())
                .map_err(|error| Error::internal("mysql.gtid", format!("the tag `{}`: {error}", tsid.tag)))?;
            Ok(sid.with_tag(tag))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_beyond_4_gib_is_rejected() {
        let options = crate::fuzz::options();
        let at = |pos| BinlogPosition { file: "binlog.000007".to_owned(), pos };
        assert_eq!(dump_offset(&options.connection, &at(u64::from(u32::MAX))).unwrap(), u32::MAX);
        let error = dump_offset(&options.connection, &at(1 << 32)).unwrap_err();
        assert_eq!(error.code, "mysql.place");
        assert!(error.message().contains("binlog.000007:4294967296") && error.message().contains("gtid_mode"));
    }
}
