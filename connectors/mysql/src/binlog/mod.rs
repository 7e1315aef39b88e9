//! The binlog as the server sends it: a connection, its events, and the follower that turns them into records.

mod ddl;
pub(crate) mod event;
pub(crate) mod events;
pub(crate) mod follower;
pub(crate) mod tables;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream as _;
use mysql_async::binlog::BinlogChecksumAlg;
use mysql_async::binlog::events::Event as Received;
use mysql_async::prelude::Queryable as _;
use mysql_async::{BinlogStream, BinlogStreamRequest, GnoInterval, Sid};
use mysql_common::packets::Tag;
use trunkline_connector::{Error, Result};

use self::event::{Event, Header};
use crate::config::MysqlOptions;
use crate::connect::{replication_connection, replication_error, server};
use crate::decode::{Bytes, Malformed};
use crate::gtid::{GtidSet, UuidSet};
use crate::position::StreamPosition;

/// How often an idle server says where its binlog ends.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// The binlog from a position on.
pub(crate) struct Binlog {
    stream: BinlogStream,
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
    pub(crate) async fn open(options: &MysqlOptions, identity: &Identity, position: &StreamPosition) -> Result<Self> {
        let failed = |error: mysql_async::Error| replication_error(options, &error);
        let mut connection = replication_connection(options).await?;
        let nanoseconds = HEARTBEAT.as_nanos();
        let uuid = &identity.uuid;
        // Old and new names of the same settings. A snapshot may pause the stream for long: the server must not take that for a dead
        // client.
        let settings = format!(
            "SET @master_heartbeat_period = {nanoseconds}, @source_heartbeat_period = {nanoseconds}, @slave_uuid = '{uuid}', \
             @replica_uuid = '{uuid}', SESSION net_write_timeout = 86400"
        );
        connection.query_drop(settings).await.map_err(failed)?;
        let request = BinlogStreamRequest::new(identity.server_id);
        let request = match &position.done {
            Some(GtidSet::MySql(done)) => request.with_gtid().with_gtid_set(sids(done)?),
            Some(GtidSet::MariaDb(done)) => {
                // What a replica says that knows GTIDs: it is then sent them, and from where it asks.
                let state = done.connect_state();
                let settings = format!(
                    "SET @mariadb_slave_capability = 4, @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0, @slave_connect_state = '{state}'"
                );
                connection.query_drop(settings).await.map_err(failed)?;
                request.with_pos(4)
            }
            None => request.with_filename(position.place.file.as_bytes()).with_pos(position.place.pos.max(4)),
        };
        let stream = connection.get_binlog_stream(request).await.map_err(failed)?;
        Ok(Self { stream })
    }

    /// The next event, if there is one.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>, options: &MysqlOptions) -> Poll<Result<Event>> {
        Pin::new(&mut self.stream).poll_next(context).map(|next| match next {
            Some(Ok(event)) => verify(options, event),
            Some(Err(error)) => Err(replication_error(options, &error)),
            None => {
                Err(Error::external("mysql.unreachable", format!("{}: the server closed the binlog", server(options))))
            }
        })
    }
}

/// Checks an event against its checksum: the client library does not.
fn verify(options: &MysqlOptions, event: Received) -> Result<Event> {
    let footer = event.footer();
    let sums = footer.get_checksum_alg().ok().flatten() == Some(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32);
    if sums
        && footer.get_checksum_enabled()
        && let Some(sum) = event.checksum()
        && u32::from_le_bytes(sum) != event.calc_checksum(BinlogChecksumAlg::BINLOG_CHECKSUM_ALG_CRC32)
    {
        let header = event.header();
        let message = format!(
            "{}: an event of type {} that ends at {} arrived damaged: its checksum does not fit",
            server(options),
            header.event_type_raw(),
            header.log_pos()
        );
        return Err(Error::external("mysql.checksum", message));
    }
    taken(&event).map_err(|error| {
        Error::data("mysql.malformed", format!("{}: an event: {error} (please report this)", server(options)))
    })
}

fn taken(event: &Received) -> Result<Event, Malformed> {
    let head = event.header();
    let mut bytes = Vec::with_capacity(Header::LENGTH);
    bytes.extend_from_slice(&head.timestamp().to_le_bytes());
    bytes.push(head.event_type_raw());
    for number in [head.server_id(), head.event_size(), head.log_pos()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&head.flags_raw().to_le_bytes());
    let header = Header::read(&mut Bytes::new(&bytes))?;
    let mut data = event.data();
    // The first event of a connection has a checksum that nothing announced: the description of the format follows after it.
    const ROTATE: u8 = 4;
    if let Some((rest, sum)) = data.split_last_chunk::<4>()
        && head.event_type_raw() == ROTATE
        && event.checksum().is_none()
        && crc32(&[&bytes, rest]) == u32::from_le_bytes(*sum)
    {
        data = rest;
    }
    Event::new(header, data.to_vec()).unpacked()
}

fn crc32(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
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
                .map_err(|error| Error::bug("mysql.gtid", format!("the tag `{}`: {error}", origin.tag)))?;
            Ok(sid.with_tag(tag))
        })
        .collect()
}
