//! One membership as the keeper's thread sees it: the requests of the protocol and their answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use trunkline_connector::{Error, TopicPartition};

use super::assignor::assign;
use super::keeper::Context;
use super::membership::{Shared, View, Wish};
use super::protocol::{STRATEGY, Subscription, TYPE, assignment, partitions_of};
use super::topics::Wanted;
use crate::backoff::{Backoff, jitter};
use crate::kafka::client::classify_code;
use crate::kafka::wire::Lost;
use crate::kafka::wire::brokers::{Brokers, CallError};
use crate::kafka::wire::connection::Connection;
use crate::kafka::wire::connection::readiness::Readiness;
use crate::kafka::wire::errors::{code, is_transient};
use crate::kafka::wire::produce::GroupMetadata;

/// Pauses between two attempts to join.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A broker may answer a join this long after the last member could have joined.
const JOIN_GRACE: Duration = Duration::from_secs(10);

/// The state of one member.
pub(super) struct Member {
    shared: Arc<Shared>,
    state: State,
    id: StrBytes,
    generation: i32,
    /// What the last join said.
    said: Subscription,
    /// Partitions that the member said it owns, and that were not assigned to it again: the group
    /// waits until the stage has given them up and the member joins without them.
    awaited: BTreeSet<TopicPartition>,
    /// What the only member of a group should have, if the coordinator has an earlier division of
    /// the partitions: topics may have been created since.
    expected: Option<BTreeSet<TopicPartition>>,
    /// The leader joins again when these change.
    counts: Option<BTreeMap<Arc<str>, i32>>,
    /// The version of the topics that the member has looked at.
    topics_version: u64,
    /// The member joins only once its stage has given up all partitions.
    must_release: bool,
    must_leave: bool,
    /// When the coordinator last confirmed the membership.
    confirmed: Instant,
    backoff: Backoff,
    /// The number of answers of the topics when the member came.
    arrived: u64,
    is_denied: bool,
}

enum State {
    /// Joins at this time.
    Apart(Instant),
    Joining(Exchange),
    Synchronising(Exchange),
    Joined {
        heartbeat: Option<Sent>,
        due: Instant,
    },
    Leaving(Sent),
    /// It has left, or cannot be a member any more.
    Over,
}

/// A request on a connection for this member alone.
struct Exchange {
    connection: Connection,
    version: i16,
}

/// A request on the connection that all members have to a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) node: i32,
    /// The connection's number.
    pub(super) serial: u64,
    pub(super) correlation: i32,
    version: i16,
}

impl Exchange {
    /// The answer, if it has arrived.
    fn answer<R: Request>(&mut self) -> Result<Option<R::Response>, CallError> {
        match self.connection.progress()? {
            Some((_, body)) => Ok(Some(self.connection.decode::<R>(self.version, body)?)),
            None => Ok(None),
        }
    }
}

impl Member {
    pub(super) fn new(shared: Arc<Shared>, arrived: u64) -> Self {
        Self {
            shared,
            state: State::Apart(Instant::now()),
            id: StrBytes::default(),
            generation: -1,
            said: Subscription::default(),
            awaited: BTreeSet::new(),
            expected: None,
            counts: None,
            topics_version: 0,
            must_release: false,
            must_leave: false,
            confirmed: Instant::now(),
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
            arrived,
            is_denied: false,
        }
    }

    pub(super) fn notify(&self) {
        self.shared.notify();
    }

