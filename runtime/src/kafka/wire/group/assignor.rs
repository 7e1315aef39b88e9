//! Divides the partitions of a group among its members: as evenly as the subscriptions permit, and
//! with as few moves as possible. A partition that another member owns stays unassigned until its
//! owner has revoked it: the owner then joins again, which starts the next rebalance (KIP-429).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_connector::TopicPartition;

use super::protocol::Subscription;

/// Returns the partitions of each member, in the order of `members`. `counts` has the number of
/// partitions of each topic that exists.
pub(super) fn assign(members: &[Subscription], counts: &BTreeMap<Arc<str>, i32>) -> Vec<BTreeSet<TopicPartition>> {
    let owners = owners(members, counts);
    let mut assigned = vec![BTreeSet::new(); members.len()];
    for (partition, owner) in &owners {
        assigned[*owner].insert(partition.clone());
    }
    let is_known = |partition: &TopicPartition| owners.contains_key(partition);
    for partition in partitions(members, counts).into_iter().filter(|partition| !is_known(partition)) {
        let eligible = (0..members.len()).filter(|member| members[*member].topics.contains(&partition.topic));
        if let Some(smallest) = eligible.min_by_key(|member| assigned[*member].len()) {
            assigned[smallest].insert(partition);
        }
    }
    balance(members, &mut assigned);
    let claimed: BTreeSet<&TopicPartition> = members.iter().flat_map(|member| &member.owned).collect();
    for (member, assigned) in assigned.iter_mut().enumerate() {
        assigned.retain(|partition| owners.get(partition) == Some(&member) || !claimed.contains(partition));
    }
    assigned
}

/// The owners of partitions that exist and that their members still subscribe. Of two members that
/// claim the same partition, the one with the later generation owns it.
fn owners(members: &[Subscription], counts: &BTreeMap<Arc<str>, i32>) -> BTreeMap<TopicPartition, usize> {
    let mut owners = BTreeMap::<TopicPartition, usize>::new();
    for (member, subscription) in members.iter().enumerate() {
        for partition in &subscription.owned {
            let exists = counts.get(&partition.topic).is_some_and(|count| (0..*count).contains(&partition.partition));
            if !exists || !subscription.topics.contains(&partition.topic) {
                continue;
            }
            let is_later = |other: &usize| members[*other].generation >= subscription.generation;
            if !owners.get(partition).is_some_and(is_later) {
                owners.insert(partition.clone(), member);
            }
        }
    }
    owners
}

/// All partitions that a member subscribes. The partitions of a topic are spread over the members,
/// and not those of different topics with the same number.
fn partitions(members: &[Subscription], counts: &BTreeMap<Arc<str>, i32>) -> Vec<TopicPartition> {
    let topics: BTreeSet<&Arc<str>> = members.iter().flat_map(|member| &member.topics).collect();
    let of_topic = |topic: &Arc<str>| {
        let topic = topic.clone();
        let count = counts.get(&topic).copied().unwrap_or(0);
        (0..count).map(move |partition| TopicPartition { topic: topic.clone(), partition })
    };
    topics.into_iter().flat_map(of_topic).collect()
}

/// Moves partitions from members with many to members with few, while that makes both more even.
fn balance(members: &[Subscription], assigned: &mut [BTreeSet<TopicPartition>]) {
    while let Some((from, to, partition)) = next_move(members, assigned) {
        assigned[from].remove(&partition);
        assigned[to].insert(partition);
    }
}

