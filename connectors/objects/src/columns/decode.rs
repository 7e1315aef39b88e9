//! JSON records to record batches. The usual case is one pass over a chunk ([`DirectDecoder`]). A
//! chunk that it refuses goes into Arrow's decoder, strictly. If that fails, the slow path checks
//! each record: it widens the layout as needed, rejects records that are not rows, and decodes
//! again. A failure then is a value that its declared column cannot hold, which halving finds.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use trunkline_connector::Reason;

use super::direct::DirectDecoder;
use super::infer::{Inference, feed, plain};
use super::layout::ColumnLayout;
use super::strict::StrictDecoders;
use super::types::KnownTypes;

/// Limit on the values that are decoded at once: 4096 rows with few columns, fewer with many. Each
/// batch costs a fixed time per column, so wide rows are decoded at least 64 at once.
const CHUNK_VALUES: usize = 1 << 16;
const CHUNK_ROWS: usize = 4096;
const MIN_CHUNK_ROWS: usize = 64;
/// Bytes of JSON decoded at once, unless a single record has more: 64 rows of 4,000 columns.
const CHUNK_BYTES: usize = 4 << 20;
/// Decoders kept for use again.
const KEPT_DECODERS: usize = 8;
/// Limit on the chunks that go to Arrow's decoder after one that the direct decoder refused.
const MAX_SKIPPED: u32 = 64;
/// What a decoder holds for each byte of JSON it was given at once: the text, and 16 bytes for each
/// key and value.
const DECODER_FACTOR: usize = 3;

/// The result of decoding a chunk of records.
#[derive(Default)]
pub struct Decoded {
    /// The layout it was decoded with, wider than the one given if it had to be.
    pub layout: Option<Arc<ColumnLayout>>,
    /// The rows; `None` if no record was left.
    pub batch: Option<RecordBatch>,
    /// Indexes of rejected records, ascending, with reasons.
    pub rejected: Vec<(u32, Reason)>,
}

/// Decodes records with layouts, and keeps the decoders.
#[derive(Default)]
pub struct JsonDecoder {
    /// By the layout's id, with the most bytes it was given at once.
    decoders: HashMap<u64, (Decoder, usize)>,
    /// By the layout's id.
    direct: HashMap<u64, Direct>,
    inference: Inference,
}

/// The direct decoder of a layout.
struct Direct {
    /// `None` if the layout has a type that it does not read.
    decoder: Option<DirectDecoder>,
    /// Chunks that are not passed to it, because it refused the last one.
    skips: u32,
    /// `skips` after the next refusal. It doubles, because values of an unusual form are mostly in
    /// each chunk.
    next_skips: u32,
}

/// Number of records in the next chunk.
pub fn chunk_len<'a>(layout: &ColumnLayout, records: impl Iterator<Item = &'a [u8]>) -> usize {
    let rows = (CHUNK_VALUES / layout.width.max(1)).clamp(MIN_CHUNK_ROWS, CHUNK_ROWS);
    let mut bytes = 0;
    let fitting = records.take(rows).take_while(|record| {
        bytes += record.len();
        bytes <= CHUNK_BYTES
    });
    fitting.count().max(1)
}

impl JsonDecoder {
    /// Decodes a chunk of records.
    pub fn decode(&mut self, layout: &Arc<ColumnLayout>, types: &Arc<KnownTypes>, records: &[&[u8]]) -> Decoded {
        // Without a known column even an object without members looks like a row.
        if !layout.fields().is_empty() {
            if let Some(batch) = self.decode_directly(layout, records) {
                return Decoded { layout: None, batch: Some(batch), rejected: Vec::new() };
            }
            if let Ok(batch) = self.attempt(layout, records) {
                return Decoded { layout: None, batch, rejected: Vec::new() };
            }
        }
        let mut rejected = Vec::new();
        let mut rows = Vec::with_capacity(records.len());
        let mut fields = layout.fields().clone();
        for (index, record) in records.iter().enumerate() {
            match self.inference.observe(record, fields.clone(), types) {
                Ok(wider) => {
                    fields = wider;
                    rows.push(index as u32);
                }
                Err(reason) => rejected.push((index as u32, reason)),
            }
        }
        if fields.is_empty() {
            let reason =
                || Reason::new("s3.no_columns", "the record is an object without members, and no column is known");
            rejected.extend(rows.drain(..).map(|index| (index, reason())));
        }
        let layout = if fields == *layout.fields() { Arc::clone(layout) } else { ColumnLayout::new(fields) };
        let mut misfits = Vec::new();
        self.set_misfits_aside(&layout, records, &rows, &mut misfits);
        rows.retain(|index| misfits.binary_search_by_key(index, |(misfit, _)| *misfit).is_err());
        let batch = match self.attempt(&layout, &pick(records, &rows)) {
            Ok(batch) => batch,
            Err(reason) => {
                // Each row was decoded before, so no single row is at fault.
                misfits = rows.iter().map(|index| (*index, reason.clone())).collect();
                None
            }
        };
        rejected.extend(misfits);
        rejected.sort_by_key(|(index, _)| *index);
        Decoded { layout: Some(layout), batch, rejected }
    }

