//! The partition of a record: by its key, as Kafka's own clients choose it, so that their keyed
//! records meet ours; else by its ordering key.

use trunkline_connector::RecordRef;

/// The partition among `count`.
pub(super) fn partition_of(record: RecordRef<'_>, count: i32) -> i32 {
    match record.key() {
        Some(key) => (murmur2(key) & 0x7fff_ffff) as i32 % count,
        None => record.entry().partition % count,
    }
}

/// Kafka's `Utils.murmur2` (the default partitioner of the Java client).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        word ^= word >> 24;
        hash = hash.wrapping_mul(M) ^ word.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    for (index, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * index);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    #[test]
    fn agrees_with_the_java_client() {
        // Values of UtilsTest.testMurmur2 in Apache Kafka.
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
        }
    }
}
