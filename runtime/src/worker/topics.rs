//! The topics that pipelines need before they run.

use std::collections::BTreeMap;

use trunkline_connector::{Result, Template};

use crate::checkpoint::{TopicClaim, state_topic};
use crate::config::TopicSettings;
use crate::kafka::{Cluster, TopicSpec};
use crate::plan::{Pipeline, TopicSelector};
use crate::stage::Names;

/// A pipeline's topics with known names: those that its sources and transforms write, and its dead
/// letters.
pub(super) fn topics_of(pipeline: &Pipeline, settings: &TopicSettings) -> Vec<TopicSpec> {
    let mut topics = Vec::new();
    let mut add = |name: &str, partitions: Option<i32>| {
        topics.push(TopicSpec {
            name: name.to_owned(),
            partitions: partitions.unwrap_or(settings.partitions),
            replication: settings.replication,
            config: settings.config.clone(),
        });
    };
    add(&pipeline.dead_letters, None);
    for source in &pipeline.sources {
        for topic in source.topics().filter_map(Template::constant) {
            add(topic, source.partitions);
        }
    }
    for transform in &pipeline.transforms {
        for topic in transform.topics().filter_map(Template::constant) {
            add(topic, transform.partitions);
        }
    }
    topics
}

/// The topics with known names that the sources and transforms of a pipeline write.
pub(super) fn claims_of(pipeline: &Pipeline, names: &Names) -> Vec<TopicClaim> {
    let claim = |component: &str, topic: &Template| {
        let owner = names.owner(&pipeline.name, component, false);
        Some(TopicClaim { topic: topic.constant()?.to_owned(), owner })
    };
    let sources = pipeline.sources.iter().flat_map(|source| source.topics().map(|topic| claim(&source.name, topic)));
    let transforms = pipeline.transforms.iter().flat_map(|plan| plan.topics().map(|topic| claim(&plan.name, topic)));
    sources.chain(transforms).flatten().collect()
}

/// The changelog topics of the transforms with state. A changelog has as many partitions as the
/// input topic with the most. `partitions_of` looks up a topic. Of a pattern, the topics are not
/// known yet: topics that Trunkline creates are assumed.
pub(super) fn state_topics(
    pipeline: &Pipeline,
    settings: &TopicSettings,
    cluster: &Cluster,
    names: &Names,
    partitions_of: impl Fn(&str) -> Result<Option<i32>>,
) -> Result<Vec<TopicSpec>> {
    let mut topics = Vec::new();
    for transform in pipeline.transforms.iter().filter(|transform| transform.state.is_some()) {
        let mut partitions = 1;
        for input in &transform.inputs {
            let known = match &input.topics {
                TopicSelector::Exact(topic) => partitions_of(topic)?,
                TopicSelector::Pattern(_) => None,
            };
            partitions = partitions.max(known.unwrap_or(settings.partitions));
        }
        topics.push(TopicSpec {
            name: cluster.own_topic(&state_topic(&names.component(&pipeline.name, &transform.name))),
            partitions,
            replication: settings.replication,
            config: BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]),
        });
    }
    Ok(topics)
}
