//! A binlog event: its header and its data.

use std::io::Read as _;

use crate::decode::rows::RowsHeader;
use crate::decode::{Bytes, Malformed};

/// The header of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    timestamp: u32,
    event_type: u8,
    server_id: u32,
    log_pos: u32,
}

impl Header {
    /// Its length.
    pub(crate) const LENGTH: usize = 19;

    /// Decodes a header, and the size of the event: header, data and checksum.
    pub(crate) fn read(bytes: &mut Bytes<'_>) -> Result<(Self, u32), Malformed> {
        let (timestamp, event_type, server_id) = (bytes.little(4)? as u32, bytes.u8()?, bytes.little(4)? as u32);
        let (size, log_pos) = (bytes.little(4)? as u32, bytes.little(4)? as u32);
        // Flags.
        bytes.take(2)?;
        Ok((Self { timestamp, event_type, server_id, log_pos }, size))
    }

    /// Seconds since the Unix epoch.
    pub(crate) fn timestamp(&self) -> u32 {
        self.timestamp
    }

    /// The number of the type.
    pub(crate) fn event_type(&self) -> u8 {
        self.event_type
    }

    /// The server on which the event originated.
    pub(crate) fn server_id(&self) -> u32 {
        self.server_id
    }

    /// The end of the event in the binlog (the lower 32 bits); 0 for an event that is not in the
    /// binlog.
    pub(crate) fn log_pos(&self) -> u32 {
        self.log_pos
    }
}

/// An event without its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    header: Header,
    data: Vec<u8>,
}

/// The maximum length of an uncompressed event: the server's maximum packet size.
const MAX_UNCOMPRESSED: u64 = 1 << 30;

impl Event {
    pub(crate) fn new(header: Header, data: Vec<u8>) -> Self {
        Self { header, data }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The bytes after the header.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }

    /// Decompresses an event that MariaDB compressed (`log_bin_compress`). Other events are
    /// unchanged.
    pub(crate) fn decompressed(mut self) -> Result<Self, Malformed> {
        let (event_type, packed_at) = match self.header.event_type {
            165 => (2, query_text_at(&self.data)?),
            packed @ 166..=168 => (packed - 143, RowsHeader::read(&self.data, images(packed == 167), false)?.rows_at),
            packed @ 169..=171 => (packed - 139, RowsHeader::read(&self.data, images(packed == 170), true)?.rows_at),
            _ => return Ok(self),
        };
        let unpacked = inflate(&self.data[packed_at..])?;
        self.data.truncate(packed_at);
        self.data.extend_from_slice(&unpacked);
        self.header.event_type = event_type;
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

/// Decompresses zlib. The first byte has the compression method and the number of bytes of the
/// big-endian length after it.
fn inflate(packed: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Bytes::new(packed);
    let head = bytes.u8()?;
    let width = usize::from(head & 0x07);
    if head & 0xf0 != 0x80 || !(1..=4).contains(&width) {
        return Err(Malformed(format!("{head:#x} is not the first byte of a zlib-compressed event")));
    }
    let length = crate::decode::big(bytes.take(width)?);
    if length > MAX_UNCOMPRESSED {
        return Err(Malformed(format!("a compressed event of {length} bytes")));
    }
    let mut unpacked = Vec::new();
    // Bounded by the announced length; the allocation follows the actual bytes.
    let mut decoder = flate2::read::ZlibDecoder::new(bytes.rest()).take(length + 1);
    decoder.read_to_end(&mut unpacked).map_err(|error| Malformed(format!("a compressed event: {error}")))?;
    if unpacked.len() as u64 != length {
        return Err(Malformed(format!("a compressed event of {} bytes instead of {length}", unpacked.len())));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn packed(event_type: u8, head: &[u8], rest: &[u8]) -> Event {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(rest).unwrap();
        let mut data = head.to_vec();
        data.extend_from_slice(&[0x82, (rest.len() >> 8) as u8, rest.len() as u8]);
        data.extend_from_slice(&encoder.finish().unwrap());
        let header = Header { timestamp: 0, event_type, server_id: 1, log_pos: 0 };
        Event::new(header, data)
    }

    #[test]
    fn compressed_events_are_decompressed() {
        let rows = [7; 1000];
        // Table 1, flags, one column, present in the image.
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
        let event = packed(166, &head, &rows).decompressed().unwrap();
        assert_eq!((event.header().event_type(), event.data()), (23, [&head[..], &rows].concat().as_slice()));
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0xff, 0xff];
        let event = packed(170, &head, &rows).decompressed().unwrap();
        assert_eq!((event.header().event_type(), event.data()), (31, [&head[..], &rows].concat().as_slice()));
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, b'd', 0];
        let event = packed(165, &head, b"BEGIN").decompressed().unwrap();
        assert_eq!((event.header().event_type(), event.data()), (2, [&head[..], b"BEGIN"].concat().as_slice()));
    }

    #[test]
    fn damaged_compressed_events_are_reported() {
        let head = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
        let whole = packed(166, &head, &[7; 1000]);
        for cut in head.len()..whole.data.len() {
            let event = Event::new(whole.header, whole.data[..cut].to_vec());
            assert!(event.decompressed().is_err(), "{cut}");
        }
        let mut longer = whole.clone();
        longer.data[12] += 1;
        assert!(longer.decompressed().is_err());
    }

    proptest! {
        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), event_type in 160u8..175) {
            let header = Header { timestamp: 0, event_type, server_id: 1, log_pos: 0 };
            let _ = Event::new(header, bytes.clone()).decompressed();
            let _ = Header::read(&mut Bytes::new(&bytes));
        }
    }
}
