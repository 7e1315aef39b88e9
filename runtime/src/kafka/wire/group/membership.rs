//! A membership as its stage sees it, and what the stage and the keeper tell each other.
//!
//! A stage learns of rebalances when it polls. Partitions that it has to give up remain its own
//! until the poll after that: then it has done what is necessary, and the member joins again
//! without them.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use regex::Regex;
use trunkline_connector::{Error, Result, TopicPartition};

use super::keeper::Keeper;
use crate::kafka::client::Cluster;
use crate::kafka::wire::connection::readiness::{Readiness, wait};
use crate::kafka::wire::produce::GroupMetadata;
use crate::kafka::wire::wake::{WakeUps, wake};

/// What a rebalance changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// This member owns these partitions now.
    Assigned(Vec<TopicPartition>),
    /// This member no longer owns these partitions.
    Revoked(Vec<TopicPartition>),
}

/// What a member needs to know.
pub(in crate::kafka) struct MemberOptions {
    pub(in crate::kafka) group: String,
    /// The id of a static member (KIP-345).
    pub(in crate::kafka) instance: String,
    /// Brokers see this name.
    pub(in crate::kafka) client_id: String,
    /// Names, or patterns that start with `^`.
    pub(in crate::kafka) topics: Vec<String>,
    /// A member without heartbeats loses its partitions after this time.
    pub(in crate::kafka) session: Duration,
    /// Time between two heartbeats.
    pub(in crate::kafka) heartbeat: Duration,
    /// A member loses its partitions if it does not poll within this time.
    pub(in crate::kafka) max_poll: Duration,
}

/// A member of a consumer group. Dropping it leaves the membership to the session timeout, see
/// [`Membership::leave`].
pub(in crate::kafka) struct Membership {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    wake_ups: WakeUps,
}

/// What the stage and the keeper know of a member.
pub(super) struct Shared {
    pub(super) options: MemberOptions,
    pub(super) patterns: Vec<Regex>,
    view: Mutex<View>,
    /// The stage has to look at the view.
    is_changed: AtomicBool,
    stage: Arc<UnixStream>,
}

/// The state of a member.
pub(super) struct View {
    /// The last identity that the coordinator gave. It stays after a loss, so that brokers refuse
    /// commits of partitions that the stage still works on.
    pub(super) identity: Option<GroupMetadata>,
    /// The partitions by the last rebalance; none after a loss.
    pub(super) assignment: BTreeSet<TopicPartition>,
    /// The partitions that the stage works on.
    pub(super) owned: BTreeSet<TopicPartition>,
    /// A rebalance has ended that the stage does not know of. It may have changed nothing.
    pub(super) has_rebalanced: bool,
    /// Those of which the stage has the revocation, and has not polled since.
    revoking: BTreeSet<TopicPartition>,
    /// An error that the stage does not know yet.
    pub(super) error: Option<Error>,
    /// An error after which there is no membership any more.
    pub(super) fatal: Option<Error>,
    /// When the stage polled last.
    pub(super) polled: Instant,
    pub(super) wish: Wish,
    pub(super) has_left: bool,
}

/// What the stage wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Stay,
    /// Leave the group, and join again once the stage has given up its partitions.
    JoinAgain,
    Leave,
    /// The stage has ended.
    Close,
}

