//! Writes one verdict per record, in order. The types enforce this: each method that gives a
//! verdict consumes the [`Verdict`] and returns [`Done`], which [`crate::Transform::record`] must
//! return.

use std::marker::PhantomData;

/// Index of an output port: 0 is the default port, n is the n-th name of
/// [`crate::Transform::ports`].
pub type Port = u16;

/// The default port.
pub const DEFAULT_PORT: Port = 0;

const MAGIC: &[u8; 4] = b"TLV1";
const HEADER_BYTES: usize = 16;
const PASS: u8 = 0;
const DROP: u8 = 1;
const VALUE: u8 = 2;
const REPLACE: u8 = 3;
const EMIT: u8 = 4;
const REJECT: u8 = 5;
const KEY_PART: u8 = 1;
const VALUE_PART: u8 = 2;
const HEADERS_PART: u8 = 4;
const TIMESTAMP_PART: u8 = 8;

/// The packed verdicts of a batch.
#[derive(Debug)]
pub struct Verdicts {
    bytes: Vec<u8>,
    count: u32,
}

impl Verdicts {
    /// Creates an empty list with a capacity of `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut packed = Vec::with_capacity(HEADER_BYTES + bytes);
        packed.extend_from_slice(MAGIC);
        packed.extend_from_slice(&1u32.to_le_bytes());
        packed.resize(HEADER_BYTES, 0);
        Self { bytes: packed, count: 0 }
    }

    /// Starts the verdict on the next record.
    pub fn next_verdict(&mut self) -> Verdict<'_> {
        Verdict { verdicts: self }
    }

    /// Number of verdicts.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it contains no verdict.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The packed bytes.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        self.bytes
    }

    fn word(&mut self, kind: u8, port: Port) {
        let [low, high] = port.to_le_bytes();
        self.bytes.extend_from_slice(&[kind, 0, low, high]);
    }

    fn prefixed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn nullable(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.prefixed(bytes),
            None => self.bytes.extend_from_slice(&(-1i32).to_le_bytes()),
        }
    }
}

/// Proof that a verdict was written.
#[derive(Debug)]
#[must_use]
pub struct Done(PhantomData<()>);

/// The verdict on one record, which is not written yet.
#[derive(Debug)]
#[must_use]
pub struct Verdict<'a> {
    verdicts: &'a mut Verdicts,
}

impl Verdict<'_> {
    /// Outputs the record unchanged.
    pub fn pass(self) -> Done {
        self.pass_to(DEFAULT_PORT)
    }

    /// Outputs the record unchanged to a port.
    pub fn pass_to(self, port: Port) -> Done {
        self.verdicts.word(PASS, port);
        self.done()
    }

    /// Drops the record and counts it.
    pub fn drop(self) -> Done {
        self.verdicts.word(DROP, DEFAULT_PORT);
        self.done()
    }

    /// Outputs the record with a new value.
    pub fn value(self, value: &[u8]) -> Done {
        self.value_with(DEFAULT_PORT, |out| out.extend_from_slice(value))
    }

    /// Outputs the record to `port` with the value that `write` appends. This avoids a copy of the
    /// value. `write` must only append.
    pub fn value_with(self, port: Port, write: impl FnOnce(&mut Vec<u8>)) -> Done {
        self.verdicts.word(VALUE, port);
        let length_at = self.verdicts.bytes.len();
        self.verdicts.bytes.extend_from_slice(&[0; 4]);
        let value_at = self.verdicts.bytes.len();
        write(&mut self.verdicts.bytes);
        let length = (self.verdicts.bytes.len() - value_at) as u32;
        self.verdicts.bytes[length_at..value_at].copy_from_slice(&length.to_le_bytes());
        self.done()
    }

    /// Like [`Verdict::value_with`], for a `write` that may fail. After an error, the verdict is
    /// unwritten and is returned to the caller.
    pub fn try_value_with<E>(
        self,
        port: Port,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Done, (Self, E)> {
        let start = self.verdicts.bytes.len();
        let Verdict { verdicts } = self;
        verdicts.word(VALUE, port);
        verdicts.bytes.extend_from_slice(&[0; 4]);
        let value_at = verdicts.bytes.len();
        match write(&mut verdicts.bytes) {
            Ok(()) => {
                let length = (verdicts.bytes.len() - value_at) as u32;
                verdicts.bytes[value_at - 4..value_at].copy_from_slice(&length.to_le_bytes());
                Ok(Verdict { verdicts }.done())
            }
            Err(error) => {
                verdicts.bytes.truncate(start);
                Err((Verdict { verdicts }, error))
            }
        }
    }

    /// Outputs the record with some parts replaced.
    pub fn replace<'p>(self, change: impl FnOnce(&mut Parts<'p>)) -> Done {
        write_parts(self.verdicts, change);
        self.done()
    }

    /// Outputs other records instead of this one: one per call of [`Emit::record`]. Without a call,
    /// the record is dropped.
    pub fn emit(self, write: impl FnOnce(&mut Emit<'_>)) -> Done {
        self.verdicts.word(EMIT, DEFAULT_PORT);
        let count_at = self.verdicts.bytes.len();
        self.verdicts.bytes.extend_from_slice(&[0; 4]);
        let mut emit = Emit { verdicts: self.verdicts, count: 0 };
        write(&mut emit);
        let count = emit.count.to_le_bytes();
        self.verdicts.bytes[count_at..count_at + 4].copy_from_slice(&count);
        self.done()
    }

    /// Rejects the record as a data error with a code (such as `fraud.no_amount`) and a message. It
    /// goes to the dead letter topic, or as the component's `on_error` directs.
    pub fn reject(self, code: &str, message: &str) -> Done {
        self.verdicts.word(REJECT, DEFAULT_PORT);
        self.verdicts.prefixed(code.as_bytes());
        self.verdicts.prefixed(message.as_bytes());
        self.done()
    }

    fn done(self) -> Done {
        self.verdicts.count += 1;
        Done(PhantomData)
    }
}

