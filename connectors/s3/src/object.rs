//! An open object: the rows of one Parquet file.
//!
//! At first the rows stay in memory as record batches, so that the file's columns can widen freely.
//! When there are enough rows, memory is short or the object is completed, the schema is frozen and
//! the rows are [encoded](Encoding) into a local file, row group by row group. Later rows that need
//! other columns go to another object.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::Fields;
use parquet::file::metadata::KeyValue;
use trunkline_connector::{Error, Result, TopicPartition, io_error};

use crate::intent::PlannedObject;
use crate::names::temp_name;
use trunkline_objects::columns::{file_schema, union};
use trunkline_objects::{Encoders, Encoding};

/// The schema is frozen at this many bytes of rows. Until then, rows with further columns fit into
/// the file.
const FREEZE_BYTES: usize = 1 << 20;

/// Keys of the footer's metadata.
pub(crate) mod footer {
    pub(crate) const ID: &str = "trunkline.id";
    pub(crate) const SINK: &str = "trunkline.sink";
    pub(crate) const TOPIC: &str = "trunkline.topic";
    pub(crate) const PARTITION: &str = "trunkline.partition";
    pub(crate) const FIRST_OFFSET: &str = "trunkline.first_offset";
    pub(crate) const LAST_OFFSET: &str = "trunkline.last_offset";
    pub(crate) const RECORDS: &str = "trunkline.records";
}

/// What objects are created with.
pub(crate) struct ObjectContext<'a> {
    pub(crate) partition: &'a TopicPartition,
    /// Name of the sink.
    pub(crate) sink: &'a str,
    /// Folder of the local files.
    pub(crate) spool: &'a Path,
    pub(crate) encoders: &'a Arc<Encoders>,
    /// The key of an object with this name.
    pub(crate) key: &'a dyn Fn(&str) -> String,
}

/// See the module's header.
pub(crate) struct OpenObject {
    /// Unique, also in the object's metadata.
    pub(crate) id: String,
    /// The rendered path template.
    pub(crate) path: String,
    pub(crate) records: u64,
    offsets: (i64, i64),
    /// The union of all layouts in it.
    fields: Fields,
    content: Content,
    temp: PathBuf,
    encoders: Arc<Encoders>,
}

enum Content {
    /// Columns may still be added and widened.
    Collecting { batches: Vec<RecordBatch>, bytes: usize },
    /// The schema is frozen.
    Writing(Encoding),
}

/// Whether rows with certain columns fit into an object.
pub(crate) enum SchemaFit {
    /// They fit; the object then has these columns.
    Takes(Fields),
    /// They do not fit, because the schema is frozen. An object with these columns takes both.
    Frozen(Fields),
    /// They never fit: a declared column has types without a union.
    Conflict,
}

