//! One group: the state machine of Kafka's classic group protocol.
//!
//! ```text
//! Empty --join--> PreparingRebalance --joined, timeout--> CompletingRebalance --sync--> Stable
//!   ^               ^                                        |                        |
//!   |               +---- a member joins, leaves, times out ---+------------------------+
//!   +--- the last member leaves
//! ```
//!
//! A join or sync waits for the other members; a channel delivers its response. A **static member**
//! (`group.instance.id`, KIP-345) that rejoins replaces its previous member id: in a stable group
//! without a rebalance. The previous member id is fenced.
//!
//! Rules: KIP-62 (timeouts), KIP-345 (static members), KIP-394 (member id required), KIP-814 (a
//! returning static leader skips its assignment). This module does no I/O; the caller persists
//! [`Group::record`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::member::{GroupRecord, JoinRequest, Joined, Member, MemberRecord, Reply};

/// The state of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl Phase {
    /// The name in DescribeGroups.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

/// Limits from the broker's options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupLimits {
    pub(crate) max_size: usize,
    pub(crate) initial_rebalance_delay: Duration,
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) phase: Phase,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol_name: Option<String>,
    pub(crate) leader: Option<String>,
    pub(crate) members: BTreeMap<String, Member>,
    /// Member ids in the order of their joins: the oldest member leads.
    join_order: Vec<String>,
    /// Member ids by `group.instance.id`.
    static_members: HashMap<String, String>,
    /// Assigned member ids that have not joined yet, with their timeouts.
    pending: HashMap<String, Instant>,
    /// When a rebalance stops waiting for joins, or a generation stops waiting for syncs.
    pub(super) deadline: Option<Instant>,
    /// The initial rebalance delay runs: the group waits for members although none is missing.
    is_initial_delay: bool,
    limits: GroupLimits,
    /// The generation or an assignment changed and is not persisted.
    pub(crate) is_dirty: bool,
    /// When the last member left. Offsets of a group without members expire.
    pub(crate) empty_since: i64,
}

