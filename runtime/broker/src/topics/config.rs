//! Topic configuration: Kafka's names, their defaults and limits, and the parsed values that the
//! broker uses.
//!
//! Every name of Kafka's `TopicConfig` is accepted, stored and described. Names for several
//! brokers, tiers or quotas have no effect, nor have those that tune Kafka's own files (`flush.*`,
//! `index.*`, `segment.index.bytes`, `segment.jitter.ms`, `preallocate`, `file.delete.delay.ms`):
//! [`FlushPolicy`](crate::FlushPolicy) controls syncs. Batches are stored as received, whatever
//! `compression.type` says. See <https://kafka.apache.org/documentation/#topicconfigs>.

use std::collections::BTreeMap;

/// The type of a value, as numbered in DescribeConfigs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum ValueType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// The allowed values.
#[derive(Debug, Clone, Copy)]
enum Allowed {
    AtLeast(i64),
    Between(i64, i64),
    /// gzip's own default, or one of its levels.
    GzipLevel,
    Fraction,
    OneOf(&'static [&'static str]),
    Anything,
}

/// One configuration name.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) name: &'static str,
    pub(crate) default: &'static str,
    pub(crate) value_type: ValueType,
    allowed: Allowed,
    pub(crate) documentation: &'static str,
    /// Accepted and stored, but not described, as Kafka does with its internal configs.
    pub(crate) is_internal: bool,
}

const fn define(
    name: &'static str,
    default: &'static str,
    value_type: ValueType,
    allowed: Allowed,
    documentation: &'static str,
) -> Definition {
    Definition { name, default, value_type, allowed, documentation, is_internal: false }
}

const BOOLEAN: Allowed = Allowed::OneOf(&["true", "false"]);
const FOREVER: &str = "9223372036854775807";
pub(crate) const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
/// For tests: overrides `segment.bytes` with a size below its minimum.
const INTERNAL_SEGMENT_BYTES: &str = "internal.segment.bytes";

