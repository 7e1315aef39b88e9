//! Events as they come: joined, checked, and out of what the server compressed.
//!
//! Each is copied once, out of the connection's buffer. [`Events::next`] can be given up at any await and called again. What it writes to the scratch folder, reads
//! there and unpacks keeps its thread busy, which is the source's own.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncRead;

use super::packet::Packets;
use super::payload::{Packed, Payload};
use super::{ERROR, Failure, LARGEST, OK, server_error};
use crate::decode::{Bytes, Malformed};
use crate::replication::event_frame::{Event, Header};

/// A compressed transaction of more bytes lies on disk while it is unpacked.
const SPOOLED_FROM: u32 = 16 << 20;

/// Bytes of a checksum.
const SUM: usize = 4;
/// What an event begins with: a byte that says so, and its header.
const HEAD: usize = 1 + Header::LENGTH;

const ROTATE: u8 = 4;
const FORMAT_DESCRIPTION: u8 = 15;
const TRANSACTION_PAYLOAD: u8 = 40;

/// The events of a connection.
pub(crate) struct Events<L> {
    packets: Packets<L>,
    scratch: PathBuf,
    spooled_from: u32,
    arriving: Arriving,
    /// Do events end with a checksum? Nobody knows before the first description of the format.
    summed: Option<bool>,
    /// The file that the events are of.
    file: String,
    /// The transaction that is being unpacked, and where it ends.
    payload: Option<(Payload, u32)>,
}

/// What has come of an event.
#[derive(Default)]
struct Arriving {
    head: [u8; HEAD],
    head_bytes: usize,
    data: Vec<u8>,
    /// Instead of `data`.
    spool: Option<Spool>,
    /// Bytes of data that are still to come.
    left: usize,
}

/// An event's data on disk, in a file without a name: it goes with the process.
struct Spool {
    file: File,
    bytes: usize,
    hasher: crc32fast::Hasher,
    /// The last bytes, which may be a checksum: they are not in the file.
    sum: Vec<u8>,
}

impl<L: AsyncRead + Unpin> Events<L> {
    pub(super) fn new(packets: Packets<L>, scratch: PathBuf) -> Self {
        Self {
            packets,
            scratch,
            spooled_from: SPOOLED_FROM,
            arriving: Arriving::default(),
            summed: None,
            file: String::new(),
            payload: None,
        }
    }