fn next_move(
    members: &[Subscription],
    assigned: &[BTreeSet<TopicPartition>],
) -> Option<(usize, usize, TopicPartition)> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|member| assigned[*member].len());
    for from in order.iter().rev().copied() {
        for to in order.iter().copied().take_while(|to| assigned[*to].len() + 1 < assigned[from].len()) {
            let found = assigned[from].iter().rev().find(|partition| members[to].topics.contains(&partition.topic));
            if let Some(partition) = found {
                return Some((from, to, partition.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(topics: &[(&str, i32)]) -> BTreeMap<Arc<str>, i32> {
        topics.iter().map(|(topic, count)| (Arc::from(*topic), *count)).collect()
    }

    fn set(topic: &str, partitions: &[i32]) -> BTreeSet<TopicPartition> {
        partitions.iter().map(|partition| TopicPartition { topic: Arc::from(topic), partition: *partition }).collect()
    }

    fn member(topics: &[&str], owned: &BTreeSet<TopicPartition>) -> Subscription {
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        Subscription { topics, owned: owned.clone(), generation: 1 }
    }

    /// What the members own after each has revoked what it was not given, and joined again, until
    /// nothing changes. No partition is assigned while another member has it.
    fn settle(members: &mut [Subscription], counts: &BTreeMap<Arc<str>, i32>) -> usize {
        for round in 1..100 {
            let assigned = assign(members, counts);
            for (member, assigned) in assigned.iter().enumerate() {
                for (other, others) in members.iter().enumerate().filter(|(other, _)| *other != member) {
                    assert!(assigned.is_disjoint(&others.owned), "{member} gets what {other} has");
                }
            }
            let has_revoked = members.iter().zip(&assigned).any(|(member, assigned)| !member.owned.is_subset(assigned));
            members.iter_mut().zip(assigned).for_each(|(member, assigned)| member.owned = assigned);
            if !has_revoked {
                return round;
            }
        }
        panic!("the group does not settle");
    }

    #[test]
    fn a_single_member_gets_everything_at_once() {
        let counts = counts(&[("a", 3)]);
        let assigned = assign(&[member(&["a", "missing"], &BTreeSet::new())], &counts);
        assert_eq!(assigned, [set("a", &[0, 1, 2])]);
        assert_eq!(assign(&[], &counts), Vec::<BTreeSet<TopicPartition>>::new());
    }

    #[test]
    fn a_new_member_gets_its_share_after_it_was_revoked() {
        let counts = counts(&[("a", 5)]);
        let mut members = [member(&["a"], &set("a", &[0, 1, 2, 3, 4])), member(&["a"], &BTreeSet::new())];
        assert_eq!(assign(&members, &counts), [set("a", &[0, 1, 2]), BTreeSet::new()]);
        assert_eq!(settle(&mut members, &counts), 2);
        assert_eq!(members[0].owned, set("a", &[0, 1, 2]));
        assert_eq!(members[1].owned, set("a", &[3, 4]));
        // Once it has left, its partitions return, and no other moves.
        assert_eq!(assign(&members[..1], &counts), [set("a", &[0, 1, 2, 3, 4])]);
    }

    #[test]
    fn the_later_generation_owns_a_partition_that_two_members_claim() {
        let counts = counts(&[("a", 2)]);
        let stale = Subscription { generation: 4, ..member(&["a"], &set("a", &[0, 1])) };
        let current = Subscription { generation: 5, ..member(&["a"], &set("a", &[0])) };
        assert_eq!(assign(&[stale.clone(), current.clone()], &counts), [set("a", &[1]), set("a", &[0])]);
        assert_eq!(assign(&[current, stale], &counts), [set("a", &[0]), set("a", &[1])]);
    }

    #[test]
    fn only_subscribers_get_the_partitions_of_a_topic() {
        let counts = counts(&[("a", 4), ("b", 2), ("deleted", 0)]);
        let mut members = [
            member(&["a"], &BTreeSet::new()),
            member(&["b", "deleted"], &set("a", &[3])),
            member(&["a", "b"], &set("b", &[1, 9])),
        ];
        settle(&mut members, &counts);
        // No single move makes this more even: the first and the second have no topic in common.
        let owned: Vec<usize> = members.iter().map(|member| member.owned.len()).collect();
        assert_eq!(owned, [3, 1, 2]);
        for member in &members {
            assert!(member.owned.iter().all(|owned| member.topics.contains(&owned.topic)), "{member:?}");
        }
        let all: BTreeSet<_> = members.iter().flat_map(|member| member.owned.clone()).collect();
        assert_eq!(all.len(), 6);
    }

    /// Members come and go by a fixed pseudo-random sequence: every partition has one owner, all
    /// have nearly the same number, and no more partitions move than necessary.
    #[test]
    fn groups_stay_even_while_members_come_and_go() {
        let counts = counts(&[("a", 13), ("b", 8)]);
        let mut members = vec![member(&["a", "b"], &BTreeSet::new())];
        let mut state = 7_u32;
        for _ in 0..200 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = (state >> 16) as usize % (members.len() + 1);
            if members.len() > 1 && (state >> 8).is_multiple_of(2) {
                members.remove(index.min(members.len() - 1));
            } else {
                members.insert(index, member(&["a", "b"], &BTreeSet::new()));
            }
            let before: Vec<_> = members.iter().map(|member| member.owned.clone()).collect();
            assert!(settle(&mut members, &counts) <= 2);
            let sizes: Vec<usize> = members.iter().map(|member| member.owned.len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), 21, "{sizes:?}");
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            let smallest_share = 21 / members.len();
            for (member, before) in members.iter().zip(&before) {
                let kept = member.owned.intersection(before).count();
                assert!(kept >= before.len().min(smallest_share), "{kept} of {} kept", before.len());
            }
        }
    }
}