/// All names, in alphabetical order.
pub(crate) const DEFINITIONS: &[Definition] = &[
    define(
        "cleanup.policy",
        "delete",
        ValueType::List,
        Allowed::OneOf(&["delete", "compact"]),
        "Removes old segments (delete), keeps the last record of each key (compact), or both; empty: keeps everything.",
    ),
    define(
        "compression.gzip.level",
        "-1",
        ValueType::Int,
        Allowed::GzipLevel,
        "Stored only: batches are not recompressed.",
    ),
    define(
        "compression.lz4.level",
        "9",
        ValueType::Int,
        Allowed::Between(1, 17),
        "Stored only: batches are not recompressed.",
    ),
    define(
        "compression.type",
        "producer",
        ValueType::String,
        Allowed::OneOf(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
        "Stored only: batches keep the compression of their producer.",
    ),
    define(
        "compression.zstd.level",
        "3",
        ValueType::Int,
        Allowed::Between(-131_072, 22),
        "Stored only: batches are not recompressed.",
    ),
    define(
        "delete.retention.ms",
        "86400000",
        ValueType::Long,
        Allowed::AtLeast(0),
        "How long compaction keeps tombstones.",
    ),
    define(
        "file.delete.delay.ms",
        "60000",
        ValueType::Long,
        Allowed::AtLeast(0),
        "Stored only: files of removed segments are deleted at once.",
    ),
    define(
        "flush.messages",
        FOREVER,
        ValueType::Long,
        Allowed::AtLeast(1),
        "Stored only: the flush policy of the broker decides.",
    ),
    define(
        "flush.ms",
        FOREVER,
        ValueType::Long,
        Allowed::AtLeast(0),
        "Stored only: the flush policy of the broker decides.",
    ),
    define(
        "follower.replication.throttled.replicas",
        "",
        ValueType::List,
        Allowed::Anything,
        "Stored only: there is no replication.",
    ),
    define(
        "index.interval.bytes",
        "4096",
        ValueType::Int,
        Allowed::AtLeast(0),
        "Stored only: the index has one entry for 32 KiB.",
    ),
    Definition {
        is_internal: true,
        ..define(
            INTERNAL_SEGMENT_BYTES,
            "134217728",
            ValueType::Int,
            Allowed::AtLeast(14),
            "Overrides segment.bytes, without its minimum.",
        )
    },
    define(
        "leader.replication.throttled.replicas",
        "",
        ValueType::List,
        Allowed::Anything,
        "Stored only: there is no replication.",
    ),
    define(
        "local.retention.bytes",
        "-2",
        ValueType::Long,
        Allowed::AtLeast(-2),
        "Stored only: there is no tiered storage.",
    ),
    define(
        "local.retention.ms",
        "-2",
        ValueType::Long,
        Allowed::AtLeast(-2),
        "Stored only: there is no tiered storage.",
    ),
    define(
        "max.compaction.lag.ms",
        FOREVER,
        ValueType::Long,
        Allowed::AtLeast(1),
        "The longest time that a record stays uncompacted.",
    ),
    define(
        MAX_MESSAGE_BYTES,
        "1048588",
        ValueType::Int,
        Allowed::AtLeast(0),
        "The largest record batch, after compression.",
    ),
    define(
        "message.timestamp.after.max.ms",
        "3600000",
        ValueType::Long,
        Allowed::AtLeast(0),
        "How far the timestamp of a record may be ahead of the broker.",
    ),
    define(
        "message.timestamp.before.max.ms",
        FOREVER,
        ValueType::Long,
        Allowed::AtLeast(0),
        "How far the timestamp of a record may be behind the broker.",
    ),
    define(
        "message.timestamp.type",
        "CreateTime",
        ValueType::String,
        Allowed::OneOf(&["CreateTime", "LogAppendTime"]),
        "Whether the timestamp of a record is that of its producer or of the append.",
    ),
    define(
        "min.cleanable.dirty.ratio",
        "0.5",
        ValueType::Double,
        Allowed::Fraction,
        "The share of uncompacted bytes that starts a compaction.",
    ),
    define(
        "min.compaction.lag.ms",
        "0",
        ValueType::Long,
        Allowed::AtLeast(0),
        "The shortest time that a record stays uncompacted.",
    ),
    define("min.insync.replicas", "1", ValueType::Int, Allowed::AtLeast(1), "Stored only: there is no replication."),
    define("preallocate", "false", ValueType::Boolean, BOOLEAN, "Stored only: files are not preallocated."),
    define("remote.log.copy.disable", "false", ValueType::Boolean, BOOLEAN, "Stored only: there is no tiered storage."),
    define(
        "remote.log.delete.on.disable",
        "false",
        ValueType::Boolean,
        BOOLEAN,
        "Stored only: there is no tiered storage.",
    ),
    define(
        "remote.storage.enable",
        "false",
        ValueType::Boolean,
        Allowed::OneOf(&["false"]),
        "There is no tiered storage.",
    ),
    define(
        "retention.bytes",
        "-1",
        ValueType::Long,
        Allowed::AtLeast(-1),
        "The size of a partition above which old segments are removed; -1: no limit.",
    ),
    define(
        "retention.ms",
        "604800000",
        ValueType::Long,
        Allowed::AtLeast(-1),
        "The age at which segments are removed; -1: never.",
    ),
    define("segment.bytes", "134217728", ValueType::Int, Allowed::AtLeast(1 << 20), "The size of a segment file."),
    define(
        "segment.index.bytes",
        "10485760",
        ValueType::Int,
        Allowed::AtLeast(4),
        "Stored only: the index grows with its segment.",
    ),
    define(
        "segment.jitter.ms",
        "0",
        ValueType::Long,
        Allowed::AtLeast(0),
        "Stored only: segments roll without jitter.",
    ),
    define("segment.ms", "604800000", ValueType::Long, Allowed::AtLeast(1), "The age at which a segment is closed."),
    define(
        "unclean.leader.election.enable",
        "false",
        ValueType::Boolean,
        BOOLEAN,
        "Stored only: there is no replication.",
    ),
];

/// The definition of a name.
pub(crate) fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|definition| definition.name == name)
}

/// The definitions that clients see.
pub(crate) fn described() -> impl Iterator<Item = &'static Definition> {
    DEFINITIONS.iter().filter(|definition| !definition.is_internal)
}

