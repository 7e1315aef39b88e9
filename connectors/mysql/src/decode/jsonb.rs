//! Writes MySQL's binary JSON as the text that MySQL prints. A snapshot reads that text from the
//! server, and the stream must produce the same bytes.
//!
//! A value is a type and its bytes. Objects and arrays are tables of offsets into themselves, with
//! small scalars in the table. Values without a JSON type (decimals, dates, bytes) are *opaque*: a
//! MySQL type and its packed form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_connector::json;

use super::decimal::{packed_bytes, write_decimal};
use super::temporal::{DateTime, Time};
use super::{Bytes, Malformed, little};
use crate::decode::text::{write_clock, write_date, write_time};

const SMALL_OBJECT: u8 = 0x00;
const LARGE_OBJECT: u8 = 0x01;
const SMALL_ARRAY: u8 = 0x02;
const LARGE_ARRAY: u8 = 0x03;
const LITERAL: u8 = 0x04;
const INT16: u8 = 0x05;
const UINT16: u8 = 0x06;
const INT32: u8 = 0x07;
const UINT32: u8 = 0x08;
const INT64: u8 = 0x09;
const UINT64: u8 = 0x0a;
const DOUBLE: u8 = 0x0b;
const STRING: u8 = 0x0c;
const OPAQUE: u8 = 0x0f;

/// MySQL's limit.
const DEEPEST: usize = 100;
/// The server breaks base64 into lines of this length.
const BASE64_LINE: usize = 76;

/// Appends the text of a document. An empty document is `null`: the value of a column before its
/// first assignment.
pub(crate) fn write_json(out: &mut Vec<u8>, document: &[u8]) -> Result<(), Malformed> {
    match document.split_first() {
        Some((kind, body)) => {
            // No two values share a byte in a document of a server. The limit stops offsets that
            // refer to one value repeatedly.
            let mut left = document.len();
            value(out, *kind, body, 0, &mut left)
        }
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
    }
}

fn value(out: &mut Vec<u8>, kind: u8, body: &[u8], depth: usize, left: &mut usize) -> Result<(), Malformed> {
    let number = |bytes: usize| body.get(..bytes).map(little).ok_or_else(|| Malformed::new("a JSON number is cut off"));
    let mut buffer = itoa::Buffer::new();
    match kind {
        SMALL_OBJECT | LARGE_OBJECT | SMALL_ARRAY | LARGE_ARRAY => return container(out, kind, body, depth, left),
        LITERAL => match body.first() {
            Some(0) => out.extend_from_slice(b"null"),
            Some(1) => out.extend_from_slice(b"true"),
            Some(2) => out.extend_from_slice(b"false"),
            other => return Err(Malformed(format!("{other:?} is no JSON literal"))),
        },
        INT16 => out.extend_from_slice(buffer.format(number(2)? as u16 as i16).as_bytes()),
        UINT16 => out.extend_from_slice(buffer.format(number(2)?).as_bytes()),
        INT32 => out.extend_from_slice(buffer.format(number(4)? as u32 as i32).as_bytes()),
        UINT32 => out.extend_from_slice(buffer.format(number(4)?).as_bytes()),
        INT64 => out.extend_from_slice(buffer.format(number(8)? as i64).as_bytes()),
        UINT64 => out.extend_from_slice(buffer.format(number(8)?).as_bytes()),
        DOUBLE => write_double(out, f64::from_bits(number(8)?)),
        STRING => {
            let text = json::lossy(counted(body)?);
            json::write_string(out, &text);
        }
        OPAQUE => {
            let (kind, body) = body.split_first().ok_or_else(|| Malformed::new("an opaque JSON value is cut off"))?;
            opaque(out, *kind, counted(body)?)?;
        }
        other => return Err(Malformed(format!("{other:#x} is no type of binary JSON"))),
    }
    Ok(())
}

/// Reads a length in groups of seven bits, and the bytes.
fn counted(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut length = 0usize;
    for (index, byte) in body.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return body[index + 1..].get(..length).ok_or_else(|| Malformed::new("a JSON string is cut off"));
        }
    }
    Err(Malformed::new("a length in JSON does not end"))
}

fn container(out: &mut Vec<u8>, kind: u8, body: &[u8], depth: usize, left: &mut usize) -> Result<(), Malformed> {
    let container = Container::open(kind, body, depth, left)?;
    out.push(if container.object { b'{' } else { b'[' });
    for index in 0..container.count {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        let (key, kind, body) = container.entry(index)?;
        if let Some(key) = key {
            json::write_utf8(out, key);
            out.extend_from_slice(b": ");
        }
        value(out, kind, body, depth + 1, left)?;
    }
    out.push(if container.object { b'}' } else { b']' });
    Ok(())
}

