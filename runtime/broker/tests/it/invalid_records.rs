//! Batches with a valid checksum and false contents are refused: stored, they would stop every
//! consumer. One invalid batch neither changes the log nor the connection.

use std::io::Write;

use kafka_protocol::ResponseError;

use crate::common::TestBroker;
use crate::raw::{PLAIN, Raw, batch, batch_of, produce, put_varint, record};

const INVALID: ResponseError = ResponseError::InvalidRecord;

/// A record body with its length prefix.
fn with_length(body: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    put_varint(&mut record, body.len() as i64);
    record.extend_from_slice(body);
    record
}

/// The body of a record from its numbers: timestamp delta, offset delta, lengths, header count.
fn numbers(numbers: &[i64]) -> Vec<u8> {
    let mut body = vec![0];
    numbers.iter().for_each(|number| put_varint(&mut body, *number));
    body
}

fn compressed(codec: i16, records: &[u8]) -> Vec<u8> {
    match codec {
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(records).unwrap();
            encoder.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(records).unwrap(),
        3 => {
            let mut encoder = lz4::EncoderBuilder::new().block_mode(lz4::BlockMode::Independent).build(vec![]).unwrap();
            encoder.write_all(records).unwrap();
            let (bytes, result) = encoder.finish();
            result.map(|()| bytes).unwrap()
        }
        4 => zstd::stream::encode_all(records, 0).unwrap(),
        _ => records.to_vec(),
    }
}

/// Contents that no producer may write: what is wrong, the claimed number of records, the bytes.
fn false_contents() -> Vec<(&'static str, i32, Vec<u8>)> {
    let one = record(0, b"v", &[]);
    let two = [record(0, b"v", &[]), record(1, b"v", &[])].concat();
    let absurd = i64::from(i32::MAX);
    vec![
        ("no records", 1, Vec::new()),
        ("fewer records than claimed", 5, one.clone()),
        ("2^31-1 records claimed", i32::MAX, one.clone()),
        ("more records than claimed", 1, two.clone()),
        ("bytes after the records", 1, [one.clone(), vec![1, 2, 3]].concat()),
        ("an incomplete record", 1, one[..one.len() - 1].to_vec()),
        ("random bytes", 3, (0..200u8).map(|number| number.wrapping_mul(89)).collect()),
        ("five headers claimed", 1, with_length(&numbers(&[0, 0, -1, -1, 5]))),
        ("2^31-1 headers claimed", 1, with_length(&numbers(&[0, 0, -1, -1, absurd]))),
        ("a negative header count", 1, with_length(&numbers(&[0, 0, -1, -1, -1]))),
        ("a header without a key", 1, with_length(&numbers(&[0, 0, -1, -1, 1, -1, -1]))),
        ("a header value longer than its record", 1, with_length(&numbers(&[0, 0, -1, -1, 1, 0, 99]))),
        ("a key longer than its record", 1, with_length(&numbers(&[0, 0, 1000]))),
        ("a value of 2^31-1 bytes", 1, with_length(&numbers(&[0, 0, -1, absurd, 0]))),
        ("a value length above 2^31-1", 1, with_length(&numbers(&[0, 0, -1, absurd + 1, 0]))),
        ("a record without a header count", 1, with_length(&numbers(&[0, 0, -1, -1]))),
        ("a record longer than its fields", 1, with_length(&numbers(&[0, 0, -1, -1, 0, 0]))),
        ("a negative record length", 1, numbers(&[-5])[1..].to_vec()),
        ("a record length of 2^31-1", 1, numbers(&[absurd])[1..].to_vec()),
        ("an endless number", 1, vec![0xff; 40]),
    ]
}

#[test]
fn batches_with_false_contents_are_refused_in_every_codec() {
    let broker = TestBroker::any();
    for cleanup in ["delete", "compact"] {
        let topic = broker.topic("false", 1, &[("cleanup.policy", cleanup)]);
        let mut raw = Raw::connect(&broker.address);
        for codec in 0..=4 {
            for (problem, count, contents) in false_contents() {
                let sent = batch_of(PLAIN, codec, count, &compressed(codec, &contents));
                let (error, _) = produce(&mut raw, &topic, None, sent);
                // Apache Kafka ignores the bits above the 32nd, and has no code for an endless
                // number.
                let is_special = problem.ends_with("above 2^31-1") || problem.starts_with("an endless");
                if !(crate::common::is_foreign() && is_special) {
                    assert_eq!(error, INVALID.code(), "codec {codec}, {cleanup}: {problem}");
                }
            }
        }
        if crate::common::is_foreign() {
            continue;
        }
        assert_eq!(broker.watermarks(&topic, 0, "read_uncommitted"), (0, 0));
        assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 2)), (0, 0));
        assert_eq!(broker.values(&topic, 0, "read_committed"), ["v", "v"]);
    }
}

