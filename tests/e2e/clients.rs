//! Other Kafka clients work on the embedded broker as on Apache Kafka: Apache Kafka's tools and
//! Java client, kcat (librdkafka), franz-go, and kafkajs. The records that one client writes are
//! counted by another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime};

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use trunkline_tests::{BrokerKind, Exit, Kafka, Skip, Tool, need, wait};

use crate::LONG;

on_each_broker!(
    console_tools_write_and_read,
    topics_are_created_altered_and_deleted,
    topic_configs_are_altered,
    groups_are_listed_reset_and_deleted,
    hanging_transactions_are_found_and_aborted,
    performance_tools_write_and_read_all_records,
    verifiable_clients_write_read_and_commit,
    the_transactional_copier_copies_exactly_once,
    the_java_client_copies_exactly_once,
    franz_go_copies_exactly_once,
    kcat_lists_writes_and_reads,
    kafkajs_writes_transactions_and_reads_in_a_group,
);

/// A broker, and Apache Kafka's tools.
struct Tools {
    kafka: &'static Kafka,
    tool: Tool,
}

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
const TRANSACTIONS: &str = "org.apache.kafka.tools.TransactionsCommand";
const CONSOLE_PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";
const PRODUCER_PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
const CONSUMER_PERFORMANCE: &str = "org.apache.kafka.tools.ConsumerPerformance";
const VERIFIABLE_PRODUCER: &str = "org.apache.kafka.tools.VerifiableProducer";
const VERIFIABLE_CONSUMER: &str = "org.apache.kafka.tools.VerifiableConsumer";
const COPIER: &str = "org.apache.kafka.tools.TransactionalMessageCopier";

impl Tools {
    fn find(kind: BrokerKind) -> Result<Self, Skip> {
        Ok(Self { kafka: Kafka::shared(kind)?, tool: Tool::find("kafka-tool")? })
    }

    fn arguments<'text>(&'text self, class: &'text str, arguments: &[&'text str]) -> Vec<&'text str> {
        [&[class, "--bootstrap-server", self.kafka.brokers()], arguments].concat()
    }

    fn run(&self, class: &str, arguments: &[&str]) -> String {
        self.tool.run(&self.arguments(class, arguments))
    }

    fn run_with_input(&self, input: &str, class: &str, arguments: &[&str]) -> String {
        self.tool.run_with_input(input, &self.arguments(class, arguments))
    }

    fn fail(&self, class: &str, arguments: &[&str]) -> Exit {
        let exit = self.tool.try_run(&self.arguments(class, arguments));
        assert_eq!(exit.code, Some(1), "{}", exit.describe());
        exit
    }

    /// A new topic of three partitions, with `records` records.
    fn topic(&self, name: &str, records: u64) -> String {
        let topic = unique(name);
        self.kafka.create_topic(&topic, 3);
        if records > 0 {
            self.run_with_input(&lines(records), CONSOLE_PRODUCER, &["--topic", &topic]);
            assert_eq!(self.kafka.count(&topic), records);
        }
        topic
    }

    /// The committed offset and the log end offset of each partition of a group.
    fn group_offsets(&self, group: &str) -> BTreeMap<u32, (u64, u64)> {
        let described = self.run(GROUPS, &["--describe", "--group", group]);
        let rows = described.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let of_group = rows.filter(|columns| columns.first() == Some(&group));
        of_group.map(|columns| (number(columns[2]) as u32, (number(columns[3]), number(columns[4])))).collect()
    }

    /// The sum of the log end offsets of a topic.
    fn end_offset_sum(&self, topic: &str) -> u64 {
        self.run(OFFSETS, &["--topic", topic, "--time", "-1"]).lines().map(|line| last_number(line, ':')).sum()
    }
}

/// A name that no other test uses, also on an older server.
fn unique(name: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{name}-{:x}", now.as_nanos())
}

/// Distinct lines.
fn lines(count: u64) -> String {
    (0..count).map(|number| format!("line {number}\n")).collect()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

fn last_number(line: &str, separator: char) -> u64 {
    number(line.rsplit(separator).next().unwrap())
}

fn set<'text>(lines: impl IntoIterator<Item = &'text str>) -> BTreeSet<&'text str> {
    lines.into_iter().collect()
}