/// The table of an object or array.
struct Container<'a> {
    object: bool,
    large: bool,
    width: usize,
    count: usize,
    inside: &'a [u8],
    keys: &'a [u8],
    values: &'a [u8],
}

/// A key (of an object), the type of its value, and the value's bytes.
type Entry<'a> = (Option<&'a [u8]>, u8, &'a [u8]);

impl<'a> Container<'a> {
    fn open(kind: u8, body: &'a [u8], depth: usize, left: &mut usize) -> Result<Self, Malformed> {
        if depth >= DEEPEST {
            return Err(Malformed(format!("JSON deeper than {DEEPEST} levels")));
        }
        let large = matches!(kind, LARGE_OBJECT | LARGE_ARRAY);
        let object = matches!(kind, SMALL_OBJECT | LARGE_OBJECT);
        let width = if large { 4 } else { 2 };
        let mut head = Bytes::new(body);
        let count = head.little(width)? as usize;
        let size = head.little(width)? as usize;
        let inside = body.get(..size).ok_or_else(|| Malformed::new("a JSON container is cut off"))?;
        let mut table = Bytes::new(inside.get(2 * width..).unwrap_or_default());
        let keys = if object { table.take(count.saturating_mul(width + 2))? } else { &[] };
        let values = table.take(count.saturating_mul(width + 1))?;
        *left = left.checked_sub(count).ok_or_else(|| Malformed::new("more JSON values than bytes"))?;
        Ok(Self { object, large, width, count, inside, keys, values })
    }

    fn entry(&self, index: usize) -> Result<Entry<'a>, Malformed> {
        let key = if self.object {
            let mut key = Bytes::new(&self.keys[index * (self.width + 2)..]);
            let (at, length) = (key.little(self.width)? as usize, key.little(2)? as usize);
            let key = self.inside.get(at..).and_then(|from| from.get(..length));
            Some(key.ok_or_else(|| Malformed::new("a key of a JSON object lies outside of it"))?)
        } else {
            None
        };
        let entry = &self.values[index * (self.width + 1)..(index + 1) * (self.width + 1)];
        let (kind, at) = (entry[0], &entry[1..]);
        let inlined = match kind {
            LITERAL | INT16 | UINT16 => true,
            INT32 | UINT32 => self.large,
            _ => false,
        };
        let body = if inlined { at } else { self.inside.get(little(at) as usize..).unwrap_or_default() };
        Ok((key, kind, body))
    }
}

/// A parsed document; scalars are text.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Object(Vec<(String, Node)>),
    Array(Vec<Node>),
    Scalar(Vec<u8>),
}

/// Parses a document.
pub(super) fn read(document: &[u8]) -> Result<Node, Malformed> {
    let (kind, body) = document.split_first().ok_or_else(|| Malformed::new("a JSON document of no bytes"))?;
    node(*kind, body, 0, &mut document.len())
}

fn node(kind: u8, body: &[u8], depth: usize, left: &mut usize) -> Result<Node, Malformed> {
    if !matches!(kind, SMALL_OBJECT | LARGE_OBJECT | SMALL_ARRAY | LARGE_ARRAY) {
        let mut text = Vec::new();
        value(&mut text, kind, body, depth, left)?;
        return Ok(Node::Scalar(text));
    }
    let container = Container::open(kind, body, depth, left)?;
    let (mut members, mut items) = (Vec::new(), Vec::new());
    for index in 0..container.count {
        let (key, kind, body) = container.entry(index)?;
        let node = node(kind, body, depth + 1, left)?;
        match key {
            Some(key) => members.push((String::from_utf8_lossy(key).into_owned(), node)),
            None => items.push(node),
        }
    }
    Ok(if container.object { Node::Object(members) } else { Node::Array(items) })
}

impl Node {
    /// Appends the text, as MySQL prints it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Scalar(text) => out.extend_from_slice(text),
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    out.extend_from_slice(if index == 0 { b"" } else { b", " });
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Object(members) => {
                out.push(b'{');
                for (index, (key, node)) in members.iter().enumerate() {
                    out.extend_from_slice(if index == 0 { b"" } else { b", " });
                    json::write_string(out, key);
                    out.extend_from_slice(b": ");
                    node.write(out);
                }
                out.push(b'}');
            }
        }
    }
}

