//! The members of a consumer group and their assignments, as the broker reports them.

use std::sync::Arc;

use trunkline_connector::TopicPartition;

/// The members of a stable group: the id that the broker gave to each, and its assignment in the
/// consumer protocol's format.
pub(super) type Members = Vec<(String, Vec<u8>)>;

/// The assignments of a group's other members.
pub struct OtherMembers(pub(super) Vec<Vec<u8>>);

impl OtherMembers {
    /// The group has no other member.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them owns this partition. A member whose assignment is not understood may own
    /// any partition.
    pub fn own(&self, partition: &TopicPartition) -> bool {
        let owns = |assignment: &Vec<u8>| parse(assignment).is_none_or(|owned| owned.contains(partition));
        self.0.iter().any(owns)
    }
}

/// Reads an assignment in the format of Kafka's consumers: a version, then topics with their
/// partitions.
pub(super) fn parse(bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = bytes;
    let _version = take::<2>(&mut rest)?;
    let mut partitions = Vec::new();
    for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
        let length = usize::try_from(i16::from_be_bytes(take(&mut rest)?)).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        let topic: Arc<str> = Arc::from(std::str::from_utf8(name).ok()?);
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            partitions.push(TopicPartition { topic: topic.clone(), partition: i32::from_be_bytes(take(&mut rest)?) });
        }
    }
    Some(partitions)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn partitions(numbers: &[i32]) -> Vec<TopicPartition> {
        numbers.iter().map(|partition| TopicPartition { topic: Arc::from("t"), partition: *partition }).collect()
    }

    pub(crate) fn assignment(partitions: &[i32]) -> Vec<u8> {
        let mut bytes = [&[0, 1][..], &1i32.to_be_bytes(), &1i16.to_be_bytes(), b"t"].concat();
        bytes.extend((partitions.len() as i32).to_be_bytes());
        partitions.iter().for_each(|partition| bytes.extend(partition.to_be_bytes()));
        bytes.extend((-1i32).to_be_bytes());
        bytes
    }

    #[test]
    fn assignments_are_read_and_truncated_ones_are_refused() {
        let bytes = assignment(&[0, 2]);
        assert_eq!(parse(&bytes), Some(partitions(&[0, 2])));
        assert_eq!(parse(&[]), Some(Vec::new()));
        (1..bytes.len() - 4).for_each(|length| assert_eq!(parse(&bytes[..length]), None, "{length} bytes"));
    }

    #[test]
    fn partitions_of_other_members_are_found() {
        let others = OtherMembers(vec![assignment(&[1]), assignment(&[2])]);
        let own: Vec<bool> = partitions(&[0, 1, 2]).iter().map(|partition| others.own(partition)).collect();
        assert_eq!(own, [false, true, true]);
        assert!(OtherMembers(vec![vec![0]]).own(&partitions(&[0])[0]), "an unknown format may own it");
    }
}
