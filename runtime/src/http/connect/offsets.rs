//! The positions of a component in the form of Kafka Connect's `GET /connectors/{name}/offsets`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trunkline_connector::{Placement, Result};

use crate::checkpoint::Positions;
use crate::http::components::ComponentInfo;
use crate::kafka::{Cluster, GroupOffsets};

/// The positions of the component that Kafka knows as `name`.
pub(super) fn read(cluster: &Cluster, name: &str, component: &ComponentInfo) -> Result<Vec<Value>> {
    match component.placement {
        Some(placement) => of_source(cluster, name, placement),
        None => of_group(cluster, name, component),
    }
}

/// The parts of a source's position: on every node, if it runs there.
fn of_source(cluster: &Cluster, name: &str, placement: Placement) -> Result<Vec<Value>> {
    let nodes = match placement {
        Placement::Anywhere => BTreeMap::from([(None, Positions::load(cluster, name, name)?.parts)]),
        Placement::EveryNode => {
            Positions::by_node(cluster, name)?.into_iter().map(|(node, parts)| (Some(node), parts)).collect()
        }
    };
    let mut offsets = Vec::new();
    for (node, parts) in nodes {
        for (part, value) in parts {
            let position = serde_json::from_slice(&value);
            let position = position.unwrap_or_else(|_| json!({ "position": String::from_utf8_lossy(&value) }));
            offsets.push(json!({ "partition": place(node.as_deref(), &part), "offset": position }));
        }
    }
    Ok(offsets)
}

fn place(node: Option<&str>, part: &str) -> Value {
    match node {
        Some(node) => json!({ "node": node, "part": part }),
        None => json!({ "part": part }),
    }
}

/// The committed offsets of a sink's or transform's group.
fn of_group(cluster: &Cluster, name: &str, component: &ComponentInfo) -> Result<Vec<Value>> {
    let offsets = GroupOffsets::new(cluster, name)?;
    let partitions = offsets.partitions(|topic| component.topics.iter().any(|selector| selector.selects(topic)))?;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let committed = offsets.committed(&partitions)?.into_iter().map(|(partition, offset)| {
        json!({
            "partition": { "kafka_topic": &*partition.topic, "kafka_partition": partition.partition },
            "offset": { "kafka_offset": offset },
        })
    });
    Ok(committed.collect())
}