    /// The next event. One that holds a compressed transaction comes without data, and the events of the transaction after it.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        if let Some(event) = self.unpacked()? {
            return Ok(event);
        }
        while let Some(piece) = self.packets.piece().await? {
            self.arriving.add(piece, &self.scratch, self.spooled_from)?;
        }
        let arrived = std::mem::take(&mut self.arriving);
        self.take(arrived)
    }

    /// Bytes that came so far, also of an event that is not whole yet.
    pub(crate) fn received(&self) -> u64 {
        self.packets.received()
    }

    fn unpacked(&mut self) -> Result<Option<Event>, Failure> {
        let Some((payload, ends_at)) = &mut self.payload else { return Ok(None) };
        match payload.next() {
            Ok(Some(event)) => return Ok(Some(event)),
            Ok(None) => self.payload = None,
            Err(why) => return Err(Failure::Payload { file: self.file.clone(), ends_at: *ends_at, why }),
        }
        Ok(None)
    }

    fn take(&mut self, arrived: Arriving) -> Result<Event, Failure> {
        // In the place of an event, the shortest answer: that there are no more.
        const CLOSED: u8 = 0xfe;
        let Arriving { head, head_bytes, mut data, spool, left } = arrived;
        match head[0] {
            OK if head_bytes == HEAD => {}
            ERROR => return Err(server_error(&[&head[1..head_bytes], &data].concat())),
            CLOSED if head_bytes < 9 => return Err(Failure::Closed),
            first => {
                let bytes = head_bytes + data.len();
                return Err(Failure::Broken(format!("{bytes} bytes that begin with {first:#x} came for an event")));
            }
        }
        let (header, size) = Header::read(&mut Bytes::new(&head[1..]))?;
        if left > 0 {
            return Err(Malformed(format!("{left} bytes of {size} are missing")).into());
        }
        let kind = header.event_type_raw();
        let damaged = || Failure::Checksum { kind, ends_at: header.log_pos() };
        if let Some(spool) = spool {
            // What is not summed has data where the checksum would be.
            let packed = spool.finish(self.summed == Some(true)).map_err(|error| self.no_scratch(&error))?;
            self.open_payload(packed.ok_or_else(damaged)?, &header)?;
            return Ok(Event::new(header, data));
        }
        if kind == FORMAT_DESCRIPTION {
            self.summed = Some(is_summed(&data)?);
        }
        let sums_up = |data: &[u8]| data.split_last_chunk().is_some_and(|(rest, sum)| sum_of(&head, rest) == *sum);
        let has_sum = match self.summed {
            Some(true) if !sums_up(&data) => return Err(damaged()),
            Some(summed) => summed || kind == FORMAT_DESCRIPTION,
            // The first event of a connection may have a checksum that nothing announced.
            None => kind == ROTATE && sums_up(&data),
        };
        if has_sum {
            data.truncate(data.len().saturating_sub(SUM));
        }
        if kind == ROTATE {
            self.file = String::from_utf8_lossy(data.get(8..).unwrap_or_default()).into_owned();
        }
        if kind == TRANSACTION_PAYLOAD {
            self.open_payload(Packed::Memory(std::mem::take(&mut data)), &header)?;
        }
        Ok(Event::new(header, data).unpacked()?)
    }

    fn open_payload(&mut self, packed: Packed, header: &Header) -> Result<(), Failure> {
        let ends_at = header.log_pos();
        let payload = Payload::open(packed);
        let payload = payload.map_err(|why| Failure::Payload { file: self.file.clone(), ends_at, why })?;
        self.payload = Some((payload, ends_at));
        Ok(())
    }

    fn no_scratch(&self, error: &std::io::Error) -> Failure {
        no_scratch(&self.scratch, error)
    }
}

fn no_scratch(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::Scratch(format!("a large compressed transaction cannot be kept in {}: {error}", folder.display()))
}

/// Does the description of the format announce checksums? It always ends with the byte that says it and a sum.
fn is_summed(data: &[u8]) -> Result<bool, Failure> {
    const NONE: u8 = 0;
    const CRC32: u8 = 1;
    // Of servers that know of no checksums.
    const UNKNOWN: u8 = 255;
    match data.len().checked_sub(SUM + 1).map(|at| data[at]) {
        Some(NONE | UNKNOWN) => Ok(false),
        Some(CRC32) => Ok(true),
        other => Err(Malformed(format!("checksums of the kind {other:?}; 1 (CRC32) and 0 (none) are known")).into()),
    }
}

/// The checksum of an event.
fn sum_of(head: &[u8; HEAD], data: &[u8]) -> [u8; SUM] {
    let mut hasher = hasher_of(head);
    hasher.update(data);
    hasher.finalize().to_le_bytes()
}

fn hasher_of(head: &[u8; HEAD]) -> crc32fast::Hasher {
    // The description of the format says by a flag that its file is still written, which its checksum does not know.
    const IN_USE: u8 = 1;
    const KIND: usize = 5;
    const FLAGS: usize = HEAD - 2;
    let mut head = *head;
    if head[KIND] == FORMAT_DESCRIPTION {
        head[FLAGS] &= !IN_USE;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[1..]);
    hasher
}

