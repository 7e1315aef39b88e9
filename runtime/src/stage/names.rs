//! The names by which Kafka knows a cluster's groups, transactional ids and state rows. They decide
//! who fences whom (I4).

/// Names of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Name of the Trunkline cluster: workers with the same name share the work.
    pub cluster: String,
    /// Name of this machine: a source that runs on every node keeps a position for each.
    pub node: String,
    /// This worker, the same after a restart on the same data directory.
    pub worker: String,
}

impl Names {
    /// A component with one instance in the cluster: its consumer group, and the owner of its state
    /// rows.
    pub fn component(&self, pipeline: &str, component: &str) -> String {
        component_name(&self.cluster, pipeline, component)
    }

    /// The prefix of the names of all components of a pipeline.
    pub fn pipeline_prefix(&self, pipeline: &str) -> String {
        format!("{}.{pipeline}.", self.cluster)
    }

    /// A source's task on this node: transactional id, and owner of its state rows.
    pub fn node_task(&self, pipeline: &str, source: &str) -> String {
        format!("{}.{pipeline}.{source}.{}", self.cluster, self.node)
    }

    /// A member of a component's group: group instance id and transactional id. The group's
    /// generation fences its commits, so the id does not name a partition. It names the worker, so
    /// that a restart aborts at once what a killed worker left open.
    pub fn member(&self, pipeline: &str, component: &str, task: u32) -> String {
        format!("{}.{pipeline}.{component}.{}.{task}", self.cluster, self.worker)
    }
}

/// See [`Names::component`].
pub fn component_name(cluster: &str, pipeline: &str, component: &str) -> String {
    format!("{cluster}.{pipeline}.{component}")
}
