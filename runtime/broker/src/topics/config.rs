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
}

const fn define(name: &'static str, default: &'static str, value_type: ValueType, allowed: Allowed) -> Definition {
    Definition { name, default, value_type, allowed }
}

const BOOLEAN: Allowed = Allowed::OneOf(&["true", "false"]);
const FOREVER: &str = "9223372036854775807";

/// All names, in alphabetical order.
pub(crate) const DEFINITIONS: &[Definition] = &[
    define("cleanup.policy", "delete", ValueType::List, Allowed::OneOf(&["delete", "compact"])),
    define(
        "compression.type",
        "producer",
        ValueType::String,
        Allowed::OneOf(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
    ),
    define("delete.retention.ms", "86400000", ValueType::Long, Allowed::AtLeast(0)),
    define("file.delete.delay.ms", "60000", ValueType::Long, Allowed::AtLeast(0)),
    define("flush.messages", FOREVER, ValueType::Long, Allowed::AtLeast(1)),
    define("flush.ms", FOREVER, ValueType::Long, Allowed::AtLeast(0)),
    define("follower.replication.throttled.replicas", "", ValueType::List, Allowed::Anything),
    define("index.interval.bytes", "4096", ValueType::Int, Allowed::AtLeast(0)),
    define("leader.replication.throttled.replicas", "", ValueType::List, Allowed::Anything),
    define("local.retention.bytes", "-2", ValueType::Long, Allowed::AtLeast(-2)),
    define("local.retention.ms", "-2", ValueType::Long, Allowed::AtLeast(-2)),
    define("max.compaction.lag.ms", FOREVER, ValueType::Long, Allowed::AtLeast(1)),
    define("max.message.bytes", "1048588", ValueType::Int, Allowed::AtLeast(0)),
    define("message.timestamp.after.max.ms", "3600000", ValueType::Long, Allowed::AtLeast(0)),
    define("message.timestamp.before.max.ms", FOREVER, ValueType::Long, Allowed::AtLeast(0)),
    define("message.timestamp.type", "CreateTime", ValueType::String, Allowed::OneOf(&["CreateTime", "LogAppendTime"])),
    define("min.cleanable.dirty.ratio", "0.5", ValueType::Double, Allowed::Fraction),
    define("min.compaction.lag.ms", "0", ValueType::Long, Allowed::AtLeast(0)),
    define("min.insync.replicas", "1", ValueType::Int, Allowed::AtLeast(1)),
    define("preallocate", "false", ValueType::Boolean, BOOLEAN),
    define("remote.log.copy.disable", "false", ValueType::Boolean, BOOLEAN),
    define("remote.log.delete.on.disable", "false", ValueType::Boolean, BOOLEAN),
    define("remote.storage.enable", "false", ValueType::Boolean, Allowed::OneOf(&["false"])),
    define("retention.bytes", "-1", ValueType::Long, Allowed::AtLeast(-1)),
    define("retention.ms", "604800000", ValueType::Long, Allowed::AtLeast(-1)),
    define("segment.bytes", "134217728", ValueType::Int, Allowed::AtLeast(14)),
    define("segment.index.bytes", "10485760", ValueType::Int, Allowed::AtLeast(4)),
    define("segment.jitter.ms", "0", ValueType::Long, Allowed::AtLeast(0)),
    define("segment.ms", "604800000", ValueType::Long, Allowed::AtLeast(1)),
    define("unclean.leader.election.enable", "false", ValueType::Boolean, BOOLEAN),
];

/// The definition of a name.
pub(crate) fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|definition| definition.name == name)
}

impl Definition {
    /// Checks a value. The error names the allowed values.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        let fail = |expected: String| Err(format!("invalid value {value:?} for {}: expected {expected}", self.name));
        match self.allowed {
            Allowed::Anything => Ok(()),
            Allowed::AtLeast(minimum) => {
                let maximum = if self.value_type == ValueType::Int { i64::from(i32::MAX) } else { i64::MAX };
                match value.trim().parse::<i64>() {
                    Ok(number) if (minimum..=maximum).contains(&number) => Ok(()),
                    _ => fail(format!("a whole number from {minimum} to {maximum}")),
                }
            }
            Allowed::Fraction => match value.trim().parse::<f64>() {
                Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
                _ => fail("a number from 0 to 1".into()),
            },
            Allowed::OneOf(names) if self.value_type == ValueType::List => {
                let is_known = |part: &str| names.contains(&part.trim());
                if value.split(',').all(is_known) { Ok(()) } else { fail(format!("a list of {}", names.join(", "))) }
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

/// The clock of a record's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimestampType {
    CreateTime,
    LogAppendTime,
}

/// The configuration of a topic: overrides, and the parsed values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicConfig {
    /// The values that were set for this topic.
    pub(crate) overrides: BTreeMap<String, String>,
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
    /// Checks the overrides and parses all values.
    pub(crate) fn new(overrides: BTreeMap<String, String>) -> Result<Self, String> {
        for (name, value) in &overrides {
            definition(name).ok_or_else(|| format!("unknown topic config name: {name}"))?.check(value)?;
        }
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
        let (min_compaction_lag_ms, max_compaction_lag_ms) =
            (number("min.compaction.lag.ms"), number("max.compaction.lag.ms"));
        if min_compaction_lag_ms > max_compaction_lag_ms {
            return Err(format!(
                "min.compaction.lag.ms ({min_compaction_lag_ms}) is larger than max.compaction.lag.ms ({max_compaction_lag_ms})"
            ));
        }
        let is_compacted = policies.contains(&"compact");
        // The active segment is not compacted, so it must roll before its compaction is overdue.
        let longest_segment_ms = if is_compacted { max_compaction_lag_ms } else { i64::MAX };
        let segment_ms = number("segment.ms").min(longest_segment_ms);
        Ok(Self {
            cleanup_delete: policies.contains(&"delete"),
            cleanup_compact: is_compacted,
            retention_ms: Some(number("retention.ms")).filter(|limit| *limit >= 0),
            retention_bytes: u64::try_from(number("retention.bytes")).ok(),
            segment_bytes: number("segment.bytes") as u64,
            segment_ms,
            max_message_bytes: number("max.message.bytes") as usize,
            timestamp_type,
            timestamp_before_max_ms: number("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: number("message.timestamp.after.max.ms"),
            delete_retention_ms: number("delete.retention.ms"),
            min_compaction_lag_ms,
            max_compaction_lag_ms,
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            overrides,
        })
    }

    /// The effective value of a name.
    pub(crate) fn value(&self, definition: &Definition) -> String {
        self.overrides.get(definition.name).cloned().unwrap_or_else(|| definition.default.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<TopicConfig, String> {
        TopicConfig::new(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
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
        assert!(config(&[("min.compaction.lag.ms", "2"), ("max.compaction.lag.ms", "1")]).is_err());
        assert!(config(&[("retention.msec", "1")]).unwrap_err().contains("retention.msec"));
    }
}
