//! The topics that a stage reads, and the chain of transforms for each.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use trunkline_connector::{Error, Result, Schema};

use super::chain::{Chain, SchemasOfRecords};
use crate::plan::{Input, Route, TopicSelector};

/// Inputs of a stage, with a running chain for each topic that records came from.
pub(super) struct Routes {
    inputs: Vec<(Selector, Route)>,
    subscription: Vec<String>,
    chains: HashMap<Arc<str>, Chain>,
    schemas: SchemasOfRecords,
}

enum Selector {
    Exact(String),
    Pattern(Regex),
}

impl Routes {
    /// Reads the plan's inputs. The plugins of exact topics start now, so that one that refuses its
    /// configuration is known at once.
    pub(super) fn start(inputs: &[Input], schemas: SchemasOfRecords) -> Result<Self> {
        let mut this = Self { inputs: Vec::new(), subscription: Vec::new(), chains: HashMap::new(), schemas };
        for input in inputs {
            let selector = match &input.topics {
                TopicSelector::Exact(name) => {
                    this.subscription.push(name.clone());
                    let chain = Chain::start(&input.route, &this.schemas)?;
                    this.chains.insert(Arc::from(name.as_str()), chain);
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

    /// The schemas that the plugins have derived so far.
    pub(super) fn derived_schemas(&self) -> Vec<Arc<Schema>> {
        let mut derived = Vec::new();
        self.chains.values().for_each(|chain| chain.derived_schemas(&mut derived));
        derived
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
            self.chains.insert(topic.clone(), Chain::start(route, &self.schemas)?);
        }
        self.chains.get_mut(topic).ok_or_else(|| Error::internal("plan.topic", "a chain vanished"))
    }
}
