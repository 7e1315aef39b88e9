//! Trunkline's headers in a topic. See `docs/adr/019-one-header.md`.
//!
//! In a batch, each fact about a record is a header: `trunkline.schema`, `trunkline.path`,
//! `trunkline.offset`. In a topic, these are one header, `trunkline`, with the text
//! `schema=..&path=..&offset=..`. The text is a query string (`application/x-www-form-urlencoded`
//! of the WHATWG URL standard), except that it keeps bytes that need no escape, such as `/`.

use trunkline_connector::batch::{Headers, write_raw_header};

/// The name of the packed header.
pub(super) const PACKED: &str = "trunkline";

/// The beginning of the names of headers that are packed.
const PREFIX: &[u8] = b"trunkline.";

/// The last packed block. Records come in runs of one file or table, whose headers are the same, or
/// differ in the last one only. What a block has in common with the last one is packed once.
#[derive(Default)]
pub(super) struct LastPacked {
    /// The headers of the block until the first one that is not packed.
    block: Vec<u8>,
    /// Where each of these headers ends, and where it ends in `packed`.
    ends: Vec<(usize, usize)>,
    /// The packed block.
    packed: Vec<u8>,
}

impl LastPacked {
    /// Forgets the headers that `block` does not begin with. Returns where the others end.
    fn keep_common(&mut self, block: &[u8]) -> usize {
        let is_common = |end: &usize| block.get(..*end).is_some_and(|start| start == &self.block[..*end]);
        let common = self.ends.iter().rposition(|(end, _)| is_common(end)).map_or(0, |index| index + 1);
        self.ends.truncate(common);
        let (end, packed_end) = self.ends.last().copied().unwrap_or_default();
        self.block.truncate(end);
        self.packed.truncate(packed_end);
        end
    }
}

/// Packs Trunkline's headers of a block. Returns the new block: in `last`, or the same block if
/// nothing is to be packed.
pub(super) fn pack<'a>(block: &'a [u8], last: &'a mut LastPacked) -> &'a [u8] {
    const TEXT_AT: usize = 4 + PACKED.len() + 4;
    let common = last.keep_common(block);
    let LastPacked { block: known, ends, packed } = last;
    if ends.is_empty() {
        packed.clear();
        packed.extend_from_slice(&(PACKED.len() as u32).to_le_bytes());
        packed.extend_from_slice(PACKED.as_bytes());
        packed.extend_from_slice(&[0; 4]);
    }
    let mut others_at = None;
    let mut headers = Headers::over(&block[common..]);
    let mut at = common;
    while let Some((name, value)) = headers.next_raw() {
        let start = at;
        at += 8 + name.len() + value.map_or(0, <[u8]>::len);
        let Some(name) = ours(name) else {
            others_at.get_or_insert(start);
            continue;
        };
        // A query string cannot contain a null, and its place among the others matters.
        let Some(value) = value else { return block };
        if packed.len() > TEXT_AT {
            packed.push(b'&');
        }
        escape(name, packed);
        packed.push(b'=');
        escape(value, packed);
        if others_at.is_none() {
            known.extend_from_slice(&block[start..at]);
            ends.push((at, packed.len()));
        }
    }
    let len = packed.len() - TEXT_AT;
    if len == 0 {
        return block;
    }
    packed[TEXT_AT - 4..TEXT_AT].copy_from_slice(&(len as i32).to_le_bytes());
    if let Some(at) = others_at {
        let mut headers = Headers::over(&block[at..]);
        while let Some((name, value)) = headers.next_raw() {
            if ours(name).is_none() {
                write_raw_header(packed, name, value);
            }
        }
    }
    packed
}

/// The rest of the name of a header that is packed.
fn ours(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(PREFIX).filter(|rest| !rest.is_empty())
}

/// Appends the headers of a packed header to `block`, as a batch encodes them. `false` if the value
/// is not a packed header; `block` is as before then.
pub(super) fn unpack(packed: &[u8], block: &mut Vec<u8>) -> bool {
    let start = block.len();
    // Without an early end, the compiler looks at many bytes at once.
    let is_escaped = packed.iter().fold(false, |found, byte| found | matches!(byte, b'%' | b'+'));
    let mut rest = Some(packed);
    while let Some(pairs) = rest {
        let Some(equals) = pairs.iter().position(|byte| matches!(byte, b'=' | b'&')) else {
            block.truncate(start);
            return false;
        };
        let (name, value) = (&pairs[..equals], &pairs[equals + 1..]);
        let end = value.iter().position(|byte| *byte == b'&');
        let (value, after) = match end {
            Some(end) => (&value[..end], Some(&value[end + 1..])),
            None => (value, None),
        };
        let is_pair = pairs[equals] == b'=' && !name.is_empty();
        let is_written =
            is_pair && if is_escaped { unpack_escaped(name, value, block) } else { unpack_plain(name, value, block) };
        if !is_written {
            block.truncate(start);
            return false;
        }
        rest = after;
    }
    true
}

fn unpack_plain(name: &[u8], value: &[u8], block: &mut Vec<u8>) -> bool {
    block.reserve(8 + PREFIX.len() + name.len() + value.len());
    block.extend_from_slice(&((PREFIX.len() + name.len()) as u32).to_le_bytes());
    block.extend_from_slice(PREFIX);
    block.extend_from_slice(name);
    block.extend_from_slice(&(value.len() as u32).to_le_bytes());
    block.extend_from_slice(value);
    true
}

