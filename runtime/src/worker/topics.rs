//! The topics that pipelines need before they run.

use trunkline_connector::Template;

use crate::config::TopicSettings;
use crate::kafka::TopicSpec;
use crate::plan::Pipeline;

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