/// The events of a verifiable client, one per line.
fn events(output: &str) -> Vec<Value> {
    output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn named<'events>(events: &'events [Value], name: &str) -> Vec<&'events Value> {
    events.iter().filter(|event| event["name"] == name).collect()
}

fn console_tools_write_and_read(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let topic = tools.topic("console", 0);
    let written: String = (0..1_000).map(|number| format!("key {number}:value {number}\n")).collect();
    let properties = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=:"];
    let codec = ["--topic", &topic, "--compression-codec", "zstd"];
    tools.run_with_input(&written, CONSOLE_PRODUCER, &[&codec[..], &properties].concat());
    assert_eq!(tools.kafka.count(&topic), 1_000);

    let shown = ["--formatter-property", "print.key=true", "--formatter-property", "key.separator=:"];
    let wanted = ["--topic", &topic, "--from-beginning", "--max-messages", "1000", "--timeout-ms", "60000"];
    for isolation in ["read_committed", "read_uncommitted"] {
        let isolation = ["--isolation-level", isolation];
        let read = tools.run(CONSOLE_CONSUMER, &[&wanted[..], &shown, &isolation].concat());
        assert_eq!(read.lines().count(), 1_000);
        assert_eq!(set(read.lines()), set(written.lines()));
    }
    // From an offset of one partition.
    let ends = tools.run(OFFSETS, &["--topic-partitions", &format!("{topic}:0"), "--time", "-1"]);
    let end = last_number(ends.trim_end(), ':');
    let last = ["--topic", &topic, "--partition", "0", "--offset", &(end - 5).to_string(), "--max-messages", "5"];
    assert_eq!(tools.run(CONSOLE_CONSUMER, &last).lines().count(), 5);
}

fn topics_are_created_altered_and_deleted(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let topic = unique("administered");
    let create = ["--create", "--topic", &topic, "--partitions", "3", "--config", "retention.ms=7200000"];
    tools.run(TOPICS, &create);
    assert!(tools.fail(TOPICS, &create).stdout.contains("already exists"));
    tools.run(TOPICS, &[&create[..], &["--if-not-exists"]].concat());
    let is_listed = || tools.run(TOPICS, &["--list"]).lines().any(|listed| listed == topic);
    assert!(is_listed());
    tools.run(TOPICS, &["--alter", "--topic", &topic, "--partitions", "5"]);
    let fewer = tools.fail(TOPICS, &["--alter", "--topic", &topic, "--partitions", "2"]);
    assert!(fewer.stdout.contains("partition"), "{}", fewer.stdout);
    let described = tools.run(TOPICS, &["--describe", "--topic", &topic]);
    assert!(described.contains("PartitionCount: 5") && described.contains("retention.ms=7200000"), "{described}");
    assert_eq!(described.matches("Leader: 1\tReplicas: 1\tIsr: 1").count(), 5, "{described}");
    assert!(tools.run(TOPICS, &["--describe", "--under-replicated-partitions"]).trim().is_empty());

    tools.run_with_input(&lines(100), CONSOLE_PRODUCER, &["--topic", &topic]);
    assert_eq!(tools.end_offset_sum(&topic), 100);
    let list: Vec<Value> =
        (0..5).map(|partition| serde_json::json!({ "topic": topic, "partition": partition, "offset": -1 })).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), serde_json::json!({ "partitions": list, "version": 1 }).to_string()).unwrap();
    tools.run(DELETE_RECORDS, &["--offset-json-file", file.path().to_str().unwrap()]);
    assert_eq!((tools.kafka.count(&topic), tools.end_offset_sum(&topic)), (0, 100));

    tools.run(TOPICS, &["--delete", "--topic", &topic]);
    assert!(!is_listed());
    tools.fail(TOPICS, &["--describe", "--topic", &topic]);
}

