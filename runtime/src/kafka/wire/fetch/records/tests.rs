use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use proptest::prelude::*;

use super::*;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const MARKER: i16 = TRANSACTIONAL | CONTROL;

/// Everything of the records that were read.
type Read = Vec<(i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>)>;

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut value = (value << 1 ^ value >> 63) as u64;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A record at an offset delta, without headers.
fn encoded(delta: i64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0];
    varint(&mut body, delta);
    for part in [key, value] {
        varint(&mut body, part.len() as i64);
        body.extend_from_slice(part);
    }
    body.push(0);
    let mut record = Vec::new();
    varint(&mut record, body.len() as i64);
    record.extend(body);
    record
}

/// A batch of `records` (encoded), for the offsets from `base` to `base + last_delta`.
fn batch(base: i64, last_delta: i32, attributes: i16, producer_id: i64, records: &[Vec<u8>]) -> Vec<u8> {
    let body = records.concat();
    let mut bytes = Vec::new();
    bytes.extend(base.to_be_bytes());
    bytes.extend(((HEADER_LENGTH - 12 + body.len()) as i32).to_be_bytes());
    bytes.extend(0_i32.to_be_bytes());
    bytes.push(2);
    bytes.extend([0; 4]);
    bytes.extend(attributes.to_be_bytes());
    bytes.extend(last_delta.to_be_bytes());
    bytes.extend(1_000_i64.to_be_bytes());
    bytes.extend(2_000_i64.to_be_bytes());
    bytes.extend(producer_id.to_be_bytes());
    bytes.extend(0_i16.to_be_bytes());
    bytes.extend(0_i32.to_be_bytes());
    bytes.extend((records.len() as i32).to_be_bytes());
    bytes.extend(body);
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// A batch of a producer whose values are its offsets.
fn written(base: i64, count: i32, attributes: i16, producer_id: i64) -> Vec<u8> {
    let record = |delta: i32| encoded(delta.into(), b"k", (base + i64::from(delta)).to_string().as_bytes());
    batch(base, count - 1, attributes, producer_id, &(0..count).map(record).collect::<Vec<_>>())
}

/// The end of a transaction.
fn marker(offset: i64, producer_id: i64, commits: bool) -> Vec<u8> {
    batch(offset, 0, MARKER, producer_id, &[encoded(0, &[0, 0, 0, u8::from(commits)], &[0, 0, 0, 0, 0, 0])])
}

fn fetched(from: i64, bytes: Vec<u8>, aborted: &[(i64, i64)]) -> FetchedRecords {
    let aborted = aborted
        .iter()
        .map(|(producer_id, first_offset)| Aborted { producer_id: *producer_id, first_offset: *first_offset });
    FetchedRecords::new(from, Bytes::from(bytes), aborted.collect(), Arc::new(()))
}

/// Reads in steps of `step` records. Returns the records and the position behind them.
fn read_in_steps(mut fetched: FetchedRecords, step: usize) -> Result<(Read, i64), BadBatch> {
    let (mut decompressor, mut batch) = (Decompressor::default(), Batch::default());
    let topic = batch.topic_index("t");
    let end = fetched.end();
    loop {
        let (before, position) = (batch.len(), fetched.position());
        let mut room = Room::new(step, usize::MAX);
        let is_done = fetched.read(&mut decompressor, &mut room, &mut batch, (topic, 3))?;
        assert!(batch.len() - before <= step && fetched.position() >= position);
        if is_done {
            break;
        }
        assert_eq!(batch.len() - before, step);
    }
    assert!(fetched.position() == end, "the next fetch continues at the end");
    let read = batch.iter().map(|record| {
        assert!(record.entry().partition == 3 && record.topic() == "t");
        let headers = record.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)));
        let bytes = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        let entry = record.entry();
        (entry.offset, entry.timestamp, bytes(record.key()), bytes(record.value()), headers.collect())
    });
    Ok((read.collect(), end))
}

fn offsets(fetched: FetchedRecords) -> (Vec<i64>, i64) {
    let (read, end) = read_in_steps(fetched, usize::MAX).unwrap();
    (read.into_iter().map(|(offset, ..)| offset).collect(), end)
}

fn record(offset: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Record {
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: -1,
        timestamp: 1_700_000_000_000 + offset,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: IndexMap::new(),
    }
}

fn encode(records: &[Record], compression: Compression) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    RecordBatchEncoder::encode(&mut bytes, records, &RecordEncodeOptions { version: 2, compression }).unwrap();
    bytes.to_vec()
}

const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