#[test]
fn garbage_in_place_of_compressed_records_is_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("garbage", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    let records: Vec<u8> = (0..50).flat_map(|number| record(number, &[b'v'; 100], &[])).collect();
    for codec in 1..=4 {
        let whole = compressed(codec, &records);
        let garbage: Vec<u8> = (0..300u32).map(|number| (number * 131 % 251) as u8).collect();
        let cases = [
            ("garbage", garbage),
            ("nothing", Vec::new()),
            ("half of it", whole[..whole.len() / 2].to_vec()),
            ("another codec", compressed(codec % 4 + 1, &records)),
        ];
        for (name, contents) in cases {
            let (error, _) = produce(&mut raw, &topic, None, batch_of(PLAIN, codec, 50, &contents));
            assert_ne!(error, 0, "codec {codec}: {name}");
            if !crate::common::is_foreign() {
                assert_eq!(error, INVALID.code(), "codec {codec}: {name}");
            }
        }
        assert_eq!(produce(&mut raw, &topic, None, batch_of(PLAIN, codec, 50, &whole)).0, 0, "codec {codec}");
    }
    assert_eq!(broker.watermarks(&topic, 0, "read_uncommitted"), (0, 200));
    assert_eq!(broker.values(&topic, 0, "read_committed").len(), 200);
}

/// The message formats before 2 and unknown ones, with Kafka's error codes.
#[test]
fn other_message_formats_are_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("formats", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    for (magic, expected) in [(0, INVALID), (1, INVALID), (3, ResponseError::CorruptMessage)] {
        let mut sent = batch(PLAIN, 1);
        sent[16] = magic;
        assert_eq!(produce(&mut raw, &topic, None, sent).0, expected.code(), "magic {magic}");
    }
    assert_eq!(produce(&mut raw, &topic, None, Vec::new()).0, INVALID.code(), "no batch");
    assert_eq!(broker.watermarks(&topic, 0, "read_uncommitted"), (0, 0));
}

#[test]
fn false_timestamps_are_refused_or_corrected() {
    let broker = TestBroker::any();
    let topic = broker.topic("timestamps", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    // The header says now, the record says in a year.
    let future = numbers(&[365 * 86_400_000, 0, -1, -1, 0]);
    let (error, _) = produce(&mut raw, &topic, None, batch_of(PLAIN, 0, 1, &with_length(&future)));
    assert_eq!(error, ResponseError::InvalidTimestamp.code());
    // The type LogAppendTime is the broker's: a producer may not set it for the broker's
    // timestamps, and it is cleared from the producer's.
    let log_append_time = || batch_of(PLAIN, 0x08, 1, &record(0, b"v", &[]));
    let appended = broker.topic("appended", 1, &[("message.timestamp.type", "LogAppendTime")]);
    let (error, _) = produce(&mut raw, &appended, None, log_append_time());
    assert_eq!(error, ResponseError::InvalidTimestamp.code());
    let cleared = broker.topic("cleared", 1, &[]);
    assert_eq!(produce(&mut raw, &cleared, None, log_append_time()), (0, 0));
    let found = broker.read(&cleared, 0, 0, "read_committed");
    assert!(matches!(rdkafka::Message::timestamp(&found[0]), rdkafka::Timestamp::CreateTime(_)), "{found:?}");
    // The header says now, the record says a minute ago: retention has to use the record's.
    let past = numbers(&[-60_000, 0, -1, -1, 0]);
    assert_eq!(produce(&mut raw, &topic, None, batch_of(PLAIN, 0, 1, &with_length(&past))), (0, 0));
    let found = broker.read(&topic, 0, 0, "read_committed");
    let stamp = rdkafka::Message::timestamp(&found[0]).to_millis().unwrap();
    let consumer = broker.consumer(&[]);
    let mut wanted = rdkafka::TopicPartitionList::new();
    wanted.add_partition_offset(&topic, 0, rdkafka::Offset::Offset(stamp + 1)).unwrap();
    let found = rdkafka::consumer::Consumer::offsets_for_times(&consumer, wanted, crate::common::LONG).unwrap();
    assert_eq!(found.elements()[0].offset(), rdkafka::Offset::End);
}
