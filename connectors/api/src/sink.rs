//! What a sink connector implements.
//!
//! A sink that publishes objects goes through four steps for each claim (a partition it owns), driven by the stage, so that offsets and
//! objects move together (I2) whatever dies in between:
//!
//! 1. [`Sink::write`] adds records to open objects, which nobody else sees.
//! 2. [`Sink::plan`] closes the claim's open objects and names what is about to be created outside. The stage records the plan
//!    in Kafka *before* [`Sink::stage`] creates any of it, so that whatever is left behind by a crash can be found and [aborted](Sink::abort).
//! 3. [`Sink::stage`] brings the bytes to the destination without making them visible and returns the **intent**: all it takes to publish
//!    them. The stage commits intent, consumer offsets and dead letters in one transaction. From here on the objects are promised.
//! 4. [`Sink::publish`] makes them visible. It is idempotent, and whoever claims the partition next calls it again with the intent it finds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::batch::Batch;
use crate::budget::MemoryBudget;
use crate::config::{OptionSpec, Section};
use crate::error::Result;
use crate::rejection::Rejections;
use crate::schema::{Schema, SchemaId};

/// A kind of sink, as the registry lists it.
pub trait SinkConnector: Send + Sync {
    /// Its name in pipeline files: `connector = "name"`.
    fn name(&self) -> &'static str;

    /// Declares the connector's own options; the runtime adds those that all sinks share.
    fn options(&self) -> &'static [OptionSpec];

    /// Reads the component's section. Problems go to the section's report, all of them; `None` if there was one. `template_variables` are the
    /// names after `@` that templates may use for records of this sink's inputs. Touches nothing outside.
    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>>;
}

/// A sink as configured, ready to be opened any number of times.
pub trait SinkSpec: Send + Sync {
    /// Opens it: connects, checks that the destination can be written to.
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>>;
}

/// What a sink is opened with.
pub struct SinkContext {
    /// `{pipeline}.{sink}`, unique in the cluster: names scratch files, marks objects.
    pub name: String,
    /// The process-wide byte budget; the stage reserves [`Sink::memory`] from it.
    pub budget: MemoryBudget,
    /// For connectors that speak to servers; a sink's thread may block on it.
    pub runtime: tokio::runtime::Handle,
    /// Scratch space of this task, empty at start; nothing in it is needed after a restart.
    pub scratch: PathBuf,
    /// Looks a schema up by the id in a record's header `trunkline.schema`.
    pub schemas: Arc<dyn SchemaLookup>,
}

/// Finds published schemas.
pub trait SchemaLookup: Send + Sync {
    /// The schema of that id; `Ok(None)` if no such schema was ever published. May block to read what was published since.
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>>;
}

/// A partition that this task owns (I4).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

/// A running sink. It has a thread of its own and may block there, within reason: a call that cannot finish returns an external error
/// within a minute, and the stage tries again without losing the claims.
///
/// After an error from `stage`, `publish`, `abort` or `claimed` that is worth another try the same step is called again with the same
/// arguments. After an error from `write`, `plan` or `relieve` the sink is dropped, a new one opened, and everything read again
/// from the committed offsets: what was buffered may be lost then.
pub trait Sink: Send {
    /// Adds records of one claim to its open objects, in order of offsets. A record that cannot be written goes to `rejected`, and the
    /// others are written. One offset may come several times (a transform emitted several records) or not at all.
    fn write(&mut self, claim: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()>;

    /// Claims whose objects should be published now, by the sink's own rules (size, count, age, idle time).
    fn due(&self, now: Instant) -> Vec<TopicPartition>;

    /// When [`Sink::due`] will have something by the clock alone, if nothing is written until then.
    fn next_due(&self) -> Option<Instant>;

    /// Has the claim records that are not published?
    fn has_open(&self, claim: &TopicPartition) -> bool;

    /// Step 2. Closes the claim's open objects for good; records written from now on go to new ones. `Ok(None)`: nothing was open.
    /// Called again before [`Sink::stage`] succeeded, it returns the same plan.
    fn plan(&mut self, claim: &TopicPartition) -> Result<Option<Value>>;

    /// Step 3, for claims that were planned: returns an intent each, in their order. Uploads of all claims may run side by side.
    fn stage(&mut self, claims: &[TopicPartition]) -> Result<Vec<Value>>;

    /// Step 4: makes visible what the intents promise, whether this task, an earlier one or both at once do it.
    fn publish(&mut self, intents: &[Value]) -> Result<()>;

    /// Recovery: removes what a plan may have created outside, if it was never followed by an intent.
    fn abort(&mut self, plan: &Value) -> Result<()>;

    /// Forgets the claim's open objects without a trace outside: the partition was taken away, or is read again. A plan that was
    /// recorded is [aborted](Sink::abort) by the stage.
    fn discard(&mut self, claim: &TopicPartition);

    /// A partition was claimed: removes leftovers of earlier tasks that died with objects open. What `promised` intents name is kept.
    fn claimed(&mut self, claim: &TopicPartition, promised: &[Value]) -> Result<()>;

    /// Bytes held in memory now.
    fn memory(&self) -> usize;

    /// Memory is tight (I6): moves the largest buffers out of memory. Visible results do not change.
    fn relieve(&mut self) -> Result<()>;
}