fn topic_configs_are_altered(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let topic = tools.topic("configs", 0);
    let of_topic = ["--entity-type", "topics", "--entity-name", &topic];
    let describe = || tools.run(CONFIGS, &[&["--describe"], &of_topic[..]].concat());
    let alter = |change: &str, configs: &str| [&["--alter", change, configs], &of_topic[..]].concat().join(" ");
    let run = |arguments: String| tools.run(CONFIGS, &arguments.split(' ').collect::<Vec<_>>());
    run(alter("--add-config", "retention.ms=3600000,cleanup.policy=[compact,delete]"));
    let described = describe();
    assert!(described.contains("retention.ms=3600000") && described.contains("cleanup.policy=compact,delete"));
    run(alter("--delete-config", "cleanup.policy"));
    let described = describe();
    assert!(described.contains("retention.ms=3600000") && !described.contains("cleanup.policy"), "{described}");
    for nonsense in ["retention.ms=soon", "no.such.config=1"] {
        let arguments = alter("--add-config", nonsense);
        let refused = tools.fail(CONFIGS, &arguments.split(' ').collect::<Vec<_>>());
        assert!(refused.stderr.contains("InvalidConfigurationException"), "{}", refused.describe());
    }
    assert_eq!(describe(), described);
    let broker = ["--describe", "--all", "--entity-type", "brokers", "--entity-name", "1"];
    assert!(tools.run(CONFIGS, &broker).contains("node.id=1"));
}

fn groups_are_listed_reset_and_deleted(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let (topic, group) = (tools.topic("groups", 300), unique("group"));
    let read = |records: &str| {
        let limits = ["--from-beginning", "--max-messages", records, "--timeout-ms", "60000"];
        tools.run(CONSOLE_CONSUMER, &[&["--topic", &topic, "--group", &group], &limits[..]].concat()).lines().count()
    };
    assert_eq!(read("300"), 300);
    assert!(tools.run(GROUPS, &["--list"]).lines().any(|listed| listed == group));
    let state = tools.run(GROUPS, &["--describe", "--state", "--group", &group]);
    assert!(state.lines().any(|line| line.contains(&group) && line.contains("Empty")), "{state}");
    let ends = tools.group_offsets(&group);
    assert_eq!(ends.values().map(|(offset, _)| offset).sum::<u64>(), 300);
    assert!(ends.values().all(|(offset, end)| offset == end), "{ends:?}");

    let reset = |how: &[&str]| {
        let whose = ["--reset-offsets", "--group", &group, "--topic", &topic];
        tools.run(GROUPS, &[&whose[..], how, &["--execute"]].concat());
        tools.group_offsets(&group).values().map(|(offset, _)| *offset).collect::<Vec<_>>()
    };
    let lasts = ends.values().map(|(_, end)| *end).collect::<Vec<_>>();
    assert_eq!(reset(&["--to-earliest"]), vec![0; lasts.len()]);
    assert_eq!(read("300"), 300);
    assert_eq!(reset(&["--shift-by", "-10"]), lasts.iter().map(|end| end.saturating_sub(10)).collect::<Vec<_>>());
    assert_eq!(reset(&["--to-datetime", "2020-01-01T00:00:00.000"]), vec![0; lasts.len()]);
    assert_eq!(reset(&["--to-datetime", "2099-01-01T00:00:00.000"]), lasts);
    assert_eq!(reset(&["--to-offset", "3"]), lasts.iter().map(|end| *end.min(&3)).collect::<Vec<_>>());
    assert_eq!(reset(&["--to-latest"]), lasts);

    tools.run(GROUPS, &["--delete-offsets", "--group", &group, "--topic", &format!("{topic}:1")]);
    assert!(!tools.group_offsets(&group).contains_key(&1));

    // A group with a member: the member is listed, and the group cannot be deleted.
    let mut member = tools.tool.start(&tools.arguments(CONSOLE_CONSUMER, &["--topic", &topic, "--group", &group]));
    wait::until("the member is listed", LONG, || {
        let members = tools.run(GROUPS, &["--describe", "--members", "--group", &group]);
        members.lines().any(|line| line.contains("console-consumer") && line.contains(" 3")).then_some(())
    });
    assert!(member.is_running());
    let exit = tools.tool.try_run(&tools.arguments(GROUPS, &["--delete", "--group", &group]));
    assert!(exit.stdout.contains("GroupNotEmptyException"), "{} {}", exit.stdout, exit.describe());
    member.kill9();

    let other = unique("group");
    let limits = ["--from-beginning", "--max-messages", "300", "--timeout-ms", "60000"];
    tools.run(CONSOLE_CONSUMER, &[&["--topic", &topic, "--group", &other], &limits[..]].concat());
    let deleted = tools.run(GROUPS, &["--delete", "--group", &other]);
    assert!(deleted.contains("successful"), "{deleted}");
    assert!(!tools.run(GROUPS, &["--list"]).lines().any(|listed| listed == other));
}