/// Writes the records that replace one record: see [`Verdict::emit`].
#[derive(Debug)]
pub struct Emit<'a> {
    verdicts: &'a mut Verdicts,
    count: u32,
}

impl Emit<'_> {
    /// Adds a record. It keeps the parts of the input record that `change` does not set.
    pub fn record<'p>(&mut self, change: impl FnOnce(&mut Parts<'p>)) {
        write_parts(self.verdicts, change);
        self.count += 1;
    }
}

/// The replaced parts of a record. If a part is set twice, the last value counts.
#[derive(Debug, Default)]
pub struct Parts<'a> {
    port: Port,
    key: Option<Option<&'a [u8]>>,
    value: Option<Option<&'a [u8]>>,
    headers: Option<Vec<u8>>,
    timestamp: Option<i64>,
    owned_value: Option<Vec<u8>>,
}

impl<'a> Parts<'a> {
    /// Sets the output port.
    pub fn port(&mut self, port: Port) -> &mut Self {
        self.port = port;
        self
    }

    /// Sets the key; `None` = null.
    pub fn key(&mut self, key: Option<&'a [u8]>) -> &mut Self {
        self.key = Some(key);
        self
    }

    /// Sets the value; `None` = null (a tombstone).
    pub fn value(&mut self, value: Option<&'a [u8]>) -> &mut Self {
        self.value = Some(value);
        self.owned_value = None;
        self
    }

    /// Sets an owned value.
    pub fn value_owned(&mut self, value: Vec<u8>) -> &mut Self {
        self.owned_value = Some(value);
        self
    }

    /// Replaces all headers.
    pub fn headers<'h>(&mut self, headers: impl IntoIterator<Item = (&'h str, Option<&'h [u8]>)>) -> &mut Self {
        let mut block = Vec::new();
        for (name, value) in headers {
            write_header(&mut block, name, value);
        }
        self.headers = Some(block);
        self
    }

    /// Sets the timestamp in milliseconds since 1970.
    pub fn timestamp(&mut self, milliseconds: i64) -> &mut Self {
        self.timestamp = Some(milliseconds);
        self
    }
}

fn write_parts<'p>(verdicts: &mut Verdicts, change: impl FnOnce(&mut Parts<'p>)) {
    let mut parts = Parts::default();
    change(&mut parts);
    let value = parts.owned_value.as_deref().map(Some).or(parts.value);
    let given = [
        (parts.key.is_some(), KEY_PART),
        (value.is_some(), VALUE_PART),
        (parts.headers.is_some(), HEADERS_PART),
        (parts.timestamp.is_some(), TIMESTAMP_PART),
    ];
    let word_at = verdicts.bytes.len();
    verdicts.word(REPLACE, parts.port);
    verdicts.bytes[word_at + 1] = given.iter().filter(|(given, _)| *given).map(|(_, bit)| bit).sum();
    if let Some(key) = parts.key {
        verdicts.nullable(key);
    }
    if let Some(value) = value {
        verdicts.nullable(value);
    }
    if let Some(headers) = &parts.headers {
        verdicts.prefixed(headers);
    }
    if let Some(timestamp) = parts.timestamp {
        verdicts.bytes.extend_from_slice(&timestamp.to_le_bytes());
    }
}

/// Appends a header to a header block.
pub(crate) fn write_header(out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    match value {
        Some(value) => {
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&(-1i32).to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_match_the_wit_file() {
        let mut verdicts = Verdicts::with_capacity(0);
        let _ = verdicts.next_verdict().pass();
        let _ = verdicts.next_verdict().drop();
        let _ = verdicts.next_verdict().value(b"v");
        let _ = verdicts.next_verdict().replace(|parts| {
            parts.port(2).key(None).timestamp(3);
        });
        let _ = verdicts.next_verdict().emit(|out| out.record(|parts| _ = parts.value(Some(b"w"))));
        let _ = verdicts.next_verdict().reject("c", "mm");
        let mut expected = b"TLV1\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        expected.extend_from_slice(b"\0\0\0\0\x01\0\0\0");
        expected.extend_from_slice(b"\x02\0\0\0\x01\0\0\0v");
        expected.extend_from_slice(b"\x03\x09\x02\0\xff\xff\xff\xff\x03\0\0\0\0\0\0\0");
        expected.extend_from_slice(b"\x04\0\0\0\x01\0\0\0\x03\x02\0\0\x01\0\0\0w");
        expected.extend_from_slice(b"\x05\0\0\0\x01\0\0\0c\x02\0\0\0mm");
        assert_eq!(verdicts.into_bytes(), expected);
    }

    #[test]
    fn failed_value_writes_nothing() {
        let mut verdicts = Verdicts::with_capacity(0);
        let (verdict, error) = verdicts
            .next_verdict()
            .try_value_with(DEFAULT_PORT, |out| {
                out.extend_from_slice(b"half");
                Err("broken")
            })
            .unwrap_err();
        assert_eq!(error, "broken");
        let _ = verdict.pass();
        assert_eq!(verdicts.into_bytes(), b"TLV1\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0");
    }
}
