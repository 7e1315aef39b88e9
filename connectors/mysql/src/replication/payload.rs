//! Compressed transactions (MySQL's Transaction_payload_event): their events, unpacked one after the other.
//!
//! Unpacked, a transaction may be a thousand times as large as it came. Never more of it is in memory than zstd's window (2 MiB at the server's default level, up to
//! 128 MiB at its highest) and one event. The bytes are read to their end: they must unpack to just what the event's head announces, and nothing may be left over. Damage is
//! told when it is reached. Rows before it may have been handed out by then, as those of any transaction that is cut: the position counts them.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek as _, SeekFrom};

use super::LARGEST;
use crate::decode::{Bytes, Malformed};
use crate::replication::event_frame::{Event, Header};

/// Most bytes of what stands before the packed ones.
const LARGEST_HEAD: usize = 1 << 10;

/// Where the packed bytes are.
pub(crate) enum Packed {
    Memory(Vec<u8>),
    /// So many bytes from the beginning of the file.
    Spooled(File, u64),
}

/// A transaction that is being unpacked.
pub(crate) struct Payload {
    bytes: Box<dyn Read + Send>,
    /// Unpacked bytes that are still to come.
    left: u64,
}

/// What the head says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    /// Its own bytes.
    length: u64,
    packed: u64,
    is_zstd: bool,
    unpacked: u64,
}

impl Head {
    fn read(head: &[u8]) -> Result<Self, Malformed> {
        const END: u64 = 0;
        const SIZE: u64 = 1;
        const COMPRESSION: u64 = 2;
        const UNPACKED_SIZE: u64 = 3;
        const ZSTD: u64 = 0;
        const NONE: u64 = 255;
        let mut bytes = Bytes::new(head);
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
        let packed = packed.ok_or_else(|| Malformed::new("its size is not told"))?;
        let is_zstd = match compression {
            Some(ZSTD) => true,
            Some(NONE) => false,
            other => return Err(Malformed(format!("its compression is {other:?}: neither 0 (zstd) nor 255 (none)"))),
        };
        // What is not compressed does not say it twice.
        let unpacked = unpacked.or(Some(packed).filter(|_| !is_zstd));
        let unpacked = unpacked.ok_or_else(|| Malformed::new("its unpacked size is not told"))?;
        Ok(Self { length: (head.len() - bytes.rest().len()) as u64, packed, is_zstd, unpacked })
    }
}

impl Payload {
    pub(crate) fn open(packed: Packed) -> Result<Self, String> {
        let (head, length) = match &packed {
            Packed::Memory(bytes) => (Head::read(&bytes[..bytes.len().min(LARGEST_HEAD)]), bytes.len() as u64),
            Packed::Spooled(file, length) => {
                let mut head = Vec::new();
                let mut file = file;
                let read = file
                    .seek(SeekFrom::Start(0))
                    .and_then(|_| file.take((*length).min(LARGEST_HEAD as u64)).read_to_end(&mut head));
                read.map_err(|error| format!("its copy in the scratch folder: {error}"))?;
                (Head::read(&head), *length)
            }
        };
        let head = head.map_err(|error| error.to_string())?;
        let there = length - head.length;
        if there != head.packed {
            return Err(format!("it has {there} packed bytes, and announces {}", head.packed));
        }
        if head.unpacked == 0 {
            return Err("it announces no bytes".to_owned());
        }
        let bytes: Box<dyn BufRead + Send> = match packed {
            Packed::Memory(bytes) => {
                let mut bytes = Cursor::new(bytes);
                bytes.set_position(head.length);
                Box::new(bytes)
            }
            Packed::Spooled(mut file, _) => {
                let place = file.seek(SeekFrom::Start(head.length));
                place.map_err(|error| format!("its copy in the scratch folder: {error}"))?;
                Box::new(BufReader::with_capacity(128 << 10, file.take(head.packed)))
            }
        };
        let bytes: Box<dyn Read + Send> = if head.is_zstd {
            // Frame after frame, until there are no more bytes: any that are no frame are an error.
            Box::new(zstd::stream::read::Decoder::with_buffer(bytes).map_err(|error| error.to_string())?)
        } else {
            bytes
        };
        Ok(Self { bytes, left: head.unpacked })
    }

