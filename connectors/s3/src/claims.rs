//! The open objects of one claim, and where its next rows go.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use trunkline_connector::{Error, Result, SchemaId, TopicPartition};

use crate::columns::Shape;
use crate::config::Rotate;
use crate::encoding::Encoders;
use crate::names::object_name;
use crate::object::{Fit, OpenObject};
use crate::protocol::PlannedObject;

/// Lanes remembered by a claim; paths may come and go without end (days, hours).
const KEPT_LANES: usize = 256;

/// Which rows share a shape: those of one path and one declared schema.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub(crate) path: String,
    pub(crate) schema: Option<SchemaId>,
}

/// A claim's rows that are in no plan yet.
pub(crate) struct OpenClaim {
    objects: Vec<OpenObject>,
    /// Objects whose columns did not take what came later.
    closed: Vec<PlannedObject>,
    /// When the first of these rows came, and the last.
    since: Option<(Instant, Instant)>,
    /// When its objects were closed last.
    closed_at: Option<Instant>,
    /// A local file could not be written: rows are lost, and nothing of this claim may be published before it is read again.
    broken: bool,
    /// Shapes outlive the objects: the next file of a path begins with the columns of the last, so that its readers see the same types,
    /// and so that a rare column does not split every file.
    lanes: HashMap<LaneKey, Arc<Shape>>,
}

/// What objects are made with.
pub(crate) struct Making<'a> {
    pub(crate) claim: &'a TopicPartition,
    pub(crate) sink: &'a str,
    pub(crate) spool: &'a Path,
    pub(crate) encoders: &'a Arc<Encoders>,
    pub(crate) key: &'a dyn Fn(&str) -> String,
}

impl OpenClaim {
    /// Without objects.
    pub(crate) fn new() -> Self {
        Self {
            objects: Vec::new(),
            closed: Vec::new(),
            since: None,
            closed_at: None,
            broken: false,
            lanes: HashMap::new(),
        }
    }

    /// The shape that the rows of a lane were last decoded with.
    pub(crate) fn shape(&self, lane: &LaneKey) -> Option<&Arc<Shape>> {
        self.lanes.get(lane)
    }

    /// The lane's rows are decoded with this shape from now on.
    pub(crate) fn set_shape(&mut self, lane: &LaneKey, shape: Arc<Shape>) {
        match self.lanes.get_mut(lane) {
            Some(known) => *known = shape,
            None => {
                if self.lanes.len() >= KEPT_LANES {
                    let open: Vec<_> = self.objects.iter().map(|object| object.path.as_str()).collect();
                    self.lanes.retain(|lane, _| open.contains(&lane.path.as_str()));
                }
                self.lanes.insert(lane.clone(), shape);
            }
        }
    }

    /// Adds rows, with their first and last offsets, to the object of their path that takes them, or to a new one. `waited` is how long the first of
    /// them has been in its topic: what comes while objects are published is read only after that, and would be older than `age` says.
    pub(crate) fn add(
        &mut self,
        making: &Making<'_>,
        path: &str,
        batch: RecordBatch,
        offsets: (i64, i64),
        waited: Duration,
    ) -> Result<()> {
        let now = Instant::now();
        // No longer than since the last ones were closed: a backlog is old, and still fills files.
        let came = || now - waited.min(self.closed_at.map_or(Duration::ZERO, |closed| now - closed));
        self.since = Some((self.since.map_or_else(came, |(first, _)| first), now));
        self.whole(|open| open.add_whole(making, path, batch, offsets))
    }

    /// Does something after which the claim is broken if it fails.
    fn whole<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.broken {
            return Err(Error::external(
                "s3.spool_broken",
                "an earlier error left rows of this partition half written; it must be read again from its committed offset",
            ));
        }
        let outcome = work(self);
        self.broken = outcome.is_err();
        outcome
    }

    fn add_whole(&mut self, making: &Making<'_>, path: &str, batch: RecordBatch, offsets: (i64, i64)) -> Result<()> {
        let mut fields = batch.schema_ref().fields().clone();
        let mut settled = None;
        for (index, object) in self.objects.iter_mut().enumerate().filter(|(_, object)| object.path == path) {
            match object.fit(&fields) {
                Fit::Takes(fields) => return object.add(batch, fields, offsets),
                Fit::Settled(union) => {
                    settled = Some((index, union));
                    break;
                }
                Fit::Conflict => {}
            }
        }
        if let Some((index, union)) = settled {
            let object = self.objects.remove(index);
            self.closed.push(close(object, making)?);
            fields = union;
        }
        let mut object = OpenObject::new(making, path, fields.clone());
        object.add(batch, fields, offsets)?;
        self.objects.push(object);
        Ok(())
    }

    /// Closes all objects. After an error the claim must be read again.
    pub(crate) fn close(&mut self, making: &Making<'_>) -> Result<Vec<PlannedObject>> {
        self.whole(|open| {
            for object in std::mem::take(&mut open.objects) {
                open.closed.push(close(object, making)?);
            }
            Ok(())
        })?;
        self.since = None;
        self.closed_at = Some(Instant::now());
        let mut closed = std::mem::take(&mut self.closed);
        closed.sort_by_key(|object| (object.first_offset, object.last_offset));
        Ok(closed)
    }

    /// Puts the objects that hold at least so many bytes in memory into their files.
    pub(crate) fn spill(&mut self, least: usize) -> Result<()> {
        self.whole(|open| {
            open.objects.iter_mut().filter(|object| object.memory() >= least).try_for_each(OpenObject::spill)
        })
    }

    /// Local files of closed objects; those of open ones go when they are dropped.
    pub(crate) fn closed_temps(&self) -> impl Iterator<Item = &str> {
        self.closed.iter().map(|object| object.temp.as_str())
    }

    /// No rows?
    pub(crate) fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// Open local files. Objects whose rows are still kept in memory have none.
    pub(crate) fn open_files(&self) -> usize {
        self.objects.iter().filter(|object| object.has_file()).count()
    }

    /// Bytes of its largest open object.
    pub(crate) fn largest(&self) -> usize {
        self.objects.iter().map(OpenObject::bytes).max().unwrap_or(0)
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.objects.iter().map(OpenObject::memory).sum()
    }

    /// Bytes that each open object holds in memory.
    pub(crate) fn memories(&self) -> impl Iterator<Item = usize> {
        self.objects.iter().map(OpenObject::memory)
    }

    /// When its age or idleness makes it due. Idle is the whole claim, not one of its objects: a path that gets a late record now
    /// and then must not cut the others into small files.
    pub(crate) fn due_at(&self, rotate: &Rotate) -> Option<Instant> {
        let (first, last) = self.since?;
        Some((first + rotate.age).min(last + rotate.idle))
    }

    /// Is one of its objects large enough?
    pub(crate) fn is_full(&self, rotate: &Rotate) -> bool {
        let full = |bytes: u64, records: u64| bytes >= rotate.bytes || records >= rotate.records;
        self.objects.iter().any(|object| full(object.bytes() as u64, object.records))
            || self.closed.iter().any(|object| full(object.bytes, object.records))
    }
}

fn close(object: OpenObject, making: &Making<'_>) -> Result<PlannedObject> {
    let path = object.path.clone();
    let id = object.id.clone();
    object.close(making.claim, making.sink, |first, last| {
        (making.key)(&object_name(&path, making.claim, first, last, &id))
    })
}