impl Group {
    pub(crate) fn new(limits: GroupLimits, now_ms: i64) -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol_name: None,
            leader: None,
            members: BTreeMap::new(),
            join_order: Vec::new(),
            static_members: HashMap::new(),
            pending: HashMap::new(),
            deadline: None,
            is_initial_delay: false,
            limits,
            is_dirty: false,
            empty_since: now_ms,
        }
    }

    /// Restores a persisted group. Every member gets a full session timeout.
    pub(crate) fn restore(record: GroupRecord, limits: GroupLimits, now: Instant, now_ms: i64) -> Self {
        let mut group = Self::new(limits, now_ms);
        group.generation = record.generation;
        group.protocol_type = record.protocol_type;
        group.leader = record.leader;
        for member in record.members {
            let session_timeout = Duration::from_millis(member.session_timeout_ms);
            if let Some(instance_id) = &member.instance_id {
                group.static_members.insert(instance_id.clone(), member.id.clone());
            }
            let protocol = record.protocol_name.clone().unwrap_or_default();
            group.join_order.push(member.id.clone());
            group.members.insert(
                member.id,
                Member {
                    instance_id: member.instance_id,
                    client_id: member.client_id,
                    client_host: member.client_host,
                    session_timeout,
                    rebalance_timeout: Duration::from_millis(member.rebalance_timeout_ms),
                    protocols: vec![(protocol, member.metadata.into())],
                    assignment: member.assignment.into(),
                    expires: now + session_timeout,
                    joining: None,
                    syncing: None,
                    has_synced: true,
                },
            );
        }
        group.protocol_name = record.protocol_name;
        group.phase = if group.members.is_empty() { Phase::Empty } else { Phase::Stable };
        group
    }

    /// The record for the internal log.
    pub(crate) fn record(&self) -> GroupRecord {
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let describe = |(id, member): (&String, &Member)| MemberRecord {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_timeout_ms: member.session_timeout.as_millis() as u64,
            rebalance_timeout_ms: member.rebalance_timeout.as_millis() as u64,
            metadata: member.metadata(&protocol).to_vec(),
            assignment: member.assignment.to_vec(),
        };
        GroupRecord {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol_name.clone(),
            leader: self.leader.clone(),
            members: self.members.iter().map(describe).collect(),
        }
    }

    /// Whether the group has neither members nor assigned member ids.
    pub(crate) fn has_no_members(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    pub(crate) fn join(&mut self, request: JoinRequest, now: Instant) -> Reply<Joined> {
        let refuse = |error, member_id: &str| Reply::Ready(Joined::refused(error, member_id));
        let is_known = self.members.contains_key(&request.member_id);
        if !is_known
            && self.members.len() + self.pending.len() >= self.limits.max_size
            && !self.pending.contains_key(&request.member_id)
        {
            let takes_a_place = request.instance_id.as_ref().is_none_or(|id| !self.static_members.contains_key(id));
            if takes_a_place {
                return refuse(ResponseError::GroupMaxSizeReached, &request.member_id);
            }
        }
        if request.protocols.is_empty() || !self.accepts_protocols(&request) {
            return refuse(ResponseError::InconsistentGroupProtocol, &request.member_id);
        }
        if let Some(instance_id) = request.instance_id.clone() {
            return match self.static_members.get(&instance_id).cloned() {
                Some(current) if request.member_id.is_empty() => self.rejoin_static(current, request, now),
                Some(current) if current != request.member_id => {
                    refuse(ResponseError::FencedInstanceId, &request.member_id)
                }
                Some(current) => self.rejoin(current, request, now),
                None if request.member_id.is_empty() => {
                    let member_id = format!("{instance_id}-{}", Uuid::new_v4());
                    self.add_member(member_id, request, now)
                }
                None => refuse(ResponseError::UnknownMemberId, &request.member_id),
            };
        }
        if request.member_id.is_empty() {
            let member_id = format!("{}-{}", request.client_id, Uuid::new_v4());
            if request.member_id_required {
                self.pending.insert(member_id.clone(), now + request.session_timeout);
                return refuse(ResponseError::MemberIdRequired, &member_id);
            }
            return self.add_member(member_id, request, now);
        }
        if self.pending.remove(&request.member_id).is_some() {
            return self.add_member(request.member_id.clone(), request, now);
        }
        match self.members.get(&request.member_id) {
            Some(member) if member.instance_id.is_some() => refuse(ResponseError::UnknownMemberId, &request.member_id),
            Some(_) => self.rejoin(request.member_id.clone(), request, now),
            None => refuse(ResponseError::UnknownMemberId, &request.member_id),
        }
    }

    /// Whether at least one of the requested protocols is supported by all other members.
    fn accepts_protocols(&self, request: &JoinRequest) -> bool {
        let is_replaced = |id: &String, member: &Member| {
            *id == request.member_id || request.instance_id.is_some() && member.instance_id == request.instance_id
        };
        let mut others = self.members.iter().filter(|(id, member)| !is_replaced(id, member)).peekable();
        if others.peek().is_none() {
            return true;
        }
        let others: Vec<&Member> = others.map(|(_, member)| member).collect();
        let all_support =
            |name: &String| others.iter().all(|member| member.protocols.iter().any(|(other, _)| other == name));
        self.protocol_type.as_ref().is_none_or(|own| *own == request.protocol_type)
            && request.protocols.iter().any(|(name, _)| all_support(name))
    }

    fn add_member(&mut self, member_id: String, request: JoinRequest, now: Instant) -> Reply<Joined> {
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        if let Some(instance_id) = &request.instance_id {
            self.static_members.insert(instance_id.clone(), member_id.clone());
        }
        let (sender, receiver) = oneshot::channel();
        let member = Member {
            instance_id: request.instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            session_timeout: request.session_timeout,
            rebalance_timeout: request.rebalance_timeout,
            protocols: request.protocols,
            assignment: Bytes::new(),
            expires: now + request.session_timeout,
            joining: Some(sender),
            syncing: None,
            has_synced: false,
        };
        self.members.insert(member_id.clone(), member);
        self.join_order.push(member_id);
        self.rebalance(now);
        self.complete_if_all_joined(now);
        Reply::Pending(receiver)
    }

    /// A known member joins again.
    fn rejoin(&mut self, member_id: String, request: JoinRequest, now: Instant) -> Reply<Joined> {
        let is_leader = self.leader.as_ref() == Some(&member_id);
        let Some(member) = self.members.get_mut(&member_id) else {
            return Reply::Ready(Joined::refused(ResponseError::UnknownMemberId, member_id));
        };
        let is_unchanged = member.protocols == request.protocols;
        let may_keep = match self.phase {
            Phase::CompletingRebalance => is_unchanged,
            // The leader rejoins to request a new assignment, for example because partitions were
            // added.
            Phase::Stable => is_unchanged && !is_leader,
            Phase::Empty | Phase::PreparingRebalance => false,
        };
        member.renew_session(now);
        if may_keep {
            return Reply::Ready(self.joined(&member_id, false));
        }
        member.protocols = request.protocols;
        member.session_timeout = request.session_timeout;
        member.rebalance_timeout = request.rebalance_timeout;
        let (sender, receiver) = oneshot::channel();
        member.joining = Some(sender);
        self.rebalance(now);
        self.complete_if_all_joined(now);
        Reply::Pending(receiver)
    }

    /// A static member rejoined without its member id: it gets a new one, and the previous one is
    /// fenced.
    fn rejoin_static(&mut self, old_id: String, request: JoinRequest, now: Instant) -> Reply<Joined> {
        let instance_id = request.instance_id.clone().unwrap_or_default();
        let new_id = format!("{instance_id}-{}", Uuid::new_v4());
        let Some(mut member) = self.members.remove(&old_id) else {
            return Reply::Ready(Joined::refused(ResponseError::UnknownMemberId, old_id));
        };
        if let Some(sender) = member.joining.take() {
            let _ = sender.send(Joined::refused(ResponseError::FencedInstanceId, old_id.clone()));
        }
        if let Some(sender) = member.syncing.take() {
            let _ = sender.send(Err(ResponseError::FencedInstanceId));
        }
        self.static_members.insert(instance_id, new_id.clone());
        for id in self.join_order.iter_mut().filter(|id| **id == old_id) {
            id.clone_from(&new_id);
        }
        let was_leader = self.leader.as_ref() == Some(&old_id);
        if was_leader {
            self.leader = Some(new_id.clone());
        }
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let old_metadata = member.metadata(&protocol);
        member.protocols = request.protocols;
        member.client_id = request.client_id;
        member.client_host = request.client_host;
        member.session_timeout = request.session_timeout;
        member.rebalance_timeout = request.rebalance_timeout;
        member.renew_session(now);
        let is_unchanged = member.metadata(&protocol) == old_metadata;
        self.members.insert(new_id.clone(), member);
        if self.phase == Phase::Stable && is_unchanged && self.choose_protocol() == self.protocol_name {
            self.is_dirty = true;
            // A leader without KIP-814 would compute an assignment, so the response names another
            // leader.
            let mut joined = self.joined(&new_id, was_leader && request.can_skip_assignment);
            if was_leader && !request.can_skip_assignment {
                joined.leader = old_id;
                joined.members = Vec::new();
            }
            return Reply::Ready(joined);
        }
        let (sender, receiver) = oneshot::channel();
        if let Some(member) = self.members.get_mut(&new_id) {
            member.joining = Some(sender);
        }
        self.rebalance(now);
        self.complete_if_all_joined(now);
        Reply::Pending(receiver)
    }

    /// Starts a rebalance unless one is running.
    pub(super) fn rebalance(&mut self, now: Instant) {
        match self.phase {
            Phase::PreparingRebalance => return,
            Phase::CompletingRebalance | Phase::Stable => {
                for member in self.members.values_mut() {
                    if let Some(sender) = member.syncing.take() {
                        let _ = sender.send(Err(ResponseError::RebalanceInProgress));
                    }
                }
                self.deadline = Some(now + self.rebalance_timeout());
            }
            // The first member waits for others, so that a starting group does not rebalance for
            // each.
            Phase::Empty => self.deadline = Some(now + self.limits.initial_rebalance_delay),
        }
        self.is_initial_delay = self.phase == Phase::Empty && !self.limits.initial_rebalance_delay.is_zero();
        self.phase = Phase::PreparingRebalance;
    }

    pub(super) fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }

    pub(super) fn complete_if_all_joined(&mut self, now: Instant) {
        if self.phase != Phase::PreparingRebalance || self.is_initial_delay || !self.pending.is_empty() {
            return;
        }
        if self.members.values().all(|member| member.joining.is_some()) {
            self.complete_join(now);
        }
    }

    /// Completes the join phase: the next generation consists of the present members.
    pub(super) fn complete_join(&mut self, now: Instant) {
        self.is_initial_delay = false;
        let lost: Vec<String> = self
            .members
            .iter()
            // A static member keeps its place until its session times out.
            .filter(|(_, member)| member.joining.is_none() && member.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in &lost {
            self.remove_member(id);
        }
        self.generation += 1;
        self.is_dirty = true;
        if self.members.is_empty() {
            self.become_empty();
            return;
        }
        let is_here = |id: &String| self.members.get(id).is_some_and(|member| member.joining.is_some());
        let keeps_leader = self.leader.as_ref().is_some_and(is_here);
        if !keeps_leader {
            let successor = self.join_order.iter().find(|id| is_here(id)).or(self.join_order.first());
            self.leader = successor.cloned();
        }
        self.protocol_name = self.choose_protocol();
        self.phase = Phase::CompletingRebalance;
        self.deadline = Some(now + self.rebalance_timeout());
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id, false);
            if let Some(member) = self.members.get_mut(&id) {
                member.has_synced = false;
                if let Some(sender) = member.joining.take() {
                    member.renew_session(now);
                    let _ = sender.send(joined);
                }
            }
        }
    }

    /// The protocol with the most votes among those that all members support.
    fn choose_protocol(&self) -> Option<String> {
        let supported_by_all: HashSet<&String> = self
            .members
            .values()
            .map(|member| member.protocols.iter().map(|(name, _)| name).collect::<HashSet<_>>())
            .reduce(|all, own| all.intersection(&own).copied().collect())?;
        let mut votes: BTreeMap<&String, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| supported_by_all.contains(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name.clone())
    }

    fn joined(&self, member_id: &str, skip_assignment: bool) -> Joined {
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let is_leader = self.leader.as_deref() == Some(member_id);
        let describe =
            |(id, member): (&String, &Member)| (id.clone(), member.instance_id.clone(), member.metadata(&protocol));
        Joined {
            error: None,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol_name.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment,
            member_id: member_id.to_owned(),
            members: if is_leader { self.members.iter().map(describe).collect() } else { Vec::new() },
        }
    }

    /// The member id of a static member.
    pub(super) fn static_member(&self, instance_id: &str) -> Option<&str> {
        self.static_members.get(instance_id).map(String::as_str)
    }

    /// Removes an assigned member id that was not used.
    pub(super) fn forget_pending(&mut self, member_id: &str) -> bool {
        self.pending.remove(member_id).is_some()
    }

    pub(super) fn expire_pending(&mut self, now: Instant) {
        let before = self.pending.len();
        self.pending.retain(|_, expires| *expires > now);
        if self.pending.len() < before {
            self.complete_if_all_joined(now);
        }
    }

    /// Removes a member from the indexes.
    pub(super) fn forget(&mut self, id: &str, instance_id: Option<&str>) {
        self.join_order.retain(|other| other != id);
        if let Some(instance_id) = instance_id {
            self.static_members.remove(instance_id);
        }
    }

    fn become_empty(&mut self) {
        self.phase = Phase::Empty;
        self.leader = None;
        self.protocol_name = None;
        self.deadline = None;
        self.is_dirty = true;
    }
}
