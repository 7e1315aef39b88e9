//! Membership of consumer groups, by the classic protocol: join, synchronise, heartbeats, leave.
//!
//! One thread for each cluster keeps all memberships of the process: the heartbeats of all groups
//! with the same coordinator share one connection, and one request finds the partitions of all
//! topics. A member that joins has a connection for itself, because a broker answers the requests
//! of a connection one after another, and the answer to a join waits for the other members.
//!
//! - [`membership`]: a membership as its stage sees it; [`keeper`]: the thread; [`member`]: one
//!   membership as the thread sees it; [`topics`]: the partitions of subscribed topics.
//! - [`protocol`]: subscriptions and assignments; [`assignor`]: the leader's division of the
//!   partitions.
//!
//! Sources: <https://kafka.apache.org/protocol>, KIP-345 (static members), KIP-429 (cooperative
//! rebalances), KIP-814 (a static leader that returns).

mod assignor;
mod keeper;
mod member;
mod membership;
mod protocol;
mod topics;

pub(in crate::kafka) use keeper::Keepers;
pub use membership::RebalanceEvent;
pub(in crate::kafka) use membership::{MemberOptions, Membership};
#[cfg(test)]
pub(in crate::kafka) use protocol::assignment;
pub(in crate::kafka) use protocol::partitions_of;
