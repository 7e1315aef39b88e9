//! What one client knows of a cluster: the addresses of its brokers, the leaders of partitions, and
//! a connection for each broker that it talks to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::{Request, StrBytes};
use trunkline_connector::{Error, Result};

use super::errors::{self, code, is_transient};
use crate::backoff::{Backoff, jitter};
use crate::kafka::client::{Cluster, classify_code};
use crate::kafka::connection::without_variable_parts;
use crate::kafka::wire::Lost;
use crate::kafka::wire::connection::readiness::Readiness;
use crate::kafka::wire::connection::{ANSWER_LIMIT, Address, Connection};

/// Pauses between two attempts of a call.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Time of one attempt, where several brokers may be asked.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// The same pauses, while the broker completes an earlier transaction, for example.
const MAX_BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A kind of coordinator. The numbers are those of FindCoordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::kafka) enum Coordinator {
    Group = 0,
    Transaction = 1,
}

/// The broker that a request is for.
#[derive(Debug, Clone, Copy)]
pub(in crate::kafka) enum Target<'a> {
    /// The coordinator of a group or transactional id.
    Coordinator(Coordinator, &'a str),
    /// The leader of a topic's partition.
    Leader(&'a str, i32),
}

/// The leader of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Leader {
    pub(in crate::kafka) node: i32,
    /// -1 if the broker does not say.
    pub(in crate::kafka) epoch: i32,
}

/// What a broker says of a topic.
pub(in crate::kafka) struct TopicState {
    pub(in crate::kafka) name: String,
    pub(in crate::kafka) partitions: i32,
    /// The client may not read it.
    pub(in crate::kafka) is_denied: bool,
}

/// The brokers of a cluster, for one client.
pub(in crate::kafka) struct Brokers {
    cluster: Cluster,
    client_id: String,
    addresses: HashMap<i32, Address>,
    /// By partition; `None` for a partition without a leader.
    leaders: HashMap<String, Vec<Option<Leader>>>,
    coordinators: HashMap<(Coordinator, String), i32>,
    connections: HashMap<i32, Connection>,
    /// A connection to a bootstrap server whose number is not known.
    first: Option<Connection>,
    /// Where the search for a broker continues.
    next: usize,
}

