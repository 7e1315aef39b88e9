//! Plans of valid files.

use std::time::Duration;

use trunkline::plan::{Input, OnError, Pipeline, Route};

use crate::support::Folder;

fn load_one(folder: &Folder, text: &str) -> Pipeline {
    let mut loaded = folder.write("pipeline.toml", text).load(&["pipeline.toml"]);
    let problems: String = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems}");
    loaded.pipelines.remove(0)
}

/// A route as one line: `!` where records are delivered, `component:port(..)` for a branch.
fn written(route: &Route) -> String {
    let mut parts = Vec::new();
    if route.deliver {
        parts.push("!".to_owned());
    }
    for branch in &route.branches {
        for (port, next) in &branch.outputs {
            let port = &branch.step.ports[usize::from(*port)];
            parts.push(format!("{}:{port}({})", branch.step.component, written(next)));
        }
    }
    parts.join(" ")
}

fn inputs(inputs: &[Input]) -> Vec<String> {
    inputs.iter().map(|input| format!("{:?} {}", input.topics, written(&input.route))).collect()
}

const SOURCES: &str = r#"
name = "shop"
[sources.web]
connector = "logfile"
paths = ["a.log"]
[sources.api]
connector = "logfile"
paths = ["b.log"]
topic = "api.{@path}"
"#;

#[test]
fn chains_share_their_prefixes() {
    let folder = Folder::new();
    let pipeline = load_one(
        &folder,
        &format!(
            r#"{SOURCES}
            [transforms.clean]
            inputs = ["web", "api"]
            plugin = "mask.wasm"
            config = {{ fields = ["ip"] }}
            [transforms.split]
            inputs = ["clean"]
            plugin = "testing.wasm"
            on_error = "skip"
            memory = "32MiB"
            timeout = "1s"
            [sinks.lake]
            connector = "s3"
            url = "file:///lake"
            path = "{{@path}}"
            inputs = ["web", "clean", "split", "split.side"]
            tasks = 2
            "#
        ),
    );
    let sink = &pipeline.sinks[0];
    assert_eq!(
        inputs(&sink.inputs),
        [
            r#"Exact("shop.web") ! clean:default(! split:default(!) split:side(!))"#,
            r#"Pattern("^api\\..+$") clean:default(! split:default(!) split:side(!))"#,
        ]
    );
    assert_eq!((sink.tasks, sink.connector, sink.on_error), (2, "s3", OnError::DeadLetter));
    let split = &sink.inputs[0].route.branches[0].outputs[0].1.branches[0].step;
    assert_eq!((split.limits.memory, split.limits.timeout), (32 << 20, Duration::from_secs(1)));
    assert_eq!(
        (split.on_error, split.ports.as_slice()),
        (OnError::Skip, &["default".to_owned(), "side".to_owned()][..])
    );
    assert!(pipeline.transforms.is_empty(), "fused transforms are not stages");
}

