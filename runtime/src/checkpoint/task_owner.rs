//! [`TaskOwner`]: what the joined name of a task stands for.

use serde::{Deserialize, Serialize};

/// What a task's name stands for. Names are joined with dots, and names of clusters and nodes may
/// contain dots, so that two tasks of different clusters can have the same name: `a`, `web`, `logs`
/// on the node `x.y`, and `a.web`, `logs`, `x` on the node `y`. The first of them stores this row,
/// and the second one stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOwner {
    /// The name of the cluster.
    pub cluster: String,
    /// The pipeline.
    pub pipeline: String,
    /// The component.
    pub component: String,
    /// The node, if each node has a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl std::fmt::Display for TaskOwner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cluster, pipeline, component, node } = self;
        write!(formatter, "`{component}` of the pipeline `{pipeline}` in the cluster `{cluster}`")?;
        node.as_ref().map_or(Ok(()), |node| write!(formatter, " on the node `{node}`"))
    }
}
