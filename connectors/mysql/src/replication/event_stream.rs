//! Reads events from a connection: joins packets, verifies checksums, and unpacks compressed
//! transactions.
//!
//! Each event is copied once, out of the connection's buffer. [`EventStream::next`] is cancel-safe.
//! Access to the scratch folder and the unpacking block the thread, which belongs to the source.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncRead;

use super::ReplicationError;
use super::event_frame::{Event, Header};
use super::payload::{Packed, Payload};
use crate::connection::protocol::packet::Packets;
use crate::connection::protocol::{ERROR, MAX_PACKET, OK, ProtocolError, server_error};
use crate::decode::{Bytes, Malformed};

/// A compressed transaction of more bytes is spooled to disk.
const SPOOL_THRESHOLD: u32 = 16 << 20;

/// The length of a checksum.
const CHECKSUM: usize = 4;
/// The length of a status byte and an event header.
const HEADER: usize = 1 + Header::LENGTH;

const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const TRANSACTION_PAYLOAD: u8 = 40;

/// The events of a connection.
pub(crate) struct EventStream<S> {
    packets: Packets<S>,
    scratch: PathBuf,
    spool_threshold: u32,
    buffer: EventBuffer,
    /// Whether events have a checksum; `None` before the first format description.
    has_checksums: Option<bool>,
    /// The current binlog file.
    file: String,
    /// The transaction during its unpacking, and its end.
    payload: Option<(Payload, u32)>,
}

/// The received part of an event.
#[derive(Default)]
struct EventBuffer {
    header: [u8; HEADER],
    header_bytes: usize,
    data: Vec<u8>,
    /// Instead of `data`.
    spool: Option<Spool>,
    /// The number of bytes to receive.
    left: usize,
}

/// The data of an event on disk, in an unlinked file.
struct Spool {
    file: File,
    bytes: usize,
    hasher: crc32fast::Hasher,
    /// The last bytes, which may be a checksum; the file lacks them.
    checksum: Vec<u8>,
}

impl<S: AsyncRead + Unpin> EventStream<S> {
    pub(super) fn new(packets: Packets<S>, scratch: PathBuf) -> Self {
        Self {
            packets,
            scratch,
            spool_threshold: SPOOL_THRESHOLD,
            buffer: EventBuffer::default(),
            has_checksums: None,
            file: String::new(),
            payload: None,
        }
    }

    /// The next event. An event with a compressed transaction has no data; the events of the
    /// transaction follow it.
    pub(crate) async fn next(&mut self) -> Result<Event, ReplicationError> {
        if let Some(event) = self.next_unpacked()? {
            return Ok(event);
        }
        while let Some(fragment) = self.packets.fragment().await? {
            self.buffer.add(fragment, &self.scratch, self.spool_threshold)?;
        }
        let received = std::mem::take(&mut self.buffer);
        self.decode(received)
    }