    /// The next event; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, String> {
        const TRANSACTION_PAYLOAD: u8 = 40;
        if self.left == 0 {
            return self.end().map(|()| None);
        }
        let mut head = [0; Header::LENGTH];
        if self.left < head.len() as u64 {
            return Err(format!("{} bytes are left, too few for an event", self.left));
        }
        self.bytes.read_exact(&mut head).map_err(|error| self.damaged(&error))?;
        let (header, size) = Header::read(&mut Bytes::new(&head)).map_err(|error| error.to_string())?;
        let data_bytes = match size.checked_sub(Header::LENGTH as u32) {
            Some(bytes) if u64::from(size) <= self.left && size <= LARGEST => bytes as usize,
            _ => return Err(format!("an event in it claims {size} bytes, and {} are left", self.left)),
        };
        if header.event_type_raw() == TRANSACTION_PAYLOAD {
            return Err("a compressed transaction is in it".to_owned());
        }
        let mut data = Vec::new();
        data.try_reserve_exact(data_bytes).map_err(|error| format!("an event in it of {size} bytes: {error}"))?;
        let read = (&mut self.bytes).take(data_bytes as u64).read_to_end(&mut data);
        read.map_err(|error| self.damaged(&error))?;
        if data.len() < data_bytes {
            return Err(format!("it ends {} bytes early", self.left - (Header::LENGTH + data.len()) as u64));
        }
        self.left -= u64::from(size);
        Ok(Some(Event::new(header, data)))
    }

    fn damaged(&self, error: &std::io::Error) -> String {
        format!("with {} bytes still to come: {error}", self.left)
    }

    fn end(&mut self) -> Result<(), String> {
        match self.bytes.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("more comes than it announces".to_owned()),
            Err(error) => Err(format!("after its announced end: {error}")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An event's bytes, without a checksum.
    pub(crate) fn event(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, kind, 1, 0, 0, 0];
        bytes.extend_from_slice(&((Header::LENGTH + data.len()) as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(data);
        bytes
    }

    fn packed_number(number: u64) -> Vec<u8> {
        let mut bytes = vec![0xfe];
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes
    }

    /// As a server writes it.
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

    /// Everything until the end or until it is refused.
    fn read(packed: Packed) -> (Vec<Vec<u8>>, Result<(), String>) {
        let mut payload = match Payload::open(packed) {
            Ok(payload) => payload,
            Err(why) => return (Vec::new(), Err(why)),
        };
        let mut events = Vec::new();
        loop {
            match payload.next() {
                Ok(Some(read)) => events.push(event(read.header().event_type_raw(), read.data())),
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
        fn events_come_as_they_were(events in some_events()) {
            let bytes = compressed(&events);
            let plain = payload(&events.concat(), 255, events.concat().len() as u64);
            for packed in [Packed::Memory(bytes.clone()), spooled(&bytes), Packed::Memory(plain)] {
                prop_assert_eq!(read(packed), (events.clone(), Ok(())));
            }
            // zstd of more than one frame is zstd.
            let (first, second) = events.split_at(events.len() / 2);
            let frames: Vec<u8> = [first, second]
                .iter()
                .flat_map(|events| zstd::encode_all(events.concat().as_slice(), 1).unwrap())
                .collect();
            let both = payload(&frames, 0, events.concat().len() as u64);
            prop_assert_eq!(read(Packed::Memory(both)), (events.clone(), Ok(())));
        }

        #[test]
        fn what_is_cut_or_longer_is_told(events in some_events(), cut in any::<prop::sample::Index>(), more in 1u64..100) {
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
                let (came, end) = read(Packed::Memory(wrong));
                prop_assert!(end.is_err());
                prop_assert!(events.starts_with(&came));
            }
        }

        #[test]
        fn any_change_is_survived(events in some_events(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
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
    fn what_is_in_no_binlog_is_refused() {
        let inner = event(2, b"BEGIN");
        let nested = event(40, &compressed(std::slice::from_ref(&inner)));
        let mut huge = inner.clone();
        huge[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut small = inner.clone();
        small[9..13].copy_from_slice(&5u32.to_le_bytes());
        for (bytes, why) in [
            (compressed(&[nested]), "a compressed transaction is in it"),
            (compressed(&[huge]), "claims 4294967295 bytes"),
            (compressed(&[small]), "claims 5 bytes"),
            (compressed(&[inner.clone(), vec![0; 5]]), "too few for an event"),
            (compressed(&[]), "announces no bytes"),
            (payload(&inner, 7, inner.len() as u64), "neither 0 (zstd) nor 255"),
            (payload(&inner, 0, inner.len() as u64), "Unknown frame"),
            (vec![0], "its size is not told"),
            (vec![], "bytes expected"),
        ] {
            let (_, end) = read(Packed::Memory(bytes));
            assert!(end.as_ref().is_err_and(|error| error.contains(why)), "{why}: {end:?}");
        }
    }
}