    /// The rows, if all values have their usual form.
    fn decode_directly(&mut self, layout: &ColumnLayout, records: &[&[u8]]) -> Option<RecordBatch> {
        if records.is_empty() {
            return None;
        }
        if self.direct.len() >= KEPT_DECODERS && !self.direct.contains_key(&layout.id) {
            self.direct.clear();
        }
        let direct = self.direct.entry(layout.id).or_insert_with(|| Direct {
            decoder: DirectDecoder::new(layout),
            skips: 0,
            next_skips: 1,
        });
        if direct.skips > 0 {
            direct.skips -= 1;
            return None;
        }
        let batch = direct.decoder.as_mut()?.decode(records);
        (direct.skips, direct.next_skips) =
            if batch.is_some() { (0, 1) } else { (direct.next_skips, (direct.next_skips * 2).min(MAX_SKIPPED)) };
        batch
    }

    /// Halves the chunk until each failing record is alone.
    fn set_misfits_aside(
        &mut self,
        layout: &Arc<ColumnLayout>,
        records: &[&[u8]],
        rows: &[u32],
        misfits: &mut Vec<(u32, Reason)>,
    ) {
        let Err(reason) = self.attempt(layout, &pick(records, rows)) else { return };
        if let [index] = rows {
            misfits.push((*index, reason));
            return;
        }
        let (left, right) = rows.split_at(rows.len() / 2);
        self.set_misfits_aside(layout, records, left, misfits);
        self.set_misfits_aside(layout, records, right, misfits);
    }

    fn attempt(&mut self, layout: &Arc<ColumnLayout>, records: &[&[u8]]) -> Result<Option<RecordBatch>, Reason> {
        if records.is_empty() {
            return Ok(None);
        }
        let misfit = |error: ArrowError| Reason::new("s3.value_misfit", describe(&error));
        let (mut decoder, most) = match self.decoders.remove(&layout.id) {
            Some(kept) => kept,
            None => (build(layout).map_err(misfit)?, 0),
        };
        // After an error the decoder's state is undefined, so it is not used again.
        let mut bytes = 0;
        for record in records {
            feed(&mut decoder, record)?;
            bytes += record.len();
        }
        let batch = decoder.flush().map_err(misfit)?;
        if self.decoders.len() >= KEPT_DECODERS {
            self.decoders.clear();
        }
        self.decoders.insert(layout.id, (decoder, most.max(bytes)));
        Ok(batch)
    }

    /// Bytes of memory, approximately.
    pub fn memory(&self) -> usize {
        self.decoders.values().map(|(_, most)| most * DECODER_FACTOR).sum()
    }

    /// Releases the memory.
    pub fn forget(&mut self) {
        self.decoders.clear();
        self.direct.clear();
    }
}

fn pick<'a>(records: &[&'a [u8]], rows: &[u32]) -> Vec<&'a [u8]> {
    rows.iter().map(|index| records[*index as usize]).collect()
}

fn build(layout: &ColumnLayout) -> Result<Decoder, ArrowError> {
    ReaderBuilder::new(Arc::clone(&layout.schema))
        .with_batch_size(CHUNK_ROWS)
        .with_strict_mode(true)
        .with_decoder_factory(Arc::new(StrictDecoders))
        .build_decoder()
}