    /// The number of received bytes, including those of an incomplete event.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.packets.received_bytes()
    }

    fn next_unpacked(&mut self) -> Result<Option<Event>, ReplicationError> {
        let Some((payload, ends_at)) = &mut self.payload else { return Ok(None) };
        match payload.next() {
            Ok(Some(event)) => return Ok(Some(event)),
            Ok(None) => self.payload = None,
            Err(why) => return Err(ReplicationError::Payload { file: self.file.clone(), ends_at: *ends_at, why }),
        }
        Ok(None)
    }

    fn decode(&mut self, received: EventBuffer) -> Result<Event, ReplicationError> {
        // A short packet in place of an event marks the end of the stream.
        const CLOSED: u8 = 0xfe;
        let EventBuffer { header: head, header_bytes, mut data, spool, left } = received;
        match head[0] {
            OK if header_bytes == HEADER => {}
            ERROR => return Err(server_error(&[&head[1..header_bytes], &data].concat()).into()),
            CLOSED if header_bytes < 9 => return Err(ReplicationError::Closed),
            first => {
                let bytes = header_bytes + data.len();
                let why = format!("a packet of {bytes} bytes starts with {first:#x} in place of an event");
                return Err(ProtocolError::Broken(why).into());
            }
        }
        let (header, size) = Header::read(&mut Bytes::new(&head[1..]))?;
        if left > 0 {
            return Err(Malformed(format!("an event of {size} bytes lacks {left} bytes")).into());
        }
        let event_type = header.event_type();
        let damaged = || ReplicationError::Checksum { event_type, ends_at: header.log_pos() };
        if let Some(spool) = spool {
            // Without checksums, the last bytes are data.
            let packed = spool.finish(self.has_checksums == Some(true));
            let packed = packed.map_err(|error| scratch_error(&self.scratch, &error))?;
            self.open_payload(packed.ok_or_else(damaged)?, &header)?;
            return Ok(Event::new(header, data));
        }
        if event_type == FORMAT_DESCRIPTION {
            self.has_checksums = Some(announces_checksums(&data)?);
        }
        let is_valid =
            |data: &[u8]| data.split_last_chunk().is_some_and(|(rest, checksum)| checksum_of(&head, rest) == *checksum);
        let has_checksum = match self.has_checksums {
            Some(true) if !is_valid(&data) => return Err(damaged()),
            Some(has_checksums) => has_checksums || event_type == FORMAT_DESCRIPTION,
            // The first event of a connection may have an unannounced checksum.
            None => event_type == ROTATE && is_valid(&data),
        };
        if has_checksum {
            data.truncate(data.len().saturating_sub(CHECKSUM));
        }
        if event_type == ROTATE {
            self.file = String::from_utf8_lossy(data.get(8..).unwrap_or_default()).into_owned();
        }
        if event_type == TRANSACTION_PAYLOAD {
            self.open_payload(Packed::Memory(std::mem::take(&mut data)), &header)?;
        }
        Ok(Event::new(header, data).decompressed()?)
    }

    fn open_payload(&mut self, packed: Packed, header: &Header) -> Result<(), ReplicationError> {
        let ends_at = header.log_pos();
        let payload = Payload::open(packed);
        let payload = payload.map_err(|why| ReplicationError::Payload { file: self.file.clone(), ends_at, why })?;
        self.payload = Some((payload, ends_at));
        Ok(())
    }
}

fn scratch_error(folder: &Path, error: &std::io::Error) -> ReplicationError {
    ReplicationError::Scratch(format!("a compressed transaction cannot be spooled to {}: {error}", folder.display()))
}

/// Whether a format description announces checksums. It always ends with the algorithm's number and
/// a checksum.
fn announces_checksums(data: &[u8]) -> Result<bool, ReplicationError> {
    const NONE: u8 = 0;
    const CRC32: u8 = 1;
    // A server without support for checksums.
    const UNKNOWN: u8 = 255;
    match data.len().checked_sub(CHECKSUM + 1).map(|at| data[at]) {
        Some(NONE | UNKNOWN) => Ok(false),
        Some(CRC32) => Ok(true),
        other => Err(Malformed(format!("the checksum algorithm {other:?} instead of 1 (CRC32) or 0 (none)")).into()),
    }
}

/// The checksum of an event.
fn checksum_of(header: &[u8; HEADER], data: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = hasher_of(header);
    hasher.update(data);
    hasher.finalize().to_le_bytes()
}

fn hasher_of(header: &[u8; HEADER]) -> crc32fast::Hasher {
    // The checksum of a format description excludes the flag that its file is still in use.
    const IN_USE: u8 = 1;
    const TYPE: usize = 5;
    const FLAGS: usize = HEADER - 2;
    let mut header = *header;
    if header[TYPE] == FORMAT_DESCRIPTION {
        header[FLAGS] &= !IN_USE;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[1..]);
    hasher
}

