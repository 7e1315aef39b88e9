//! The running sink: routes records to writers, decodes them, and takes the output of each topic
//! partition through the phases of [`TwoPhaseSink`].
//!
//! The sink holds only rows that are not sealed. Plans and committables are in Kafka; after a crash
//! the rows are read again.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::Schema as ArrowSchema;
use trunkline_connector::{
    Batch, Buffered, Error, Reason, Rejections, Result, Schema, SchemaId, SchemaLookup, SinkWriter, TopicPartition,
    TwoPhaseSink,
};

use crate::config::Config;
use crate::intent::{Committable, Plan};
use crate::object::{ObjectContext, remove_temp};
use crate::partition_buffer::PartitionBuffer;
use crate::router::{RecordRouter, WriterKey};
use crate::store::Store;
use trunkline_objects::Encoders;
use trunkline_objects::columns::{ColumnLayout, JsonDecoder, KnownTypes, chunk_len};

/// See the module's header.
pub(crate) struct ObjectSink {
    name: String,
    config: Config,
    encoders: Arc<Encoders>,
    store: Box<dyn Store>,
    schemas: Arc<dyn SchemaLookup>,
    declared: HashMap<SchemaId, Arc<ColumnLayout>>,
    /// By topic.
    types: HashMap<Arc<str>, TopicTypes>,
    decoder: JsonDecoder,
    router: RecordRouter,
    buffers: HashMap<TopicPartition, PartitionBuffer>,
}

/// The types of a topic's columns.
struct TopicTypes {
    known: Arc<KnownTypes>,
    /// They changed since they were stored.
    is_changed: bool,
}

impl ObjectSink {
    pub(crate) fn new(
        name: String,
        config: Config,
        store: Box<dyn Store>,
        encoders: Encoders,
        schemas: Arc<dyn SchemaLookup>,
    ) -> Self {
        Self {
            name,
            encoders: Arc::new(encoders),
            config,
            store,
            schemas,
            declared: HashMap::new(),
            types: HashMap::new(),
            decoder: JsonDecoder::default(),
            router: RecordRouter::default(),
            buffers: HashMap::new(),
        }
    }

    /// The layout that a writer's rows are decoded with: that of its last rows, else that of its
    /// schema. `None` if the schema was never published.
    fn layout(&mut self, partition: &TopicPartition, writer: &WriterKey) -> Result<Option<Arc<ColumnLayout>>> {
        if let Some(known) = self.buffers.get(partition).and_then(|buffer| buffer.layout(writer)) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(id) = writer.schema else { return Ok(Some(ColumnLayout::empty())) };
        if let Some(layout) = self.declared.get(&id) {
            return Ok(Some(Arc::clone(layout)));
        }
        let Some(schema) = self.schemas.schema(id)? else { return Ok(None) };
        let declared = ColumnLayout::declared(schema.arrow());
        let pinned = self.topic_types(&partition.topic).known.pin(declared.fields());
        let layout = if pinned == *declared.fields() { declared } else { ColumnLayout::new(pinned) };
        self.declared.insert(id, Arc::clone(&layout));
        Ok(Some(layout))
    }

    fn topic_types(&mut self, topic: &Arc<str>) -> &mut TopicTypes {
        self.types.entry(Arc::clone(topic)).or_insert_with(|| TopicTypes {
            known: Arc::new(KnownTypes { pinned: self.config.columns.clone(), ..KnownTypes::default() }),
            is_changed: false,
        })
    }

    /// Decodes the rows of one writer and adds them to its objects. `rows` are indexes into
    /// `records`.
    fn write_rows(
        &mut self,
        partition: &TopicPartition,
        writer: &WriterKey,
        rows: &[u32],
        records: &Batch,
        rejected: &mut Rejections,
    ) -> Result<()> {
        let Some(mut layout) = self.layout(partition, writer)? else {
            let id = writer.schema.map(|id| id.to_string()).unwrap_or_default();
            let message = format!("the record's header names the schema {id}, which was never published");
            let reason = Reason::new("s3.unknown_schema", message);
            rows.iter().for_each(|row| rejected.push(records.get(*row as usize), reason.clone()));
            return Ok(());
        };
        let value = |row: &u32| records.get(*row as usize).value().unwrap_or_default();
        let mut rest = rows;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_len(&layout, rest.iter().map(value)));
            rest = after;
            let values: Vec<&[u8]> = chunk.iter().map(value).collect();
            let known = Arc::clone(&self.topic_types(&partition.topic).known);
            let decoded = self.decoder.decode(&layout, &known, &values);
            for (index, reason) in &decoded.rejected {
                rejected.push(records.get(chunk[*index as usize] as usize), reason.clone());
            }
            if let Some(wider) = decoded.layout {
                layout = wider;
                let types = self.topic_types(&partition.topic);
                types.is_changed |= Arc::make_mut(&mut types.known).remember(layout.fields());
            }
            let Some(batch) = decoded.batch else { continue };
            let mut bad = decoded.rejected.iter().map(|(index, _)| *index as usize).peekable();
            let written = chunk.iter().enumerate().filter(|(index, _)| bad.next_if_eq(index).is_none());
            let offsets = written
                .map(|(_, row)| records.entries()[*row as usize].offset)
                .fold((i64::MAX, i64::MIN), |(first, last), offset| (first.min(offset), last.max(offset)));
            let buffer = match self.buffers.get_mut(partition) {
                Some(buffer) => buffer,
                None => self.buffers.entry(partition.clone()).or_default(),
            };
            buffer.set_layout(writer, Arc::clone(&layout));
            let key = |name: &str| self.store.key(name);
            let context = ObjectContext {
                partition,
                sink: &self.name,
                spool: self.store.spool(),
                encoders: &self.encoders,
                key: &key,
            };
            buffer.add(&context, &writer.path, batch, offsets)?;
        }
        Ok(())
    }

    fn remove_temps(&self, buffer: &PartitionBuffer) {
        buffer.completed_temps().for_each(|temp| remove_temp(&self.store.spool().join(temp)));
    }
}

