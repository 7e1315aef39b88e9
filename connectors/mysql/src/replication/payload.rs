//! Compressed transactions (MySQL's Transaction_payload_event), unpacked event by event.
//!
//! A transaction may unpack to a thousand times its size. Memory holds at most zstd's window (2 MiB
//! at the server's default level, up to 128 MiB at the highest) and one event. The compressed bytes
//! must unpack to exactly the size that the event announces. An error is reported when the
//! unpacking reaches it. Rows before it may already be emitted, as with any interrupted
//! transaction; the position counts them.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek as _, SeekFrom};

use crate::connection::protocol::MAX_PACKET;
use crate::decode::{Bytes, Malformed};
use crate::replication::event_frame::{Event, Header as EventHeader};

/// The maximum length of the header before the compressed bytes.
const MAX_HEADER: usize = 1 << 10;

/// The location of a payload's bytes.
pub(crate) enum Packed {
    Memory(Vec<u8>),
    /// This number of bytes, from the beginning of the file.
    Spooled(File, u64),
}

/// A transaction during its unpacking.
pub(crate) struct Payload {
    bytes: Box<dyn Read + Send>,
    /// The number of unpacked bytes after the current one.
    left: u64,
}

/// The header of a payload.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    /// The length of the header.
    length: u64,
    packed: u64,
    is_zstd: bool,
    unpacked: u64,
}

impl Header {
    fn read(header: &[u8]) -> Result<Self, Malformed> {
        const END: u64 = 0;
        const SIZE: u64 = 1;
        const COMPRESSION: u64 = 2;
        const UNPACKED_SIZE: u64 = 3;
        const ZSTD: u64 = 0;
        const NONE: u64 = 255;
        let mut bytes = Bytes::new(header);
        let (mut packed, mut compression, mut unpacked) = (None, None, None);
        loop {
            let kind = bytes.packed()?;
            if kind == END {
                break;
            }
            let mut field = Bytes::new(bytes.packed_bytes()?);
            match kind {
                SIZE => packed = Some(field.packed()?),
                COMPRESSION => compression = Some(field.packed()?),
                UNPACKED_SIZE => unpacked = Some(field.packed()?),
                _ => {}
            }
        }
        let packed = packed.ok_or_else(|| Malformed::new("it lacks its size"))?;
        let is_zstd = match compression {
            Some(ZSTD) => true,
            Some(NONE) => false,
            other => {
                return Err(Malformed(format!("its compression type is {other:?} instead of 0 (zstd) or 255 (none)")));
            }
        };
        // An uncompressed payload has one size.
        let unpacked = unpacked.or(Some(packed).filter(|_| !is_zstd));
        let unpacked = unpacked.ok_or_else(|| Malformed::new("it lacks its uncompressed size"))?;
        Ok(Self { length: (header.len() - bytes.rest().len()) as u64, packed, is_zstd, unpacked })
    }
}

impl Payload {
    pub(crate) fn open(packed: Packed) -> Result<Self, String> {
        let (header, length) = match &packed {
            Packed::Memory(bytes) => (Header::read(&bytes[..bytes.len().min(MAX_HEADER)]), bytes.len() as u64),
            Packed::Spooled(file, length) => {
                let mut header = Vec::new();
                let mut file = file;
                let read = file
                    .seek(SeekFrom::Start(0))
                    .and_then(|_| file.take((*length).min(MAX_HEADER as u64)).read_to_end(&mut header));
                read.map_err(|error| format!("its copy in the scratch folder: {error}"))?;
                (Header::read(&header), *length)
            }
        };
        let header = header.map_err(|error| error.to_string())?;
        let available = length - header.length;
        if available != header.packed {
            return Err(format!("it has {available} compressed bytes and announces {}", header.packed));
        }
        if header.unpacked == 0 {
            return Err("it announces no bytes".to_owned());
        }
        let bytes: Box<dyn BufRead + Send> = match packed {
            Packed::Memory(bytes) => {
                let mut bytes = Cursor::new(bytes);
                bytes.set_position(header.length);
                Box::new(bytes)
            }
            Packed::Spooled(mut file, _) => {
                let place = file.seek(SeekFrom::Start(header.length));
                place.map_err(|error| format!("its copy in the scratch folder: {error}"))?;
                Box::new(BufReader::with_capacity(128 << 10, file.take(header.packed)))
            }
        };
        let bytes: Box<dyn Read + Send> = if header.is_zstd {
            // The decoder reads frame after frame to the end, and rejects other bytes.
            Box::new(zstd::stream::read::Decoder::with_buffer(bytes).map_err(|error| error.to_string())?)
        } else {
            bytes
        };
        Ok(Self { bytes, left: header.unpacked })
    }

