//! The topics that a stage reads, and the chain of transforms for each.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use trunkline_connector::{Error, Result};

use super::chain::Chain;
use crate::plan::{Input, Route, TopicSelector};

/// Inputs of a stage, with a running chain for each topic that records came from.
pub(super) struct Routes {
    inputs: Vec<(Selector, Route)>,
    subscription: Vec<String>,
    chains: HashMap<Arc<str>, Chain>,
}

enum Selector {
    Exact(String),
    Pattern(Regex),
}

impl Routes {
    /// Reads the plan's inputs. The plugins of exact topics start now, so that one that refuses its
    /// configuration is known at once.
    pub(super) fn start(inputs: &[Input]) -> Result<Self> {
        let mut this = Self { inputs: Vec::new(), subscription: Vec::new(), chains: HashMap::new() };
        for input in inputs {
            let selector = match &input.topics {
                TopicSelector::Exact(name) => {
                    this.subscription.push(name.clone());
                    this.chains.insert(Arc::from(name.as_str()), Chain::start(&input.route)?);
                    Selector::Exact(name.clone())
                }
                TopicSelector::Pattern(pattern) => {
                    this.subscription.push(pattern.clone());
                    Selector::Pattern(
                        Regex::new(pattern).map_err(|error| Error::internal("plan.pattern", error.to_string()))?,
                    )
                }
            };
            this.inputs.push((selector, input.route.clone()));
        }
        Ok(this)
    }

    /// What to subscribe to: names, and patterns that start with `^`.
    pub(super) fn subscription(&self) -> Vec<String> {
        self.subscription.clone()
    }

    /// The chain for a topic.
    pub(super) fn chain(&mut self, topic: &Arc<str>) -> Result<&mut Chain> {
        if !self.chains.contains_key(topic) {
            let matches = |selector: &Selector| match selector {
                Selector::Exact(name) => name.as_str() == topic.as_ref(),
                Selector::Pattern(pattern) => pattern.is_match(topic),
            };
            let (_, route) = self.inputs.iter().find(|(selector, _)| matches(selector)).ok_or_else(|| {
                Error::internal("plan.topic", format!("records came from `{topic}`, which is no input"))
            })?;
            self.chains.insert(topic.clone(), Chain::start(route)?);
        }
        self.chains.get_mut(topic).ok_or_else(|| Error::internal("plan.topic", "a chain vanished"))
    }
}
