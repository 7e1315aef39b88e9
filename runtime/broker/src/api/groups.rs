//! DescribeGroups, ListGroups, DeleteGroups.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
    ListGroupsRequest, ListGroupsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::authorized::{GROUP, operations};
use super::{code, text};
use crate::group::GroupSlot;
use crate::group::state::Phase;
use crate::request::Call;

/// The state of a group that does not exist.
const DEAD: &str = "Dead";
/// The type of the groups that this broker coordinates. The other type is KIP-848's `consumer`.
const CLASSIC: &str = "classic";

pub(crate) fn describe_groups(call: &Call<'_>, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let describe = |id: GroupId| {
        let described = call.broker.groups.with(&id, |slot| describe(slot));
        let absent = || {
            let group = DescribedGroup::default().with_group_state(text(DEAD));
            if call.version < 6 {
                return group;
            }
            group
                .with_error_code(ResponseError::GroupIdNotFound.code())
                .with_error_message(Some(text(format!("Group {} not found.", *id))))
        };
        let described = described.unwrap_or_else(absent).with_group_id(id);
        if described.error_code != 0 {
            return described;
        }
        described.with_authorized_operations(operations(GROUP, request.include_authorized_operations))
    };
    DescribeGroupsResponse::default().with_groups(request.groups.into_iter().map(describe).collect())
}

fn describe(slot: &GroupSlot) -> DescribedGroup {
    let group = &slot.group;
    let is_settled = group.phase == Phase::Stable;
    let protocol = group.protocol_name.clone().filter(|_| is_settled).unwrap_or_default();
    let describe = |(id, member): (&String, &crate::group::member::Member)| {
        let described = DescribedGroupMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(member.instance_id.clone().map(StrBytes::from_string))
            .with_client_id(text(&member.client_id))
            .with_client_host(text(&member.client_host));
        if !is_settled {
            return described;
        }
        described.with_member_metadata(member.metadata(&protocol)).with_member_assignment(member.assignment.clone())
    };
    DescribedGroup::default()
        .with_group_state(text(group.phase.name()))
        .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
        .with_members(group.members.iter().map(describe).collect())
        .with_protocol_data(text(protocol))
}

pub(crate) fn list_groups(call: &Call<'_>, request: ListGroupsRequest) -> ListGroupsResponse {
    let accepts = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let mut groups = Vec::new();
    for id in call.broker.groups.ids() {
        let listed = call.broker.groups.with(&id, |slot| {
            let state = slot.group.phase.name();
            let is_wanted = accepts(&request.states_filter, state) && accepts(&request.types_filter, CLASSIC);
            is_wanted.then(|| {
                ListedGroup::default()
                    .with_protocol_type(text(slot.group.protocol_type.clone().unwrap_or_default()))
                    .with_group_state(text(state))
                    .with_group_type(text(CLASSIC))
            })
        });
        groups.extend(listed.flatten().map(|listed| listed.with_group_id(GroupId(text(id)))));
    }
    ListGroupsResponse::default().with_groups(groups)
}

pub(crate) fn delete_groups(call: &Call<'_>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let delete = |id: GroupId| {
        let result = call.broker.groups.delete(&call.broker.store, &id);
        DeletableGroupResult::default().with_group_id(id).with_error_code(code(&result))
    };
    DeleteGroupsResponse::default().with_results(request.groups_names.into_iter().map(delete).collect())
}
