//! The counters of I3: for every component, `in + extra = out + dropped + dead_lettered`.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// What happened to the records of one component.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentCounters {
    /// Records that came in (for a source: that it found).
    #[serde(rename = "in")]
    pub records_in: u64,
    /// Records that went out (for a sink: that it published).
    pub out: u64,
    /// Records left out by a named verdict.
    pub dropped: u64,
    /// Records sent to the dead letter topic.
    pub dead_lettered: u64,
    /// Records emitted beyond one for each that came in.
    pub extra: u64,
}

impl ComponentCounters {
    /// Does the sum hold?
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

    /// Adds another set.
    pub fn add(&mut self, other: &Self) {
        for (component, counters) in &other.0 {
            *self.of(component) += *counters;
        }
    }

    /// Nothing counted?
    pub fn is_zero(&self) -> bool {
        self.0.values().all(|counters| *counters == ComponentCounters::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_balance() {
        let mut total = Counters::default();
        let mut part = Counters::default();
        *part.of("web") = ComponentCounters { records_in: 5, out: 4, dropped: 1, dead_lettered: 1, extra: 1 };
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
