//! What all stages of a worker share, and the names by which Kafka knows them.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::{MemoryBudget, Result, io_error};

use crate::checkpoint::Schemas;
use crate::config::TopicSettings;
use crate::kafka::{Admin, Cluster};

/// What all stages of a worker share.
#[derive(Clone)]
pub struct Environment {
    /// The Kafka cluster.
    pub cluster: Cluster,
    /// For looking at its topics and creating them. One for all stages, because a client costs five threads and a megabyte.
    pub admin: Arc<Admin>,
    /// For what is async.
    pub runtime: tokio::runtime::Handle,
    /// The process-wide byte budget (I6).
    pub budget: MemoryBudget,
    /// Schemas published in the cluster.
    pub schemas: Arc<Schemas>,
    /// Names in Kafka.
    pub names: Names,
    /// How topics are created.
    pub topics: TopicSettings,
    /// Time between commits of sources and transforms.
    pub commit_interval: Duration,
    /// End when everything there has been moved.
    pub until_idle: bool,
    /// Set when the worker stops.
    pub stop: Stop,
    /// Scratch space; each stage takes a folder of its own in it.
    pub scratch: PathBuf,
    /// Bytes that each consumer may fetch ahead and each producer may hold back.
    pub client_buffer: usize,
    /// Bytes of records that a stage takes at once.
    pub batch_bytes: usize,
}

impl Environment {
    /// An empty scratch folder for a task. What an earlier run left there is removed: nothing in it is needed after a restart.
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

/// The names by which a cluster's groups, transactional ids and rows are found. They decide who fences whom (I4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Name of the Trunkline cluster: all workers with this name share the work.
    pub cluster: String,
    /// Name of this machine: sources that run on every node keep a position for each.
    pub node: String,
    /// This worker, the same after a restart on the same data directory.
    pub worker: String,
}

impl Names {
    /// A component that is one for the cluster: its consumer group, and the owner of its rows.
    pub fn component(&self, pipeline: &str, component: &str) -> String {
        component_name(&self.cluster, pipeline, component)
    }

    /// What the names of all components of a pipeline start with.
    pub fn pipeline_prefix(&self, pipeline: &str) -> String {
        format!("{}.{pipeline}.", self.cluster)
    }

    /// A source's task on this node: transactional id and owner of its rows.
    pub fn node_task(&self, pipeline: &str, source: &str) -> String {
        format!("{}.{pipeline}.{source}.{}", self.cluster, self.node)
    }

    /// A member of a component's group: group instance id and transactional id. The group's generation fences its commits, so that the
    /// id need not be the partition's; being the worker's own, it settles at once what this worker left open when it was killed.
    pub fn member(&self, pipeline: &str, component: &str, task: u32) -> String {
        format!("{}.{pipeline}.{component}.{}.{task}", self.cluster, self.worker)
    }
}

/// See [`Names::component`].
pub fn component_name(cluster: &str, pipeline: &str, component: &str) -> String {
    format!("{cluster}.{pipeline}.{component}")
}

/// A flag that can be waited for.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<(Mutex<Option<Instant>>, Condvar)>,
    parent: Option<Box<Stop>>,
}

/// A child looks at its parent this often.
const LOOK_UP: Duration = Duration::from_millis(50);

impl Stop {
    /// A flag that is set too when this one is.
    pub fn child(&self) -> Self {
        Self { shared: Arc::default(), parent: Some(Box::new(self.clone())) }
    }

    /// Asks everything to stop.
    pub fn set(&self) {
        self.lock().get_or_insert_with(Instant::now);
        self.shared.1.notify_all();
    }

    /// Was it asked?
    pub fn is_set(&self) -> bool {
        self.lock().is_some() || self.parent.as_ref().is_some_and(|parent| parent.is_set())
    }

    /// How long ago it was asked.
    pub fn since(&self) -> Option<Duration> {
        let own = self.lock().map(|at| at.elapsed());
        own.max(self.parent.as_ref().and_then(|parent| parent.since()))
    }

    /// Waits until it is asked, at most `timeout`; says whether it was.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.is_set() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let slice = if self.parent.is_some() { left.min(LOOK_UP) } else { left };
            let own = self.lock();
            if own.is_none() {
                // Woken early or not: the loop looks again.
                drop(self.shared.1.wait_timeout(own, slice));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way_round() {
        let parent = Stop::default();
        let (first, second) = (parent.child(), parent.child());
        first.set();
        assert!(first.is_set() && !second.is_set() && !parent.is_set());
        assert!(!second.wait(Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || second.wait(Duration::from_secs(10)));
        parent.set();
        assert!(waiter.join().unwrap());
    }
}
