//! Benchmark of the decoding and encoding of rows, on one core and without a server:
//! `cargo test --release -p trunkline-mysql --lib -- --ignored --nocapture speed`

use std::time::Instant;

use trunkline_connector::SourceBatch;

use crate::decode::Bytes;
use crate::decode::rows::{Storage, read_row};
use crate::format::envelope::{Change, Emitter, Op, SourceBlock, SourceFields};
use crate::format::options::{BinaryFormat, DecimalFormat, Envelope, FormatOptions, TimeFormat, ZeroDates};
use crate::format::table::Table;
use crate::schema::charset::Charset;
use crate::schema::table_name::TableName;
use crate::schema::types::{Column, ColumnType};

const ROWS: usize = 2_000_000;

/// Rows of about 190 bytes: numbers, a decimal, times, texts.
fn table(envelope: Envelope) -> (Table, Vec<Storage>) {
    let text = || ColumnType::Text { charset: Charset::multi_byte("utf8mb4").unwrap().into() };
    let columns = [
        ("id", ColumnType::Int { bytes: 8, unsigned: false }, Storage::Int { bytes: 8, unsigned: false }),
        ("customer", ColumnType::Int { bytes: 4, unsigned: true }, Storage::Int { bytes: 4, unsigned: true }),
        ("status", ColumnType::Int { bytes: 1, unsigned: false }, Storage::Int { bytes: 1, unsigned: false }),
        ("price", ColumnType::Decimal { precision: 10, scale: 2 }, Storage::Fixed(5)),
        ("placed", ColumnType::DateTime { digits: 6 }, Storage::DateTime { digits: 6 }),
        ("changed", ColumnType::Timestamp { digits: 3 }, Storage::Timestamp { digits: 3 }),
        ("email", text(), Storage::Bytes { prefix: 2, padded_to: 0 }),
        ("note", text(), Storage::Bytes { prefix: 2, padded_to: 0 }),
    ];
    let storage = columns.iter().map(|(_, _, storage)| *storage).collect();
    let columns = columns.map(|(name, column_type, _)| Column::new(name.to_owned(), column_type, false)).to_vec();
    let format = FormatOptions {
        envelope,
        decimals: DecimalFormat::String,
        binary: BinaryFormat::Base64,
        zero_dates: ZeroDates::Null,
        transaction_block: false,
        query: false,
        times: TimeFormat::Iso,
    };
    (Table::new(TableName::new("shop", "orders"), columns, vec![0], format).unwrap(), storage)
}

fn images() -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in 0..40u64 {
        bytes.push(0);
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&[1, 2, 3, 4, 5]);
        bytes.extend_from_slice(&[0x80, 0, 12, 34, 56]);
        bytes.extend_from_slice(&[0x99, 0xb9, 0x2a, 0x30, 0x45, 1, 2, 3]);
        bytes.extend_from_slice(&[0x69, 0x20, 0x10, 0x11, 3, 0xe7]);
        bytes.extend_from_slice(&24u16.to_le_bytes());
        bytes.extend_from_slice(b"some.address@example.org");
        bytes.extend_from_slice(&130u16.to_le_bytes());
        bytes.extend_from_slice(&[b'n'; 130]);
    }
    bytes
}

#[test]
#[ignore = "a benchmark"]
fn speed() {
    let (table_of_envelope, storage) = table(Envelope::Debezium);
    let images = images();
    let row_bytes = images.len() / 40;
    let begun = Instant::now();
    let (mut rows, mut seen) = (0, 0);
    let mut row = Vec::new();
    while rows < ROWS {
        let mut bytes = Bytes::new(&images);
        while !bytes.is_empty() {
            read_row(&mut bytes, &storage, &mut row).unwrap();
            seen += row.len();
            rows += 1;
        }
    }
    let rate = rows as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("decode: {rate:.1} M rows/s of {row_bytes} bytes ({seen} values)");
    for (name, table) in [("envelope", table_of_envelope), ("bare row", table(Envelope::Row).0)] {
        let parts = SourceFields {
            name: "shop",
            committed_at: 1_700_000_000_000,
            snapshot: false,
            server_id: 1,
            gtid: Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:6"),
            file: "binlog.000001",
            pos: 4711,
            thread: Some(7),
            query: None,
        };
        let source_block = SourceBlock::new(&parts, &table);
        let mut emitter = Emitter::new(true, 1_764_300_000);
        let mut out = SourceBatch::with_limits(4 << 20, 10_000);
        let begun = Instant::now();
        let (mut rows, mut written) = (0, 0);
        while rows < ROWS {
            let mut bytes = Bytes::new(&images);
            while !bytes.is_empty() {
                read_row(&mut bytes, &storage, &mut row).unwrap();
                let change = Change { op: Op::Create, before: None, after: Some(&row), row: rows as u64 };
                emitter.change(&mut out, &table, &source_block, change, |_| {}).unwrap();
                rows += 1;
            }
            if out.is_full() {
                written += out.records.bytes();
                out.clear();
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let megabytes = written as f64 / 1e6 / seconds;
        println!("decode and write, {name}: {:.1} M rows/s, {megabytes:.0} MB/s", rows as f64 / seconds / 1e6);
    }
}