fn unpack_escaped(name: &[u8], value: &[u8], block: &mut Vec<u8>) -> bool {
    let name_at = block.len() + 4;
    block.extend_from_slice(&[0; 4]);
    block.extend_from_slice(PREFIX);
    if unescape(name, block).is_none() {
        return false;
    }
    set_len(block, name_at);
    let value_at = block.len() + 4;
    block.extend_from_slice(&[0; 4]);
    if unescape(value, block).is_none() {
        return false;
    }
    set_len(block, value_at);
    true
}

/// Writes the length of the part that begins at `at` and ends with the block.
fn set_len(block: &mut [u8], at: usize) {
    let len = (block.len() - at) as u32;
    block[at - 4..at].copy_from_slice(&len.to_le_bytes());
}

/// Whether a byte is escaped: those with a meaning, white space and control characters are.
const IS_ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = byte <= b' ' as usize || matches!(byte as u8, 0x7f | b'%' | b'&' | b'+' | b'=');
        byte += 1;
    }
    table
};

fn escape(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let is_escaped = |byte: &u8| IS_ESCAPED[usize::from(*byte)];
    let mut rest = text;
    while let Some(at) = rest.iter().position(is_escaped) {
        let byte = usize::from(rest[at]);
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[b'%', HEX[byte >> 4], HEX[byte & 15]]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Decodes a name or value. A `+` is a space, as other writers of query strings have it.
fn unescape(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'%' | b'+')) {
        out.extend_from_slice(&rest[..at]);
        if rest[at] == b'+' {
            out.push(b' ');
            rest = &rest[at + 1..];
            continue;
        }
        let nibble = |byte: &u8| char::from(*byte).to_digit(16);
        let (high, low) = (nibble(rest.get(at + 1)?)?, nibble(rest.get(at + 2)?)?);
        out.push((high << 4 | low) as u8);
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use trunkline_connector::batch::write_header;

    use super::*;

    type Found = BTreeMap<String, Vec<Option<Vec<u8>>>>;

    /// The values of each name, in order.
    fn by_name(block: &[u8]) -> Found {
        let mut found = Found::new();
        for (name, value) in Headers::over(block) {
            found.entry(name.to_owned()).or_default().push(value.map(<[u8]>::to_vec));
        }
        found
    }

    /// Reads a block as a consumer does.
    fn read(packed: &[u8]) -> Found {
        let mut block = Vec::new();
        for (name, value) in Headers::over(packed) {
            match value {
                Some(value) if name == PACKED && unpack(value, &mut block) => {}
                value => write_header(&mut block, name, value),
            }
        }
        by_name(&block)
    }

    #[test]
    fn the_facts_of_a_record_are_one_header() {
        let mut block = Vec::new();
        write_header(&mut block, "trunkline.path", Some("/var/log/größe 1&2=+%.log".as_bytes()));
        write_header(&mut block, "mine", Some(b"x"));
        write_header(&mut block, "trunkline.offset", Some(b"13"));
        let mut scratch = LastPacked::default();
        let packed: Vec<_> = Headers::over(pack(&block, &mut scratch)).collect();
        let text = "path=/var/log/größe%201%262%3D%2B%25.log&offset=13";
        assert_eq!(packed, [("trunkline", Some(text.as_bytes())), ("mine", Some(&b"x"[..]))]);
        let read: Vec<_> = url::form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        let expected = [("path", "/var/log/größe 1&2=+%.log"), ("offset", "13")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_block_without_such_headers_stays() {
        let mut block = Vec::new();
        write_header(&mut block, "mine", None);
        write_header(&mut block, "trunkline.null", None);
        assert_eq!(pack(&block, &mut LastPacked::default()), block);
        assert_eq!(pack(&[], &mut LastPacked::default()), b"");
    }

    #[test]
    fn headers_of_others_are_not_taken_apart() {
        let mut block = b"before".to_vec();
        for foreign in ["", "x", "=1", "a=1&", "a=1&b", "a=1&b&c=1", "a=%", "a=%4", "a=%zz", "%=1"] {
            assert!(!unpack(foreign.as_bytes(), &mut block), "{foreign}");
            assert_eq!(block, b"before");
        }
        block.clear();
        assert!(unpack(b"a=1+2&b=", &mut block));
        let found: Vec<_> = Headers::over(&block).collect();
        assert_eq!(found, [("trunkline.a", Some(&b"1 2"[..])), ("trunkline.b", Some(&b""[..]))]);
    }

    proptest! {
        #[test]
        fn no_header_is_lost(
            blocks in proptest::collection::vec(
                proptest::collection::vec(
                    ("(trunkline\\.)?[a-c=&%é]{0,2}", proptest::option::weighted(0.9, proptest::collection::vec(any::<u8>(), 0..6))),
                    0..6,
                ),
                1..4,
            ),
            order in proptest::collection::vec((any::<prop::sample::Index>(), 0..6_usize), 0..20),
        ) {
            // Blocks that begin as others do, or are the same.
            let mut last = LastPacked::default();
            for (index, len) in order {
                let headers = &blocks[index.index(blocks.len())];
                let mut block = Vec::new();
                for (name, value) in &headers[..len.min(headers.len())] {
                    write_header(&mut block, name, value.as_deref());
                }
                let packed = pack(&block, &mut last).to_vec();
                let mut none = LastPacked::default();
                prop_assert_eq!(&packed, pack(&block, &mut none));
                prop_assert_eq!(read(&packed), by_name(&block));
            }
        }
    }
}
