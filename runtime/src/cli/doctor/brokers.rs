//! Checks of the brokers: whether they answer, their version, the settings of topics, unread
//! records that retention removes, and rights.

use std::time::{Duration, Instant};

use trunkline_connector::Result;

use super::super::kafka_check::kafka_issues;
use super::super::selection::{Component, components};
use super::findings::{Findings, remedy};
use crate::checkpoint::{TASKS, system_topics};
use crate::config::Settings;
use crate::kafka::{Admin, BrokerFacts, Cluster, GroupOffsets, TopicFacts, TopicSpec};
use crate::plan::Pipeline;
use crate::stage::component_name;
use crate::worker::{ResourceKind, rights_of};

/// Brokers must know transactions by consumer group generation (KIP-447).
const OLDEST: (u32, u32) = (2, 5);

/// Time for a broker to answer. A worker waits longer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A sink that stands still for longer than this loses records.
const SHORT_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

pub(super) fn check(pipelines: &[Pipeline], settings: &Settings, findings: &mut Findings) {
    let brokers = settings.brokers.as_deref().unwrap_or_default();
    let begun = Instant::now();
    let connected = Cluster::new(brokers, &settings.kafka)
        .map(|cluster| cluster.with_interrupt(move || begun.elapsed() >= CONNECT_LIMIT))
        .and_then(|probe| Admin::new(&probe)?.connect())
        .and_then(|()| Cluster::new(brokers, &settings.kafka))
        .map(|cluster| cluster.with_prefix(&settings.prefix).with_topic_creation(settings.topics.create))
        .and_then(|cluster| {
            let admin = Admin::new(&cluster)?;
            let facts = admin.brokers()?;
            Ok((cluster, admin, facts))
        });
    let (cluster, admin, facts) = match connected {
        Ok(connected) => connected,
        Err(error) => return findings.error("brokers", error.code, error.message().to_owned(), remedy(error.code)),
    };
    let version = check_brokers(&facts, findings);
    let system = system_topics(&cluster, settings.topics.replication);
    let rights = rights_of(pipelines, settings);
    let names = rights.keys().filter(|it| it.kind == ResourceKind::Topic && !it.is_prefix).map(|it| it.name.as_str());
    let mut names: Vec<&str> = names.chain(system.iter().map(|spec| spec.name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    match admin.topics(&names) {
        Ok(topics) => {
            let tasks = cluster.own_topic(TASKS);
            let context = Context { servers: brokers, brokers: facts.len(), version, system: &system, tasks: &tasks };
            check_topics(&topics, &context, findings);
        }
        Err(error) => findings.error("topics", error.code, error.message().to_owned(), remedy(error.code)),
    }
    for pipeline in pipelines {
        for component in components(pipeline) {
            if let Err(error) = check_unread(&cluster, settings, pipeline, component, findings) {
                findings.warning("retention", error.code, error.message().to_owned(), remedy(error.code));
            }
        }
    }
    let issues = kafka_issues(pipelines, settings);
    if issues.is_empty() {
        findings.ok("rights", "no right on a topic or group is missing; see `trunkline acls` for all".to_owned());
    }
    findings.add_problems("rights", &issues);
}

/// Returns the oldest known version.
fn check_brokers(brokers: &[BrokerFacts], findings: &mut Findings) -> Option<(u32, u32)> {
    let addresses: Vec<&str> = brokers.iter().map(|broker| broker.address.as_str()).collect();
    let versions: Vec<&str> = brokers.iter().filter_map(|broker| broker.version.as_deref()).collect();
    let version = versions.iter().min_by_key(|version| number(version).unwrap_or((u32::MAX, 0)));
    let shown = version.map_or_else(String::new, |version| format!(", version {version}"));
    findings.ok("brokers", format!("reachable: {}{shown}", addresses.join(", ")));
    if let Some(version) = version.filter(|version| number(version).is_some_and(|number| number < OLDEST)) {
        let message = format!("a broker speaks the protocol of Kafka {version}; Trunkline needs 2.5 or newer");
        findings.error("brokers", "kafka.old_broker", message, remedy("kafka.old_broker"));
    }
    version.and_then(|version| number(version))
}

/// The version in texts such as `3.7-IV4`.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What the findings about a topic depend on.
struct Context<'a> {
    /// Bootstrap servers, for commands.
    servers: &'a str,
    brokers: usize,
    /// The oldest version of a broker. Since 4.0, they do not say it.
    version: Option<(u32, u32)>,
    /// The state topics.
    system: &'a [TopicSpec],
    /// The topic of leases, which holds no records.
    tasks: &'a str,
}

fn check_topics(topics: &[TopicFacts], context: &Context<'_>, findings: &mut Findings) {
    let before = findings.0.len();
    for topic in topics {
        match context.system.iter().find(|spec| spec.name == topic.name) {
            Some(spec) => check_state_topic(topic, spec, context.servers, findings),
            None => check_retention(topic, context.servers, findings),
        }
        check_replicas(topic, context, findings);
    }
    if findings.0.len() == before {
        let message = match topics.len() {
            0 => "none exists yet; a worker creates them when it starts".to_owned(),
            count => format!("{count} exist, with safe settings"),
        };
        findings.ok("topics", message);
    }
}

/// Rows of state topics are found by their partition, and must never be removed.
fn check_state_topic(topic: &TopicFacts, spec: &TopicSpec, servers: &str, findings: &mut Findings) {
    let TopicFacts { name, .. } = topic;
    if topic.partitions != spec.partitions {
        let message = format!("the topic `{name}` has {} partitions, not {}", topic.partitions, spec.partitions);
        let fix = format!(
            "stop the workers, and create it again with {} partitions (its rows are lost: sources start from the \
             beginning), or restore the old number",
            spec.partitions
        );
        findings.error("topics", "kafka.state_topic", message, Some(fix));
    }
    if let (Some(expected), Some(actual)) = (spec.config.get("cleanup.policy"), topic.config.get("cleanup.policy"))
        && actual != expected
    {
        let message = format!("the topic `{name}` has cleanup.policy={actual}: the brokers remove positions in it");
        findings.error(
            "topics",
            "kafka.state_topic",
            message,
            Some(alter(servers, name, &format!("cleanup.policy={expected}"))),
        );
    }
}

fn check_retention(topic: &TopicFacts, servers: &str, findings: &mut Findings) {
    let property = |name: &str| topic.config.get(name).and_then(|value| value.parse::<i64>().ok());
    let is_deleted = topic.config.get("cleanup.policy").is_some_and(|policy| policy.contains("delete"));
    if let Some(retention) =
        property("retention.ms").filter(|time| is_deleted && (0..SHORT_RETENTION_MS).contains(time))
    {
        let message = format!(
            "the topic `{}` keeps records for {:.1} hours: a sink that stands still longer misses records",
            topic.name,
            retention as f64 / 3_600_000.0
        );
        let fix = alter(servers, &topic.name, "retention.ms=604800000");
        findings.warning("topics", "kafka.short_retention", message, Some(fix));
    }
}

fn check_replicas(topic: &TopicFacts, context: &Context<'_>, findings: &mut Findings) {
    const CODE: &str = "kafka.replicas";
    let TopicFacts { name, replicas, in_sync, .. } = topic;
    let required: usize = topic.config.get("min.insync.replicas").and_then(|value| value.parse().ok()).unwrap_or(1);
    let require = |count: usize| Some(alter(context.servers, name, &format!("min.insync.replicas={count}")));
    if topic.leaderless > 0 {
        let message = format!("partitions of the topic `{name}` without a leader: {}", topic.leaderless);
        let fix = format!("kafka-topics.sh --bootstrap-server {} --describe --unavailable-partitions", context.servers);
        findings.error("topics", "kafka.no_leader", message, Some(fix));
    } else if required > *replicas {
        let message = format!(
            "the topic `{name}` has the replication factor {replicas} and min.insync.replicas={required}: brokers before \
             4.0 refuse every write"
        );
        match context.version {
            Some(_) => findings.error("topics", CODE, message, require(*replicas)),
            None => findings.warning("topics", CODE, message, require(*replicas)),
        }
    } else if required > *in_sync {
        let message = format!(
            "a partition of the topic `{name}` needs {required} replicas in sync (min.insync.replicas) and has {in_sync}: \
             writes wait"
        );
        findings.error("topics", CODE, message, Some("start the brokers that are down".to_owned()));
    } else if name == context.tasks {
        // A lost lease is taken again.
    } else if *replicas == 1 && context.brokers >= 3 {
        let message = format!("the topic `{name}` has one replica: a lost disk loses it");
        let fix = "set `topics.replication = 3` before the first run; kafka-reassign-partitions.sh adds replicas to an \
                   existing topic";
        findings.warning("topics", CODE, message, Some(fix.to_owned()));
    } else if *replicas >= 3 && required < 2 {
        let message =
            format!("the topic `{name}` has min.insync.replicas={required}: a lost disk can lose committed records");
        findings.warning("topics", CODE, message, require(2));
    }
}

fn alter(servers: &str, topic: &str, property: &str) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {topic} --add-config \
         {property}"
    )
}

