//! The names by which Kafka knows a cluster's groups, transactional ids and state rows. They decide
//! who fences whom (I4).

use trunkline_connector::{Error, Result};

use crate::checkpoint::TaskOwner;

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

    /// What the name of a source's task stands for: on this node, or in the whole cluster.
    pub fn owner(&self, pipeline: &str, source: &str, on_node: bool) -> TaskOwner {
        TaskOwner {
            cluster: self.cluster.clone(),
            pipeline: pipeline.to_owned(),
            component: source.to_owned(),
            node: on_node.then(|| self.node.clone()),
        }
    }

    /// The group of the leases on the sources of the cluster.
    pub fn leases(&self) -> String {
        format!("{}.tasks", self.cluster)
    }

    /// The group of the leases on the sources that run on this node.
    pub fn node_leases(&self) -> String {
        format!("{}.tasks.{}", self.cluster, self.node)
    }

    /// Checks that the group of a sink or transform is not the one of this node's leases.
    pub fn check_group(&self, pipeline: &str, component: &str) -> Result<()> {
        let group = self.component(pipeline, component);
        if group != self.node_leases() {
            return Ok(());
        }
        let message = format!(
            "the consumer group `{group}` of `{component}` is the group of the source tasks of the node `{}`: rename the \
             pipeline `{pipeline}` or the component, or set another `node`",
            self.node
        );
        Err(Error::config("stage.name_taken", message))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_leases_is_no_group_of_a_component() {
        let names = Names { cluster: "c".to_owned(), node: "host-1".to_owned(), worker: "w".to_owned() };
        assert_eq!(names.check_group("tasks", "host-1").unwrap_err().code, "stage.name_taken");
        for (pipeline, component) in [("tasks", "host-2"), ("orders", "host-1")] {
            names.check_group(pipeline, component).unwrap();
        }
    }
}