impl Membership {
    /// Begins to join. The stage learns its partitions from [`Membership::poll`].
    pub(in crate::kafka) fn join(cluster: &Cluster, options: MemberOptions) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let message = format!("cannot open a socket for the consumer of group `{}`: {error}", options.group);
            Error::external("kafka.wake", message)
        };
        let wake_ups = WakeUps::new().map_err(failed)?;
        let patterns = options.topics.iter().filter(|topic| topic.starts_with('^')).map(|pattern| Regex::new(pattern));
        let patterns = patterns.collect::<Result<_, _>>();
        let patterns = patterns.map_err(|error| Error::internal("kafka.pattern", error.to_string()))?;
        let keeper = cluster.keepers().get(cluster)?;
        let view = View {
            identity: None,
            assignment: BTreeSet::new(),
            owned: BTreeSet::new(),
            has_rebalanced: false,
            revoking: BTreeSet::new(),
            error: None,
            fatal: None,
            polled: Instant::now(),
            wish: Wish::Stay,
            has_left: false,
        };
        let shared = Arc::new(Shared {
            options,
            patterns,
            view: Mutex::new(view),
            is_changed: AtomicBool::new(false),
            stage: wake_ups.sender(),
        });
        keeper.add(shared.clone());
        Ok(Self { shared, keeper, wake_ups })
    }

    /// Returns what rebalances changed: first what is revoked, then what is assigned, which is
    /// nothing after a rebalance without a change. The events of the previous poll count as
    /// handled.
    pub(in crate::kafka) fn poll(&self) -> Result<Vec<RebalanceEvent>> {
        self.keeper.check()?;
        let has_changed = self.shared.is_changed.swap(false, Ordering::AcqRel);
        let mut view = self.shared.view();
        view.polled = Instant::now();
        if let Some(error) = view.error.take().or_else(|| view.fatal.clone()) {
            return Err(error);
        }
        let released = std::mem::take(&mut view.revoking);
        if !has_changed && released.is_empty() {
            return Ok(Vec::new());
        }
        view.owned.retain(|partition| !released.contains(partition));
        let revoked: BTreeSet<TopicPartition> = view.owned.difference(&view.assignment).cloned().collect();
        let assigned: Vec<TopicPartition> = view.assignment.difference(&view.owned).cloned().collect();
        view.owned.extend(assigned.iter().cloned());
        view.revoking.clone_from(&revoked);
        let has_rebalanced = std::mem::take(&mut view.has_rebalanced);
        drop(view);
        if !released.is_empty() {
            self.keeper.wake();
        }
        let mut events = Vec::new();
        if !revoked.is_empty() {
            events.push(RebalanceEvent::Revoked(revoked.into_iter().collect()));
        }
        if !assigned.is_empty() || has_rebalanced && events.is_empty() {
            events.push(RebalanceEvent::Assigned(assigned));
        }
        Ok(events)
    }

    /// Whether the member subscribes this topic.
    pub(in crate::kafka) fn subscribes(&self, topic: &str) -> bool {
        let Shared { options, patterns, .. } = &*self.shared;
        options.topics.iter().any(|name| name == topic) || patterns.iter().any(|pattern| pattern.is_match(topic))
    }

    /// The member's identity, which fences its commits; `None` before it has joined.
    pub(in crate::kafka) fn identity(&self) -> Option<GroupMetadata> {
        self.shared.view().identity.clone()
    }

    /// Leaves the group, and joins again once the stage has given up all partitions.
    pub(in crate::kafka) fn join_again(&self) {
        self.shared.view().wish = Wish::JoinAgain;
        self.keeper.wake();
    }

    /// Leaves the group, so that the other members get its partitions at once. Waits at most for
    /// `limit`.
    pub(in crate::kafka) fn leave(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        {
            let mut view = self.shared.view();
            view.owned.clear();
            view.revoking.clear();
            view.assignment.clear();
            view.wish = Wish::Leave;
        }
        self.keeper.wake();
        while !self.shared.view().has_left && Instant::now() < deadline && self.keeper.check().is_ok() {
            wait(&[self.wake_ups.readiness()], deadline);
            self.wake_ups.clear();
        }
    }

    /// What poll(2) has to wait for.
    pub(in crate::kafka) fn readiness(&self) -> Readiness {
        Readiness { is_ready: self.shared.is_changed.load(Ordering::Acquire), ..self.wake_ups.readiness() }
    }

    /// Forgets the wake-ups so far. Call it after a wait, before [`Membership::poll`].
    pub(in crate::kafka) fn clear_wake_ups(&self) {
        self.wake_ups.clear();
    }

    /// The socket that ends a wait.
    pub(in crate::kafka) fn waker(&self) -> Arc<UnixStream> {
        self.wake_ups.sender()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.shared.view().wish = Wish::Close;
        self.keeper.wake();
    }
}

impl Shared {
    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        // No change leaves the view incomplete if a thread panics.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the stage poll.
    pub(super) fn notify(&self) {
        self.is_changed.store(true, Ordering::Release);
        wake(&self.stage);
    }

    /// Passes an error to the stage.
    pub(super) fn report(&self, error: Error) {
        self.view().error = Some(error);
        self.notify();
    }
}