#[test]
fn records_come_back_as_written() {
    let mut records =
        vec![record(10, Some(b"k"), Some(b"v")), record(11, None, None), record(12, Some(b""), Some(&[b'x'; 100_000]))];
    records[1].headers.insert(StrBytes::from_static_str("mine"), Some(Bytes::from_static(b"1")));
    records[1].headers.insert(StrBytes::from_static_str("null"), None);
    records[2]
        .headers
        .insert(StrBytes::from_static_str("trunkline"), Some(Bytes::from_static(b"path=/var/a%20b.log&offset=13")));
    records[2].headers.insert(StrBytes::from_static_str("last"), Some(Bytes::new()));
    let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    for compression in CODECS {
        for step in [1, 2, 100] {
            let (read, end) = read_in_steps(fetched(10, encode(&records, compression), &[]), step).unwrap();
            assert_eq!(end, 13);
            assert_eq!(read[0], (10, 1_700_000_000_010, Some(b"k".to_vec()), Some(b"v".to_vec()), vec![]));
            let headers = vec![header("mine", b"1"), ("null".to_owned(), None)];
            assert_eq!(read[1], (11, 1_700_000_000_011, None, None, headers));
            assert_eq!((read[2].2.as_deref(), read[2].3.as_ref().unwrap().len()), (Some(&b""[..]), 100_000));
            let headers =
                [header("trunkline.path", b"/var/a b.log"), header("trunkline.offset", b"13"), header("last", b"")];
            assert_eq!(read[2].4, headers);
        }
    }
}

#[test]
fn a_fetch_may_begin_within_a_batch_and_end_within_another() {
    let whole = [written(0, 5, 0, -1), written(5, 5, 0, -1), written(10, 5, 0, -1)].concat();
    assert_eq!(offsets(fetched(3, whole.clone(), &[])), ((3..15).collect(), 15));
    assert_eq!(offsets(fetched(4, whole.clone(), &[])), ((4..15).collect(), 15));
    // The batch before the wanted offset has none of it.
    assert_eq!(offsets(fetched(7, whole.clone(), &[])), ((7..15).collect(), 15));
    for cut in 1..written(10, 5, 0, -1).len() {
        assert_eq!(offsets(fetched(0, whole[..whole.len() - cut].to_vec(), &[])), ((0..10).collect(), 10));
    }
    let first = written(0, 5, 0, -1);
    let cut = fetched(0, first[..first.len() - 1].to_vec(), &[]);
    assert!(!cut.has_batch() && offsets(cut) == (vec![], 0));
}

#[test]
fn positions_pass_what_compaction_has_removed() {
    // Records 1 and 3 of five, and the last one, are gone; then an empty batch of a producer.
    let kept = [encoded(0, b"k", b"0"), encoded(2, b"k", b"2")];
    let bytes = [batch(0, 4, 0, -1, &kept), batch(7, 2, 0, 9, &[]), written(20, 1, 0, -1)].concat();
    assert_eq!(offsets(fetched(0, bytes.clone(), &[])), (vec![0, 2, 20], 21));
    assert_eq!(offsets(fetched(3, bytes[..bytes.len() - 70].to_vec(), &[])), (vec![], 10));
    let (read, _) = read_in_steps(fetched(1, bytes, &[]), 1).unwrap();
    assert_eq!(read.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [2, 20]);
}

#[test]
fn aborted_records_and_markers_are_passed() {
    let bytes = [
        written(0, 2, TRANSACTIONAL, 1), // aborted
        written(2, 2, TRANSACTIONAL, 2), // committed
        written(4, 1, 0, -1),            // of a producer without transactions
        marker(5, 1, false),
        written(6, 2, TRANSACTIONAL, 1), // the same producer, committed
        marker(8, 2, true),
        written(9, 1, TRANSACTIONAL, 2), // aborted
        written(10, 1, 0, 2),            // not in a transaction
        marker(11, 1, true),
        marker(12, 2, false),
        written(13, 1, TRANSACTIONAL, 2), // committed
        marker(14, 2, true),
    ];
    let all = bytes.concat();
    // In any order.
    for aborted in [[(1, 0), (2, 9)], [(2, 9), (1, 0)]] {
        for step in [1, 3, 100] {
            let (read, end) = read_in_steps(fetched(0, all.clone(), &aborted), step).unwrap();
            let read: Vec<i64> = read.into_iter().map(|(offset, ..)| offset).collect();
            assert_eq!((read, end), (vec![2, 3, 4, 6, 7, 10, 13], 15));
        }
    }
    // The transaction began before the fetch; its marker is in a later answer.
    assert_eq!(offsets(fetched(1, bytes[..5].concat(), &[(1, 0)])), (vec![2, 3, 4, 6, 7], 8));
    assert_eq!(offsets(fetched(9, bytes[6..8].concat(), &[(2, 9)])), (vec![10], 11));
    // A compacted, empty batch ends no transaction.
    let empty =
        [written(0, 1, TRANSACTIONAL, 1), batch(1, 0, MARKER, 1, &[]), written(2, 1, TRANSACTIONAL, 1)].concat();
    assert_eq!(offsets(fetched(0, empty, &[(1, 0)])), (vec![], 3));
    // Two aborted transactions of one producer without a marker in between are one.
    let both = [
        written(0, 1, TRANSACTIONAL, 1),
        written(1, 1, TRANSACTIONAL, 1),
        marker(2, 1, false),
        written(3, 1, TRANSACTIONAL, 1),
    ];
    assert_eq!(offsets(fetched(0, both.concat(), &[(1, 0), (1, 1)])), (vec![3], 4));
}

