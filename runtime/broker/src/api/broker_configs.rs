//! The broker's configs: its options under Kafka's names, and the defaults of topic configs.

use crate::FlushPolicy;
use crate::request::Call;
use crate::state::NODE;
use crate::topics::config::{ValueType, definition};

/// One config of the broker.
pub(super) struct BrokerConfig {
    pub(super) name: &'static str,
    pub(super) value_type: ValueType,
    pub(super) value: String,
    pub(super) documentation: &'static str,
}

/// Names of the broker's defaults for topic configs, with the topic's names.
const TOPIC_DEFAULTS: [(&str, &str); 8] = [
    ("compression.type", "compression.type"),
    ("log.cleanup.policy", "cleanup.policy"),
    ("log.message.timestamp.type", "message.timestamp.type"),
    ("log.retention.bytes", "retention.bytes"),
    ("log.retention.ms", "retention.ms"),
    ("log.roll.ms", "segment.ms"),
    ("log.segment.bytes", "segment.bytes"),
    ("min.insync.replicas", "min.insync.replicas"),
];

/// All configs, in alphabetical order.
pub(super) fn broker_configs(call: &Call<'_>) -> Vec<BrokerConfig> {
    let mut configs = options(call);
    for (name, topic_name) in TOPIC_DEFAULTS {
        configs.extend(definition(topic_name).map(|definition| BrokerConfig {
            name,
            value_type: definition.value_type,
            value: definition.default.to_owned(),
            documentation: definition.documentation,
        }));
    }
    configs.sort_unstable_by_key(|config| config.name);
    configs
}

fn options(call: &Call<'_>) -> Vec<BrokerConfig> {
    use ValueType::{Boolean, Int, List, Long, String};
    let options = &call.broker.options;
    let flush_messages = match options.flush {
        FlushPolicy::Always => 1,
        FlushPolicy::Os => i64::MAX,
    };
    let advertised = super::cluster::advertised(call);
    let config = |name, value_type, value, documentation| BrokerConfig { name, value_type, value, documentation };
    let bool = |name, value: bool, doc| config(name, Boolean, value.to_string(), doc);
    let int = |name, value: i64, doc| config(name, Int, value.to_string(), doc);
    let long = |name, value: i64, doc| config(name, Long, value.to_string(), doc);
    let list = |name, value, doc| config(name, List, value, doc);
    let ms = |duration: std::time::Duration| duration.as_millis() as i64;
    let node = i64::from(NODE.0);
    vec![
        list(
            "advertised.listeners",
            format!("PLAINTEXT://{}:{}", advertised.0, advertised.1),
            "The address that clients connect to.",
        ),
        bool("auto.create.topics.enable", options.auto_create_topics, "Whether clients create topics by using them."),
        int("broker.id", node, "The id of the only broker."),
        long("connections.max.idle.ms", ms(options.max_idle), "How long a connection may be idle."),
        int("default.replication.factor", 1, "There is no replication."),
        bool("delete.topic.enable", true, "Topics can be deleted."),
        int(
            "group.initial.rebalance.delay.ms",
            ms(options.initial_rebalance_delay),
            "How long the first member of a group waits for others.",
        ),
        int("group.max.session.timeout.ms", ms(options.max_session_timeout), "The longest session timeout."),
        int("group.max.size", options.max_group_size as i64, "The largest number of members of a group."),
        int("group.min.session.timeout.ms", ms(options.min_session_timeout), "The shortest session timeout."),
        list("listeners", format!("PLAINTEXT://{}", call.peer.local), "The address that the broker listens on."),
        long("log.cleaner.backoff.ms", ms(options.compaction_interval), "How often compaction looks for work."),
        config("log.dirs", String, options.data_dir.display().to_string(), "The data directory."),
        long("log.flush.interval.messages", flush_messages, "1: records are synced before they are acknowledged."),
        long(
            "log.retention.check.interval.ms",
            ms(options.retention_check_interval),
            "How often retention removes old segments.",
        ),
        int("max.connections", options.max_connections as i64, "The largest number of connections."),
        int("message.max.bytes", options.max_message_bytes as i64, "The largest record batch, after compression."),
        int("node.id", node, "The id of the only broker."),
        int("num.network.threads", options.threads as i64, "Threads that serve connections."),
        int("num.partitions", i64::from(options.default_partitions), "Partitions of a topic whose creator names none."),
        int(
            "offsets.retention.minutes",
            (options.offsets_retention.as_secs() / 60) as i64,
            "How long the offsets of a group without members are kept.",
        ),
        long("queued.max.request.bytes", options.max_requests_bytes as i64, "The memory for all requests."),
        int("socket.request.max.bytes", options.max_request_bytes as i64, "The largest request."),
        int("transaction.max.timeout.ms", ms(options.max_transaction_timeout), "The longest transaction timeout."),
        int(
            "transactional.id.expiration.ms",
            ms(options.transactional_id_expiration),
            "How long an unused transactional id is kept.",
        ),
    ]
}
