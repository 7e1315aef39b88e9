//! The running sink: sorts records into lanes, decodes them, and takes each claim through the four steps.
//!
//! Per claim there are rows in no plan ([`OpenClaim`]), at most one plan, and at most one intent that was handed out and not published.
//! Nothing of these is needed after a crash: the stage has plans and intents in Kafka, and rows in neither are read again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use trunkline_connector::{
    Batch, Escape, Reason, RecordRef, Rejections, Result, SchemaId, SchemaLookup, Sink, TopicPartition, headers,
};

use crate::claims::{LaneKey, Making, OpenClaim};
use crate::columns::{JsonDecoder, Shape, chunk_len};
use crate::config::Config;
use crate::encoding::Encoders;
use crate::names::check_path;
use crate::object::remove_temp;
use crate::protocol::{Intent, Plan};
use crate::store::Store;

/// See the module's header.
pub(crate) struct ObjectSink {
    name: String,
    config: Config,
    encoders: Arc<Encoders>,
    store: Box<dyn Store>,
    schemas: Arc<dyn SchemaLookup>,
    declared: HashMap<SchemaId, Arc<Shape>>,
    decoder: JsonDecoder,
    lanes: Lanes,
    claims: HashMap<TopicPartition, OpenClaim>,
    planned: HashMap<TopicPartition, Plan>,
    staged: HashMap<TopicPartition, Intent>,
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
            decoder: JsonDecoder::default(),
            lanes: Lanes::default(),
            claims: HashMap::new(),
            planned: HashMap::new(),
            staged: HashMap::new(),
        }
    }

    /// The shape that the lane's rows begin with; `None` if its schema was never published.
    fn first_shape(&mut self, lane: &LaneKey) -> Result<Option<Arc<Shape>>> {
        let Some(id) = lane.schema else { return Ok(Some(Shape::empty())) };
        if let Some(shape) = self.declared.get(&id) {
            return Ok(Some(Arc::clone(shape)));
        }
        let Some(schema) = self.schemas.schema(id)? else { return Ok(None) };
        let shape = Shape::declared(schema.arrow());
        self.declared.insert(id, Arc::clone(&shape));
        Ok(Some(shape))
    }

    fn write_lane(
        &mut self,
        claim: &TopicPartition,
        lane: &LaneKey,
        rows: &[u32],
        records: &Batch,
        rejected: &mut Rejections,
    ) -> Result<()> {
        let known = self.claims.get(claim).and_then(|open| open.shape(lane)).map(Arc::clone);
        let shape = match known {
            Some(shape) => Some(shape),
            None => self.first_shape(lane)?,
        };
        let Some(mut shape) = shape else {
            let id = lane.schema.map(|id| id.to_string()).unwrap_or_default();
            let reason = Reason::new(
                "s3.unknown_schema",
                format!("its header names the schema {id}, which was never published"),
            );
            rows.iter().for_each(|row| rejected.push(records.get(*row as usize), reason.clone()));
            return Ok(());
        };
        let value = |row: &u32| records.get(*row as usize).value().unwrap_or_default();
        let mut rest = rows;
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(chunk_len(&shape, rest.iter().map(value)));
            rest = after;
            let values: Vec<&[u8]> = chunk.iter().map(value).collect();
            let decoded = self.decoder.decode(&shape, &values);
            for (index, reason) in &decoded.rejected {
                rejected.push(records.get(chunk[*index as usize] as usize), reason.clone());
            }
            if let Some(wider) = decoded.shape {
                shape = wider;
            }
            let Some(batch) = decoded.batch else { continue };
            let mut bad = decoded.rejected.iter().map(|(index, _)| *index as usize).peekable();
            let waited = waited(records.get(chunk[0] as usize));
            let mut offsets = (i64::MAX, i64::MIN);
            for (index, row) in chunk.iter().enumerate() {
                if bad.next_if_eq(&index).is_none() {
                    let offset = records.entries()[*row as usize].offset;
                    offsets = (offsets.0.min(offset), offsets.1.max(offset));
                }
            }
            let open = self.claims.entry(claim.clone()).or_insert_with(OpenClaim::new);
            open.set_shape(lane, Arc::clone(&shape));
            let key = |name: &str| self.store.key(name);
            let making =
                Making { claim, sink: &self.name, spool: self.store.spool(), encoders: &self.encoders, key: &key };
            open.add(&making, &lane.path, batch, offsets, waited)?;
        }
        Ok(())
    }

    fn open_files(&self) -> usize {
        self.claims.values().map(OpenClaim::open_files).sum()
    }

    fn remove_temps<'a>(store: &dyn Store, temps: impl Iterator<Item = &'a str>) {
        temps.for_each(|temp| remove_temp(&store.spool().join(temp)));
    }
}