impl EventBuffer {
    fn add(&mut self, fragment: &[u8], scratch: &Path, spool_threshold: u32) -> Result<(), ReplicationError> {
        let (first, rest) = fragment.split_at(fragment.len().min(HEADER - self.header_bytes));
        self.header[self.header_bytes..][..first.len()].copy_from_slice(first);
        self.header_bytes += first.len();
        if !first.is_empty() && self.header_bytes == HEADER {
            self.start(scratch, spool_threshold)?;
        }
        if rest.len() > self.left {
            return Err(Malformed(format!("an event is {} bytes longer than announced", rest.len() - self.left)).into());
        }
        self.left -= rest.len();
        match &mut self.spool {
            Some(spool) => spool.add(rest, self.left).map_err(|error| scratch_error(scratch, &error)),
            None => {
                self.data.extend_from_slice(rest);
                Ok(())
            }
        }
    }

    /// Prepares for the data, after the header is complete.
    fn start(&mut self, scratch: &Path, spool_threshold: u32) -> Result<(), ReplicationError> {
        if self.header[0] != OK {
            // The maximum length of an error.
            const MAX_ERROR: usize = 64 << 10;
            self.left = MAX_ERROR;
            return Ok(());
        }
        let (header, size) = Header::read(&mut Bytes::new(&self.header[1..]))?;
        // The largest packet has some overhead.
        let data = size.checked_sub(Header::LENGTH as u32).filter(|_| size <= MAX_PACKET + (1 << 20));
        let data = data.ok_or_else(|| Malformed(format!("an event of {size} bytes")))? as usize;
        self.left = data;
        if header.event_type() == TRANSACTION_PAYLOAD && size > spool_threshold {
            let file = tempfile::tempfile_in(scratch).map_err(|error| scratch_error(scratch, &error))?;
            self.spool = Some(Spool { file, bytes: 0, hasher: hasher_of(&self.header), checksum: Vec::new() });
            return Ok(());
        }
        let reserved = self.data.try_reserve_exact(data);
        reserved.map_err(|error| Malformed(format!("cannot allocate an event of {size} bytes: {error}")).into())
    }
}

impl Spool {
    /// Adds bytes; `left` is the number of bytes after them.
    fn add(&mut self, bytes: &[u8], left: usize) -> std::io::Result<()> {
        let (data, checksum) = bytes.split_at(bytes.len().saturating_sub(CHECKSUM.saturating_sub(left)));
        self.hasher.update(data);
        self.checksum.extend_from_slice(checksum);
        self.bytes += data.len();
        self.file.write_all(data)
    }