impl Arriving {
    fn add(&mut self, piece: &[u8], scratch: &Path, spooled_from: u32) -> Result<(), Failure> {
        let (first, rest) = piece.split_at(piece.len().min(HEAD - self.head_bytes));
        self.head[self.head_bytes..][..first.len()].copy_from_slice(first);
        self.head_bytes += first.len();
        if !first.is_empty() && self.head_bytes == HEAD {
            self.begin(scratch, spooled_from)?;
        }
        if rest.len() > self.left {
            return Err(Malformed(format!("it is longer by {} bytes than it says", rest.len() - self.left)).into());
        }
        self.left -= rest.len();
        match &mut self.spool {
            Some(spool) => spool.add(rest, self.left).map_err(|error| no_scratch(scratch, &error)),
            None => {
                self.data.extend_from_slice(rest);
                Ok(())
            }
        }
    }

    /// Its head has come.
    fn begin(&mut self, scratch: &Path, spooled_from: u32) -> Result<(), Failure> {
        if self.head[0] != OK {
            // An error's text is shorter.
            const LONGEST_ERROR: usize = 64 << 10;
            self.left = LONGEST_ERROR;
            return Ok(());
        }
        let (header, size) = Header::read(&mut Bytes::new(&self.head[1..]))?;
        // The largest packet is not all of it data.
        let data = size.checked_sub(Header::LENGTH as u32).filter(|_| size <= LARGEST + (1 << 20));
        let data = data.ok_or_else(|| Malformed(format!("an event of {size} bytes")))? as usize;
        self.left = data;
        if header.event_type_raw() == TRANSACTION_PAYLOAD && size > spooled_from {
            let file = tempfile::tempfile_in(scratch).map_err(|error| no_scratch(scratch, &error))?;
            self.spool = Some(Spool { file, bytes: 0, hasher: hasher_of(&self.head), sum: Vec::new() });
            return Ok(());
        }
        let reserved = self.data.try_reserve_exact(data);
        reserved.map_err(|error| Malformed(format!("no memory for an event of {size} bytes: {error}")).into())
    }
}

impl Spool {
    /// Adds bytes that so many follow.
    fn add(&mut self, bytes: &[u8], left: usize) -> std::io::Result<()> {
        let (data, sum) = bytes.split_at(bytes.len().saturating_sub(SUM.saturating_sub(left)));
        self.hasher.update(data);
        self.sum.extend_from_slice(sum);
        self.bytes += data.len();
        self.file.write_all(data)
    }

