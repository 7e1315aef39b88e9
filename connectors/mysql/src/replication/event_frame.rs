//! An event: its head and its bytes.

use std::io::Read as _;

use crate::decode::rows::RowsHead;
use crate::decode::{Bytes, Malformed};

/// What every event begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    timestamp: u32,
    kind: u8,
    server_id: u32,
    log_pos: u32,
}

impl Header {
    /// Bytes of it.
    pub(crate) const LENGTH: usize = 19;

    /// Reads it, and the size that it gives the event: of header, data and checksum.
    pub(crate) fn read(bytes: &mut Bytes<'_>) -> Result<(Self, u32), Malformed> {
        let (timestamp, kind, server_id) = (bytes.little(4)? as u32, bytes.u8()?, bytes.little(4)? as u32);
        let (size, log_pos) = (bytes.little(4)? as u32, bytes.little(4)? as u32);
        // Flags.
        bytes.take(2)?;
        Ok((Self { timestamp, kind, server_id, log_pos }, size))
    }

    /// Seconds since the Unix epoch.
    pub(crate) fn timestamp(&self) -> u32 {
        self.timestamp
    }

    /// The number of its type.
    pub(crate) fn event_type_raw(&self) -> u8 {
        self.kind
    }

    /// The server that wrote it first.
    pub(crate) fn server_id(&self) -> u32 {
        self.server_id
    }

    /// Where it ends in the binlog (the lower 32 bits); 0 if it is not in it.
    pub(crate) fn log_pos(&self) -> u32 {
        self.log_pos
    }
}

/// An event, without its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    header: Header,
    data: Vec<u8>,
}

/// Most that a compressed event may hold: what the server takes for the largest packet.
const LARGEST: u64 = 1 << 30;

impl Event {
    pub(crate) fn new(header: Header, data: Vec<u8>) -> Self {
        Self { header, data }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// What comes after the header.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// The same, if it is one that MariaDB compressed (`log_bin_compress`), as it was before.
    pub(crate) fn unpacked(mut self) -> Result<Self, Malformed> {
        let (kind, packed_at) = match self.header.kind {
            165 => (2, query_text_at(&self.data)?),
            kind @ 166..=168 => (kind - 143, RowsHead::read(&self.data, images(kind == 167), false)?.rows_at),
            kind @ 169..=171 => (kind - 139, RowsHead::read(&self.data, images(kind == 170), true)?.rows_at),
            _ => return Ok(self),
        };
        let unpacked = inflate(&self.data[packed_at..])?;
        self.data.truncate(packed_at);
        self.data.extend_from_slice(&unpacked);
        self.header.kind = kind;
        Ok(self)
    }
}

fn images(is_update: bool) -> usize {
    if is_update { 2 } else { 1 }
}

fn query_text_at(data: &[u8]) -> Result<usize, Malformed> {
    let mut bytes = Bytes::new(data);
    bytes.take(8)?;
    let database = usize::from(bytes.u8()?);
    bytes.take(2)?;
    let status = bytes.little(2)? as usize;
    bytes.take(status)?;
    bytes.take(database + 1)?;
    Ok(data.len() - bytes.rest().len())
}

/// One byte says that it is compressed, how (0: zlib), and in how many bytes the length follows, big endian.
fn inflate(packed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Bytes::new(packed);
    let head = bytes.u8()?;
    let width = usize::from(head & 0x07);
    if head & 0xf0 != 0x80 || !(1..=4).contains(&width) {
        return Err(Malformed(format!("{head:#x} begins nothing that was compressed by zlib")));
    }
    let length = crate::decode::big(bytes.take(width)?);
    if length > LARGEST {
        return Err(Malformed(format!("a compressed event of {length} bytes")));
    }
    let mut unpacked = Vec::new();
    // No further than it claims: nothing is allocated for what is not there.
    let mut decoder = flate2::read::ZlibDecoder::new(bytes.rest()).take(length + 1);
    decoder.read_to_end(&mut unpacked).map_err(|error| Malformed(format!("a compressed event: {error}")))?;
    if unpacked.len() as u64 != length {
        return Err(Malformed(format!("a compressed event of {} bytes, {length} expected", unpacked.len())));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn packed(kind: u8, head: &[u8], rest: &[u8]) -> Event {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(rest).unwrap();
        let mut data = head.to_vec();
        data.extend_from_slice(&[0x82, (rest.len() >> 8) as u8, rest.len() as u8]);
        data.extend_from_slice(&encoder.finish().unwrap());
        let header = Header { timestamp: 0, kind, server_id: 1, log_pos: 0 };
        Event::new(header, data)
    }

    #[test]
    fn events_that_were_compressed_are_as_they_were() {
        let rows = [7; 1000];
        // Table 1, flags, one column, present.
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
        let event = packed(166, &head, &rows).unpacked().unwrap();
        assert_eq!((event.header().event_type_raw(), event.data()), (23, [&head[..], &rows].concat().as_slice()));
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0xff, 0xff];
        let event = packed(170, &head, &rows).unpacked().unwrap();
        assert_eq!((event.header().event_type_raw(), event.data()), (31, [&head[..], &rows].concat().as_slice()));
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, b'd', 0];
        let event = packed(165, &head, b"BEGIN").unpacked().unwrap();
        assert_eq!((event.header().event_type_raw(), event.data()), (2, [&head[..], b"BEGIN"].concat().as_slice()));
    }

    #[test]
    fn what_was_compressed_and_is_broken_is_told() {
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
        let whole = packed(166, &head, &[7; 1000]);
        for cut in head.len()..whole.data.len() {
            let event = Event::new(whole.header, whole.data[..cut].to_vec());
            assert!(event.unpacked().is_err(), "{cut}");
        }
        let mut longer = whole.clone();
        longer.data[12] += 1;
        assert!(longer.unpacked().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 160u8..175) {
            let header = Header { timestamp: 0, kind, server_id: 1, log_pos: 0 };
            let _ = Event::new(header, bytes.clone()).unpacked();
            let _ = Header::read(&mut Bytes::new(&bytes));
        }
    }
}