    /// The next event; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, String> {
        const TRANSACTION_PAYLOAD: u8 = 40;
        if self.left == 0 {
            return self.end().map(|()| None);
        }
        let mut header = [0; EventHeader::LENGTH];
        if self.left < header.len() as u64 {
            return Err(format!("{} bytes are left, too few for an event", self.left));
        }
        self.bytes.read_exact(&mut header).map_err(|error| self.damaged(&error))?;
        let (header, size) = EventHeader::read(&mut Bytes::new(&header)).map_err(|error| error.to_string())?;
        let data_bytes = match size.checked_sub(EventHeader::LENGTH as u32) {
            Some(bytes) if u64::from(size) <= self.left && size <= MAX_PACKET => bytes as usize,
            _ => return Err(format!("an event claims {size} bytes, and {} are left", self.left)),
        };
        if header.event_type() == TRANSACTION_PAYLOAD {
            return Err("it contains another compressed transaction".to_owned());
        }
        let mut data = Vec::new();
        data.try_reserve_exact(data_bytes).map_err(|error| format!("an event of {size} bytes: {error}"))?;
        let read = (&mut self.bytes).take(data_bytes as u64).read_to_end(&mut data);
        read.map_err(|error| self.damaged(&error))?;
        if data.len() < data_bytes {
            return Err(format!("it ends {} bytes early", self.left - (EventHeader::LENGTH + data.len()) as u64));
        }
        self.left -= u64::from(size);
        Ok(Some(Event::new(header, data)))
    }

    fn damaged(&self, error: &std::io::Error) -> String {
        format!("{} bytes before its end: {error}", self.left)
    }

    fn end(&mut self) -> Result<(), String> {
        match self.bytes.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("it is longer than it announces".to_owned()),
            Err(error) => Err(format!("after its announced end: {error}")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// The bytes of an event without a checksum.
    pub(crate) fn event(event_type: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, event_type, 1, 0, 0, 0];
        bytes.extend_from_slice(&((EventHeader::LENGTH + data.len()) as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(data);
        bytes
    }

    fn packed_number(number: u64) -> Vec<u8> {
        let mut bytes = vec![0xfe];
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes
    }

    /// A payload as a server writes it.
    pub(crate) fn payload(packed: &[u8], compression: u8, unpacked: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let compression = if compression < 0xfb { vec![compression] } else { vec![0xfc, compression, 0] };
        for (kind, field) in [(2, compression), (3, packed_number(unpacked)), (1, packed_number(packed.len() as u64))] {
            bytes.extend_from_slice(&[kind, field.len() as u8]);
            bytes.extend_from_slice(&field);
        }
        bytes.push(0);
        bytes.extend_from_slice(packed);
        bytes
    }

    pub(crate) fn compressed(events: &[Vec<u8>]) -> Vec<u8> {
        let whole = events.concat();
        payload(&zstd::encode_all(whole.as_slice(), 3).unwrap(), 0, whole.len() as u64)
    }

    fn spooled(bytes: &[u8]) -> Packed {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Packed::Spooled(file, bytes.len() as u64)
    }

    /// Every event, and the result of the unpacking.
    fn read(packed: Packed) -> (Vec<Vec<u8>>, Result<(), String>) {
        let mut payload = match Payload::open(packed) {
            Ok(payload) => payload,
            Err(why) => return (Vec::new(), Err(why)),
        };
        let mut events = Vec::new();
        loop {
            match payload.next() {
                Ok(Some(read)) => events.push(event(read.header().event_type(), read.data())),
                Ok(None) => return (events, Ok(())),
                Err(why) => return (events, Err(why)),
            }
        }
    }

    fn some_events() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let data = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            (any::<u8>(), 0usize..300_000).prop_map(|(byte, count)| vec![byte; count]),
        ];
        proptest::collection::vec((0u8..40, data), 1..8)
            .prop_map(|events| events.iter().map(|(kind, data)| event(*kind, data)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn unpacked_events_equal_the_original(events in some_events()) {
            let bytes = compressed(&events);
            let plain = payload(&events.concat(), 255, events.concat().len() as u64);
            for packed in [Packed::Memory(bytes.clone()), spooled(&bytes), Packed::Memory(plain)] {
                prop_assert_eq!(read(packed), (events.clone(), Ok(())));
            }
            // Several zstd frames.
            let (first, second) = events.split_at(events.len() / 2);
            let frames: Vec<u8> = [first, second]
                .iter()
                .flat_map(|events| zstd::encode_all(events.concat().as_slice(), 1).unwrap())
                .collect();
            let both = payload(&frames, 0, events.concat().len() as u64);
            prop_assert_eq!(read(Packed::Memory(both)), (events.clone(), Ok(())));
        }

        #[test]
        fn truncated_and_longer_payloads_are_reported(events in some_events(), cut in any::<prop::sample::Index>(), more in 1u64..100) {
            let whole = events.concat();
            let packed = zstd::encode_all(whole.as_slice(), 3).unwrap();
            let length = whole.len() as u64;
            let cut = cut.index(packed.len());
            let longer = [&packed[..], &zstd::encode_all(&whole[..1], 3).unwrap()].concat();
            let trash = [&packed[..], b"trash"].concat();
            for wrong in [
                payload(&packed[..cut], 0, length),
                payload(&packed, 0, length + more),
                payload(&packed, 0, length.saturating_sub(more)),
                payload(&longer, 0, length),
                payload(&trash, 0, length),
                payload(&whole[..cut.min(whole.len() - 1)], 255, length),
                compressed(&events)[..cut].to_vec(),
                [&compressed(&events)[..], b"x"].concat(),
            ] {
                let (unpacked, end) = read(Packed::Memory(wrong));
                prop_assert!(end.is_err());
                prop_assert!(events.starts_with(&unpacked));
            }
        }

        #[test]
        fn damaged_payloads_never_panic(events in some_events(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let mut bytes = compressed(&events);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let (in_memory, from_disk) = (read(Packed::Memory(bytes.clone())), read(spooled(&bytes)));
            prop_assert_eq!(in_memory, from_disk);
        }
    }

    #[test]
    fn payloads_that_no_server_writes_are_rejected() {
        let inner = event(2, b"BEGIN");
        let nested = event(40, &compressed(std::slice::from_ref(&inner)));
        let mut huge = inner.clone();
        huge[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut small = inner.clone();
        small[9..13].copy_from_slice(&5u32.to_le_bytes());
        for (bytes, why) in [
            (compressed(&[nested]), "contains another compressed transaction"),
            (compressed(&[huge]), "claims 4294967295 bytes"),
            (compressed(&[small]), "claims 5 bytes"),
            (compressed(&[inner.clone(), vec![0; 5]]), "too few for an event"),
            (compressed(&[]), "announces no bytes"),
            (payload(&inner, 7, inner.len() as u64), "instead of 0 (zstd) or 255"),
            (payload(&inner, 0, inner.len() as u64), "Unknown frame"),
            (vec![0], "it lacks its size"),
            (vec![], "bytes expected"),
        ] {
            let (_, end) = read(Packed::Memory(bytes));
            assert!(end.as_ref().is_err_and(|error| error.contains(why)), "{why}: {end:?}");
        }
    }
}
