//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup: the classic group protocol. `group` has the state
//! machine.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{code, text};
use crate::group::member::{JoinRequest, Joined, Reply, SyncResult};
use crate::group::membership::Identity;
use crate::request::Call;
use crate::request::Close;
use crate::request::response::Response;

/// Limit on a member's metadata for all its protocols, and on its assignment.
const MAX_METADATA_BYTES: usize = 1 << 20;

/// Copies bytes that outlive their request, so that they do not keep the whole request in memory.
fn owned(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn milliseconds(value: i32) -> Option<Duration> {
    u64::try_from(value).ok().map(Duration::from_millis)
}

pub(crate) async fn join(call: &Call<'_>, request: JoinGroupRequest) -> Result<Response, Close> {
    let member_id = request.member_id.to_string();
    let reply = match read_join(call, &request) {
        Err(error) => Reply::Ready(Joined::refused(error, member_id.clone())),
        Ok(join) => call.broker.groups.join(&call.broker.store, &request.group_id, join),
    };
    drop(request);
    let joined = match reply {
        Reply::Ready(joined) => joined,
        Reply::Pending(receiver) => {
            receiver.await.unwrap_or_else(|_| Joined::refused(ResponseError::UnknownMemberId, member_id))
        }
    };
    call.envelope.answer::<JoinGroupRequest>(&describe_join(call, joined))
}

fn read_join(call: &Call<'_>, request: &JoinGroupRequest) -> Result<JoinRequest, ResponseError> {
    if request.group_id.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    if request.protocol_type.is_empty() {
        return Err(ResponseError::InconsistentGroupProtocol);
    }
    if request.group_instance_id.as_ref().is_some_and(|id| id.is_empty()) {
        return Err(ResponseError::InvalidRequest);
    }
    if request.protocols.iter().map(|protocol| protocol.metadata.len()).sum::<usize>() > MAX_METADATA_BYTES {
        return Err(ResponseError::InvalidRequest);
    }
    let options = &call.broker.options;
    let session_timeout = milliseconds(request.session_timeout_ms);
    let session_timeout = session_timeout
        .filter(|timeout| (options.min_session_timeout..=options.max_session_timeout).contains(timeout))
        .ok_or(ResponseError::InvalidSessionTimeout)?;
    let describe = |protocol: &kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol| {
        (protocol.name.to_string(), owned(&protocol.metadata))
    };
    Ok(JoinRequest {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
        client_id: call.client_id.clone(),
        client_host: format!("/{}", call.peer.remote.ip()),
        session_timeout,
        // Version 0 has one timeout for both.
        rebalance_timeout: milliseconds(request.rebalance_timeout_ms)
            .unwrap_or(session_timeout)
            .min(options.max_session_timeout),
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.iter().map(describe).collect(),
        member_id_required: call.version >= 4,
        can_skip_assignment: call.version >= 9,
    })
}

fn describe_join(call: &Call<'_>, joined: Joined) -> JoinGroupResponse {
    let describe = |(id, instance_id, metadata): (String, Option<String>, Bytes)| {
        JoinGroupResponseMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance_id.map(StrBytes::from_string))
            .with_metadata(metadata)
    };
    // Before version 7 the protocol name could not be null.
    let none = (call.version < 7).then(|| StrBytes::from_static_str(""));
    JoinGroupResponse::default()
        .with_error_code(joined.error.as_ref().map_or(0, ResponseError::code))
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.map(StrBytes::from_string))
        .with_protocol_name(joined.protocol_name.map(StrBytes::from_string).or(none))
        .with_leader(text(joined.leader))
        .with_skip_assignment(joined.skip_assignment)
        .with_member_id(text(joined.member_id))
        .with_members(joined.members.into_iter().map(describe).collect())
}

pub(crate) async fn sync(call: &Call<'_>, request: SyncGroupRequest) -> Result<Response, Close> {
    let sender = Identity {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let protocol = (request.protocol_type.as_deref(), request.protocol_name.as_deref());
    let is_incomplete = call.version >= 5 && (protocol.0.is_none() || protocol.1.is_none());
    let refused = if request.group_id.is_empty() {
        Some(ResponseError::InvalidGroupId)
    } else if is_incomplete {
        Some(ResponseError::InconsistentGroupProtocol)
    } else if request.assignments.iter().any(|one| one.assignment.len() > MAX_METADATA_BYTES) {
        Some(ResponseError::InvalidRequest)
    } else {
        None
    };
    if let Some(error) = refused {
        return call.envelope.answer::<SyncGroupRequest>(&SyncGroupResponse::default().with_error_code(error.code()));
    }
    let assignments =
        request.assignments.iter().map(|one| (one.member_id.to_string(), owned(&one.assignment))).collect();
    let reply = call.broker.groups.sync(&call.broker.store, &request.group_id, sender, protocol, assignments);
    drop(request);
    let result: SyncResult = match reply {
        Reply::Ready(result) => result,
        Reply::Pending(receiver) => receiver.await.unwrap_or(Err(ResponseError::UnknownMemberId)),
    };
    let response = SyncGroupResponse::default().with_error_code(code(&result));
    let response = match result {
        Err(_) => response,
        Ok(synced) => response
            .with_protocol_type(synced.protocol_type.map(StrBytes::from_string))
            .with_protocol_name(synced.protocol_name.map(StrBytes::from_string))
            .with_assignment(synced.assignment),
    };
    call.envelope.answer::<SyncGroupRequest>(&response)
}

pub(crate) fn heartbeat(call: &Call<'_>, request: HeartbeatRequest) -> HeartbeatResponse {
    let sender = Identity {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let result = match request.group_id.is_empty() {
        true => Err(ResponseError::InvalidGroupId),
        false => call.broker.groups.heartbeat(&request.group_id, sender),
    };
    HeartbeatResponse::default().with_error_code(code(&result))
}

pub(crate) fn leave(call: &Call<'_>, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let broker = call.broker;
    if request.group_id.is_empty() {
        return LeaveGroupResponse::default().with_error_code(ResponseError::InvalidGroupId.code());
    }
    let leave = |member_id: &str, instance_id: Option<&str>| {
        broker.groups.leave(&broker.store, &request.group_id, member_id, instance_id)
    };
    if call.version < 3 {
        return LeaveGroupResponse::default().with_error_code(code(&leave(&request.member_id, None)));
    }
    let answer = |member: &kafka_protocol::messages::leave_group_request::MemberIdentity| {
        MemberResponse::default()
            .with_member_id(member.member_id.clone())
            .with_group_instance_id(member.group_instance_id.clone())
            .with_error_code(code(&leave(&member.member_id, member.group_instance_id.as_deref())))
    };
    LeaveGroupResponse::default().with_members(request.members.iter().map(answer).collect())
}