    /// The topics whose partitions this member needs: its own ones, and as the leader those of all
    /// members.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        let names = self.shared.options.topics.iter().filter(|topic| !topic.starts_with('^'));
        let of_group = self.counts.iter().flat_map(BTreeMap::keys).cloned();
        names.map(|name| Arc::from(name.as_str())).chain(of_group).collect()
    }

    pub(super) fn has_pattern(&self) -> bool {
        !self.shared.patterns.is_empty()
    }

    /// What poll(2) has to wait for.
    pub(super) fn readiness(&self) -> Option<Readiness> {
        match &self.state {
            State::Joining(exchange) | State::Synchronising(exchange) => Some(exchange.connection.readiness()),
            _ => None,
        }
    }

    /// The request on a shared connection that is not answered.
    pub(super) fn sent(&self) -> Option<&Sent> {
        match &self.state {
            State::Joined { heartbeat, .. } => heartbeat.as_ref(),
            State::Leaving(sent) => Some(sent),
            _ => None,
        }
    }

    fn group(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.shared.options.group.clone()))
    }

    fn instance(&self) -> Option<StrBytes> {
        Some(StrBytes::from_string(self.shared.options.instance.clone()))
    }

    /// Does what is due. Returns when the next step is due without an answer; `None`: the stage has
    /// ended.
    pub(super) fn step(&mut self, context: &mut Context) -> Option<Instant> {
        let wish = self.shared.view().wish;
        match wish {
            Wish::Close => return None,
            Wish::Leave => return Some(self.leave(context)),
            Wish::JoinAgain => {
                self.shared.view().wish = Wish::Stay;
                self.must_leave = true;
                self.give_up("it joins its group again");
            }
            Wish::Stay => {}
        }
        self.check_topics(context);
        match &mut self.state {
            State::Joining(_) => self.take_join_answer(context),
            State::Synchronising(_) => self.take_assignment(context),
            State::Apart(_) | State::Joined { .. } | State::Leaving(_) | State::Over => {}
        }
        self.keep(context);
        if let State::Apart(at) = self.state
            && at <= Instant::now()
        {
            self.join(context);
        }
        Some(self.next_step())
    }

    fn next_step(&self) -> Instant {
        let later = Instant::now() + Duration::from_secs(60);
        let expiry = self.confirmed + self.shared.options.session;
        match &self.state {
            // The stage's poll is the next step.
            State::Apart(_) if self.must_release => later,
            State::Apart(at) => *at,
            State::Joined { heartbeat: Some(_), .. } => expiry,
            State::Joined { due, .. } => *due,
            State::Joining(_) | State::Synchronising(_) | State::Leaving(_) | State::Over => later,
        }
    }

    /// Looks at changed topics: a member joins again when its patterns match others, and the leader
    /// when there are other partitions to divide.
    fn check_topics(&mut self, context: &Context) {
        if self.topics_version == context.topics.version && context.topics.answers == self.arrived {
            return;
        }
        if !self.is_denied
            && let Some(error) = context.topics.denied(&self.shared.options)
        {
            self.is_denied = true;
            self.shared.report(error);
        }
        if self.topics_version == context.topics.version || !matches!(self.state, State::Joined { .. }) {
            return;
        }
        self.topics_version = context.topics.version;
        let has_other_counts = self.counts.as_ref().is_some_and(|counts| {
            let mut all = context.topics.counts(&counts.keys().cloned().collect());
            counts.iter().any(|(topic, count)| all.remove(topic).unwrap_or(0) != *count)
        });
        if has_other_counts || context.topics.of(&self.shared) != self.said.topics {
            tracing::debug!(group = self.shared.options.group, "the topics of a consumer group have changed");
            self.state = State::Apart(Instant::now());
        }
    }

    /// Keeps the membership: heartbeats, and what ends it.
    fn keep(&mut self, context: &mut Context) {
        let now = Instant::now();
        let shared = self.shared.clone();
        let options = &shared.options;
        let (has_partitions, is_released, is_stuck) = {
            let view = self.shared.view();
            let has_partitions = !view.owned.is_empty() || !view.assignment.is_empty();
            (has_partitions, self.awaited.is_disjoint(&view.owned), view.polled + options.max_poll < now)
        };
        let may_expire = match self.state {
            State::Joined { .. } => true,
            State::Apart(_) => has_partitions && !self.must_release,
            _ => false,
        };
        if may_expire && self.confirmed + options.session < now {
            tracing::warn!(group = options.group, "no coordinator has confirmed a group member in time");
            self.give_up("its session has ended");
        }
        if matches!(self.state, State::Joined { .. }) && is_stuck {
            tracing::warn!(group = options.group, "a stage has not polled its consumer for `max.poll.interval.ms`");
            self.give_up("its stage does not poll");
        }
        if let State::Leaving(sent) = self.state
            && context.brokers.open_connection(sent.node).is_none_or(|open| open.serial() != sent.serial)
        {
            self.state = State::Apart(now);
        }
        let State::Joined { heartbeat, due } = &mut self.state else { return };
        if !self.awaited.is_empty() && is_released {
            self.state = State::Apart(now);
            return;
        }
        if let Some(sent) = heartbeat {
            let open = context.brokers.open_connection(sent.node);
            if open.is_none_or(|open| open.serial() != sent.serial) {
                *heartbeat = None;
                *due = now + jitter(self.backoff.advance());
                context.brokers.forget_coordinator(&self.shared.options.group);
            }
            return;
        }
        // Members whose heartbeats are nearly due are served together.
        if *due <= now + self.shared.options.heartbeat / 8 {
            self.send_heartbeat(context);
        }
    }

    fn send_heartbeat(&mut self, context: &mut Context) {
        let request = HeartbeatRequest::default()
            .with_group_id(self.group())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance());
        let sent = self.send(context, 3..=4, &request);
        let heartbeat = self.unless_failed(context, sent);
        if let State::Joined { heartbeat: waiting, due } = &mut self.state {
            *due = Instant::now() + self.shared.options.heartbeat;
            if heartbeat.is_none() {
                *due = Instant::now() + jitter(self.backoff.advance());
            }
            *waiting = heartbeat;
        }
    }

    /// Sends a request to the coordinator over the connection that all members share.
    fn send<R: Request>(
        &self,
        context: &mut Context,
        versions: std::ops::RangeInclusive<i16>,
        request: &R,
    ) -> Result<Sent, CallError> {
        let deadline = Context::deadline();
        let node = context.brokers.coordinator(&self.shared.options.group, deadline)?;
        context.reach(node, |brokers, deadline| brokers.connection(node, deadline).map(|_| ()))?;
        let connection = context.brokers.connection(node, deadline)?;
        let version = connection.version::<R>(versions)?;
        let correlation = connection.send(version, request)?;
        Ok(Sent { node, serial: connection.serial(), correlation, version })
    }

    /// `None` after a failure: the coordinator is looked up again, and the stage learns of errors
    /// that time does not heal.
    fn unless_failed<T>(&self, context: &mut Context, result: Result<T, CallError>) -> Option<T> {
        let group = &self.shared.options.group;
        match result {
            Ok(done) => return Some(done),
            Err(CallError::Lost(lost)) => {
                context.brokers.note_lost(&lost);
                context.brokers.forget_coordinator(group);
                let cluster = context.brokers.cluster();
                if cluster.connection().is_hopeless() || cluster.connection().is_refused() {
                    let doing = format!("consuming in group `{group}`");
                    self.shared.report(CallError::Lost(lost).explain(&doing, cluster));
                } else {
                    tracing::debug!(reason = lost.0, group, "a group member continues without its coordinator");
                }
            }
            Err(CallError::Refused(error)) => self.shared.report(error),
        }
        None
    }

    /// Takes the answer to a request on a shared connection.
    pub(super) fn take_answer(&mut self, context: &mut Context, from: (i32, u64, i32), body: Bytes) {
        let Some(sent) = self.sent().copied().filter(|sent| (sent.node, sent.serial, sent.correlation) == from) else {
            return;
        };
        let Some(connection) = context.brokers.open_connection(sent.node) else { return };
        if let State::Leaving(_) = self.state {
            // If it failed, the other members only wait longer.
            self.id = StrBytes::default();
            self.generation = -1;
            let joins_again = self.shared.view().wish == Wish::Stay;
            self.state = if joins_again { State::Apart(Instant::now()) } else { State::Over };
            return;
        }
        let error = match connection.decode::<HeartbeatRequest>(sent.version, body) {
            Ok(answer) => answer.error_code,
            Err(lost) => {
                context.brokers.note_lost(&lost);
                context.brokers.close(sent.node);
                return;
            }
        };
        let State::Joined { heartbeat, due } = &mut self.state else { return };
        *heartbeat = None;
        match ResponseError::try_from_code(error) {
            None if error == 0 => {
                self.backoff.reset();
                self.confirmed = due.checked_sub(self.shared.options.heartbeat).unwrap_or(*due);
            }
            Some(ResponseError::RebalanceInProgress) => self.state = State::Apart(Instant::now()),
            _ => self.take_error(context, error, "sending a heartbeat"),
        }
    }

    /// What an error of the coordinator means for the member.
    fn take_error(&mut self, context: &mut Context, error: i16, doing: &str) {
        let options = &self.shared.options;
        match ResponseError::try_from_code(error) {
            Some(ResponseError::FencedInstanceId) => {
                let fenced = context.brokers.cluster().fenced_member(&options.group, &options.instance);
                self.shared.view().fatal = Some(fenced);
                self.shared.notify();
                self.state = State::Over;
            }
            Some(ResponseError::UnknownMemberId) => {
                self.id = StrBytes::default();
                self.generation = -1;
                self.give_up("its coordinator does not know it any more");
            }
            Some(ResponseError::IllegalGeneration) => {
                self.generation = -1;
                self.give_up("its group has continued without it");
            }
            Some(ResponseError::RebalanceInProgress) => self.state = State::Apart(Instant::now()),
            _ if is_transient(error) => {
                context.brokers.forget_coordinator(&options.group);
                let pause = jitter(self.backoff.advance());
                match &mut self.state {
                    State::Joined { due, .. } => *due = Instant::now() + pause,
                    _ => self.state = State::Apart(Instant::now() + pause),
                }
            }
            _ => {
                let reason = code(error);
                let message = format!("{doing} in group `{}`: {reason}", options.group);
                self.shared.report(classify_code(Some(reason), message));
                self.state = State::Apart(Instant::now() + MAX_PAUSE);
            }
        }
    }

    /// Joins again after a pause.
    fn apart_for_a_while(&mut self) -> State {
        State::Apart(Instant::now() + jitter(self.backoff.advance()))
    }

    /// The member no longer owns any partition. It joins again once the stage knows that.
    fn give_up(&mut self, reason: &str) {
        if matches!(self.state, State::Over) {
            return;
        }
        let mut view = self.shared.view();
        let has_partitions = !view.owned.is_empty() || !view.assignment.is_empty();
        view.assignment.clear();
        drop(view);
        if has_partitions {
            tracing::debug!(group = self.shared.options.group, reason, "a group member gives up its partitions");
            self.shared.notify();
        }
        self.must_release = true;
        self.awaited.clear();
        self.counts = None;
        self.state = State::Apart(Instant::now());
    }

    fn join(&mut self, context: &mut Context) {
        let claims: BTreeSet<TopicPartition> = {
            let View { assignment, owned, polled, .. } = &*self.shared.view();
            if self.must_release && !owned.is_empty() {
                return;
            }
            if polled.elapsed() > self.shared.options.max_poll {
                // It would get partitions and do nothing with them.
                self.state = State::Apart(Instant::now() + MAX_PAUSE);
                return;
            }
            assignment.union(owned).cloned().collect()
        };
        self.must_release = false;
        if self.must_leave {
            self.must_leave = false;
            let sent = self.send_leave(context);
            if let Some(sent) = self.unless_failed(context, sent) {
                self.state = State::Leaving(sent);
                return;
            }
        }
        if self.has_pattern() && context.topics.answers == self.arrived {
            // What the patterns match is not known.
            self.state = State::Apart(context.topics.due());
            return;
        }
        self.topics_version = context.topics.version;
        self.expected = None;
        self.said =
            Subscription { topics: context.topics.of(&self.shared), owned: claims, generation: self.generation };
        let joining = self.send_join(context);
        self.state = match self.unless_failed(context, joining) {
            Some(exchange) => State::Joining(exchange),
            None => self.apart_for_a_while(),
        };
    }

    fn send_join(&self, context: &mut Context) -> Result<Exchange, CallError> {
        let options = &self.shared.options;
        let metadata = self.said.encode().ok_or_else(|| {
            let message =
                format!("the subscription of group `{}` cannot be encoded: a topic's name is too long", options.group);
            Error::internal("kafka.subscription", message)
        })?;
        let protocol =
            JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str(STRATEGY)).with_metadata(metadata);
        let request = JoinGroupRequest::default()
            .with_group_id(self.group())
            .with_session_timeout_ms(milliseconds(options.session))
            .with_rebalance_timeout_ms(milliseconds(options.max_poll))
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance())
            .with_protocol_type(StrBytes::from_static_str(TYPE))
            .with_protocols(vec![protocol]);
        let deadline = Context::deadline();
        let node = context.brokers.coordinator(&options.group, deadline)?;
        let open = |brokers: &mut Brokers, deadline| brokers.open_another(node, &options.client_id, deadline);
        let mut connection = context.reach(node, open)?;
        connection.set_answer_limit(options.max_poll + JOIN_GRACE);
        let version = connection.version::<JoinGroupRequest>(5..=9)?;
        connection.send(version, &request)?;
        connection.write()?;
        Ok(Exchange { connection, version })
    }

    fn take_join_answer(&mut self, context: &mut Context) {
        let State::Joining(exchange) = &mut self.state else { return };
        let Some(answer) = exchange.answer::<JoinGroupRequest>().transpose() else { return };
        let Some(answer) = self.unless_failed(context, answer) else {
            self.state = self.apart_for_a_while();
            return;
        };
        match ResponseError::try_from_code(answer.error_code) {
            None if answer.error_code == 0 => self.synchronise(context, &answer),
            // The coordinator knows the member by this id from now on (KIP-394).
            Some(ResponseError::MemberIdRequired) => {
                self.id = answer.member_id;
                self.state = State::Apart(Instant::now());
            }
            _ => self.take_error(context, answer.error_code, "joining"),
        }
    }

    fn synchronise(&mut self, context: &mut Context, answer: &JoinGroupResponse) {
        self.id = answer.member_id.clone();
        self.generation = answer.generation_id;
        self.confirmed = Instant::now();
        let options = &self.shared.options;
        self.shared.view().identity = Some(GroupMetadata {
            group: options.group.clone(),
            generation: self.generation,
            member: self.id.to_string(),
            instance: Some(options.instance.clone()),
        });
        let is_leader = answer.leader == answer.member_id;
        let assignments = if is_leader { self.divide(context, answer) } else { Vec::new() };
        let request = SyncGroupRequest::default()
            .with_group_id(self.group())
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance())
            .with_protocol_type(Some(StrBytes::from_static_str(TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(STRATEGY)))
            .with_assignments(assignments);
        let State::Joining(Exchange { mut connection, .. }) = std::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        let sent = connection.version::<SyncGroupRequest>(3..=5).map_err(CallError::Refused).and_then(|version| {
            connection.send(version, &request)?;
            connection.write()?;
            Ok(version)
        });
        self.state = match self.unless_failed(context, sent) {
            Some(version) => State::Synchronising(Exchange { connection, version }),
            None => self.apart_for_a_while(),
        };
    }

    /// Divides the partitions among the members. A static leader that has returned keeps the
    /// division that the coordinator has (KIP-814).
    fn divide(&mut self, context: &mut Context, answer: &JoinGroupResponse) -> Vec<SyncGroupRequestAssignment> {
        let members = answer.members.iter().map(|member| Subscription::decode(&member.metadata).unwrap_or_default());
        let members: Vec<Subscription> = members.collect();
        let topics: BTreeSet<Arc<str>> = members.iter().flat_map(|member| member.topics.iter().cloned()).collect();
        if !context.topics.know(&topics) {
            let Context { brokers, topics: known, .. } = context;
            let wanted = Wanted { names: topics.clone(), all: self.has_pattern() };
            let found = known.look_up(brokers, &wanted, Context::deadline());
            // Topics that are missing now are divided when they are found.
            self.unless_failed(context, found);
        }
        let counts = context.topics.counts(&topics);
        let mut divided = assign(&members, &counts);
        let is_new = |topic: &Arc<str>| (topic.clone(), counts.get(topic).copied().unwrap_or(0));
        self.counts = Some(topics.iter().map(is_new).collect());
        if answer.skip_assignment {
            self.expected = divided.pop().filter(|_| divided.is_empty());
            return Vec::new();
        }
        let of_member =
            |(member, partitions): (&kafka_protocol::messages::join_group_response::JoinGroupResponseMember, _)| {
                SyncGroupRequestAssignment::default()
                    .with_member_id(member.member_id.clone())
                    .with_assignment(assignment(partitions).unwrap_or_default())
            };
        answer.members.iter().zip(&divided).map(of_member).collect()
    }

    fn take_assignment(&mut self, context: &mut Context) {
        let State::Synchronising(exchange) = &mut self.state else { return };
        let Some(answer) = exchange.answer::<SyncGroupRequest>().transpose() else { return };
        let Some(answer) = self.unless_failed(context, answer) else {
            self.state = self.apart_for_a_while();
            return;
        };
        if answer.error_code != 0 {
            self.take_error(context, answer.error_code, "synchronising");
            return;
        }
        let Some(assigned) = partitions_of(&answer.assignment) else {
            let lost = Lost(format!("group `{}` has an assignment that cannot be read", self.shared.options.group));
            self.unless_failed::<()>(context, Err(lost.into()));
            self.state = self.apart_for_a_while();
            return;
        };
        let now = Instant::now();
        self.confirmed = now;
        self.backoff.reset();
        let assigned: BTreeSet<TopicPartition> = assigned.into_iter().collect();
        self.awaited = self.said.owned.difference(&assigned).cloned().collect();
        let is_outdated = self.expected.take().is_some_and(|expected| expected != assigned);
        {
            let mut view = self.shared.view();
            view.assignment = assigned;
            view.has_rebalanced = true;
        }
        self.shared.notify();
        self.state = match is_outdated {
            // As the leader it starts a rebalance.
            true => State::Apart(now),
            false => State::Joined { heartbeat: None, due: now + self.shared.options.heartbeat },
        };
    }

    /// Leaves the group. Returns when the next step is due without an answer.
    fn leave(&mut self, context: &mut Context) -> Instant {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        match &self.state {
            State::Leaving(sent) => {
                let open = context.brokers.open_connection(sent.node);
                if open.is_some_and(|open| open.serial() == sent.serial) {
                    return later;
                }
            }
            State::Over => {
                self.shared.view().has_left = true;
                self.shared.notify();
                return later;
            }
            State::Apart(at) if *at > now && self.generation >= 0 => return *at,
            // It never came to a join.
            State::Apart(_) if self.generation < 0 => {
                self.state = State::Over;
                return now;
            }
            _ => {}
        }
        let sent = self.send_leave(context);
        match self.unless_failed(context, sent) {
            Some(sent) => {
                self.state = State::Leaving(sent);
                later
            }
            None => {
                let at = now + jitter(self.backoff.advance());
                self.state = State::Apart(at);
                at
            }
        }
    }

    fn send_leave(&self, context: &mut Context) -> Result<Sent, CallError> {
        let member = MemberIdentity::default().with_member_id(self.id.clone()).with_group_instance_id(self.instance());
        let request = LeaveGroupRequest::default().with_group_id(self.group()).with_members(vec![member]);
        self.send(context, 3..=5, &request)
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