#[test]
fn a_transform_with_a_topic_is_a_stage() {
    let folder = Folder::new();
    let pipeline = load_one(
        &folder,
        &format!(
            r#"{SOURCES}
            [transforms.clean]
            inputs = ["web"]
            plugin = "mask.wasm"
            config = {{ fields = ["ip"] }}
            [transforms.split]
            inputs = ["clean", "topic:orders"]
            plugin = "testing.wasm"
            topic = "split"
            partitions = 6
            [transforms.tag]
            inputs = ["split.side"]
            plugin = "testing.wasm"
            topic = "tagged"
            topics = {{ side = "tagged-aside" }}
            [sinks.lake]
            connector = "s3"
            url = "file:///lake"
            inputs = ["split.side", "tag"]
            "#
        ),
    );
    let [split, tag] = pipeline.transforms.as_slice() else { panic!("{}", pipeline.transforms.len()) };
    assert_eq!(inputs(&split.inputs), [r#"Exact("shop.web") clean:default(!)"#, r#"Exact("orders") !"#]);
    assert_eq!((split.topic.source(), split.partitions), ("split", Some(6)));
    assert_eq!((split.port_topics[0].0, split.port_topics[0].1.source()), (1, "split.side"));
    assert_eq!(inputs(&tag.inputs), [r#"Exact("split.side") !"#]);
    assert_eq!(tag.port_topics[0].1.source(), "tagged-aside");
    assert_eq!(inputs(&pipeline.sinks[0].inputs), [r#"Exact("split.side") !"#, r#"Exact("tagged") !"#]);
}

#[test]
fn a_source_with_its_defaults_and_applied_transforms() {
    let folder = Folder::new();
    folder.write("key.txt", "ip\n");
    let pipeline = load_one(
        &folder,
        r#"
        name = "shop"
        dead_letter_topic = "bad"
        [sources.web]
        connector = "logfile"
        paths = ["a.log"]
        apply = ["mask"]
        commit_interval = "1s"
        on_error = "stop"
        [transforms.mask]
        plugin = "mask.wasm"
        config = { fields = ["${file:key.txt}", "a$${b}"] }
        "#,
    );
    let source = &pipeline.sources[0];
    assert_eq!((pipeline.name.as_str(), pipeline.dead_letters.as_str()), ("shop", "bad"));
    assert_eq!((source.topic.source(), source.partitions), ("shop.web", None));
    assert_eq!((source.commit_interval, source.on_error), (Some(Duration::from_secs(1)), OnError::Stop));
    assert_eq!(source.apply[0].component, "mask");
    assert_eq!(source.apply[0].config["fields"], serde_json::json!(["ip", "a${b}"]));
}

#[test]
fn a_source_with_several_topics_has_its_own_default() {
    let pipeline = load_one(
        &Folder::new(),
        r#"
        name = "shop"
        [sources.db]
        connector = "mysql"
        url = "mysql://cdc@db"
        tables = ["shop.*"]
        [sinks.lake]
        connector = "s3"
        url = "file:///lake"
        inputs = ["db"]
        path = "{@database}/{@table}"
        "#,
    );
    assert_eq!(pipeline.sources[0].topic.source(), "shop.{@database}.{@table}");
    assert_eq!(inputs(&pipeline.sinks[0].inputs), [r#"Pattern("^shop\\..+\\..+$") !"#]);
}

/// I7: an invalid file does not affect the others, and of two files that use one topic the first one runs.
#[test]
fn valid_files_load_next_to_invalid_ones() {
    let folder = Folder::with_fixtures();
    folder.write("good.toml", "name = \"good\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"a.log\"]\n");
    let loaded = folder.load(&["good.toml", "./good.toml", "unknown_keys.toml", "same_topic_elsewhere"]);
    let names: Vec<&str> = loaded.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    assert_eq!(names, ["good", "a"]);
    assert_eq!(loaded.problems.len(), 2);
}

#[test]
fn a_source_has_a_topic_for_each_of_its_ports() {
    let folder = Folder::new();
    let pipeline = load_one(
        &folder,
        r#"
        name = "shop"
        [sources.db]
        connector = "mysql"
        url = "mysql://u:p@h"
        tables = ["a.b"]
        ddl = true
        transaction_markers = true
        topics = { transaction = "shop-transactions" }
        [sinks.rows]
        connector = "s3"
        url = "file:///rows"
        path = "{@table}"
        inputs = ["db"]
        [sinks.rest]
        connector = "s3"
        url = "file:///rest"
        inputs = ["db.ddl", "db.transaction"]
        "#,
    );
    let topics: Vec<_> = pipeline.sources[0].port_topics.iter().map(|(port, topic)| (*port, topic.source())).collect();
    assert_eq!(topics, [("ddl", "shop.ddl"), ("transaction", "shop-transactions")]);
    assert_eq!(inputs(&pipeline.sinks[0].inputs), [r#"Pattern("^shop\\..+\\..+$") !"#]);
    assert_eq!(inputs(&pipeline.sinks[1].inputs), [r#"Exact("shop.ddl") !"#, r#"Exact("shop-transactions") !"#]);
}