impl Brokers {
    /// A client without connections. Brokers see the name `client_id`.
    pub(in crate::kafka) fn new(cluster: &Cluster, client_id: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            client_id: client_id.to_owned(),
            addresses: HashMap::new(),
            leaders: HashMap::new(),
            coordinators: HashMap::new(),
            connections: HashMap::new(),
            first: None,
            next: 0,
        }
    }

    pub(in crate::kafka) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The leader of a partition, as far as it is known.
    pub(in crate::kafka) fn leader(&self, topic: &str, partition: i32) -> Option<Leader> {
        *self.leaders.get(topic)?.get(usize::try_from(partition).ok()?)?
    }

    /// The leaders of a topic are looked up before they are used again.
    pub(in crate::kafka::wire) fn forget_leader(&mut self, topic: &str) {
        self.leaders.remove(topic);
    }

    /// Notes why a connection was lost, for the errors of the cluster.
    pub(in crate::kafka::wire) fn note_lost(&self, Lost(reason): &Lost) {
        self.cluster.note_connection(reason);
    }

    /// The connection to a broker; opened if there is none.
    pub(in crate::kafka::wire) fn connection(&mut self, node: i32, deadline: Instant) -> Result<&mut Connection, Lost> {
        if !self.connections.contains_key(&node) {
            let address = self.addresses.get(&node).ok_or_else(|| not_in_cluster(node))?;
            let is_first = self.first.as_ref().is_some_and(|first| first.address() == address);
            let connection = match self.first.take_if(|_| is_first) {
                Some(first) => first,
                None => Connection::open(&self.cluster, &self.client_id, address, deadline)?,
            };
            self.connections.insert(node, connection);
        }
        let connection = self.connections.get_mut(&node);
        let renewed = connection.map(|connection| connection.renew_login(&self.cluster, deadline));
        if let Some(Err(lost)) = renewed {
            self.connections.remove(&node);
            return Err(lost);
        }
        self.connections.get_mut(&node).ok_or_else(|| Lost(format!("broker {node} is not connected")))
    }

    /// The connection to a broker, which is the caller's from now on; opened if there is none.
    pub(in crate::kafka::wire) fn take_connection(&mut self, node: i32, deadline: Instant) -> Result<Connection, Lost> {
        self.connection(node, deadline)?;
        self.connections.remove(&node).ok_or_else(|| Lost(format!("broker {node} is not connected")))
    }

    /// A connection to a broker for the caller alone.
    pub(in crate::kafka::wire) fn open_another(
        &self,
        node: i32,
        client_id: &str,
        deadline: Instant,
    ) -> Result<Connection, Lost> {
        let address = self.addresses.get(&node).ok_or_else(|| not_in_cluster(node))?;
        Connection::open(&self.cluster, client_id, address, deadline)
    }

    /// The brokers to which a connection is open.
    pub(in crate::kafka::wire) fn nodes(&self) -> Vec<i32> {
        self.connections.keys().copied().collect()
    }

    /// Closes all connections. The next request opens the ones that it needs.
    pub(in crate::kafka) fn disconnect(&mut self) {
        self.connections.clear();
        self.first = None;
    }

    /// The address of a broker, as far as it is known.
    pub(in crate::kafka::wire) fn address(&self, node: i32) -> Option<&Address> {
        self.addresses.get(&node)
    }

    /// The open connection to a broker.
    pub(in crate::kafka::wire) fn open_connection(&mut self, node: i32) -> Option<&mut Connection> {
        self.connections.get_mut(&node)
    }

    /// Closes the connection to a broker. Its requests are lost.
    pub(in crate::kafka::wire) fn close(&mut self, node: i32) {
        self.connections.remove(&node);
    }

    /// What poll(2) has to wait for.
    pub(in crate::kafka::wire) fn readiness(&self) -> impl Iterator<Item = Readiness> {
        self.connections.values().filter(|connection| connection.is_busy()).map(Connection::readiness)
    }

    /// A connection to any broker: an open one, or a new one to a known broker or a bootstrap
    /// server.
    fn any(&mut self, deadline: Instant) -> Result<&mut Connection, Lost> {
        // Borrowed again below, because a conditional return would keep the borrow.
        if let Some(node) = self.connections.keys().next().copied() {
            return self.connection(node, deadline);
        }
        if self.first.is_none() {
            let known = self.addresses.values().cloned();
            let candidates: Vec<Address> = known.chain(bootstrap(self.cluster.brokers())).collect();
            let mut lost = Lost("no bootstrap server is named".to_owned());
            for _ in 0..candidates.len() {
                let address = &candidates[self.next % candidates.len()];
                match Connection::open(&self.cluster, &self.client_id, address, deadline) {
                    Ok(connection) => {
                        self.first = Some(connection);
                        break;
                    }
                    Err(error) => lost = error,
                }
                self.next += 1;
                if Instant::now() >= deadline {
                    break;
                }
            }
            if self.first.is_none() {
                return Err(lost);
            }
        }
        let renewed = self.first.as_mut().map(|first| first.renew_login(&self.cluster, deadline));
        if let Some(Err(lost)) = renewed {
            self.first = None;
            return Err(lost);
        }
        self.first.as_mut().ok_or_else(|| Lost("no broker is connected".to_owned()))
    }

    /// Closes the connection that [`Brokers::any`] returned last.
    fn close_any(&mut self) {
        if let Some(node) = self.connections.keys().next().copied() {
            self.connections.remove(&node);
        } else {
            self.first = None;
        }
        self.next += 1;
    }

    /// Sends a request to any broker. A broker that does not answer is replaced.
    fn ask_any<R: Request>(
        &mut self,
        ours: std::ops::RangeInclusive<i16>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, CallError> {
        let connection = self.any(deadline)?;
        let version = connection.version::<R>(ours)?;
        let answer = connection.call(version, request, deadline.min(Instant::now() + ANSWER_LIMIT));
        if answer.is_err() {
            self.close_any();
        }
        Ok(answer?)
    }

    /// Asks for the leaders of topics and the addresses of all brokers. A topic that the cluster
    /// does not know has no leaders afterwards; its error is returned by [`Brokers::refresh`] only
    /// if it is permanent.
    pub(in crate::kafka) fn refresh(&mut self, topics: &[&str], deadline: Instant) -> Result<(), CallError> {
        let named = |topic: &&str| MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
        let request = MetadataRequest::default()
            .with_topics(Some(topics.iter().map(named).collect()))
            .with_allow_auto_topic_creation(false);
        let answer = self.ask_any(5..=9, &request, deadline)?;
        // Before, a broker may still close the connection because it expects a login.
        self.cluster.connection().set_reached();
        self.note_metadata(topics, &answer)
    }

    /// Repeats a call while no broker answers, at most until `deadline`. Each attempt has a
    /// separate deadline.
    pub(in crate::kafka) fn patiently<T>(
        &mut self,
        deadline: Instant,
        mut call: impl FnMut(&mut Self, Instant) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
        loop {
            let lost = match call(self, deadline.min(Instant::now() + ATTEMPT_LIMIT)) {
                Err(CallError::Lost(lost)) => lost,
                result => return result,
            };
            let pause = jitter(backoff.advance());
            let is_over = Instant::now() + pause >= deadline;
            if is_over || self.cluster.connection().is_hopeless() || self.cluster.is_interrupted() {
                return Err(lost.into());
            }
            std::thread::park_timeout(pause);
        }
    }

    /// The id of the cluster.
    pub(in crate::kafka) fn cluster_id(&mut self, deadline: Instant) -> Result<Option<String>, CallError> {
        let request = MetadataRequest::default().with_topics(Some(Vec::new())).with_allow_auto_topic_creation(false);
        let answer = self.ask_any(5..=9, &request, deadline)?;
        self.note_brokers(&answer);
        Ok(answer.cluster_id.map(|id| id.to_string()))
    }

    /// Whether a partition exists, as far as it is known.
    pub(in crate::kafka) fn has_partition(&self, topic: &str, partition: i32) -> bool {
        let known = self.leaders.get(topic).map_or(0, Vec::len);
        usize::try_from(partition).is_ok_and(|partition| partition < known)
    }

    /// The topics with these names, or all topics, asked again while no broker answers.
    pub(in crate::kafka) fn list_topics(
        &mut self,
        names: Option<&[&str]>,
        deadline: Instant,
    ) -> Result<Vec<TopicState>, CallError> {
        self.patiently(deadline, |brokers, deadline| brokers.topics(names, deadline))
    }

    /// The topics with these names, or all topics, asked once. Those that do not exist have no
    /// partitions.
    pub(in crate::kafka::wire) fn topics(
        &mut self,
        names: Option<&[&str]>,
        deadline: Instant,
    ) -> Result<Vec<TopicState>, CallError> {
        let named = |topic: &&str| MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
        let request = MetadataRequest::default()
            .with_topics(names.map(|names| names.iter().map(named).collect()))
            .with_allow_auto_topic_creation(false);
        let answer = self.ask_any(5..=9, &request, deadline)?;
        self.cluster.connection().set_reached();
        self.note_brokers(&answer);
        let state = |topic: &MetadataResponseTopic| {
            Some(TopicState {
                name: topic.name.as_ref()?.0.to_string(),
                partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
                is_denied: topic.error_code == ResponseError::TopicAuthorizationFailed.code(),
            })
        };
        Ok(answer.topics.iter().filter_map(state).collect())
    }

    fn note_brokers(&mut self, answer: &MetadataResponse) {
        // A broker that has just started names no broker: those that are known may still be there.
        if !answer.brokers.is_empty() {
            self.addresses.clear();
        }
        for broker in &answer.brokers {
            let address = Address { host: broker.host.to_string(), port: broker.port as u16 };
            let has_moved = |known: &mut Connection| *known.address() != address;
            let node = broker.node_id.0;
            if self.connections.get_mut(&node).is_some_and(has_moved) {
                self.connections.remove(&node);
            }
            self.addresses.insert(node, address);
        }
    }

    fn note_metadata(&mut self, topics: &[&str], answer: &MetadataResponse) -> Result<(), CallError> {
        self.note_brokers(answer);
        topics.iter().for_each(|topic| drop(self.leaders.remove(*topic)));
        for topic in &answer.topics {
            let Some(name) = &topic.name else { continue };
            if topic.error_code != 0 {
                if is_transient(topic.error_code) {
                    continue;
                }
                let message = format!("looking up topic `{}`: {}", name.0.as_str(), code(topic.error_code));
                return Err(classify_code(Some(code(topic.error_code)), message).into());
            }
            let mut leaders = Vec::new();
            for partition in &topic.partitions {
                let Ok(index) = usize::try_from(partition.partition_index) else { continue };
                if leaders.len() <= index {
                    leaders.resize(index + 1, None);
                }
                let leader = Leader { node: partition.leader_id.0, epoch: partition.leader_epoch };
                leaders[index] = (leader.node >= 0).then_some(leader);
            }
            self.leaders.insert(name.0.to_string(), leaders);
        }
        Ok(())
    }

    /// Sends a request to a broker, and repeats it while the answer's error is one that passes:
    /// another broker is the right one now, or it is loading its state. `error_of` takes the error
    /// from an answer. Other errors are the caller's. Waits at most until `deadline`.
    pub(in crate::kafka) fn ask<R: Request>(
        &mut self,
        target: Target<'_>,
        ours: std::ops::RangeInclusive<i16>,
        request: &R,
        deadline: Instant,
        mut error_of: impl FnMut(&R::Response) -> i16,
    ) -> Result<R::Response, CallError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
        loop {
            let mut is_busy = false;
            let lost = match self.ask_once(target, ours.clone(), request, deadline) {
                Ok(answer) => {
                    let error = error_of(&answer);
                    if !is_transient(error) {
                        return Ok(answer);
                    }
                    is_busy = errors::is_busy(error);
                    Lost(code(error).to_string())
                }
                Err(CallError::Lost(lost)) => lost,
                Err(other) => return Err(other),
            };
            if !is_busy {
                self.forget(target);
            }
            let max = if is_busy { MAX_BUSY_PAUSE } else { MAX_PAUSE };
            let pause = jitter(backoff.advance().min(max));
            if Instant::now() + pause >= deadline || self.cluster.connection().is_hopeless() {
                return Err(lost.into());
            }
            std::thread::park_timeout(pause);
        }
    }

    fn ask_once<R: Request>(
        &mut self,
        target: Target<'_>,
        ours: std::ops::RangeInclusive<i16>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, CallError> {
        let node = self.find(target, deadline)?;
        let connection = self.connection(node, deadline)?;
        let version = connection.version::<R>(ours)?;
        let answer = connection.call(version, request, deadline.min(Instant::now() + ANSWER_LIMIT));
        if answer.is_err() {
            self.close(node);
        }
        Ok(answer?)
    }

    /// The broker that a request is for.
    fn find(&mut self, target: Target<'_>, deadline: Instant) -> Result<i32, CallError> {
        match target {
            Target::Coordinator(kind, key) => match self.coordinators.get(&(kind, key.to_owned())) {
                Some(node) => Ok(*node),
                None => self.find_coordinator(kind, key, deadline),
            },
            Target::Leader(topic, partition) => {
                if self.leader(topic, partition).is_none() {
                    self.refresh(&[topic], deadline)?;
                }
                let leader = self.leader(topic, partition);
                Ok(leader.ok_or_else(|| Lost(format!("partition {partition} of topic `{topic}` has no leader")))?.node)
            }
        }
    }

    /// The coordinator of a group; looked up if it is not known.
    pub(in crate::kafka::wire) fn coordinator(&mut self, group: &str, deadline: Instant) -> Result<i32, CallError> {
        self.find(Target::Coordinator(Coordinator::Group, group), deadline)
    }

    /// The coordinator of a group is looked up before it is used again.
    pub(in crate::kafka::wire) fn forget_coordinator(&mut self, group: &str) {
        self.forget(Target::Coordinator(Coordinator::Group, group));
    }

    fn forget(&mut self, target: Target<'_>) {
        match target {
            Target::Coordinator(kind, key) => drop(self.coordinators.remove(&(kind, key.to_owned()))),
            Target::Leader(topic, _) => self.forget_leader(topic),
        }
    }

    fn find_coordinator(&mut self, kind: Coordinator, key: &str, deadline: Instant) -> Result<i32, CallError> {
        let request =
            FindCoordinatorRequest::default().with_key(StrBytes::from_string(key.to_owned())).with_key_type(kind as i8);
        let answer: FindCoordinatorResponse = self.ask_any(1..=3, &request, deadline)?;
        if is_transient(answer.error_code) {
            return Err(Lost(code(answer.error_code).to_string()).into());
        }
        if answer.error_code != 0 {
            let subject = match kind {
                Coordinator::Group => "group",
                Coordinator::Transaction => "transactional id",
            };
            let message = format!("finding the coordinator of {subject} `{key}`: {}", code(answer.error_code));
            return Err(classify_code(Some(code(answer.error_code)), message).into());
        }
        let address = Address { host: answer.host.to_string(), port: answer.port as u16 };
        let node = answer.node_id.0;
        if self.connections.get(&node).is_some_and(|known| *known.address() != address) {
            self.connections.remove(&node);
        }
        self.addresses.insert(node, address);
        self.coordinators.insert((kind, key.to_owned()), node);
        Ok(node)
    }
}