/// A producer with an open transaction that has ten records in partition 0.
fn hanging_producer(kafka: &Kafka, id: &str, topic: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("transactional.id", id)
        .set("transaction.timeout.ms", "300000")
        .create()
        .unwrap();
    producer.init_transactions(LONG).unwrap();
    producer.begin_transaction().unwrap();
    for _ in 0..10 {
        producer
            .send(BaseRecord::<(), str>::to(topic).partition(0).payload("hangs"))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    wait::until("the records are acknowledged", LONG, || {
        producer.poll(Duration::ZERO);
        (producer.in_flight_count() == 0).then_some(())
    });
    producer
}

fn hanging_transactions_are_found_and_aborted(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let kafka = tools.kafka;
    let (topic, id) = (tools.topic("hanging", 0), unique("hanging"));
    let producer = hanging_producer(kafka, &id, &topic);
    let state = || {
        let listed = tools.run(TRANSACTIONS, &["list"]);
        let row = listed.lines().find(|line| line.starts_with(&id)).map(str::to_owned);
        row.and_then(|row| row.split_whitespace().last().map(str::to_owned))
    };
    assert_eq!(state().as_deref(), Some("Ongoing"));
    let described = tools.run(TRANSACTIONS, &["describe", "--transactional-id", &id]);
    assert!(described.contains("Ongoing") && described.contains(&format!("{topic}-0")), "{described}");
    let partition = ["--topic", &topic, "--partition", "0"];
    let producers = tools.run(TRANSACTIONS, &[&["describe-producers"], &partition[..]].concat());
    let open = producers.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!((open[3], open[5]), ("9", "0"), "last sequence and start offset in {producers}");

    assert_eq!((kafka.end_offsets(&topic).high_watermark, kafka.end_offsets(&topic).last_stable), (10, 0));
    tools.run(TRANSACTIONS, &[&["abort"], &partition[..], &["--start-offset", "0"]].concat());
    wait::until("the transaction is aborted", LONG, || (kafka.end_offsets(&topic).last_stable == 11).then_some(()));
    assert_eq!(kafka.count(&topic), 0);
    producer.abort_transaction(LONG).unwrap();
    wait::until("the coordinator has aborted it", LONG, || (state().as_deref() == Some("CompleteAbort")).then_some(()));

    // A forced termination fences the producer.
    let (topic, id) = (tools.topic("forced", 0), unique("forced"));
    let producer = hanging_producer(kafka, &id, &topic);
    tools.run(TRANSACTIONS, &["forceTerminateTransaction", "--transactionalId", &id]);
    wait::until("the transaction is aborted", LONG, || {
        (!kafka.end_offsets(&topic).has_open_transaction()).then_some(())
    });
    assert_eq!(kafka.count(&topic), 0);
    match producer.commit_transaction(LONG) {
        Err(KafkaError::Transaction(error)) => assert!(error.is_fatal(), "{error}"),
        other => panic!("the producer was not fenced: {other:?}"),
    }
}

fn performance_tools_write_and_read_all_records(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let topic = tools.topic("performance", 0);
    let records = ["--topic", &topic, "--num-records", "20000", "--record-size", "200", "--throughput", "-1"];
    let summary = tools.run(PRODUCER_PERFORMANCE, &records);
    assert!(summary.contains("20000 records sent"), "{summary}");
    let transactional = ["--transactional-id", &unique("performance"), "--transaction-duration-ms", "50"];
    let summary = tools.run(PRODUCER_PERFORMANCE, &[&records[..], &transactional].concat());
    assert!(summary.contains("20000 records sent"), "{summary}");
    assert_eq!(tools.kafka.count(&topic), 40_000);
    let ends = tools.kafka.end_offsets(&topic);
    assert!(!ends.has_open_transaction());
    assert!(ends.high_watermark > 40_000, "the topic has no transaction markers: {ends:?}");
    let wanted = ["--topic", &topic, "--num-records", "40000", "--group", &unique("performance"), "--timeout", "60000"];
    let summary = tools.run(CONSUMER_PERFORMANCE, &wanted);
    let consumed = summary.lines().last().unwrap().split(", ").nth(4).unwrap();
    assert_eq!(consumed, "40000", "{summary}");
}

fn verifiable_clients_write_read_and_commit(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let (topic, group) = (tools.topic("verifiable", 0), unique("verifiable"));
    let produced =
        events(&tools.run(VERIFIABLE_PRODUCER, &["--topic", &topic, "--max-messages", "2000", "--acks", "-1"]));
    assert_eq!(named(&produced, "producer_send_success").len(), 2_000);
    assert!(named(&produced, "producer_send_error").is_empty());
    let wanted = ["--topic", &topic, "--group-id", &group, "--max-messages", "2000", "--reset-policy", "earliest"];
    let consumed = events(&tools.run(VERIFIABLE_CONSUMER, &wanted));
    let counts = named(&consumed, "records_consumed").iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(counts, 2_000);
    let commits = named(&consumed, "offsets_committed");
    assert!(!commits.is_empty() && commits.iter().all(|event| event["success"] == true), "{commits:?}");
    let committed = tools.group_offsets(&group).values().map(|(offset, _)| offset).sum::<u64>();
    assert_eq!(committed, 2_000);
}

/// Checks that a topic has exactly one copy of each of `lines` lines.
fn assert_copied_once(kafka: &Kafka, topic: &str, lines: u64, prefix: &str) {
    let records = kafka.read(topic);
    let values = records.iter().map(|record| std::str::from_utf8(record.value.as_ref().unwrap()).unwrap());
    let distinct = values.clone().collect::<BTreeSet<_>>();
    assert!(values.clone().all(|value| value.starts_with(prefix)));
    assert_eq!((records.len() as u64, distinct.len() as u64), (lines, lines));
}

fn the_transactional_copier_copies_exactly_once(kind: BrokerKind) {
    let tools = need!(Tools::find(kind));
    let (input, output) = (tools.topic("copier-in", 2_000), tools.topic("copier-out", 0));
    // The copier stops at the end of one partition: run one copier, with its own group, for
    // each.
    for (partition, records) in partition_ends(&tools, &input) {
        let copied = tools.tool.run(&[
            COPIER,
            "--broker-list",
            tools.kafka.brokers(),
            "--input-topic",
            &input,
            "--input-partition",
            &partition.to_string(),
            "--output-topic",
            &output,
            "--max-messages",
            &records.to_string(),
            "--consumer-group",
            &unique("copier"),
            "--transactional-id",
            &unique("copier"),
            "--transaction-size",
            "50",
            "--enable-random-aborts",
            "--use-group-metadata",
        ]);
        let copied = events(&copied);
        assert_eq!(copied.last().unwrap()["consumed"], records, "{copied:?}");
    }
    assert_copied_once(tools.kafka, &output, 2_000, "line ");
    assert!(tools.kafka.end_offsets(&output).high_watermark > 2_000);
}

/// The log end offset of each partition that has records.
fn partition_ends(tools: &Tools, topic: &str) -> BTreeMap<u32, u64> {
    let listed = tools.run(OFFSETS, &["--topic", topic, "--time", "-1"]);
    let rows = listed.lines().map(|line| line.split(':').collect::<Vec<_>>());
    rows.map(|columns| (number(columns[1]) as u32, number(columns[2]))).filter(|(_, end)| *end > 0).collect()
}

fn the_java_client_copies_exactly_once(kind: BrokerKind) {
    let (tools, java) = (need!(Tools::find(kind)), need!(Tool::find("kafka-java")));
    let (kafka, group) = (tools.kafka, unique("java"));
    let (input, output) = (tools.topic("java-in", 5_000), tools.topic("java-out", 0));
    let copied = java.run(&["TransactionalCopy", kafka.brokers(), &input, &output, &group, "2", "5000"]);
    let result = copied.lines().last().unwrap();
    assert!(result.starts_with("committed=5000 ") && result.ends_with("fenced=true"), "{copied}");
    assert_copied_once(kafka, &output, 5_000, "copy of line ");
    assert_eq!(tools.group_offsets(&group).values().map(|(offset, _)| offset).sum::<u64>(), 5_000);
    // An uncommitted read still sees the aborted records.
    assert!(kafka.end_offsets(&output).high_watermark > 5_000 + 500, "{:?}", kafka.end_offsets(&output));
}

fn franz_go_copies_exactly_once(kind: BrokerKind) {
    let (kafka, franz) = (need!(Kafka::shared(kind)), need!(Tool::find("franz-go")));
    let (input, output, group) = (unique("franz-in"), unique("franz-out"), unique("franz"));
    kafka.create_topic(&input, 6);
    kafka.create_topic(&output, 3);
    assert_eq!(franz.run(&["produce", kafka.brokers(), &input, "10000"]).trim(), "produced=10000");
    assert_eq!(kafka.count(&input), 10_000);
    let copied = franz.run(&["copy", kafka.brokers(), &input, &output, &group, "10000"]);
    assert!(copied.starts_with("committed=10000 "), "{copied}");
    assert_copied_once(kafka, &output, 10_000, "copy of ");
    let counted = franz.run(&["count", kafka.brokers(), &output]);
    assert!(counted.starts_with("committed=10000 distinct=10000 "), "{counted}");
    assert!(last_number(counted.trim(), '=') > 10_000, "{counted}");
}

fn kcat_lists_writes_and_reads(kind: BrokerKind) {
    let (kafka, kcat) = (need!(Kafka::shared(kind)), need!(Tool::find("kcat")));
    let topic = unique("kcat");
    kafka.create_topic(&topic, 3);
    let run = |arguments: &[&str]| kcat.run(&[&["-b", kafka.brokers()], arguments].concat());
    let listed = run(&["-L", "-t", &topic]);
    assert!(listed.contains(&format!("topic \"{topic}\" with 3 partitions")), "{listed}");
    assert_eq!(listed.matches("leader 1, replicas: 1, isrs: 1").count(), 3, "{listed}");

    let written: String = (0..1_000).map(|number| format!("{number}=value {number}\n")).collect();
    let headers = ["-H", "from=kcat", "-z", "lz4"];
    kcat.run_with_input(&written, &[&["-b", kafka.brokers(), "-P", "-t", &topic, "-K", "="], &headers[..]].concat());
    let format = ["-e", "-q", "-f", "%k=%s %h\n"];
    let read = run(&[&["-C", "-t", &topic, "-o", "beginning"], &format[..]].concat());
    assert_eq!(read.lines().count(), 1_000);
    assert!(read.lines().all(|line| line.ends_with(" from=kcat")), "{read}");
    let without = read.lines().map(|line| line.trim_end_matches(" from=kcat"));
    assert_eq!(set(without), set(written.lines()));
    // As a group, which continues at its committed offset.
    let group = ["-G", &unique("kcat"), "-X", "auto.offset.reset=earliest", &topic];
    let first = run(&[&["-c", "400", "-q", "-f", "%s\n"], &group[..]].concat());
    let rest = run(&[&["-e", "-q", "-f", "%s\n"], &group[..]].concat());
    assert_eq!((first.lines().count(), rest.lines().count()), (400, 600));
    assert_eq!(set(first.lines().chain(rest.lines())).len(), 1_000);
    // The end offset, by timestamp -1.
    let ends: u64 = (0..3)
        .map(|partition| {
            let offset = run(&["-Q", "-t", &format!("{topic}:{partition}:-1")]);
            last_number(offset.trim_end(), ' ')
        })
        .sum();
    assert_eq!(ends, 1_000);
}

fn kafkajs_writes_transactions_and_reads_in_a_group(kind: BrokerKind) {
    let (kafka, kafkajs) = (need!(Kafka::shared(kind)), need!(Tool::find("kafkajs")));
    let (topic, group) = (unique("kafkajs"), unique("kafkajs"));
    let output = kafkajs.run(&[kafka.brokers(), &topic, &group]);
    let report: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!((&report["created"], &report["group"]), (&Value::from(true), &Value::from("Empty")), "{report}");
    let read = (&report["seen"], &report["distinct"], &report["aborted"]);
    assert_eq!(read, (&500.into(), &500.into(), &0.into()), "{report}");
    assert_eq!(report["sent"], serde_json::json!(["-1", "7", "7"]));
    // The lag is at most the marker of the last transaction.
    assert!(report["lag"].as_u64().unwrap() <= 1, "{report}");
    assert_eq!(kafka.count(&topic), 500);
}
