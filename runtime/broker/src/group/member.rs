//! The members of a group: requests, responses and stored records.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// The response to JoinGroup.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joined {
    pub(crate) error: Option<ResponseError>,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol_name: Option<String>,
    pub(crate) leader: String,
    pub(crate) skip_assignment: bool,
    pub(crate) member_id: String,
    /// Only for the leader: every member with its metadata.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
}

impl Joined {
    pub(crate) fn refused(error: ResponseError, member_id: impl Into<String>) -> Self {
        Self { error: Some(error), generation: -1, member_id: member_id.into(), ..Self::default() }
    }
}

/// The response to SyncGroup.
#[derive(Debug, Clone)]
pub(crate) struct Synced {
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol_name: Option<String>,
    pub(crate) assignment: Bytes,
}

pub(crate) type SyncResult = Result<Synced, ResponseError>;

/// A response, or the channel that will deliver it.
pub(crate) enum Reply<T> {
    Ready(T),
    Pending(oneshot::Receiver<T>),
}

/// The parameters of a join.
#[derive(Debug, Clone)]
pub(crate) struct JoinRequest {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<(String, Bytes)>,
    /// The client supports MEMBER_ID_REQUIRED: it gets a member id and joins again with it
    /// (KIP-394).
    pub(crate) member_id_required: bool,
    /// The client understands `skip_assignment` (KIP-814).
    pub(crate) can_skip_assignment: bool,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(crate) protocols: Vec<(String, Bytes)>,
    pub(crate) assignment: Bytes,
    /// The session ends at this time unless the member sends a request.
    pub(super) expires: Instant,
    pub(super) joining: Option<oneshot::Sender<Joined>>,
    pub(super) syncing: Option<oneshot::Sender<SyncResult>>,
    /// The member has requested its assignment in this generation.
    pub(super) has_synced: bool,
}

impl Member {
    pub(super) fn renew_session(&mut self, now: Instant) {
        self.expires = now + self.session_timeout;
    }

    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// A member in the internal log.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub(super) id: String,
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout_ms: u64,
    pub(super) rebalance_timeout_ms: u64,
    pub(super) metadata: Vec<u8>,
    pub(super) assignment: Vec<u8>,
}

/// A group in the internal log. With it, members continue after a restart of the broker without a
/// rebalance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(super) generation: i32,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol_name: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) members: Vec<MemberRecord>,
}