/// Arrow nests the names of columns: "whilst decoding field 'a': whilst decoding field 'b': ..."
/// becomes "column `a.b`: ...".
fn describe(error: &ArrowError) -> String {
    let message = plain(error);
    let mut rest = message.as_str();
    let mut path: Vec<&str> = Vec::new();
    while let Some((name, inner)) =
        rest.strip_prefix("whilst decoding field '").and_then(|after| after.split_once("': "))
    {
        path.push(name);
        rest = inner;
    }
    // A missing value is found in the object around it, and named by its field's description.
    let missing =
        rest.split_once("non-nullable StructArray child: ").map(|(_, field)| field.split('"').nth(1).unwrap_or(field));
    let rest = match missing {
        Some(name) => {
            path.push(name);
            "null or missing, but the schema requires a value"
        }
        None => rest,
    };
    if path.is_empty() { message } else { format!("column `{}`: {rest}", path.join(".")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};

    fn declared() -> Arc<ColumnLayout> {
        ColumnLayout::declared(&Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("raw", DataType::Binary, true),
            Field::new("big", DataType::UInt64, true),
        ]))
    }

    fn type_of(layout: &ColumnLayout, name: &str) -> DataType {
        layout.schema.field_with_name(name).map_or(DataType::Null, |field| field.data_type().clone())
    }

    fn decode(layout: &Arc<ColumnLayout>, records: &[&str]) -> Decoded {
        let records: Vec<_> = records.iter().map(|record| record.as_bytes()).collect();
        JsonDecoder::default().decode(layout, &Arc::default(), &records)
    }

    #[test]
    fn declared_types_come_out_exactly() {
        let record = r#"{"id":1,"price":"12.30","at":"2015-05-17T10:05:03Z","raw":"AP8=","big":18446744073709551615}"#;
        let decoded = decode(&declared(), &[record]);
        assert!(decoded.rejected.is_empty(), "{:?}", decoded.rejected);
        let batch = decoded.batch.unwrap();
        assert_eq!(batch.column(1).as_primitive::<arrow::datatypes::Decimal128Type>().value(0), 1230);
        assert_eq!(batch.column(2).as_primitive::<TimestampMicrosecondType>().value(0), 1_431_857_103_000_000);
        assert_eq!(batch.column(3).as_binary::<i32>().value(0), b"\x00\xff");
        assert_eq!(batch.column(4).as_primitive::<arrow::datatypes::UInt64Type>().value(0), u64::MAX);
    }

    #[test]
    fn values_that_their_declared_column_cannot_hold_are_rejected_alone_with_its_name() {
        let misfits = [
            (r#"{"id":1.5}"#, "`id`"),
            (r#"{"id":"x"}"#, "`id`"),
            (r#"{"id":null}"#, "`id`: null"),
            (r#"{}"#, "`id`: null"),
            (r#"{"id":1,"price":"1.005"}"#, "`price`"),
            (r#"{"id":1,"price":"123456789012.00"}"#, "`price`"),
            (r#"{"id":1,"price":"abc"}"#, "`price`"),
            (r#"{"id":1,"at":"soon"}"#, "`at`"),
            (r#"{"id":1,"at":1431857103}"#, "`at`"),
            (r#"{"id":1,"raw":"?"}"#, "`raw`"),
            (r#"{"id":1,"big":-1}"#, "`big`"),
            (r#"{"id":9223372036854775808}"#, "`id`"),
        ];
        for (bad, column) in misfits {
            let decoded = decode(&declared(), &[r#"{"id":1}"#, bad, r#"{"id":2.0}"#, r#"{"id":"3"}"#]);
            assert_eq!(decoded.batch.unwrap().column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3], "{bad}");
            let [(1, reason)] = decoded.rejected.as_slice() else { panic!("{bad}: {:?}", decoded.rejected) };
            assert_eq!(reason.code, "s3.value_misfit", "{bad}");
            assert!(reason.message.contains(column), "{bad}: {}", reason.message);
        }
    }

    #[test]
    fn fields_that_the_schema_does_not_know_become_columns() {
        let decoded = decode(&declared(), &[r#"{"id":1}"#, r#"{"id":2,"score":0.5}"#]);
        let layout = decoded.layout.unwrap();
        assert_eq!(type_of(&layout, "score"), DataType::Float64);
        let batch = decoded.batch.unwrap();
        assert_eq!((batch.num_rows(), batch.column_by_name("score").unwrap().null_count()), (2, 1));
        assert!(decoded.rejected.is_empty());
    }

    #[test]
    fn inferred_columns_widen_instead() {
        let records =
            [r#"{"a":1}"#, r#"{"a":"007"}"#, r#"{"a":{"b":[1,{"c":"x\n"}]}}"#, r#"{"a":1.50}"#, r#"{"a":true}"#];
        let decoded = decode(&ColumnLayout::empty(), &records);
        assert!(decoded.rejected.is_empty());
        let batch = decoded.batch.unwrap();
        let texts: Vec<_> = batch.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(texts, ["1", "007", r#"{"b":[1,{"c":"x\n"}]}"#, "1.50", "true"]);
    }

    #[test]
    fn an_inferred_column_is_never_narrowed_to_fit() {
        let mut decoder = JsonDecoder::default();
        let layout = decoder.decode(&ColumnLayout::empty(), &Arc::default(), &[br#"{"a":1}"#]).layout.unwrap();
        for (record, expected) in
            [(r#"{"a":1.5}"#, DataType::Float64), (r#"{"a":"1"}"#, DataType::Utf8), (r#"{"a":1.0}"#, DataType::Float64)]
        {
            let decoded = decoder.decode(&layout, &Arc::default(), &[record.as_bytes()]);
            assert_eq!(type_of(&decoded.layout.unwrap(), "a"), expected, "{record}");
        }
    }

    #[test]
    fn bad_records_anywhere_leave_the_others() {
        let mut records: Vec<String> = (0..1000).map(|number| format!("{{\"id\":{number}}}")).collect();
        for (at, bad) in [(0, "[1]"), (17, "{\"id\":"), (500, "{\"id\":\"x\"}"), (501, "7"), (999, "{\"id\":null}")] {
            records[at] = bad.to_owned();
        }
        let records: Vec<_> = records.iter().map(String::as_str).collect();
        let decoded = decode(&declared(), &records);
        let indexes: Vec<_> = decoded.rejected.iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 17, 500, 501, 999]);
        assert_eq!(decoded.batch.unwrap().num_rows(), 995);
    }

    #[test]
    fn objects_without_members_are_rows_only_of_known_columns() {
        assert_eq!(decode(&ColumnLayout::empty(), &["{}"]).rejected[0].1.code, "s3.no_columns");
        assert_eq!(decode(&ColumnLayout::empty(), &["{}", r#"{"a":1}"#]).batch.unwrap().num_rows(), 2);
    }
}