impl OpenObject {
    /// An empty object, without a file yet.
    pub(crate) fn new(context: &ObjectContext<'_>, path: &str, fields: Fields) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Self {
            temp: context.spool.join(temp_name(context.partition, &id)),
            id,
            path: path.to_owned(),
            records: 0,
            offsets: (i64::MAX, i64::MIN),
            fields,
            content: Content::Collecting { batches: Vec::new(), bytes: 0 },
            encoders: Arc::clone(context.encoders),
        }
    }

    /// Whether rows with these columns fit.
    pub(crate) fn fit(&self, fields: &Fields) -> SchemaFit {
        let Some(union) = union(&self.fields, fields) else { return SchemaFit::Conflict };
        match &self.content {
            Content::Writing(encoding) if union != self.fields && file_schema(&union) != *encoding.schema() => {
                SchemaFit::Frozen(union)
            }
            _ => SchemaFit::Takes(union),
        }
    }

    /// Adds rows with these first and last offsets. `fields` are the ones that [`OpenObject::fit`]
    /// returned.
    pub(crate) fn add(&mut self, batch: RecordBatch, fields: Fields, offsets: (i64, i64)) -> Result<()> {
        self.records += batch.num_rows() as u64;
        self.offsets = (self.offsets.0.min(offsets.0), self.offsets.1.max(offsets.1));
        self.fields = fields;
        match &mut self.content {
            Content::Collecting { batches, bytes } => {
                *bytes += batch.get_array_memory_size();
                batches.push(batch);
                join_small(batches, bytes)?;
                if *bytes >= FREEZE_BYTES.min(self.encoders.options.row_group) {
                    self.freeze_schema()?;
                }
                Ok(())
            }
            Content::Writing(encoding) => encoding.add(batch),
        }
    }

    /// Freezes the schema and starts to encode.
    fn freeze_schema(&mut self) -> Result<()> {
        let Content::Collecting { batches, bytes } = &mut self.content else { return Ok(()) };
        *bytes = 0;
        let batches = std::mem::take(batches);
        let schema = file_schema(&self.fields);
        let encoding = Encoding::create(self.temp.clone(), &schema, &self.encoders, &batches)?;
        batches.into_iter().try_for_each(|batch| encoding.add(batch))?;
        self.content = Content::Writing(encoding);
        Ok(())
    }

    /// The object has an open local file.
    pub(crate) fn has_file(&self) -> bool {
        matches!(self.content, Content::Writing(_))
    }

    /// Bytes of the file if it were completed now.
    pub(crate) fn bytes(&self) -> usize {
        match &self.content {
            Content::Collecting { bytes, .. } => *bytes,
            Content::Writing(encoding) => encoding.bytes(),
        }
    }

    /// Bytes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.content {
            Content::Collecting { bytes, .. } => *bytes,
            Content::Writing(encoding) => encoding.memory(),
        }
    }

    /// Writes the rows in memory to the file.
    pub(crate) fn spill(&mut self) -> Result<()> {
        self.freeze_schema()?;
        match &self.content {
            Content::Writing(encoding) => encoding.spill(),
            Content::Collecting { .. } => Ok(()),
        }
    }

    /// Completes the file and describes it. `key` makes the key from the first and last offset.
    /// After an error the rows are lost, and the topic partition must be read again.
    pub(crate) fn complete(
        mut self,
        partition: &TopicPartition,
        sink: &str,
        key: impl FnOnce(i64, i64) -> String,
    ) -> Result<PlannedObject> {
        self.freeze_schema()?;
        let (first, last) = self.offsets;
        let temp = std::mem::take(&mut self.temp);
        let content = std::mem::replace(&mut self.content, Content::Collecting { batches: Vec::new(), bytes: 0 });
        let Content::Writing(encoding) = content else {
            return Err(Error::internal("s3.not_settled", "a completed object has no file"));
        };
        let mut writer = encoding.finish().inspect_err(|_| remove_temp(&temp))?;
        for (name, value) in [
            (footer::ID, self.id.clone()),
            (footer::SINK, sink.to_owned()),
            (footer::TOPIC, partition.topic.to_string()),
            (footer::PARTITION, partition.partition.to_string()),
            (footer::FIRST_OFFSET, first.to_string()),
            (footer::LAST_OFFSET, last.to_string()),
            (footer::RECORDS, self.records.to_string()),
        ] {
            writer.append_key_value_metadata(KeyValue::new(name.to_owned(), value));
        }
        let finished = writer.finish().map_err(|error| Encoding::failed(&temp, &error));
        let bytes = finished.and_then(|_| {
            let metadata = std::fs::metadata(&temp).map_err(|error| io_error("read the size of", &temp, &error))?;
            Ok(metadata.len())
        });
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                remove_temp(&temp);
                return Err(error);
            }
        };
        Ok(PlannedObject {
            key: key(first, last),
            id: std::mem::take(&mut self.id),
            temp: temp.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            bytes,
            records: self.records,
            first_offset: first,
            last_offset: last,
        })
    }
}

impl Drop for OpenObject {
    fn drop(&mut self) {
        // Empty after `complete`.
        if !self.temp.as_os_str().is_empty() && matches!(self.content, Content::Writing(_)) {
            remove_temp(&self.temp);
        }
    }
}

/// Joins the last batches if they are many and small: a path with rare rows would hold more array
/// headers than rows.
fn join_small(batches: &mut Vec<RecordBatch>, bytes: &mut usize) -> Result<()> {
    const SMALL_ROWS: usize = 1024;
    const MANY: usize = 64;
    let Some(last) = batches.last() else { return Ok(()) };
    let schema = last.schema();
    let joins = |batch: &&RecordBatch| batch.num_rows() < SMALL_ROWS && batch.schema_ref() == &schema;
    if batches.len() < MANY {
        return Ok(());
    }
    let count = batches.iter().rev().take(MANY).take_while(joins).count();
    if count < MANY {
        return Ok(());
    }
    let joined = concat_batches(&schema, &batches[batches.len() - count..])
        .map_err(|error| Error::internal("s3.join", format!("batches of one schema cannot be joined: {error}")))?;
    batches.truncate(batches.len() - count);
    batches.push(joined);
    *bytes = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    Ok(())
}

/// Removes a local file; a missing file is no error.
pub(crate) fn remove_temp(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a temporary file cannot be removed");
        }
        _ => {}
    }
}
