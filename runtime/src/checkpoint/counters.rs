//! The counters of I3: for every component, `in + extra = out + dropped + dead_lettered`.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// The records of one component, by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentCounters {
    /// Input records (for a source: records that it found).
    #[serde(rename = "in")]
    pub records_in: u64,
    /// Output records (for a sink: records that became visible).
    pub out: u64,
    /// Records dropped by a named verdict.
    pub dropped: u64,
    /// Records sent to the dead letter topic.
    pub dead_lettered: u64,
    /// Output records beyond one per input record.
    pub extra: u64,
    /// Of the records that went out, those that a transform passed on unchanged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unchanged: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl ComponentCounters {
    /// Whether the sum of I3 holds.
    pub fn balanced(&self) -> bool {
        self.records_in + self.extra == self.out + self.dropped + self.dead_lettered
    }
}

impl AddAssign for ComponentCounters {
    fn add_assign(&mut self, other: Self) {
        self.records_in += other.records_in;
        self.out += other.out;
        self.dropped += other.dropped;
        self.dead_lettered += other.dead_lettered;
        self.extra += other.extra;
        self.unchanged += other.unchanged;
    }
}

/// Counters by component name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counters(pub BTreeMap<String, ComponentCounters>);

impl Counters {
    /// The counters of one component.
    pub fn of(&mut self, component: &str) -> &mut ComponentCounters {
        self.0.entry(component.to_owned()).or_default()
    }

    /// Adds other counters, component by component.
    pub fn add(&mut self, other: &Self) {
        for (component, counters) in &other.0 {
            *self.of(component) += *counters;
        }
    }

    /// Whether nothing was counted.
    pub fn is_zero(&self) -> bool {
        self.0.values().all(|counters| *counters == ComponentCounters::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_and_show_whether_they_balance() {
        let mut total = Counters::default();
        let mut part = Counters::default();
        *part.of("web") =
            ComponentCounters { records_in: 5, out: 4, dropped: 1, dead_lettered: 1, extra: 1, unchanged: 0 };
        total.add(&part);
        total.add(&part);
        assert_eq!(total.of("web").records_in, 10);
        assert!(total.of("web").balanced());
        total.of("web").out += 1;
        assert!(!total.of("web").balanced());
        assert_eq!(
            serde_json::to_string(&part).unwrap(),
            r#"{"web":{"in":5,"out":4,"dropped":1,"dead_lettered":1,"extra":1}}"#
        );
    }
}
