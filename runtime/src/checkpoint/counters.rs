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

/// The dead letters of a component whose codes are not counted one by one: plugins choose the codes
/// of their rejections, and each code is a time series.
pub(super) const OTHER_CODES: &str = "other";
const MAX_CODES: usize = 50;

/// Counters by component name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counters(pub BTreeMap<String, ComponentCounters>, #[serde(skip)] pub DeadLetterCodes);

/// The dead letters of each component by error code. They are not stored: the metrics show them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterCodes(BTreeMap<String, BTreeMap<String, u64>>);

impl DeadLetterCodes {
    fn add(&mut self, component: &str, code: &str, count: u64) {
        if !self.0.contains_key(component) {
            self.0.insert(component.to_owned(), BTreeMap::new());
        }
        let Some(codes) = self.0.get_mut(component) else { return };
        let has_room = codes.len() < MAX_CODES + usize::from(codes.contains_key(OTHER_CODES));
        match codes.get_mut(code) {
            Some(known) => *known += count,
            None => *codes.entry(if has_room { code } else { OTHER_CODES }.to_owned()).or_default() += count,
        }
    }

    /// Component, code and count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.0.iter().flat_map(|(component, codes)| {
            codes.iter().map(move |(code, count)| (component.as_str(), code.as_str(), *count))
        })
    }
}

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
        for (component, code, count) in other.1.iter() {
            self.1.add(component, code, count);
        }
    }

    /// Counts a record that went to the dead letters.
    pub fn add_dead_letter(&mut self, component: &str, code: &str) {
        self.of(component).dead_lettered += 1;
        self.1.add(component, code, 1);
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
    fn dead_letters_are_counted_by_a_bounded_number_of_codes() {
        let mut part = Counters::default();
        for number in 0..MAX_CODES + 7 {
            part.add_dead_letter("web", &format!("plugin.{number:03}"));
        }
        part.add_dead_letter("web", "plugin.000");
        let mut total = Counters::default();
        total.add(&part);
        total.add(&part);
        assert_eq!(total.of("web").dead_lettered, 2 * (MAX_CODES as u64 + 8));
        let codes: BTreeMap<&str, u64> = total.1.iter().map(|(_, code, count)| (code, count)).collect();
        assert_eq!((codes.len(), codes["plugin.000"], codes[OTHER_CODES]), (MAX_CODES + 1, 4, 14));
        assert_eq!(total.1.iter().map(|(_, _, count)| count).sum::<u64>(), total.of("web").dead_lettered);
        let stored = serde_json::to_string(&total).unwrap();
        assert!(!stored.contains("plugin."), "{stored}");
        assert_eq!(serde_json::from_str::<Counters>(&stored).unwrap().0, total.0);
    }

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
