//! The limit of writing Parquet: arrow-json and `ArrowWriter`, from memory, on one thread.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use trunkline_plugin::json::Paths;

use crate::client::{self, StoredRecord};

/// Records per decoded batch.
const CHUNK: usize = 4096;

/// Writes all values into one file, repeatedly for the time `run`; the first values determine the
/// columns. With `mask`, it first masks `remote_addr` in each value, as the plugin `mask` does.
/// Returns the number of rows.
pub(crate) fn rows(records: &[StoredRecord], mask: bool, run: Duration) -> u64 {
    let sample: Vec<u8> = records.iter().take(CHUNK).flat_map(|record| [&*record.value, b"\n"].concat()).collect();
    let (schema, _) = infer_json_schema(Cursor::new(sample), None).unwrap();
    let mut paths = Paths::default();
    paths.add(["remote_addr"]);

    let schema = Arc::new(schema);
    let mut decoder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(CHUNK).build_decoder().unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(tempfile::tempfile().unwrap(), schema, Some(properties)).unwrap();
    let mut masked = Vec::new();
    let mut rows = 0;
    for record in client::repeat_for(records, run) {
        let value = if mask {
            masked.clear();
            let replaced = paths.splice(&record.value, &mut masked, |_, _, out| out.extend_from_slice(b"\"***\""));
            assert_eq!(replaced.unwrap_or_default(), 1);
            &masked
        } else {
            &record.value
        };
        assert_eq!(decoder.decode(value).unwrap(), value.len());
        rows += 1;
        if rows % CHUNK == 0 {
            writer.write(&decoder.flush().unwrap().unwrap()).unwrap();
        }
    }
    if let Some(batch) = decoder.flush().unwrap() {
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
    rows as u64
}
