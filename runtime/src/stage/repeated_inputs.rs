//! Refuses inputs whose records a stage has processed already, from another topic.
//!
//! A transform that one component reads runs in that component's stage. When a second component
//! reads it, it becomes a stage with its own topic, which both read; when the second one is
//! removed, it runs in the stage of the first one again. The stage has no position in the topic
//! that it reads then: it would process all past records again, and write them a second time.

use std::collections::BTreeSet;

use trunkline_connector::{Error, Result, TopicPartition};

use super::upstream::Upstream;
use crate::plan::{Input, Route};

/// The stage that reads the inputs.
pub(super) struct Reader<'a> {
    pub(super) pipeline: &'a str,
    pub(super) component: &'a str,
    pub(super) inputs: &'a [Input],
    pub(super) upstream: &'a Upstream,
}

impl Reader<'_> {
    /// Refuses topic partitions without a position, if the stage has processed the same records
    /// from a topic that it reads no longer. `known` are the topics that it has processed.
    pub(super) fn check(&self, known: &BTreeSet<String>, new: &[TopicPartition]) -> Result<()> {
        let is_read = |topic: &str| self.inputs.iter().any(|input| input.topics.selects(topic));
        let now = new.iter().map(|partition| &*partition.topic).find(|topic| !known.contains(*topic));
        let Some(now) = now else { return Ok(()) };
        let mut left = known.iter().map(String::as_str).filter(|topic| !is_read(topic));
        let next = "or choose where it begins there with `trunkline offsets set`, or let it process all of that topic with `trunkline run \
                    --append`";
        let problem = left.find_map(|earlier| {
            if self.upstream.transformed.iter().any(|read| read.selects(earlier)) {
                return Some(format!(
                    "has processed the topic `{earlier}`, and reads `{now}` now, which a transform fills from that topic: it would process \
                     the same records again. A transform that a second component reads gets its own topic. Give the second component \
                     a transform of its own, so that nothing changes here; {next}"
                ));
            }
            let transform = self.fused(now).find(|name| earlier == format!("{}.{name}", self.pipeline))?;
            Some(format!(
                "has processed the topic `{earlier}` of the transform `{transform}`, and reads `{now}` now, from which the transform has \
                 filled that topic: it would process the same records again. Keep the topic with `topic = \"{earlier}\"` in the transform; \
                 {next}"
            ))
        });
        match problem {
            Some(problem) => {
                let message = format!("`{}.{}` {problem}", self.pipeline, self.component);
                Err(Error::config("stage.repeated_inputs", message))
            }
            None => Ok(()),
        }
    }

    /// The transforms that run in the stage, on the way from a topic.
    fn fused(&self, topic: &str) -> impl Iterator<Item = &str> {
        let mut names = Vec::new();
        for input in self.inputs.iter().filter(|input| input.topics.selects(topic)) {
            add_names(&input.route, &mut names);
        }
        names.into_iter()
    }
}

fn add_names<'r>(route: &'r Route, names: &mut Vec<&'r str>) {
    for branch in &route.branches {
        names.push(&branch.step.component);
        branch.outputs.iter().for_each(|(_, route)| add_names(route, names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::TopicSelector;

    #[test]
    fn only_a_transform_that_has_moved_in_between_is_refused() {
        let exact = |topic: &str| TopicSelector::Exact(topic.to_owned());
        let input = |topic: &str| Input { topics: exact(topic), route: Route::default() };
        let check = |read: &[&str], transformed: &[&str], known: &[&str], new: &[&str]| {
            let inputs: Vec<Input> = read.iter().map(|topic| input(topic)).collect();
            let transformed = transformed.iter().map(|topic| exact(topic)).collect();
            let upstream = Upstream { stages: Vec::new(), transformed };
            let known = known.iter().map(|topic| (*topic).to_owned()).collect();
            let new: Vec<TopicPartition> = new.iter().map(|topic| TopicPartition::new(*topic, 0)).collect();
            let reader = Reader { pipeline: "orders", component: "lake", inputs: &inputs, upstream: &upstream };
            reader.check(&known, &new)
        };
        let error = check(&["paid"], &["shop"], &["shop"], &["paid"]).unwrap_err();
        assert_eq!(error.code, "stage.repeated_inputs");
        assert!(error.message().starts_with("`orders.lake` has processed the topic `shop`, and reads `paid` now,"));
        // A first start; a table in the place of a removed one; both topics; a known position.
        assert!(check(&["paid"], &["shop"], &[], &["paid"]).is_ok());
        assert!(check(&["b"], &[], &["a"], &["b"]).is_ok());
        assert!(check(&["shop", "paid"], &["shop"], &["shop"], &["paid"]).is_ok());
        assert!(check(&["paid"], &["shop"], &["shop"], &[]).is_ok());
        assert!(check(&["paid"], &["shop"], &["shop", "paid"], &["paid"]).is_ok(), "another partition of it");
    }
}