fn opaque(out: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<(), Malformed> {
    const TIMESTAMP: u8 = 7;
    const DATE: u8 = 10;
    const TIME: u8 = 11;
    const DATETIME: u8 = 12;
    const DECIMAL: u8 = 246;
    let packed = || body.get(..8).map(little).ok_or_else(|| Malformed::new("a date in JSON is cut off"));
    match kind {
        DECIMAL => {
            let mut bytes = Bytes::new(body);
            let (precision, scale) = (bytes.u8()?, bytes.u8()?);
            if bytes.rest().len() < packed_bytes(precision, scale) {
                return Err(Malformed::new("a decimal in JSON is cut off"));
            }
            return write_decimal(out, bytes.rest(), precision, scale);
        }
        DATE | DATETIME | TIMESTAMP => {
            let packed = packed()?;
            let time = DateTime::packed(packed >> 24, (packed & 0xff_ffff) as u32);
            out.push(b'"');
            write_date(out, time.date);
            if kind != DATE {
                out.push(b' ');
                write_clock(out, &time, 6);
            }
            out.push(b'"');
        }
        TIME => {
            out.push(b'"');
            write_time(out, Time::packed(packed()? as i64), 6);
            out.push(b'"');
        }
        _ => {
            out.extend_from_slice(format!("\"base64:type{kind}:").as_bytes());
            let encoded = STANDARD.encode(body);
            for (index, line) in encoded.as_bytes().chunks(BASE64_LINE).enumerate() {
                if index > 0 {
                    out.extend_from_slice(b"\\n");
                }
                out.extend_from_slice(line);
            }
            out.push(b'"');
        }
    }
    Ok(())
}

/// The shortest digits that parse to the same number, in MySQL's notation: without an exponent
/// while the point is within 15 places, and always distinguishable from an integer.
fn write_double(out: &mut Vec<u8>, number: f64) {
    if !number.is_finite() {
        // The server does not store such a number.
        out.extend_from_slice(b"null");
        return;
    }
    if number == 0.0 {
        out.extend_from_slice(if number.is_sign_negative() { b"-0.0" } else { b"0.0" });
        return;
    }
    // "d.ddde-x": digits and exponent, without a sign.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = mantissa.replace('.', "");
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    if number < 0.0 {
        out.push(b'-');
    }
    if !(-14..=15).contains(&point) {
        out.extend_from_slice(&digits.as_bytes()[..1]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits.as_bytes()[1..]);
        }
        out.push(b'e');
        out.extend_from_slice((point - 1).to_string().as_bytes());
    } else if point <= 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', point.unsigned_abs() as usize));
        out.extend_from_slice(digits.as_bytes());
    } else {
        let whole = point as usize;
        let known = digits.len().min(whole);
        out.extend_from_slice(&digits.as_bytes()[..known]);
        out.extend(std::iter::repeat_n(b'0', whole - known));
        out.push(b'.');
        out.extend_from_slice(if digits.len() > whole { &digits.as_bytes()[whole..] } else { b"0" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn double(number: f64) -> String {
        let mut out = Vec::new();
        write_double(&mut out, number);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn doubles_as_mysql_prints_them() {
        for (number, text) in [
            (1.5, "1.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e308, "1e308"),
            (-1.5e-20, "-1.5e-20"),
            (1e15, "1e15"),
            (1e14, "100000000000000.0"),
            (123456789012345.6, "123456789012345.6"),
            (1e-14, "0.00000000000001"),
            (1.25e-14, "0.0000000000000125"),
            (0.1, "0.1"),
        ] {
            assert_eq!(double(number), text);
        }
    }

    fn text(document: &[u8]) -> Result<String, Malformed> {
        let mut out = Vec::new();
        write_json(&mut out, document)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_small_object() {
        // {"a": 1, "bb": "x"}
        let body = [2, 0, 23, 0, 18, 0, 1, 0, 19, 0, 2, 0, INT16, 1, 0, STRING, 21, 0, b'a', b'b', b'b', 1, b'x'];
        let mut document = vec![SMALL_OBJECT];
        document.extend_from_slice(&body);
        // Offsets count from the container's first byte: key table at 4, values at 12, keys at 18.
        assert_eq!(text(&document).unwrap(), "{\"a\": 1, \"bb\": \"x\"}");
    }

    #[test]
    fn what_is_cut_off_is_told() {
        assert!(text(&[SMALL_OBJECT, 1, 0, 200, 0]).is_err());
        assert!(text(&[SMALL_ARRAY, 255, 255, 4, 0]).is_err());
        assert!(text(&[STRING, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert_eq!(text(&[]).unwrap(), "null");
    }

    #[test]
    fn a_container_inside_itself_ends() {
        // An array whose only item refers to the array itself.
        assert!(text(&[SMALL_ARRAY, 1, 0, 7, 0, SMALL_ARRAY, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn doubles_read_back(bits: u64) {
            let number = f64::from_bits(bits);
            prop_assume!(number.is_finite());
            prop_assert_eq!(double(number).parse::<f64>().unwrap().to_bits(), bits);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..16) {
            let mut document = vec![kind];
            document.extend_from_slice(&bytes);
            let _ = text(&document);
        }
    }
}