    /// All of it; `None` if the checksum does not fit.
    fn finish(mut self, is_summed: bool) -> std::io::Result<Option<Packed>> {
        if is_summed {
            let fits = self.hasher.finalize().to_le_bytes().as_slice() == self.sum;
            return Ok(fits.then_some(Packed::Spooled(self.file, self.bytes as u64)));
        }
        self.file.write_all(&self.sum)?;
        Ok(Some(Packed::Spooled(self.file, (self.bytes + self.sum.len()) as u64)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replication::packet::tests::{Portions, block_on, framed};
    use crate::replication::payload::tests::{compressed, event};

    /// An event as a server sends it: with its size, and a checksum if it has one.
    pub(crate) fn sent(mut event: Vec<u8>, is_summed: bool) -> Vec<u8> {
        event.resize(event.len() + if is_summed { SUM } else { 0 }, 0);
        let size = event.len();
        event[9..13].copy_from_slice(&(size as u32).to_le_bytes());
        let mut packet = vec![OK];
        packet.append(&mut event);
        if is_summed {
            let head = packet[..HEAD].try_into().unwrap();
            let sum = sum_of(&head, &packet[HEAD..size - SUM + 1]);
            packet[size - SUM + 1..].copy_from_slice(&sum);
        }
        packet
    }

    /// A description of the format.
    fn format(is_summed: bool) -> Vec<u8> {
        let mut data = vec![7; 90];
        data.push(u8::from(is_summed));
        let mut packet = sent(event(FORMAT_DESCRIPTION, &data), true);
        // Its file is still written: the checksum does not know.
        packet[HEAD - 2] |= 1;
        packet
    }

    /// Packets as the connection of a server that sends events.
    pub(crate) fn connection(packets: &[Vec<u8>]) -> Vec<u8> {
        let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        framed(&packets, 1)
    }

    /// Its events.
    pub(crate) fn events_of<L: AsyncRead + Unpin>(link: L, spooled_from: u32) -> Events<L> {
        Events { spooled_from, ..Events::new(Packets::go_on(link, 1), std::env::temp_dir()) }
    }

    fn events(packets: &[Vec<u8>], sizes: Vec<usize>, spooled_from: u32) -> Events<Portions> {
        events_of(Portions::new(connection(packets), sizes), spooled_from)
    }

    fn read(mut events: Events<Portions>) -> (Vec<(u8, Vec<u8>)>, Failure) {
        block_on(async {
            let mut read = Vec::new();
            loop {
                // Given up at every await, and taken up again.
                let mut next = Some(Box::pin(events.next()));
                let came = std::future::poll_fn(|context| {
                    let Some(future) = &mut next else { return std::task::Poll::Ready(None) };
                    match future.as_mut().poll(context) {
                        std::task::Poll::Ready(came) => std::task::Poll::Ready(Some(came)),
                        std::task::Poll::Pending => {
                            next = None;
                            std::task::Poll::Ready(None)
                        }
                    }
                });
                match came.await {
                    None => {}
                    Some(Ok(event)) => read.push((event.header().event_type_raw(), event.data().to_vec())),
                    Some(Err(failure)) => return (read, failure),
                }
            }
        })
    }

    const WHOLE: u32 = u32::MAX;

    #[test]
    fn events_come_without_their_checksums_and_transactions_unpacked() {
        let rotate = [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"binlog.000007"].concat();
        let inner = [event(2, b"BEGIN"), event(19, &[3; 40]), event(30, &[1; 200_000]), event(16, &[0; 8])];
        for is_summed in [true, false] {
            for spooled_from in [WHOLE, 50] {
                let packets = [
                    sent(event(ROTATE, &rotate), is_summed),
                    format(is_summed),
                    sent(event(33, b"gtid"), is_summed),
                    sent(event(TRANSACTION_PAYLOAD, &compressed(&inner)), is_summed),
                    sent(event(27, b"binlog.000007"), is_summed),
                    vec![0xfe, 0, 0, 2, 0],
                ];
                let reader = events(&packets, vec![3, 1000, 1, 20], spooled_from);
                let (read, failure) = read(reader);
                let data = |bytes: &[u8]| bytes.to_vec();
                let expected = [
                    (ROTATE, rotate.clone()),
                    (FORMAT_DESCRIPTION, [vec![7; 90], vec![u8::from(is_summed)]].concat()),
                    (33, data(b"gtid")),
                    (TRANSACTION_PAYLOAD, data(b"")),
                    (2, data(b"BEGIN")),
                    (19, vec![3; 40]),
                    (30, vec![1; 200_000]),
                    (16, vec![0; 8]),
                    (27, data(b"binlog.000007")),
                ];
                // Without checksums the description of the format has the place of one all the same.
                assert!(read == expected, "{is_summed} {spooled_from}: {read:?}");
                assert!(matches!(failure, Failure::Closed), "{failure:?}");
            }
        }
    }

    #[test]
    fn a_large_event_is_heard_of_while_it_comes() {
        let packets = [format(true), sent(event(30, &[5; 10_000]), true)];
        let mut events = events(&packets, vec![1000], WHOLE);
        let mut heard = vec![events.received()];
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        // At every second poll nothing has come.
        for _ in 0..30 {
            let next = Box::pin(events.next()).as_mut().poll(&mut context);
            if matches!(next, std::task::Poll::Ready(Err(_))) {
                break;
            }
            heard.push(events.received());
        }
        heard.dedup();
        let whole = connection(&packets).len() as u64;
        assert_eq!((heard.first(), heard.last(), heard.len()), (Some(&0), Some(&whole), 12), "{heard:?}");
    }

    #[test]
    fn an_event_that_was_changed_on_its_way_is_told() {
        let inner = [event(2, b"BEGIN"), event(16, &[0; 8])];
        for packet in [sent(event(30, &[5; 100]), true), sent(event(TRANSACTION_PAYLOAD, &compressed(&inner)), true)] {
            for spooled_from in [WHOLE, 20] {
                // Where its size stands it is another event: see below.
                for place in (8..8 * packet.len()).filter(|place| !(80..112).contains(place)) {
                    let (at, bit) = (place / 8, place % 8);
                    let mut changed = packet.clone();
                    changed[at] ^= 1 << bit;
                    let (came, failure) = read(events(&[format(true), changed], vec![64], spooled_from));
                    assert_eq!(came.len(), 1);
                    assert!(matches!(failure, Failure::Checksum { .. }), "{at}: {failure:?}");
                }
                for size in [0u32, 18, packet.len() as u32, packet.len() as u32 - 2, u32::MAX] {
                    let mut changed = packet.clone();
                    changed[10..14].copy_from_slice(&size.to_le_bytes());
                    let (_, failure) = read(events(&[format(true), changed], vec![64], spooled_from));
                    assert!(matches!(failure, Failure::Malformed(_)), "{size}: {failure:?}");
                }
            }
        }
    }

    #[test]
    fn a_transaction_that_cannot_be_unpacked_is_told_with_its_place() {
        let mut bytes = compressed(&[event(2, b"BEGIN"), event(16, &[0; 8])]);
        let last = bytes.len() - 1;
        bytes.truncate(last);
        let rotate = [&[4, 0, 0, 0, 0, 0, 0, 0][..], b"binlog.000007"].concat();
        let after = sent(event(33, b"next"), true);
        for spooled_from in [WHOLE, 50] {
            let payload = sent(event(TRANSACTION_PAYLOAD, &bytes), true);
            let packets = [format(true), sent(event(ROTATE, &rotate), true), payload, after.clone()];
            let (came, failure) = read(events(&packets, vec![64], spooled_from));
            assert_eq!(came.len(), 2, "nothing after it");
            assert!(matches!(&failure, Failure::Payload { file, .. } if file == "binlog.000007"), "{failure:?}");
        }
    }

    #[test]
    fn a_scratch_folder_that_takes_nothing_is_told() {
        let packets = [format(true), sent(event(TRANSACTION_PAYLOAD, &compressed(&[event(16, &[0; 8])])), true)];
        let mut reader = events(&packets, vec![64], 50);
        reader.scratch = PathBuf::from("/nowhere/at all");
        let (_, failure) = read(reader);
        assert!(matches!(&failure, Failure::Scratch(why) if why.contains("/nowhere/at all")), "{failure:?}");
    }

    #[test]
    fn an_error_of_the_server_is_told_with_its_number() {
        let packets =
            [format(true), b"\xff\xd4\x04#HY000Could not find first log file name in binary log index file".to_vec()];
        let (_, failure) = read(events(&packets, vec![7], WHOLE));
        assert!(matches!(&failure, Failure::Server { code: 1236, message } if message.ends_with("index file")));
    }

    proptest! {
        #[test]
        fn any_packets_are_survived(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..5), kind in 0u8..45) {
            let mut packets = packets;
            packets.insert(0, format(false));
            for packet in packets.iter_mut().skip(1).filter(|packet| packet.len() > HEAD) {
                let size = packet.len() as u32 - 1;
                packet[0] = OK;
                packet[5] = kind;
                packet[10..14].copy_from_slice(&size.to_le_bytes());
            }
            for spooled_from in [WHOLE, 30] {
                read(events(&packets, vec![11], spooled_from));
            }
        }
    }
}