impl SinkWriter for ObjectSink {
    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()> {
        let mut router = std::mem::take(&mut self.router);
        let prefix_len = self.store.key("").len();
        router.route(&self.config, prefix_len, records, rejected);
        let written = router
            .routed
            .iter()
            .try_for_each(|(writer, rows)| self.write_rows(partition, writer, rows, records, rejected));
        self.router = router;
        written
    }

    fn buffered(&self, partition: &TopicPartition) -> Buffered {
        self.buffers.get(partition).map(PartitionBuffer::buffered).unwrap_or_default()
    }

    fn discard(&mut self, partition: &TopicPartition) {
        if let Some(buffer) = self.buffers.remove(partition) {
            self.remove_temps(&buffer);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.buffers.values().flat_map(PartitionBuffer::memory_bytes).sum::<usize>() + self.decoder.memory()
    }

    fn spill(&mut self) -> Result<()> {
        self.decoder.forget();
        // Half of the memory, from the largest object down: small row groups are slow to read.
        let mut sizes: Vec<usize> = self.buffers.values().flat_map(PartitionBuffer::memory_bytes).collect();
        sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
        let half = sizes.iter().sum::<usize>() / 2;
        let mut spilled = 0;
        let smallest = sizes.into_iter().find(|size| {
            spilled += size;
            spilled >= half
        });
        let min_bytes = smallest.unwrap_or(0).max(1);
        self.buffers.values_mut().try_for_each(|buffer| buffer.spill(min_bytes))
    }
}

impl TwoPhaseSink for ObjectSink {
    type Plan = Plan;
    type Committable = Committable;

    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<Plan>> {
        let Some(buffer) = self.buffers.get_mut(partition).filter(|buffer| !buffer.buffered().is_empty()) else {
            return Ok(None);
        };
        let key = |name: &str| self.store.key(name);
        let context = ObjectContext {
            partition,
            sink: &self.name,
            spool: self.store.spool(),
            encoders: &self.encoders,
            key: &key,
        };
        Ok(Some(Plan {
            destination: self.store.destination(),
            topic: partition.topic.to_string(),
            partition: partition.partition,
            objects: buffer.seal(&context)?,
        }))
    }

    fn prepare(&mut self, plans: &[Plan], _: &mut Rejections) -> Result<Vec<Committable>> {
        let uploads = self.store.prepare(plans)?;
        Ok(plans.iter().zip(uploads).map(|(plan, uploads)| plan.prepared(uploads)).collect())
    }

    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        self.store.commit(committables)
    }

    fn abort(&mut self, plan: &Plan) -> Result<()> {
        self.store.abort(plan)
    }

    fn check_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        self.store.check_prepared(committables)
    }

    fn discard_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        self.store.discard_prepared(committables)
    }

    fn existing_output(&mut self, partitions: &[TopicPartition]) -> Result<Option<String>> {
        self.store.existing_output(&self.name, partitions)
    }

    fn inferred_types(&mut self, topic: &Arc<str>) -> Result<Option<Schema>> {
        let Some(types) = self.types.get_mut(topic).filter(|types| types.is_changed) else { return Ok(None) };
        types.is_changed = false;
        let schema = Schema::new(Arc::new(ArrowSchema::new(types.known.remembered.clone())));
        schema.map(Some).map_err(|error| Error::internal("s3.types", error.to_string()))
    }

    fn restore_types(&mut self, topic: &Arc<str>, types: &Schema) {
        Arc::make_mut(&mut self.topic_types(topic).known).remember(types.arrow().fields());
    }

    fn recover(&mut self, partition: &TopicPartition, pending: &[Committable]) -> Result<()> {
        // Records come only after the assignment, so everything that is open now was left by an
        // earlier assignment.
        self.discard(partition);
        let objects = pending.iter().flat_map(|committable| &committable.objects);
        let keep: Vec<&str> = objects.map(|object| object.planned.temp.as_str()).collect();
        self.store.remove_leftovers(partition, &|name| keep.contains(&name))
    }
}

impl Drop for ObjectSink {
    fn drop(&mut self) {
        self.buffers.values().for_each(|buffer| self.remove_temps(buffer));
    }
}
