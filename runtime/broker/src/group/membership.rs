//! A group between rebalances: syncs, heartbeats, members that leave or time out.

use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::oneshot;

use super::member::{Joined, Member, Reply, SyncResult, Synced};
use super::state::{Group, Phase};
use crate::clock::now_ms;

/// How a request identifies its member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'request> {
    pub(crate) member_id: &'request str,
    pub(crate) instance_id: Option<&'request str>,
    pub(crate) generation: i32,
}

impl Group {
    /// Checks that the sender is a member and, if static, was not replaced.
    pub(crate) fn check_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ResponseError> {
        if let Some(instance_id) = instance_id {
            return match self.static_member(instance_id) {
                Some(current) if current == member_id => Ok(()),
                Some(_) => Err(ResponseError::FencedInstanceId),
                None => Err(ResponseError::UnknownMemberId),
            };
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    /// Checks that the sender is a member of the current generation.
    pub(crate) fn check(&self, sender: Identity<'_>) -> Result<(), ResponseError> {
        self.check_member(sender.member_id, sender.instance_id)?;
        if sender.generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    pub(crate) fn sync(
        &mut self,
        sender: Identity<'_>,
        protocol_type: Option<&str>,
        protocol_name: Option<&str>,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Reply<SyncResult> {
        if let Err(error) = self.check(sender) {
            return Reply::Ready(Err(error));
        }
        let differs = |sent: Option<&str>, own: &Option<String>| sent.is_some() && sent != own.as_deref();
        if differs(protocol_type, &self.protocol_type) || differs(protocol_name, &self.protocol_name) {
            return Reply::Ready(Err(ResponseError::InconsistentGroupProtocol));
        }
        let is_leader = self.leader.as_deref() == Some(sender.member_id);
        match self.phase {
            Phase::Empty => Reply::Ready(Err(ResponseError::UnknownMemberId)),
            Phase::PreparingRebalance => Reply::Ready(Err(ResponseError::RebalanceInProgress)),
            Phase::Stable => {
                let synced = self.synced(sender.member_id);
                if let Some(member) = self.members.get_mut(sender.member_id) {
                    member.renew_session(now);
                    member.has_synced = true;
                }
                Reply::Ready(Ok(synced))
            }
            Phase::CompletingRebalance => {
                let (reply, receiver) = oneshot::channel();
                if let Some(member) = self.members.get_mut(sender.member_id) {
                    member.renew_session(now);
                    member.has_synced = true;
                    member.syncing = Some(reply);
                }
                if is_leader {
                    self.assign(assignments);
                }
                Reply::Pending(receiver)
            }
        }
    }

    /// Stores the leader's assignments. [`Group::answer_syncs`] sends them after they are
    /// persisted.
    fn assign(&mut self, assignments: Vec<(String, Bytes)>) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
        }
        for (id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
            }
        }
        self.phase = Phase::Stable;
        self.is_dirty = true;
    }

    /// Answers the members that wait for an assignment.
    pub(crate) fn answer_syncs(&mut self) {
        if self.phase != Phase::Stable {
            return;
        }
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let synced = self.synced(&id);
            if let Some(sender) = self.members.get_mut(&id).and_then(|member| member.syncing.take()) {
                let _ = sender.send(Ok(synced));
            }
        }
    }

    /// The assignments could not be persisted: the generation is void and its members join again.
    pub(crate) fn reject_syncs(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            if let Some(sender) = member.syncing.take() {
                let _ = sender.send(Err(ResponseError::RebalanceInProgress));
            }
        }
        self.rebalance(now);
    }

    fn synced(&self, member_id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol_name.clone(),
            assignment: self.members.get(member_id).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }

    pub(crate) fn heartbeat(&mut self, sender: Identity<'_>, now: Instant) -> Result<(), ResponseError> {
        self.check(sender)?;
        if let Some(member) = self.members.get_mut(sender.member_id) {
            member.renew_session(now);
        }
        match self.phase {
            Phase::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::CompletingRebalance | Phase::Stable => Ok(()),
        }
    }

    /// A commit renews the member's session.
    pub(crate) fn committed(&mut self, member_id: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.renew_session(now);
        }
    }

    pub(crate) fn leave(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        let id = match instance_id {
            // An operator may remove a static member by its instance id alone.
            Some(instance_id) if member_id.is_empty() => {
                self.static_member(instance_id).ok_or(ResponseError::UnknownMemberId)?.to_owned()
            }
            _ if self.forget_pending(member_id) => {
                self.complete_if_all_joined(now);
                return Ok(());
            }
            _ => {
                self.check_member(member_id, instance_id)?;
                member_id.to_owned()
            }
        };
        self.remove_and_rebalance(&id, now);
        Ok(())
    }

    /// Removes a member and rebalances.
    fn remove_and_rebalance(&mut self, id: &str, now: Instant) {
        self.remove_member(id);
        match self.phase {
            Phase::Empty => {}
            Phase::CompletingRebalance | Phase::Stable => {
                self.rebalance(now);
                self.complete_if_all_joined(now);
            }
            Phase::PreparingRebalance => self.complete_if_all_joined(now),
        }
    }

    pub(super) fn remove_member(&mut self, id: &str) {
        let Some(mut member) = self.members.remove(id) else { return };
        if let Some(sender) = member.joining.take() {
            let _ = sender.send(Joined::refused(ResponseError::UnknownMemberId, id));
        }
        if let Some(sender) = member.syncing.take() {
            let _ = sender.send(Err(ResponseError::UnknownMemberId));
        }
        self.forget(id, member.instance_id.as_deref());
        if self.members.is_empty() {
            self.empty_since = now_ms();
        }
    }

    /// Applies timeouts: sessions, rebalances, member ids that were never used.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.expire_pending(now);
        let is_waiting = |member: &Member| member.joining.is_some() || member.syncing.is_some();
        let expired: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.expires <= now && !is_waiting(member))
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            tracing::info!(member = id, "session of a group member expired");
            self.remove_and_rebalance(&id, now);
        }
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        match self.phase {
            Phase::PreparingRebalance => {
                let none_joined = self.members.values().all(|member| member.joining.is_none());
                if none_joined && !self.members.is_empty() && self.members.values().all(|m| m.instance_id.is_some()) {
                    // Only static members remain and none has rejoined: their session timeouts
                    // decide.
                    self.deadline = Some(now + self.rebalance_timeout());
                } else {
                    self.complete_join(now);
                }
            }
            Phase::CompletingRebalance | Phase::Stable => {
                self.deadline = None;
                // A member that joined and never synced is lost.
                let silent: Vec<String> =
                    self.members.iter().filter(|(_, member)| !member.has_synced).map(|(id, _)| id.clone()).collect();
                for id in silent {
                    self.remove_and_rebalance(&id, now);
                }
            }
            Phase::Empty => self.deadline = None,
        }
    }
}