fn not_in_cluster(node: i32) -> Lost {
    Lost(format!("broker {node} is not in the cluster"))
}

fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

/// Why a call failed.
#[derive(Debug)]
pub(in crate::kafka) enum CallError {
    /// No answer: the call may be repeated.
    Lost(Lost),
    /// The answer is an error, or the broker cannot answer.
    Refused(Error),
}

impl From<Lost> for CallError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl CallError {
    /// The error of the call that did `doing`, with the reason if no broker is connected.
    pub(in crate::kafka) fn explain(self, doing: &str, cluster: &Cluster) -> Error {
        match self {
            Self::Lost(Lost(reason)) => {
                cluster.note_connection(&reason);
                let reason = without_variable_parts(&reason);
                cluster.connection().explain(Error::external("kafka.unreachable", format!("{doing}: {reason}")))
            }
            Self::Refused(error) => error,
        }
    }
}

/// The bootstrap servers: `HOST:PORT`, separated by commas, as librdkafka has them.
fn bootstrap(servers: &str) -> Vec<Address> {
    let address = |server: &str| {
        // librdkafka permits a protocol: `SASL_SSL://broker:9093`.
        let server = server.trim();
        let server = server.split_once("://").map_or(server, |(_, rest)| rest);
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
            _ => (server, 9092),
        };
        Some(Address { host: host.trim_matches(['[', ']']).to_owned(), port })
    };
    servers.split(',').filter(|server| !server.trim().is_empty()).filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_servers_are_read_as_librdkafka_does() {
        let found: Vec<String> =
            bootstrap("a:1, SASL_SSL://b.example:9093,c,[::1]:9094,").iter().map(Address::to_string).collect();
        assert_eq!(found, ["a:1", "b.example:9093", "c:9092", "::1:9094"]);
    }
}
