//! The open objects of one topic partition, and which of them takes the next rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use trunkline_connector::{Buffered, Error, Result};

use crate::intent::PlannedObject;
use crate::names::object_name;
use crate::object::{ObjectContext, OpenObject, SchemaFit};
use crate::router::WriterKey;
use trunkline_objects::columns::ColumnLayout;

/// Column layouts that are kept for paths without an open object. Paths come and go without end
/// (days, hours).
const MAX_KEPT_LAYOUTS: usize = 256;

/// Rows of a topic partition that are not sealed yet.
#[derive(Default)]
pub(crate) struct PartitionBuffer {
    /// Open objects by path. A path has several while their columns conflict.
    objects: HashMap<String, Vec<OpenObject>>,
    /// Objects that were completed because later rows needed other columns.
    completed: Vec<PlannedObject>,
    /// A local file could not be written. Rows are lost, so nothing of this buffer may become
    /// visible: the topic partition is read again from its committed offset.
    poisoned: bool,
    /// Layouts outlive the objects: the next file of a path starts with the columns of the last
    /// one, so that readers see the same types, and a rare column does not split every file.
    layouts: HashMap<WriterKey, Arc<ColumnLayout>>,
}

impl PartitionBuffer {
    /// The layout that the rows of a writer were last decoded with.
    pub(crate) fn layout(&self, writer: &WriterKey) -> Option<&Arc<ColumnLayout>> {
        self.layouts.get(writer)
    }

    /// Later rows of the writer are decoded with this layout.
    pub(crate) fn set_layout(&mut self, writer: &WriterKey, layout: Arc<ColumnLayout>) {
        if let Some(known) = self.layouts.get_mut(writer) {
            *known = layout;
            return;
        }
        // Removing layouts only when there are twice as many as may stay makes the cost per new
        // path constant.
        if self.layouts.len() >= 2 * (MAX_KEPT_LAYOUTS + self.objects.len()) {
            self.layouts.retain(|writer, _| self.objects.contains_key(&writer.path));
        }
        self.layouts.insert(writer.clone(), layout);
    }

    /// Adds rows, with their first and last offset, to an object of their path whose columns take
    /// them, or to a new one.
    pub(crate) fn add(
        &mut self,
        context: &ObjectContext<'_>,
        path: &str,
        batch: RecordBatch,
        offsets: (i64, i64),
    ) -> Result<()> {
        self.poison_on_error(|buffer| buffer.add_rows(context, path, batch, offsets))
    }

    /// Runs `work`, after whose failure the buffer cannot be used.
    fn poison_on_error<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.poisoned {
            return Err(Error::external(
                "s3.spool_broken",
                "an earlier error left rows of this topic partition half written; it is read again from its committed offset",
            ));
        }
        let outcome = work(self);
        self.poisoned = outcome.is_err();
        outcome
    }

    fn add_rows(
        &mut self,
        context: &ObjectContext<'_>,
        path: &str,
        batch: RecordBatch,
        offsets: (i64, i64),
    ) -> Result<()> {
        let mut fields = batch.schema_ref().fields().clone();
        let objects = match self.objects.get_mut(path) {
            Some(objects) => objects,
            None => self.objects.entry(path.to_owned()).or_default(),
        };
        let mut frozen = None;
        for (index, object) in objects.iter_mut().enumerate() {
            match object.fit(&fields) {
                SchemaFit::Takes(fields) => return object.add(batch, fields, offsets),
                SchemaFit::Frozen(union) => {
                    frozen = Some((index, union));
                    break;
                }
                SchemaFit::Conflict => {}
            }
        }
        if let Some((index, union)) = frozen {
            let object = objects.remove(index);
            self.completed.push(complete(object, context)?);
            fields = union;
        }
        let mut object = OpenObject::new(context, path, fields.clone());
        object.add(batch, fields, offsets)?;
        objects.push(object);
        Ok(())
    }

    /// Completes all objects, in order of their offsets. After an error the topic partition must be
    /// read again.
    pub(crate) fn seal(&mut self, context: &ObjectContext<'_>) -> Result<Vec<PlannedObject>> {
        self.poison_on_error(|buffer| {
            for object in std::mem::take(&mut buffer.objects).into_values().flatten() {
                buffer.completed.push(complete(object, context)?);
            }
            Ok(())
        })?;
        let mut completed = std::mem::take(&mut self.completed);
        completed.sort_by(|left, right| {
            let order = |object: &PlannedObject| (object.first_offset, object.last_offset);
            order(left).cmp(&order(right)).then_with(|| left.key.cmp(&right.key))
        });
        Ok(completed)
    }

    /// Writes the objects that hold at least this many bytes in memory to their files.
    pub(crate) fn spill(&mut self, min_bytes: usize) -> Result<()> {
        self.poison_on_error(|buffer| {
            let mut large = buffer.objects.values_mut().flatten().filter(|object| object.memory_bytes() >= min_bytes);
            large.try_for_each(OpenObject::spill)
        })
    }

    /// Local files of completed objects; those of open ones are removed when they are dropped.
    pub(crate) fn completed_temps(&self) -> impl Iterator<Item = &str> {
        self.completed.iter().map(|object| object.temp.as_str())
    }

    /// What is buffered, by the largest object. A poisoned buffer is never empty, so that sealing
    /// it fails.
    pub(crate) fn buffered(&self) -> Buffered {
        let lost = Buffered { records: u64::from(self.poisoned), ..Buffered::default() };
        let open = self.open_objects().map(|object| (object.bytes() as u64, object.records, object.has_file()));
        let completed = self.completed.iter().map(|object| (object.bytes, object.records, false));
        open.chain(completed).fold(lost, |buffered, (bytes, records, has_file)| Buffered {
            bytes: buffered.bytes.max(bytes),
            records: buffered.records.max(records),
            open_files: buffered.open_files + usize::from(has_file),
        })
    }

    /// Bytes that each open object holds in memory.
    pub(crate) fn memory_bytes(&self) -> impl Iterator<Item = usize> {
        self.open_objects().map(OpenObject::memory_bytes)
    }

    fn open_objects(&self) -> impl Iterator<Item = &OpenObject> {
        self.objects.values().flatten()
    }
}

fn complete(object: OpenObject, context: &ObjectContext<'_>) -> Result<PlannedObject> {
    let path = object.path.clone();
    let id = object.id.clone();
    object.complete(context.partition, context.sink, |first, last| {
        (context.key)(&object_name(&path, context.partition, first, last, &id))
    })
}
