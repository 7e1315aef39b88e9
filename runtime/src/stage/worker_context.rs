//! What all stages of a worker share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::{MemoryBudget, Result, io_error};
use trunkline_transform_host::StateDisk;

use super::names::Names;
use super::read_ahead::Backlogs;
use super::stop_signal::StopSignal;
use crate::checkpoint::{Schemas, TopicOwners};
use crate::config::TopicSettings;
use crate::kafka::{Admin, Cluster};
use crate::telemetry::Tracer;

/// What all stages of a worker share.
#[derive(Clone)]
pub struct WorkerContext {
    /// The Kafka cluster.
    pub cluster: Cluster,
    /// Looks up and creates topics. All stages share it, because a client has five threads and a
    /// megabyte of memory.
    pub admin: Arc<Admin>,
    /// Runs async calls.
    pub runtime: tokio::runtime::Handle,
    /// The process-wide byte budget (I6).
    pub budget: MemoryBudget,
    /// Schemas published in the cluster.
    pub schemas: Arc<Schemas>,
    /// Names in Kafka.
    pub names: Names,
    /// Which component writes which topic.
    pub owners: Arc<TopicOwners>,
    /// How topics are created.
    pub topics: TopicSettings,
    /// Time between commits of sources and transforms.
    pub commit_interval: Duration,
    /// A stage stops if its first records, as many as this, all fail; 0 turns the check off.
    pub max_initial_failures: u64,
    /// The run ends when everything that exists has been processed.
    pub until_idle: bool,
    /// Sinks may write next to output of which the cluster has no state, and sources and transforms
    /// to topics of components that no longer exist.
    pub append: bool,
    /// Set when the worker stops.
    pub stop: StopSignal,
    /// Scratch space; each task has a folder in it.
    pub scratch: PathBuf,
    /// The folder for the state of transforms, with its cache.
    pub state: StateDisk,
    /// This stage's share of the memory.
    pub share: ResourceShare,
    /// The sources that have a backlog.
    pub backlogs: Backlogs,
    /// Traces commits and deliveries.
    pub tracer: Tracer,
}

/// A stage's share of the worker's memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ResourceShare {
    /// Limit on what each consumer fetches ahead and what each producer holds unsent.
    pub client_buffer_bytes: usize,
    /// Limit on the records that a stage processes at once.
    pub batch_bytes: usize,
}

impl WorkerContext {
    /// Creates an empty scratch folder for a task, and removes what an earlier run left there.
    pub fn scratch(&self, task: &str) -> Result<PathBuf> {
        let path = self.scratch.join(task);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_error("clear", &path, &error)),
            _ => {}
        }
        std::fs::create_dir_all(&path).map_err(|error| io_error("create", &path, &error))?;
        Ok(path)
    }
}