impl Definition {
    /// Checks a value. The error names the allowed values.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        let fail = |expected: String| Err(format!("invalid value {value:?} for {}: expected {expected}", self.name));
        match self.allowed {
            Allowed::Anything => Ok(()),
            Allowed::AtLeast(minimum) => {
                let maximum = if self.value_type == ValueType::Int { i64::from(i32::MAX) } else { i64::MAX };
                if is_between(value, minimum, maximum) {
                    return Ok(());
                }
                fail(format!("a whole number from {minimum} to {maximum}"))
            }
            Allowed::Between(minimum, maximum) => {
                if is_between(value, minimum, maximum) {
                    return Ok(());
                }
                fail(format!("a whole number from {minimum} to {maximum}"))
            }
            Allowed::GzipLevel => {
                if is_between(value, 1, 9) || is_between(value, -1, -1) {
                    return Ok(());
                }
                fail("a whole number from 1 to 9, or -1".into())
            }
            Allowed::Fraction => match value.trim().parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
                _ => fail("a number from 0 to 1".into()),
            },
            Allowed::OneOf(names) if self.value_type == ValueType::List => {
                let is_known = |part: &str| names.contains(&part.trim());
                if value.trim().is_empty() || value.split(',').all(is_known) {
                    return Ok(());
                }
                fail(format!("a list of {}", names.join(", ")))
            }
            Allowed::OneOf(names) => {
                if names.contains(&value) {
                    Ok(())
                } else {
                    fail(format!("one of {}", names.join(", ")))
                }
            }
        }
    }
}

fn is_between(value: &str, minimum: i64, maximum: i64) -> bool {
    value.trim().parse::<i64>().is_ok_and(|number| (minimum..=maximum).contains(&number))
}

/// The clock of a record's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimestampType {
    CreateTime,
    LogAppendTime,
}

/// The defaults of topic configs that the broker's options set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicDefaults {
    /// `message.max.bytes`.
    pub(crate) max_message_bytes: usize,
}

impl TopicDefaults {
    /// The value of a config that a topic does not override.
    pub(crate) fn value(&self, definition: &Definition) -> String {
        if definition.name == MAX_MESSAGE_BYTES {
            return self.max_message_bytes.to_string();
        }
        definition.default.to_owned()
    }
}

/// The configuration of a topic: overrides, and the parsed values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicConfig {
    /// The values that were set for this topic.
    pub(crate) overrides: BTreeMap<String, String>,
    pub(crate) defaults: TopicDefaults,
    pub(crate) cleanup_delete: bool,
    pub(crate) cleanup_compact: bool,
    pub(crate) retention_ms: Option<i64>,
    pub(crate) retention_bytes: Option<u64>,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: i64,
    pub(crate) max_message_bytes: usize,
    pub(crate) timestamp_type: TimestampType,
    /// How far a record's timestamp may be before or after the broker's time.
    pub(crate) timestamp_before_max_ms: i64,
    pub(crate) timestamp_after_max_ms: i64,
    pub(crate) delete_retention_ms: i64,
    pub(crate) min_compaction_lag_ms: i64,
    pub(crate) max_compaction_lag_ms: i64,
    pub(crate) min_cleanable_dirty_ratio: f64,
}

impl TopicConfig {
    /// Checks the overrides of a new topic and parses all values.
    pub(crate) fn new(overrides: BTreeMap<String, String>, defaults: &TopicDefaults) -> Result<Self, String> {
        let config = Self::stored(BTreeMap::new(), defaults);
        config.altered(overrides)
    }

    /// The configuration with other overrides. Unchanged ones are not checked again: an older
    /// version may have allowed more values.
    pub(crate) fn altered(&self, overrides: BTreeMap<String, String>) -> Result<Self, String> {
        let changed = overrides.iter().filter(|(name, value)| self.overrides.get(*name) != Some(value));
        for (name, value) in changed {
            definition(name).ok_or_else(|| format!("unknown topic config name: {name}"))?.check(value)?;
        }
        let config = Self::stored(overrides, &self.defaults);
        let (min, max) = (config.min_compaction_lag_ms, config.max_compaction_lag_ms);
        if min > max {
            return Err(format!("min.compaction.lag.ms ({min}) is larger than max.compaction.lag.ms ({max})"));
        }
        Ok(config)
    }