    /// The spooled data; `None` if the checksum does not match.
    fn finish(mut self, has_checksum: bool) -> std::io::Result<Option<Packed>> {
        if has_checksum {
            let is_valid = self.hasher.finalize().to_le_bytes().as_slice() == self.checksum;
            return Ok(is_valid.then_some(Packed::Spooled(self.file, self.bytes as u64)));
        }
        self.file.write_all(&self.checksum)?;
        Ok(Some(Packed::Spooled(self.file, (self.bytes + self.checksum.len()) as u64)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::connection::protocol::packet::tests::{Portions, block_on, framed};
    use crate::replication::payload::tests::{compressed, event};

    /// An event as a server sends it: with its size and, if `has_checksum`, a checksum.
    pub(crate) fn packet_of(mut event: Vec<u8>, has_checksum: bool) -> Vec<u8> {
        event.resize(event.len() + if has_checksum { CHECKSUM } else { 0 }, 0);
        let size = event.len();
        event[9..13].copy_from_slice(&(size as u32).to_le_bytes());
        let mut packet = vec![OK];
        packet.append(&mut event);
        if has_checksum {
            let head = packet[..HEADER].try_into().unwrap();
            let checksum = checksum_of(&head, &packet[HEADER..size - CHECKSUM + 1]);
            packet[size - CHECKSUM + 1..].copy_from_slice(&checksum);
        }
        packet
    }

    /// A format description.
    fn format(has_checksum: bool) -> Vec<u8> {
        let mut data = vec![7; 90];
        data.push(u8::from(has_checksum));
        let mut packet = packet_of(event(FORMAT_DESCRIPTION, &data), true);
        // Its file is in use, which the checksum excludes.
        packet[HEADER - 2] |= 1;
        packet
    }

    /// The bytes of a connection that sends these packets.
    pub(crate) fn connection(packets: &[Vec<u8>]) -> Vec<u8> {
        let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        framed(&packets, 1)
    }

    /// The events of a connection.
    pub(crate) fn events_of<S: AsyncRead + Unpin>(stream: S, spool_threshold: u32) -> EventStream<S> {
        EventStream { spool_threshold, ..EventStream::new(Packets::resume(stream, 1), std::env::temp_dir()) }
    }

    fn events(packets: &[Vec<u8>], sizes: Vec<usize>, spool_threshold: u32) -> EventStream<Portions> {
        events_of(Portions::new(connection(packets), sizes), spool_threshold)
    }

    fn read(mut events: EventStream<Portions>) -> (Vec<(u8, Vec<u8>)>, ReplicationError) {
        block_on(async {
            let mut read = Vec::new();
            loop {
                // The future is dropped at every await.
                let mut next = Some(Box::pin(events.next()));
                let result = std::future::poll_fn(|context| {
                    let Some(future) = &mut next else { return std::task::Poll::Ready(None) };
                    match future.as_mut().poll(context) {
                        std::task::Poll::Ready(result) => std::task::Poll::Ready(Some(result)),
                        std::task::Poll::Pending => {
                            next = None;
                            std::task::Poll::Ready(None)
                        }
                    }
                });
                match result.await {
                    None => {}
                    Some(Ok(event)) => read.push((event.header().event_type(), event.data().to_vec())),
                    Some(Err(failure)) => return (read, failure),
                }
            }
        })
    }

    const WHOLE: u32 = u32::MAX;

    #[test]
    fn events_are_stripped_of_checksums_and_transactions_are_unpacked() {
        let rotate = [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"binlog.000007"].concat();
        let inner = [event(2, b"BEGIN"), event(19, &[3; 40]), event(30, &[1; 200_000]), event(16, &[0; 8])];
        for has_checksum in [true, false] {
            for spool_threshold in [WHOLE, 50] {
                let packets = [
                    packet_of(event(ROTATE, &rotate), has_checksum),
                    format(has_checksum),
                    packet_of(event(33, b"gtid"), has_checksum),
                    packet_of(event(TRANSACTION_PAYLOAD, &compressed(&inner)), has_checksum),
                    packet_of(event(27, b"binlog.000007"), has_checksum),
                    vec![0xfe, 0, 0, 2, 0],
                ];
                let reader = events(&packets, vec![3, 1000, 1, 20], spool_threshold);
                let (read, failure) = read(reader);
                let data = |bytes: &[u8]| bytes.to_vec();
                let expected = [
                    (ROTATE, rotate.clone()),
                    (FORMAT_DESCRIPTION, [vec![7; 90], vec![u8::from(has_checksum)]].concat()),
                    (33, data(b"gtid")),
                    (TRANSACTION_PAYLOAD, data(b"")),
                    (2, data(b"BEGIN")),
                    (19, vec![3; 40]),
                    (30, vec![1; 200_000]),
                    (16, vec![0; 8]),
                    (27, data(b"binlog.000007")),
                ];
                // A format description has a checksum field even without checksums.
                assert!(read == expected, "{has_checksum} {spool_threshold}: {read:?}");
                assert!(matches!(failure, ReplicationError::Closed), "{failure:?}");
            }
        }
    }

    #[test]
    fn received_bytes_grow_while_a_large_event_arrives() {
        let packets = [format(true), packet_of(event(30, &[5; 10_000]), true)];
        let mut events = events(&packets, vec![1000], WHOLE);
        let mut received = vec![events.received_bytes()];
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        // Every second poll is pending.
        for _ in 0..30 {
            let next = Box::pin(events.next()).as_mut().poll(&mut context);
            if matches!(next, std::task::Poll::Ready(Err(_))) {
                break;
            }
            received.push(events.received_bytes());
        }
        received.dedup();
        let whole = connection(&packets).len() as u64;
        assert_eq!((received.first(), received.last(), received.len()), (Some(&0), Some(&whole), 12), "{received:?}");
    }

    #[test]
    fn a_changed_event_is_reported() {
        let inner = [event(2, b"BEGIN"), event(16, &[0; 8])];
        for packet in
            [packet_of(event(30, &[5; 100]), true), packet_of(event(TRANSACTION_PAYLOAD, &compressed(&inner)), true)]
        {
            for spool_threshold in [WHOLE, 20] {
                // A changed size makes it another event: see below.
                for place in (8..8 * packet.len()).filter(|place| !(80..112).contains(place)) {
                    let (at, bit) = (place / 8, place % 8);
                    let mut changed = packet.clone();
                    changed[at] ^= 1 << bit;
                    let (arrived, failure) = read(events(&[format(true), changed], vec![64], spool_threshold));
                    assert_eq!(arrived.len(), 1);
                    assert!(matches!(failure, ReplicationError::Checksum { .. }), "{at}: {failure:?}");
                }
                for size in [0u32, 18, packet.len() as u32, packet.len() as u32 - 2, u32::MAX] {
                    let mut changed = packet.clone();
                    changed[10..14].copy_from_slice(&size.to_le_bytes());
                    let (_, failure) = read(events(&[format(true), changed], vec![64], spool_threshold));
                    assert!(matches!(failure, ReplicationError::Malformed(_)), "{size}: {failure:?}");
                }
            }
        }
    }

    #[test]
    fn a_transaction_that_cannot_be_unpacked_is_reported_with_its_end() {
        let mut bytes = compressed(&[event(2, b"BEGIN"), event(16, &[0; 8])]);
        let last = bytes.len() - 1;
        bytes.truncate(last);
        let rotate = [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"binlog.000007"].concat();
        let after = packet_of(event(33, b"next"), true);
        for spool_threshold in [WHOLE, 50] {
            let payload = packet_of(event(TRANSACTION_PAYLOAD, &bytes), true);
            let packets = [format(true), packet_of(event(ROTATE, &rotate), true), payload, after.clone()];
            let (arrived, failure) = read(events(&packets, vec![64], spool_threshold));
            assert_eq!(arrived.len(), 2, "no event after it");
            assert!(
                matches!(&failure, ReplicationError::Payload { file, .. } if file == "binlog.000007"),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn an_unwritable_scratch_folder_is_reported() {
        let packets = [format(true), packet_of(event(TRANSACTION_PAYLOAD, &compressed(&[event(16, &[0; 8])])), true)];
        let mut reader = events(&packets, vec![64], 50);
        reader.scratch = PathBuf::from("/nowhere/at all");
        let (_, failure) = read(reader);
        assert!(matches!(&failure, ReplicationError::Scratch(why) if why.contains("/nowhere/at all")), "{failure:?}");
    }

    #[test]
    fn an_error_of_the_server_is_reported_with_its_number() {
        let packets =
            [format(true), b"\xff\xd4\x04#HY000Could not find first log file name in binary log index file".to_vec()];
        let (_, failure) = read(events(&packets, vec![7], WHOLE));
        assert!(
            matches!(&failure, ReplicationError::Protocol(ProtocolError::Server(error)) if error.number == 1236 && error.message.ends_with("index file"))
        );
    }

    proptest! {
        #[test]
        fn invalid_packets_never_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..5), event_type in 0u8..45) {
            let mut packets = packets;
            packets.insert(0, format(false));
            for packet in packets.iter_mut().skip(1).filter(|packet| packet.len() > HEADER) {
                let size = packet.len() as u32 - 1;
                packet[0] = OK;
                packet[5] = event_type;
                packet[10..14].copy_from_slice(&size.to_le_bytes());
            }
            for spool_threshold in [WHOLE, 30] {
                read(events(&packets, vec![11], spool_threshold));
            }
        }
    }
}
