//! The positions of a component in the form of Kafka Connect's `/connectors/{name}/offsets`.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use trunkline_connector::{Error, Placement, Result, TopicPartition};

use crate::checkpoint::{Moved, Positions, source_stays};
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

/// The body of a PATCH.
#[derive(Deserialize)]
pub(super) struct NewOffsets {
    pub(super) offsets: Option<Vec<NewOffset>>,
}

/// The new position in a topic partition.
#[derive(Deserialize, Serialize)]
pub(super) struct NewOffset {
    partition: Place,
    /// `None`: the first record that the topic partition still has.
    offset: Option<At>,
}

#[derive(Deserialize, Serialize)]
struct Place {
    kafka_topic: String,
    #[serde(deserialize_with = "number")]
    kafka_partition: i32,
}

#[derive(Deserialize, Serialize)]
struct At {
    #[serde(deserialize_with = "number")]
    kafka_offset: i64,
}

/// A number, or its text: Kafka Connect accepts both.
fn number<'de, D: Deserializer<'de>, N: FromStr>(deserializer: D) -> std::result::Result<N, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|_| D::Error::custom(format!("{value} is not a partition or offset")))
}

/// Moves a sink or transform; without `new`, to the first records that its topics still have.
pub(super) fn change(
    cluster: &Cluster,
    task: &str,
    component: &ComponentInfo,
    new: Option<Vec<NewOffset>>,
) -> Result<()> {
    if component.placement.is_some() {
        return Err(source_stays(&component.name, component.connector == "mysql"));
    }
    let moved = Moved { name: &component.name, task, is_sink: component.kind == "sink" };
    let offsets = GroupOffsets::new(cluster, task)?;
    moved.require_stopped(&offsets)?;
    let known = offsets.partitions(|topic| component.topics.iter().any(|selector| selector.selects(topic)))?;
    let mut next = BTreeMap::new();
    let new = match new {
        Some(new) => new.into_iter().map(|new| (new.partition, new.offset.map(|at| at.kafka_offset))).collect(),
        None => known.iter().map(|known| (place_of(known), None)).collect::<Vec<_>>(),
    };
    for (place, offset) in new {
        let found =
            known.iter().find(|known| *known.topic == *place.kafka_topic && known.partition == place.kafka_partition);
        let Some(partition) = found else {
            let message = format!(
                "`{}` does not read the partition {} of a topic `{}`",
                component.name, place.kafka_partition, place.kafka_topic
            );
            return Err(Error::config("offsets.unknown_partition", message));
        };
        let (first, end) = offsets.watermarks(partition)?;
        let offset = offset.unwrap_or(first);
        if !(first..=end).contains(&offset) {
            let message = format!("{partition} has the offsets {first} to {end}, and not {offset}");
            return Err(Error::config("offsets.out_of_range", message));
        }
        next.insert(partition.clone(), offset);
    }
    moved.to(cluster, &offsets, &next)
}

fn place_of(partition: &TopicPartition) -> Place {
    Place { kafka_topic: partition.topic.to_string(), kafka_partition: partition.partition }
}