    /// Parses the overrides of a stored topic.
    pub(crate) fn stored(overrides: BTreeMap<String, String>, defaults: &TopicDefaults) -> Self {
        let text = |name: &str| -> &str {
            let default = definition(name).map_or("", |definition| definition.default);
            overrides.get(name).map_or(default, String::as_str).trim()
        };
        let number = |name: &str| text(name).parse::<i64>().unwrap_or(i64::MAX);
        let policies: Vec<&str> = text("cleanup.policy").split(',').map(str::trim).collect();
        let timestamp_type = match text("message.timestamp.type") {
            "LogAppendTime" => TimestampType::LogAppendTime,
            _ => TimestampType::CreateTime,
        };
        let max_compaction_lag_ms = number("max.compaction.lag.ms");
        let is_compacted = policies.contains(&"compact");
        // The active segment is not compacted, so it must roll before its compaction is overdue.
        let longest_segment_ms = if is_compacted { max_compaction_lag_ms } else { i64::MAX };
        let has_internal_size = overrides.contains_key(INTERNAL_SEGMENT_BYTES);
        let segment_bytes = number(if has_internal_size { INTERNAL_SEGMENT_BYTES } else { "segment.bytes" });
        let max_message_bytes = overrides.get(MAX_MESSAGE_BYTES).and_then(|value| value.trim().parse().ok());
        Self {
            cleanup_delete: policies.contains(&"delete"),
            cleanup_compact: is_compacted,
            retention_ms: Some(number("retention.ms")).filter(|limit| *limit >= 0),
            retention_bytes: u64::try_from(number("retention.bytes")).ok(),
            segment_bytes: segment_bytes as u64,
            segment_ms: number("segment.ms").min(longest_segment_ms),
            max_message_bytes: max_message_bytes.unwrap_or(defaults.max_message_bytes),
            timestamp_type,
            timestamp_before_max_ms: number("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: number("message.timestamp.after.max.ms"),
            delete_retention_ms: number("delete.retention.ms"),
            min_compaction_lag_ms: number("min.compaction.lag.ms"),
            max_compaction_lag_ms,
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            defaults: defaults.clone(),
            overrides,
        }
    }

    /// The effective value of a name.
    pub(crate) fn value(&self, definition: &Definition) -> String {
        self.overrides.get(definition.name).cloned().unwrap_or_else(|| self.defaults.value(definition))
    }
}

/// A configuration for tests.
#[cfg(test)]
pub(crate) fn test_config(pairs: &[(&str, &str)]) -> TopicConfig {
    let overrides = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    TopicConfig::new(overrides, &TopicDefaults { max_message_bytes: 1 << 20 }).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<TopicConfig, String> {
        let overrides = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        TopicConfig::new(overrides, &TopicDefaults { max_message_bytes: 1000 })
    }

    #[test]
    fn defaults_satisfy_their_own_definitions() {
        for definition in DEFINITIONS {
            definition.check(definition.default).unwrap();
        }
        let config = config(&[]).unwrap();
        assert!(config.cleanup_delete && !config.cleanup_compact);
        assert_eq!((config.retention_ms, config.retention_bytes), (Some(604_800_000), None));
    }

    #[test]
    fn invalid_values_and_unknown_names_are_refused() {
        assert!(config(&[("cleanup.policy", "compact,delete")]).unwrap().cleanup_compact);
        assert!(config(&[("cleanup.policy", "shred")]).is_err());
        assert!(config(&[("retention.ms", "-2")]).is_err());
        assert_eq!(config(&[("retention.ms", "-1")]).unwrap().retention_ms, None);
        assert!(config(&[("max.message.bytes", "99999999999")]).is_err());
        assert_eq!(config(&[]).unwrap().max_message_bytes, 1000);
        assert_eq!(config(&[("max.message.bytes", "7")]).unwrap().max_message_bytes, 7);
        for (name, valid, invalid) in [
            ("compression.gzip.level", ["-1", "1", "9"], ["0", "10", "-2"]),
            ("compression.lz4.level", ["1", "9", "17"], ["0", "18", "fast"]),
            ("compression.zstd.level", ["-131072", "5", "22"], ["-131073", "23", "best"]),
            ("segment.bytes", ["1048576", "2147483647", "1048577"], ["14", "1048575", "2147483648"]),
            ("cleanup.policy", ["", "compact", "delete,compact"], ["keep", "delete,", ","]),
        ] {
            valid.iter().for_each(|value| assert!(config(&[(name, value)]).is_ok(), "{name}={value}"));
            invalid.iter().for_each(|value| assert!(config(&[(name, value)]).is_err(), "{name}={value}"));
        }
        assert!(config(&[("min.compaction.lag.ms", "2"), ("max.compaction.lag.ms", "1")]).is_err());
        assert!(config(&[("retention.msec", "1")]).unwrap_err().contains("retention.msec"));
    }
    #[test]
    fn stored_values_that_are_no_longer_allowed_are_kept() {
        let old: BTreeMap<String, String> = [("segment.bytes".to_owned(), "5000".to_owned())].into();
        let config = TopicConfig::stored(old.clone(), &TopicDefaults { max_message_bytes: 1000 });
        assert_eq!(config.segment_bytes, 5000);
        let mut altered = old.clone();
        altered.insert("retention.ms".into(), "1".into());
        assert_eq!(config.altered(altered).unwrap().segment_bytes, 5000);
        assert!(config.altered([("segment.bytes".into(), "6000".into())].into()).is_err());
    }
}
