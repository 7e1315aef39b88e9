//! The other members of a consumer group, as its coordinator reports them.

use bytes::Bytes;
use trunkline_connector::TopicPartition;

use super::wire::group::partitions_of;

/// The assignments of a group's other members.
pub struct OtherMembers(pub(super) Vec<Bytes>);

impl OtherMembers {
    /// The group has no other member.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them owns this partition. A member whose assignment is not understood may own
    /// any partition.
    pub fn own(&self, partition: &TopicPartition) -> bool {
        let owns = |assignment: &Bytes| partitions_of(assignment).is_none_or(|owned| owned.contains(partition));
        self.0.iter().any(owns)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::super::wire::group;
    use super::*;

    pub(crate) fn partitions(numbers: &[i32]) -> Vec<TopicPartition> {
        numbers.iter().map(|partition| TopicPartition { topic: Arc::from("t"), partition: *partition }).collect()
    }

    pub(crate) fn assignment(numbers: &[i32]) -> Bytes {
        group::assignment(&partitions(numbers)).unwrap()
    }

    #[test]
    fn partitions_of_other_members_are_found() {
        let others = OtherMembers(vec![assignment(&[1]), assignment(&[2])]);
        let own: Vec<bool> = partitions(&[0, 1, 2]).iter().map(|partition| others.own(partition)).collect();
        assert_eq!(own, [false, true, true]);
        let unknown = OtherMembers(vec![Bytes::from_static(&[0])]);
        assert!(unknown.own(&partitions(&[0])[0]), "an unknown format may own it");
    }
}
