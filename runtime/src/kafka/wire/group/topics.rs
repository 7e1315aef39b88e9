//! The topics that members subscribe, and their numbers of partitions, asked once for all members
//! of a process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use trunkline_connector::Error;

use super::membership::{MemberOptions, Shared};
use crate::backoff::Backoff;
use crate::kafka::client::classify_code;
use crate::kafka::wire::brokers::{Brokers, CallError};

/// New topics that match a pattern, and new partitions, are found within this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Time until a topic that is missing is asked for again. It grows up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A topic that is missing for so long is deleted. A broker that has just started knows no topics.
const DELETED: Duration = Duration::from_secs(15);

/// The topics of a cluster that members subscribe.
pub(super) struct Topics {
    counts: BTreeMap<Arc<str>, i32>,
    /// Since when topics are missing.
    missing: HashMap<Arc<str>, Instant>,
    denied: BTreeSet<Arc<str>>,
    /// Changes with the counts.
    pub(super) version: u64,
    /// The number of answers.
    pub(super) answers: u64,
    due: Instant,
    backoff: Backoff,
}

/// Which topics to ask for.
pub(super) struct Wanted {
    pub(super) names: BTreeSet<Arc<str>>,
    /// A member has a pattern.
    pub(super) all: bool,
}

impl Topics {
    pub(super) fn new() -> Self {
        Self {
            counts: BTreeMap::new(),
            missing: HashMap::new(),
            denied: BTreeSet::new(),
            version: 0,
            answers: 0,
            due: Instant::now(),
            backoff: Backoff::new(FIRST_PAUSE, INTERVAL),
        }
    }

    /// When to ask.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Asks at once for topics that are not known.
    pub(super) fn need(&mut self, options: &MemberOptions) {
        if options.topics.iter().any(|topic| topic.starts_with('^') || !self.counts.contains_key(topic.as_str())) {
            self.due = Instant::now();
        }
    }

    /// Whether the partitions of these topics are known.
    pub(super) fn know(&self, topics: &BTreeSet<Arc<str>>) -> bool {
        topics.iter().all(|topic| self.counts.contains_key(topic))
    }

    /// The numbers of partitions of these topics, without those that do not exist.
    pub(super) fn counts(&self, topics: &BTreeSet<Arc<str>>) -> BTreeMap<Arc<str>, i32> {
        topics.iter().filter_map(|topic| self.counts.get_key_value(topic)).map(|(t, n)| (t.clone(), *n)).collect()
    }

    /// The topics that a member subscribes: its names, and what its patterns match.
    pub(super) fn of(&self, member: &Shared) -> BTreeSet<Arc<str>> {
        let names = member.options.topics.iter().filter(|topic| !topic.starts_with('^'));
        let is_meant = |topic: &&Arc<str>| member.patterns.iter().any(|pattern| pattern.is_match(topic));
        let matching = self.counts.keys().filter(is_meant).cloned();
        names.map(|name| Arc::from(name.as_str())).chain(matching).collect()
    }

    /// The error of a member that may not read one of its topics.
    pub(super) fn denied(&self, options: &MemberOptions) -> Option<Error> {
        let topic = self.denied.iter().find(|topic| options.topics.iter().any(|name| *name == ***topic))?;
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        let message = format!("consuming in group `{}`: topic `{topic}`: {code}", options.group);
        Some(classify_code(Some(code), message))
    }

    /// Asks a broker. The next time is planned in any case.
    pub(super) fn look_up(
        &mut self,
        brokers: &mut Brokers,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<(), CallError> {
        self.due = Instant::now() + self.backoff.advance();
        let names: Vec<&str> = wanted.names.iter().map(AsRef::as_ref).collect();
        let found = brokers.topics((!wanted.all).then_some(names.as_slice()), deadline)?;
        self.answers += 1;
        let mut counts = BTreeMap::new();
        self.denied.clear();
        for topic in found {
            let name: Arc<str> = Arc::from(topic.name);
            if topic.is_denied {
                self.denied.insert(name);
            } else if topic.partitions > 0 {
                self.missing.remove(&name);
                counts.insert(name, topic.partitions);
            }
        }
        for (name, count) in &self.counts {
            if counts.contains_key(name) || self.denied.contains(name) {
                continue;
            }
            if self.missing.entry(name.clone()).or_insert_with(Instant::now).elapsed() < DELETED {
                counts.insert(name.clone(), *count);
            } else {
                self.missing.remove(name);
            }
        }
        if wanted.names.iter().all(|name| counts.contains_key(name)) {
            self.backoff.reset();
            self.due = Instant::now() + INTERVAL;
        }
        if counts != self.counts {
            self.counts = counts;
            self.version += 1;
        }
        Ok(())
    }
}