impl Sink for ObjectSink {
    fn write(&mut self, claim: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()> {
        let mut lanes = std::mem::take(&mut self.lanes);
        let prefix_len = self.store.key("").len();
        lanes.sort(&self.config, prefix_len, records, rejected);
        let mut outcome = Ok(());
        for (lane, rows) in &lanes.filled {
            outcome = self.write_lane(claim, lane, rows, records, rejected);
            if outcome.is_err() {
                break;
            }
        }
        self.lanes = lanes;
        outcome
    }

    fn due(&self, now: Instant) -> Vec<TopicPartition> {
        let rotate = &self.config.rotate;
        let waiting =
            || self.claims.iter().filter(|(claim, open)| !open.is_empty() && !self.planned.contains_key(*claim));
        let is_due = |open: &OpenClaim| open.is_full(rotate) || open.due_at(rotate).is_some_and(|at| at <= now);
        let mut due: Vec<TopicPartition> =
            waiting().filter(|(_, open)| is_due(open)).map(|(claim, _)| claim.clone()).collect();
        if due.is_empty() && self.open_files() > self.config.max_open_files {
            let largest = waiting().max_by_key(|(_, open)| open.largest());
            due.extend(largest.map(|(claim, _)| claim.clone()));
        }
        due.sort();
        due
    }

    fn next_due(&self) -> Option<Instant> {
        let waiting = self.claims.iter().filter(|(claim, _)| !self.planned.contains_key(*claim));
        waiting.filter_map(|(_, open)| open.due_at(&self.config.rotate)).min()
    }

    fn has_open(&self, claim: &TopicPartition) -> bool {
        self.planned.contains_key(claim)
            || self.staged.contains_key(claim)
            || self.claims.get(claim).is_some_and(|open| !open.is_empty())
    }

    fn plan(&mut self, claim: &TopicPartition) -> Result<Option<Value>> {
        if let Some(plan) = self.planned.get(claim) {
            return plan.to_json().map(Some);
        }
        let Some(open) = self.claims.get_mut(claim).filter(|open| !open.is_empty()) else { return Ok(None) };
        let key = |name: &str| self.store.key(name);
        let making = Making { claim, sink: &self.name, spool: self.store.spool(), encoders: &self.encoders, key: &key };
        let plan = Plan {
            destination: self.store.destination(),
            topic: claim.topic.to_string(),
            partition: claim.partition,
            objects: open.close(&making)?,
        };
        let json = plan.to_json()?;
        self.planned.insert(claim.clone(), plan);
        // An intent that was handed out before is the stage's by now.
        self.staged.remove(claim);
        Ok(Some(json))
    }

    fn stage(&mut self, claims: &[TopicPartition]) -> Result<Vec<Value>> {
        let plans: Vec<(&TopicPartition, &Plan)> =
            claims.iter().filter_map(|claim| self.planned.get_key_value(claim)).collect();
        let only: Vec<&Plan> = plans.iter().map(|(_, plan)| *plan).collect();
        let uploads = self.store.stage(&only)?;
        let intents: Vec<(TopicPartition, Intent)> = plans
            .into_iter()
            .zip(uploads)
            .map(|((claim, plan), uploads)| (claim.clone(), plan.staged(uploads)))
            .collect();
        for (claim, intent) in intents {
            self.planned.remove(&claim);
            self.staged.insert(claim, intent);
        }
        // Called again after it succeeded, it gives the same intents.
        let intent = |claim: &TopicPartition| match self.staged.get(claim) {
            Some(intent) => intent.to_json(),
            None => Err(trunkline_connector::Error::internal(
                "s3.not_planned",
                format!("stage was called for {}+{} without a plan", claim.topic, claim.partition),
            )),
        };
        claims.iter().map(intent).collect()
    }

    fn publish(&mut self, intents: &[Value]) -> Result<()> {
        let intents: Vec<Intent> = intents.iter().map(Intent::from_json).collect::<Result<_>>()?;
        self.store.publish(&intents)?;
        for intent in intents {
            let claim = intent.claim();
            if self.staged.get(&claim) == Some(&intent) {
                self.staged.remove(&claim);
            }
        }
        Ok(())
    }

    fn abort(&mut self, plan: &Value) -> Result<()> {
        let plan = Plan::from_json(plan)?;
        self.store.abort(&plan)?;
        self.planned.retain(|_, known| *known != plan);
        Ok(())
    }

    fn discard(&mut self, claim: &TopicPartition) {
        if let Some(open) = self.claims.remove(claim) {
            Self::remove_temps(self.store.as_ref(), open.closed_temps());
        }
        if let Some(plan) = self.planned.remove(claim) {
            Self::remove_temps(self.store.as_ref(), plan.objects.iter().map(|object| object.temp.as_str()));
        }
        // Whether an intent that was handed out became a promise only the stage knows: its files stay until `claimed` or `publish`.
        self.staged.remove(claim);
    }

    fn claimed(&mut self, claim: &TopicPartition, promised: &[Value]) -> Result<()> {
        let promised: Vec<Intent> = promised.iter().map(Intent::from_json).collect::<Result<_>>()?;
        let planned = self.planned.get(claim).into_iter().flat_map(|plan| &plan.objects);
        let objects = promised.iter().flat_map(|intent| &intent.objects).map(|object| &object.planned).chain(planned);
        let keep: Vec<&str> = objects.map(|object| object.temp.as_str()).collect();
        // Records of a claim come only after it was claimed: what is open now is a leftover too.
        if let Some(open) = self.claims.remove(claim) {
            Self::remove_temps(self.store.as_ref(), open.closed_temps());
        }
        self.store.remove_leftovers(claim, &|name| keep.contains(&name))
    }

    fn memory(&self) -> usize {
        self.claims.values().map(OpenClaim::memory).sum::<usize>() + self.decoder.memory()
    }

    fn relieve(&mut self) -> Result<()> {
        self.decoder.forget();
        // Half of it, from the largest down: small row groups cost the files' readers.
        let mut sizes: Vec<usize> = self.claims.values().flat_map(OpenClaim::memories).collect();
        sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
        let half = sizes.iter().sum::<usize>() / 2;
        let mut relieved = 0;
        let least = sizes.into_iter().find(|size| {
            relieved += size;
            relieved >= half
        });
        let least = least.unwrap_or(0).max(1);
        self.claims.values_mut().try_for_each(|open| open.spill(least))
    }
}

impl Drop for ObjectSink {
    fn drop(&mut self) {
        for open in self.claims.values() {
            Self::remove_temps(self.store.as_ref(), open.closed_temps());
        }
    }
}

/// The records of a batch by lane. Kept from batch to batch for its memory.
#[derive(Default)]
struct Lanes {
    filled: Vec<(LaneKey, Vec<u32>)>,
    index: HashMap<LaneKey, usize>,
}

impl Lanes {
    /// Sorts the records, and sets aside those that have no value, path or readable schema id.
    fn sort(&mut self, config: &Config, prefix_len: usize, records: &Batch, rejected: &mut Rejections) {
        self.filled.clear();
        self.index.clear();
        let constant = config.path.constant();
        let mut lane = LaneKey { path: String::new(), schema: None };
        // The raw header of the record before: records of one schema follow one another.
        let mut raw_schema: Option<&[u8]> = None;
        // The lane of the record before, while nothing differs.
        let mut current: Option<usize> = None;
        let mut checked = String::new();
        for (row, record) in records.iter().enumerate() {
            if record.value().is_none() {
                rejected.push(record, Reason::new("s3.no_value", "a record without a value (a tombstone) is no row"));
                continue;
            }
            let raw = record.header(headers::SCHEMA);
            if raw != raw_schema {
                match schema_id(raw) {
                    Ok(schema) => lane.schema = schema,
                    Err(reason) => {
                        rejected.push(record, reason);
                        continue;
                    }
                }
                raw_schema = raw;
                current = None;
            }
            if constant.is_none() || current.is_none() {
                if let Err(reason) = render(config, constant, record, prefix_len, &mut lane.path, &mut checked) {
                    rejected.push(record, reason);
                    continue;
                }
                current = current.filter(|current| self.filled[*current].0.path == lane.path);
            }
            // Looked for before it is added: records may go to two lanes in turns, and a name is not copied for each.
            let current = *current.get_or_insert_with(|| match self.index.get(&lane) {
                Some(index) => *index,
                None => {
                    self.filled.push((lane.clone(), Vec::new()));
                    self.index.insert(lane.clone(), self.filled.len() - 1);
                    self.filled.len() - 1
                }
            });
            self.filled[current].1.push(row as u32);
        }
    }
}

/// How long a record has been in its topic, by its timestamp; nothing if it has none, or the clocks say that it was written in future.
fn waited(record: RecordRef<'_>) -> Duration {
    let written =
        record.timestamp().and_then(|milliseconds| u64::try_from(milliseconds).ok()).map(Duration::from_millis);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    written.map_or(Duration::ZERO, |written| now.saturating_sub(written))
}

fn schema_id(raw: Option<&[u8]>) -> Result<Option<SchemaId>, Reason> {
    let Some(raw) = raw else { return Ok(None) };
    let parsed = std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| {
        let found = String::from_utf8_lossy(raw);
        Reason::new(
            "s3.unknown_schema",
            format!("its header `{}` is `{found}`, which is no schema id", headers::SCHEMA),
        )
    })
}

/// Writes the record's path to `path`. `checked` is the last path that was found good.
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
