//! Names of objects, and of the local files that hold their bytes until they are committed.

use std::borrow::Cow;

use trunkline_connector::{Reason, TopicPartition};

/// Folder in the root of a directory destination for files that are not committed yet. Readers'
/// globs skip hidden folders.
pub(crate) const STAGING: &str = ".trunkline-staging";
/// Longest file name, in bytes.
const MAX_SEGMENT: usize = 255;
/// Longest S3 key, in bytes.
const MAX_KEY: usize = 1024;
/// Longer topic names are shortened in file names, to leave room for offsets and id.
const MAX_TOPIC: usize = 160;

/// `{topic}+{partition}`, with a long topic name cut and completed by a hash. Topic names do not
/// contain `+`.
fn partition_name(partition: &TopicPartition) -> String {
    let topic = partition.topic.as_ref();
    let topic = if topic.len() <= MAX_TOPIC {
        Cow::Borrowed(topic)
    } else {
        let cut: String = topic.chars().take(MAX_TOPIC - 24).collect();
        Cow::Owned(format!("{cut}~{:016x}", fnv1a(topic.as_bytes())))
    };
    format!("{topic}+{}", partition.partition)
}

/// FNV-1a: names must be equal in all versions.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Prefix of the local files of a topic partition.
pub(crate) fn temp_prefix(partition: &TopicPartition) -> String {
    format!("{}+", partition_name(partition))
}

/// The local file of an object. It must not end in `.parquet`.
pub(crate) fn temp_name(partition: &TopicPartition, id: &str) -> String {
    format!("{}{id}.tmp", temp_prefix(partition))
}

/// The final name: `{path}/{topic}+{partition}+{first offset}-{last offset}-{id}.parquet`. Offsets
/// are padded, so that names sort by them; the id keeps replays and re-created topics from
/// colliding.
pub(crate) fn object_name(path: &str, partition: &TopicPartition, first: i64, last: i64, id: &str) -> String {
    let short = id.get(..8).unwrap_or(id);
    let name = format!("{}+{first:020}-{last:020}-{short}.parquet", partition_name(partition));
    if path.is_empty() { name } else { format!("{path}/{name}") }
}

/// Checks a rendered path: refuses empty segments, segments of dots, and paths that are too long.
pub(crate) fn check_path(path: &str, prefix_len: usize) -> Result<(), Reason> {
    let bad = |message: String| Err(Reason::new("s3.bad_path", message));
    for segment in path.split('/') {
        if matches!(segment, "" | "." | "..") {
            return bad(format!("the path template gave `{path}`, which has a segment that is empty or only dots"));
        }
        if segment.len() > MAX_SEGMENT {
            return bad(format!(
                "the path template gave a segment of {} bytes; the limit is {MAX_SEGMENT}",
                segment.len()
            ));
        }
    }
    if prefix_len + path.len() + MAX_SEGMENT > MAX_KEY {
        return bad(format!("the path template gave a path of {} bytes, too long for a key", path.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(topic: &str) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition: 3 }
    }

    #[test]
    fn names_carry_topic_partition_and_offsets() {
        assert_eq!(
            object_name("day=1", &partition("a.web"), 7, 12, "0123456789abcdef"),
            "day=1/a.web+3+00000000000000000007-00000000000000000012-01234567.parquet"
        );
        assert!(temp_name(&partition("a.web"), "x").starts_with(&temp_prefix(&partition("a.web"))));
        assert!(!temp_name(&partition("a.web2"), "x").starts_with(&temp_prefix(&partition("a.web"))));
    }

    #[test]
    fn long_topics_fit_a_file_name_and_stay_apart() {
        let (one, other) = (format!("{}1", "t".repeat(248)), format!("{}2", "t".repeat(248)));
        assert!(object_name("", &partition(&one), i64::MAX, i64::MAX, "0123456789").len() <= MAX_SEGMENT);
        assert_ne!(temp_prefix(&partition(&one)), temp_prefix(&partition(&other)));
    }

    #[test]
    fn paths_that_would_climb_or_not_fit_are_refused() {
        assert!(check_path("day=1/h=2", 0).is_ok());
        for bad in ["..", "a/../b", "", "a//b", "a/", &"x".repeat(256), &"xy/".repeat(300)] {
            assert_eq!(check_path(bad, 0).unwrap_err().code, "s3.bad_path", "{bad}");
        }
    }
}