/// Records that retention has removed, or is about to remove, before a sink or transform read them.
fn check_unread(
    cluster: &Cluster,
    settings: &Settings,
    pipeline: &Pipeline,
    component: Component<'_>,
    findings: &mut Findings,
) -> Result<()> {
    if matches!(component, Component::Source(_)) {
        return Ok(());
    }
    let group = component_name(&settings.cluster_name(), &pipeline.name, component.name());
    let offsets = GroupOffsets::new(cluster, &group)?;
    let partitions = offsets.partitions(|topic| component.inputs().iter().any(|input| input.topics.selects(topic)))?;
    if partitions.is_empty() {
        return Ok(());
    }
    for (partition, committed) in offsets.committed(&partitions)? {
        let place = format!(
            "`{}.{}`, partition {} of `{}`",
            pipeline.name,
            component.name(),
            partition.partition,
            partition.topic
        );
        let (low, high) = offsets.watermarks(&partition)?;
        match unread(low, high, committed) {
            Unread::Safe => {}
            Unread::Lost(count) => {
                let message = format!("{place}: retention has removed {count} offsets that were not read");
                let fix = "raise retention.ms of the topic; `trunkline snapshot` reads the tables of a source again";
                findings.error("retention", "kafka.records_lost", message, Some(fix.to_owned()));
            }
            Unread::AtRisk => {
                let message = format!("{place}: the oldest records are not read yet, and retention removes them next");
                findings.warning(
                    "retention",
                    "kafka.records_lost",
                    message,
                    Some(alter(cluster.brokers(), &partition.topic, "retention.ms=604800000")),
                );
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Unread {
    Safe,
    AtRisk,
    Lost(i64),
}

/// What retention means for the offsets after `committed` of a partition that has `low` to `high`.
fn unread(low: i64, high: i64, committed: i64) -> Unread {
    // A committed offset does not cover the marker at the end of a transaction.
    if committed + 1 < low {
        return Unread::Lost(low - committed);
    }
    // Retention removes records only if the partition does not begin at 0.
    let next = committed.max(low);
    let is_oldest_tenth = next < high && (next - low) * 10 < high - low;
    if low > 0 && is_oldest_tenth { Unread::AtRisk } else { Unread::Safe }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::findings::Level;
    use super::*;

    fn topic(name: &str, replicas: usize, config: &[(&str, &str)]) -> TopicFacts {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TopicFacts { name: name.to_owned(), partitions: 8, replicas, in_sync: replicas, leaderless: 0, config }
    }

    fn state(name: &str) -> TopicSpec {
        let config = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        TopicSpec { name: name.to_owned(), partitions: 8, replication: -1, config }
    }

    /// The findings about one topic.
    fn found(topic: &TopicFacts) -> Vec<(Level, String, String)> {
        let mut findings = Findings::default();
        let system = [state("state")];
        let version = Some((3, 7));
        let context = Context { servers: "a:1", brokers: 3, version, system: &system, tasks: "tasks" };
        check_topics(std::slice::from_ref(topic), &context, &mut findings);
        findings.0.into_iter().map(|it| (it.level, it.message, it.fix.unwrap_or_default())).collect()
    }

    #[test]
    fn settings_of_topics_that_lose_records_are_found() {
        let safe = [("min.insync.replicas", "2"), ("cleanup.policy", "delete"), ("retention.ms", "604800000")];
        assert_eq!(
            found(&topic("a", 3, &safe)),
            [(Level::Ok, "1 exist, with safe settings".to_owned(), String::new())]
        );
        let cases = [
            (
                topic("a", 3, &[("min.insync.replicas", "1")]),
                Level::Warning,
                "min.insync.replicas=1",
                "min.insync.replicas=2",
            ),
            (topic("a", 1, &[]), Level::Warning, "one replica", "topics.replication = 3"),
            (
                topic("a", 2, &[("min.insync.replicas", "3")]),
                Level::Error,
                "refuse every write",
                "min.insync.replicas=2",
            ),
            (
                topic(
                    "a",
                    3,
                    &[("min.insync.replicas", "2"), ("cleanup.policy", "delete"), ("retention.ms", "3600000")],
                ),
                Level::Warning,
                "for 1.0 hours",
                "retention.ms=604800000",
            ),
            (
                topic("state", 3, &[("min.insync.replicas", "2"), ("cleanup.policy", "delete")]),
                Level::Error,
                "remove positions",
                "cleanup.policy=compact",
            ),
            (
                TopicFacts { partitions: 4, ..topic("state", 3, &[("min.insync.replicas", "2")]) },
                Level::Error,
                "4 partitions, not 8",
                "8 partitions",
            ),
            (
                TopicFacts { leaderless: 2, ..topic("a", 3, &safe) },
                Level::Error,
                "without a leader: 2",
                "--unavailable-partitions",
            ),
            (TopicFacts { in_sync: 1, ..topic("a", 3, &safe) }, Level::Error, "and has 1", "start the brokers"),
        ];
        for (topic, level, message, fix) in cases {
            let found = found(&topic);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == level && found[0].1.contains(message) && found[0].2.contains(fix), "{found:?}");
        }
    }

    #[test]
    fn old_brokers_are_errors_and_unknown_versions_are_not() {
        let mut findings = Findings::default();
        let broker =
            |version: Option<&str>| BrokerFacts { address: "a:1".to_owned(), version: version.map(str::to_owned) };
        check_brokers(&[broker(Some("3.7-IV4")), broker(None)], &mut findings);
        assert_eq!(
            (findings.count(Level::Error), findings.0[0].message.as_str()),
            (0, "reachable: a:1, a:1, version 3.7-IV4")
        );
        check_brokers(&[broker(Some("3.7-IV4")), broker(Some("2.4-IV1"))], &mut findings);
        assert_eq!(findings.count(Level::Error), 1);
    }

    #[test]
    fn offsets_before_the_first_record_are_lost() {
        assert_eq!(unread(100, 1000, 50), Unread::Lost(50));
        assert_eq!(unread(100, 100, 99), Unread::Safe, "the end of a transaction");
        assert_eq!(unread(100, 1000, 150), Unread::AtRisk);
        assert_eq!(unread(100, 1000, 500), Unread::Safe);
        // Everything is read, or nothing was ever removed.
        assert_eq!((unread(100, 100, 100), unread(0, 1000, 0)), (Unread::Safe, Unread::Safe));
    }
}