#[test]
fn timestamps_are_those_of_the_records_or_of_the_log() {
    const LOG_APPEND_TIME: i16 = 8;
    let mut body = vec![0];
    varint(&mut body, 77);
    body.extend([0, 1, 1, 0]);
    let record = [&[(body.len() as u8) << 1][..], &body].concat();
    let read = |attributes: i16| {
        let bytes = batch(0, 0, attributes, -1, std::slice::from_ref(&record));
        read_in_steps(fetched(0, bytes, &[]), 1).unwrap().0[0].1
    };
    assert_eq!((read(0), read(LOG_APPEND_TIME)), (1_077, 2_000));
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_offset() {
    let read = |bytes: Vec<u8>| read_in_steps(fetched(0, bytes, &[]), usize::MAX).map(|(read, _)| read.len());
    let good = written(0, 2, 0, -1);
    for at in 21..good.len() {
        let mut damaged = [good.clone(), written(2, 2, 0, -1)].concat();
        damaged[good.len() + at] ^= 1;
        assert_eq!(read(damaged), Err(BadBatch { offset: 2, defect: Defect::Checksum }), "byte {at}");
    }
    for magic in [0, 1] {
        let mut old = good.clone();
        old[16] = magic;
        assert!(fetched(0, old.clone(), &[]).has_batch());
        assert_eq!(read(old), Err(BadBatch { offset: 0, defect: Defect::OldFormat(magic as i8) }));
    }
    let mut unknown = good.clone();
    unknown[16] = 3;
    assert_eq!(read(unknown), Err(BadBatch { offset: 0, defect: Defect::Malformed }));
    // Too few records, lengths beyond the end, and an offset outside of the batch.
    let missing = batch(0, 1, 0, -1, &[encoded(0, b"k", b"v"), vec![]]);
    let long = batch(0, 0, 0, -1, &[vec![120, 0, 0, 0, 1, 1, 0]]);
    let outside = batch(0, 0, 0, -1, &[encoded(1, b"k", b"v")]);
    let headers = batch(0, 0, 0, -1, &[vec![16, 0, 0, 0, 1, 1, 126, 0, 0]]);
    for bytes in [missing, long, outside, headers] {
        assert_eq!(read(bytes), Err(BadBatch { offset: 0, defect: Defect::Malformed }));
    }
    let error = read(batch(0, 0, 3, -1, &[vec![1, 2, 3]])).unwrap_err();
    assert!(matches!(error.defect, Defect::Compression(_)), "{error:?}");
}

/// A number generator that needs no seed.
fn damaged(bytes: &[u8], seed: u64) -> Vec<u8> {
    let (mut bytes, mut state) = (bytes.to_vec(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..1 + seed % 4 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % bytes.len();
        bytes[at] = (state >> 56) as u8;
    }
    // Otherwise nearly every change ends at the checksum.
    if bytes.len() > HEADER_LENGTH {
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}

#[test]
fn no_bytes_make_it_panic() {
    let records: Vec<Record> = (0..20).map(|offset| record(offset, Some(b"key"), Some(b"some value"))).collect();
    for compression in CODECS {
        let whole = encode(&records, compression);
        for seed in 0..3_000 {
            let fetched = fetched(0, damaged(&whole, seed), &[(7, 3)]);
            let (mut decompressor, mut batch) = (Decompressor::default(), Batch::default());
            let mut fetched = fetched;
            let (end, mut room) = (fetched.end(), Room::new(1_000, usize::MAX));
            let _ = fetched.read(&mut decompressor, &mut room, &mut batch, (0, 0));
            assert!(end >= 0 && fetched.position() >= 0);
        }
    }
}

proptest! {
    #[test]
    fn every_record_from_the_position_on_is_read_once(
        sizes in proptest::collection::vec((1_i32..6, 0_i64..4, 0_usize..5), 1..8),
        from in 0_i64..20,
        step in 1_usize..9,
    ) {
        let (mut bytes, mut expected, mut next) = (Vec::new(), Vec::new(), 0);
        for (count, gap, codec) in sizes {
            let base = next + gap;
            let records: Vec<Record> = (0..i64::from(count))
                .map(|delta| record(base + delta, None, Some((base + delta).to_string().as_bytes())))
                .collect();
            bytes.extend(encode(&records, CODECS[codec]));
            next = base + i64::from(count);
            expected.extend((base..next).filter(|offset| *offset >= from));
        }
        let (read, end) = read_in_steps(fetched(from, bytes, &[]), step).unwrap();
        let values: Vec<String> = read.iter().map(|(.., value, _)| String::from_utf8(value.clone().unwrap()).unwrap()).collect();
        prop_assert_eq!(read.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(values, expected.iter().map(i64::to_string).collect::<Vec<_>>());
        prop_assert_eq!(end, next.max(from));
    }
}

#[test]
fn a_round_has_bytes_or_a_few_large_records() {
    for (size, expected) in [(300, 3_496), (16 << 10, 64), (20_000, 64), (65_536, 64), (100_000, 42), (5_000_000, 1)] {
        let mut room = Room::new(10_000, 1 << 20);
        let mut records = 0;
        while !room.is_full() {
            room.take(size);
            records += 1;
        }
        assert_eq!(records, expected, "{size} bytes");
    }
}
