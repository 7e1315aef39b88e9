//! Routes the records of a batch to writers: by rendered path and declared schema.

use std::collections::HashMap;

use trunkline_connector::{Batch, Escape, Reason, RecordRef, Rejections, Result, SchemaId, headers};

use crate::config::Config;
use crate::names::check_path;

/// Rows with one path and one declared schema share a column layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct WriterKey {
    pub(crate) path: String,
    pub(crate) schema: Option<SchemaId>,
}

/// The records of a batch, by writer. Kept from batch to batch for its memory.
#[derive(Default)]
pub(crate) struct RecordRouter {
    /// The rows of each writer, as indexes into the batch.
    pub(crate) routed: Vec<(WriterKey, Vec<u32>)>,
    index: HashMap<WriterKey, usize>,
}

impl RecordRouter {
    /// Routes the records; rejects those without a value, a path or a readable schema id.
    pub(crate) fn route(&mut self, config: &Config, prefix_len: usize, records: &Batch, rejected: &mut Rejections) {
        self.routed.clear();
        self.index.clear();
        let constant = config.path.constant();
        let mut writer = WriterKey { path: String::new(), schema: None };
        // The header of the record before: records of one schema mostly follow one another.
        let mut raw_schema: Option<&[u8]> = None;
        // The writer of the record before, while nothing differs.
        let mut current: Option<usize> = None;
        let mut checked = String::new();
        for (row, record) in records.iter().enumerate() {
            if record.value().is_none() {
                rejected
                    .push(record, Reason::new("s3.no_value", "a record without a value (a tombstone) cannot be a row"));
                continue;
            }
            let raw = record.header(headers::SCHEMA);
            if raw != raw_schema {
                match schema_id(raw) {
                    Ok(schema) => writer.schema = schema,
                    Err(reason) => {
                        rejected.push(record, reason);
                        continue;
                    }
                }
                raw_schema = raw;
                current = None;
            }
            if constant.is_none() || current.is_none() {
                if let Err(reason) = render(config, constant, record, prefix_len, &mut writer.path, &mut checked) {
                    rejected.push(record, reason);
                    continue;
                }
                current = current.filter(|current| self.routed[*current].0.path == writer.path);
            }
            // The lookup comes first: records may alternate between writers, and a key is copied
            // only for a new one.
            let current = *current.get_or_insert_with(|| match self.index.get(&writer) {
                Some(index) => *index,
                None => {
                    self.routed.push((writer.clone(), Vec::new()));
                    self.index.insert(writer.clone(), self.routed.len() - 1);
                    self.routed.len() - 1
                }
            });
            self.routed[current].1.push(row as u32);
        }
    }
}

fn schema_id(raw: Option<&[u8]>) -> Result<Option<SchemaId>, Reason> {
    let Some(raw) = raw else { return Ok(None) };
    let parsed = std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| {
        let found = String::from_utf8_lossy(raw);
        Reason::new(
            "s3.unknown_schema",
            format!("its header `{}` is `{found}`, which is not a schema id", headers::SCHEMA),
        )
    })
}

/// Writes the record's path to `path`. `checked` is the last path that was found valid.
fn render(
    config: &Config,
    constant: Option<&str>,
    record: RecordRef<'_>,
    prefix_len: usize,
    path: &mut String,
    checked: &mut String,
) -> Result<(), Reason> {
    path.clear();
    match constant {
        Some(constant) => path.push_str(constant),
        None => {
            let rendered = config.path.render(record, Escape::Path, path);
            rendered.map_err(|error| Reason::new("s3.no_path", error.to_string()))?;
        }
    }
    if constant != Some("") && path != checked {
        check_path(path, prefix_len)?;
        checked.clone_from(path);
    }
    Ok(())
}
