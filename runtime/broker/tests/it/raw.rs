//! A client that sends single requests, for what no correct client sends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName, TransactionalId,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};

/// A connection.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

impl Raw {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Sends a request and reads its response.
    pub(crate) fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        self.stream.write_all(&encode(version, request)).unwrap();
        let mut bytes = self.read().expect("the connection was closed");
        let header_version = <R::Response as HeaderVersion>::header_version(version);
        let header = ResponseHeader::decode(&mut bytes, header_version).unwrap();
        assert_eq!(header.correlation_id, 7);
        let response = R::Response::decode(&mut bytes, version).unwrap();
        assert!(bytes.is_empty(), "{} bytes too many", bytes.len());
        response
    }

    /// Reads one response. `None`: the connection was closed.
    pub(crate) fn read(&mut self) -> Option<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes.into())
    }
}

/// A request with its length prefix.
pub(crate) fn encode<R: Request>(version: i16, request: &R) -> Vec<u8> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(7)
        .with_client_id(Some("raw".to_string().into()));
    let key = ApiKey::try_from(R::KEY).unwrap();
    let mut bytes = BytesMut::new();
    header.encode(&mut bytes, key.request_header_version(version)).unwrap();
    request.encode(&mut bytes, version).unwrap();
    [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

/// A producer that is not idempotent.
pub(crate) const PLAIN: From = From { producer_id: -1, epoch: -1, sequence: -1, is_transactional: false };

/// The producer fields of a batch.
#[derive(Clone, Copy)]
pub(crate) struct From {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) is_transactional: bool,
}

/// A batch of small records.
pub(crate) fn batch(from: From, count: i32) -> Vec<u8> {
    let records: Vec<u8> = (0..count).flat_map(|number| record(number, b"v", &[])).collect();
    batch_of(from, 0, count, &records)
}

/// A batch of one record with a value of this length.
pub(crate) fn large_batch(from: From, length: usize) -> Vec<u8> {
    batch_of(from, 0, 1, &record(0, &vec![b'v'; length], &[]))
}

/// An encoded record with the key "k".
pub(crate) fn record(offset_delta: i32, value: &[u8], headers: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0]; // attributes
    put_varint(&mut body, 0); // timestamp delta
    put_varint(&mut body, i64::from(offset_delta));
    put_bytes(&mut body, b"k");
    put_bytes(&mut body, value);
    put_varint(&mut body, headers.len() as i64);
    for (key, value) in headers {
        put_bytes(&mut body, key.as_bytes());
        put_bytes(&mut body, value.as_bytes());
    }
    let mut record = Vec::new();
    put_bytes(&mut record, &body);
    record
}

fn put_bytes(target: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(target, bytes.len() as i64);
    target.extend_from_slice(bytes);
}

/// A zig-zag varint.
pub(crate) fn put_varint(target: &mut Vec<u8>, value: i64) {
    let mut value = ((value << 1) ^ (value >> 63)) as u64;
    while value >= 0x80 {
        target.push(value as u8 | 0x80);
        value >>= 7;
    }
    target.push(value as u8);
}

/// A batch with these attributes, a claimed number of records, and any bytes in their place.
pub(crate) fn batch_of(from: From, attributes: i16, count: i32, records: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let transactional = if from.is_transactional { 0x10i16 } else { 0 };
    let mut covered = Vec::new();
    covered.extend_from_slice(&(transactional | attributes).to_be_bytes());
    covered.extend_from_slice(&(count - 1).to_be_bytes());
    covered.extend_from_slice(&now.to_be_bytes());
    covered.extend_from_slice(&now.to_be_bytes());
    covered.extend_from_slice(&from.producer_id.to_be_bytes());
    covered.extend_from_slice(&from.epoch.to_be_bytes());
    covered.extend_from_slice(&from.sequence.to_be_bytes());
    covered.extend_from_slice(&count.to_be_bytes());
    covered.extend_from_slice(records);
    let mut batch = Vec::new();
    batch.extend_from_slice(&0i64.to_be_bytes());
    batch.extend_from_slice(&(covered.len() as i32 + 9).to_be_bytes());
    batch.extend_from_slice(&(-1i32).to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&crc32c::crc32c(&covered).to_be_bytes());
    batch.extend_from_slice(&covered);
    batch
}

/// Produces bytes to one partition and returns (error code, base offset).
pub(crate) fn produce(raw: &mut Raw, topic: &str, transactional_id: Option<&str>, records: Vec<u8>) -> (i16, i64) {
    produce_in(9, raw, topic, transactional_id, records)
}

/// The same in another version of the request.
pub(crate) fn produce_in(
    version: i16,
    raw: &mut Raw,
    topic: &str,
    transactional_id: Option<&str>,
    records: Vec<u8>,
) -> (i16, i64) {
    let partition = PartitionProduceData::default().with_records(Some(records.into()));
    let topic =
        TopicProduceData::default().with_name(TopicName(topic.to_string().into())).with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(5000)
        .with_transactional_id(transactional_id.map(|id| TransactionalId(id.to_string().into())))
        .with_topic_data(vec![topic]);
    let response: ProduceResponse = raw.call(version, &request);
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}
