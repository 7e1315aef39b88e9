//! The binlog as the server sends it: a connection, its events, and the follower that turns them into records.

mod ddl;
pub(crate) mod follower;
pub(crate) mod parse;
pub(crate) mod table_cache;

use std::path::PathBuf;
use std::time::Duration;

use mysql_common::packets::{ComBinlogDump, ComBinlogDumpGtid, ComRegisterSlave, GnoInterval, Sid, Tag};
use trunkline_connector::{Error, Result};

use crate::config::MysqlOptions;
use crate::connection::connect::{in_time, replication_connection, replication_error, server};
use crate::gtid::{GtidSet, UuidSet};
use crate::position::{Place, StreamPosition};
use crate::replication::Link;
use crate::replication::event_frame::Event;
use crate::replication::event_stream::Events;

/// How often an idle server says where its binlog ends.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// The binlog from a position on.
pub(crate) struct Binlog {
    events: Events<Link>,
}

/// By what the server knows this replica. A second connection of the same identity ends the first.
pub(crate) struct Identity {
    pub(crate) server_id: u32,
    pub(crate) uuid: String,
}

impl Identity {
    /// Made of the task's name, so that it is the same wherever the task runs.
    pub(crate) fn new(task: &str, server_id: Option<u32>) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_128(task.as_bytes());
        let hex = format!("{hash:032x}");
        let uuid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        // The upper half: people count their servers from 1.
        Self { server_id: server_id.unwrap_or(hash as u32 | 1 << 31), uuid }
    }
}

impl Binlog {
    /// Asks the server for everything after the position. What is too large for memory goes to the scratch folder.
    pub(crate) async fn open(
        options: &MysqlOptions,
        identity: &Identity,
        position: &StreamPosition,
        scratch: PathBuf,
    ) -> Result<Self> {
        const BEGINNING: u32 = 4;
        let mut connection = replication_connection(options).await?;
        let nanoseconds = HEARTBEAT.as_nanos();
        let uuid = &identity.uuid;
        // Old and new names of the same settings. A snapshot may pause the stream for long: the server must not take that for a dead
        // client.
        let settings = format!(
            "SET @master_heartbeat_period = {nanoseconds}, @source_heartbeat_period = {nanoseconds}, @slave_uuid = '{uuid}', \
             @replica_uuid = '{uuid}', @master_binlog_checksum = @@GLOBAL.binlog_checksum, \
             @source_binlog_checksum = @@GLOBAL.binlog_checksum, SESSION net_write_timeout = 86400"
        );
        in_time(options, connection.run(&settings)).await?;
        if let Some(GtidSet::MariaDb(done)) = &position.done {
            // What a replica says that knows GTIDs: it is then sent them, and from where it asks.
            let state = done.connect_state();
            let settings = format!(
                "SET @mariadb_slave_capability = 4, @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0, @slave_connect_state = '{state}'"
            );
            in_time(options, connection.run(&settings)).await?;
        }
        in_time(options, connection.send(&ComRegisterSlave::new(identity.server_id))).await?;
        let events = match &position.done {
            Some(GtidSet::MySql(done)) => {
                let sids = sids(done)?;
                let command = ComBinlogDumpGtid::new(identity.server_id).with_pos(BEGINNING.into()).with_sids(sids);
                in_time(options, connection.events(&command, scratch)).await?
            }
            Some(GtidSet::MariaDb(_)) => {
                let command = ComBinlogDump::new(identity.server_id).with_pos(BEGINNING);
                in_time(options, connection.events(&command, scratch)).await?
            }
            None => {
                let pos = asked_for(options, &position.place)?.max(BEGINNING);
                let file = position.place.file.as_bytes();
                let command = ComBinlogDump::new(identity.server_id).with_filename(file).with_pos(pos);
                in_time(options, connection.events(&command, scratch)).await?
            }
        };
        Ok(Self { events })
    }

    /// Bytes that came so far.
    pub(crate) fn received(&self) -> u64 {
        self.events.received()
    }

    /// The next event, when there is one. Can be given up at any await, and called again.
    pub(crate) async fn next(&mut self, options: &MysqlOptions) -> Result<Event> {
        self.events.next().await.map_err(|failure| replication_error(options, failure))
    }
}

/// The place in its file as the server can be asked for it. One transaction of gigabytes makes a file longer than that.
fn asked_for(options: &MysqlOptions, place: &Place) -> Result<u32> {
    let Place { file, pos } = place;
    u32::try_from(*pos).map_err(|_| {
        let message = format!(
            "{} cannot be asked for {file}:{pos}: without GTIDs a place in the binlog has 32 bits. SET PERSIST gtid_mode = 'ON' (in the steps of the \
             manual), and begin anew with a source of another name",
            server(options)
        );
        Error::data("mysql.place", message)
    })
}

fn sids(set: &UuidSet) -> Result<Vec<Sid<'static>>> {
    set.iter()
        .map(|(origin, ranges)| {
            let intervals = ranges.iter().map(|(from, to)| GnoInterval::new(*from, to + 1)).collect();
            let sid = Sid::new(origin.server).with_intervals(intervals);
            if origin.tag.is_empty() {
                return Ok(sid);
            }
            let tag = Tag::new(origin.tag.clone())
                .map_err(|error| Error::internal("mysql.gtid", format!("the tag `{}`: {error}", origin.tag)))?;
            Ok(sid.with_tag(tag))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_beyond_what_can_be_asked_for_is_never_another_one() {
        let options = crate::fuzz::options();
        let place = |pos| Place { file: "binlog.000007".to_owned(), pos };
        assert_eq!(asked_for(&options, &place(u64::from(u32::MAX))).unwrap(), u32::MAX);
        let error = asked_for(&options, &place(1 << 32)).unwrap_err();
        assert_eq!(error.code, "mysql.place");
        assert!(error.message().contains("binlog.000007:4294967296") && error.message().contains("gtid_mode"));
    }
}
