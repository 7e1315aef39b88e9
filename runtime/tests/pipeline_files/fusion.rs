//! Transforms that are fused into their reader, and transforms that become separate stages.

use trunkline::plan::{Loaded, Pipeline};

use crate::support::Folder;

const SOURCE: &str = r#"
name = "shop"
[sources.web]
connector = "logfile"
paths = ["a.log"]
"#;

fn transform(name: &str, input: &str, options: &str) -> String {
    format!("[transforms.{name}]\ninputs = [\"{input}\"]\nplugin = \"testing.wasm\"\n{options}\n")
}

fn sink(name: &str, inputs: &str) -> String {
    format!("[sinks.{name}]\nconnector = \"s3\"\nurl = \"file:///{name}\"\ninputs = [{inputs}]\n")
}

fn load(parts: &[&str]) -> Loaded {
    Folder::new().write("pipeline.toml", &[&[SOURCE], parts].concat().concat()).load(&["pipeline.toml"])
}

fn valid(parts: &[&str]) -> Pipeline {
    let mut loaded = load(parts);
    let problems: String = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems}");
    loaded.pipelines.remove(0)
}

/// The names of the separate stages, each with its topics.
fn stages(pipeline: &Pipeline) -> Vec<(&str, Vec<&str>)> {
    pipeline
        .transforms
        .iter()
        .map(|stage| (stage.name.as_str(), stage.topics().map(|topic| topic.source()).collect()))
        .collect()
}

fn codes(loaded: &Loaded) -> Vec<&'static str> {
    loaded.problems.iter().flat_map(|file| &file.problems).map(|problem| problem.code).collect()
}

#[test]
fn a_transform_with_one_reading_stage_is_fused() {
    let pipeline = valid(&[&transform("clean", "web", ""), &sink("lake", "\"clean\"")]);
    assert_eq!(stages(&pipeline), []);
    // Two ports, or two paths through other fused transforms, into one stage.
    let pipeline = valid(&[&transform("clean", "web", ""), &sink("lake", "\"clean\", \"clean.side\"")]);
    assert_eq!(stages(&pipeline), []);
    let pipeline = valid(&[
        &transform("clean", "web", ""),
        &transform("left", "clean", ""),
        &transform("right", "clean.side", ""),
        &sink("lake", "\"left\", \"right\""),
    ]);
    assert_eq!(stages(&pipeline), []);
}

#[test]
fn a_transform_that_two_sinks_read_is_a_separate_stage() {
    let parts = [&transform("clean", "web", ""), &sink("lake", "\"clean\""), &sink("copy", "\"clean\"")];
    let pipeline = valid(&parts.map(String::as_str));
    assert_eq!(stages(&pipeline), [("clean", vec!["shop.clean", "shop.clean.side"])]);
    for sink in &pipeline.sinks {
        assert!(
            sink.inputs[0].route.deliver && sink.inputs[0].route.branches.is_empty(),
            "{} runs it again",
            sink.name
        );
    }
}

#[test]
fn a_transform_whose_ports_two_stages_read_is_a_separate_stage() {
    let parts = [&transform("clean", "web", ""), &sink("lake", "\"clean\""), &sink("aside", "\"clean.side\"")];
    let pipeline = valid(&parts.map(String::as_str));
    assert_eq!(stages(&pipeline), [("clean", vec!["shop.clean", "shop.clean.side"])]);
    assert_eq!(format!("{:?}", pipeline.sinks[1].inputs[0].topics), r#"Exact("shop.clean.side")"#);
}

#[test]
fn readers_are_counted_through_fused_transforms() {
    // `tag` is read by two sinks, so it is a stage, and the only one that reads `clean`.
    let pipeline = valid(&[
        &transform("clean", "web", ""),
        &transform("tag", "clean", ""),
        &sink("lake", "\"tag\""),
        &sink("copy", "\"tag\""),
    ]);
    assert_eq!(stages(&pipeline), [("tag", vec!["shop.tag", "shop.tag.side"])]);
    // `left` is fused into `lake`, so `lake` and `copy` both read `clean`.
    let pipeline = valid(&[
        &transform("clean", "web", ""),
        &transform("left", "clean", ""),
        &sink("lake", "\"left\""),
        &sink("copy", "\"clean\""),
    ]);
    assert_eq!(stages(&pipeline), [("clean", vec!["shop.clean", "shop.clean.side"])]);
    assert_eq!(pipeline.sinks[0].inputs[0].route.branches[0].step.component, "left");
}

#[test]
fn options_of_a_stage_apply_without_a_topic() {
    let options = "partitions = 6\ntasks = 2\ntopics = { side = \"aside\" }";
    let parts = [&transform("clean", "web", options), &sink("lake", "\"clean\""), &sink("copy", "\"clean\"")];
    let pipeline = valid(&parts.map(String::as_str));
    assert_eq!(stages(&pipeline), [("clean", vec!["shop.clean", "aside"])]);
    assert_eq!((pipeline.transforms[0].partitions, pipeline.transforms[0].tasks), (Some(6), 2));
    let loaded = load(&[&transform("clean", "web", options), &sink("lake", "\"clean\"")]);
    assert_eq!(codes(&loaded), ["plan.not_materialised"; 3]);
}

#[test]
fn fuse_false_makes_a_stage() {
    let pipeline = valid(&[&transform("clean", "web", "fuse = false"), &sink("lake", "\"clean\"")]);
    assert_eq!(stages(&pipeline), [("clean", vec!["shop.clean", "shop.clean.side"])]);
    // Other programs may read its output.
    let pipeline = valid(&[&transform("clean", "web", "fuse = false")]);
    assert_eq!(stages(&pipeline).len(), 1);
}

#[test]
fn fuse_true_with_several_readers_is_an_error_that_states_the_reason() {
    let parts = [&transform("clean", "web", "fuse = true"), &sink("lake", "\"clean\""), &sink("copy", "\"clean\"")];
    let loaded = load(&parts.map(String::as_str));
    assert_eq!(codes(&loaded), ["plan.cannot_fuse"]);
    let problem = &loaded.problems[0].problems[0];
    assert!(problem.message.ends_with("the sink `lake` and the sink `copy` read it"), "{}", problem.message);
    assert!(problem.help.as_ref().unwrap().contains("dead-lettered 2 times"), "{:?}", problem.help);
    // With one reader it is what happens anyway.
    valid(&[&transform("clean", "web", "fuse = true"), &sink("lake", "\"clean\"")]);
    let loaded = load(&[&transform("clean", "web", "fuse = true\ntopic = \"t\""), &sink("lake", "\"clean\"")]);
    assert_eq!(codes(&loaded), ["plan.cannot_fuse"]);
}

#[test]
fn collisions_of_default_topics_are_reported_with_their_remedy() {
    let two_sinks = [sink("lake", "\"clean\""), sink("copy", "\"clean\"")].concat();
    let help = |loaded: &Loaded| loaded.problems[0].problems[0].help.clone().unwrap();
    // Another transform writes the default topic of the port.
    let other = transform("other", "web", "topic = \"shop.clean.side\"");
    let loaded = load(&[&transform("clean", "web", ""), &other, &two_sinks]);
    assert_eq!(codes(&loaded), ["plan.topic_taken"]);
    // The topic of dead letters.
    let loaded = load(&["", &transform("clean", "web", ""), &two_sinks]);
    assert_eq!(codes(&loaded), Vec::<&str>::new());
    let named = |text: String| text.replace("clean", "dead-letters");
    let loaded = load(&[&named(transform("clean", "web", "")), &named(two_sinks.clone())]);
    assert_eq!(codes(&loaded), ["plan.topic_taken"]);
    assert!(help(&loaded).contains("set another one with `topic`"), "{}", help(&loaded));
    // The pattern of a mysql source matches the default topic of a port.
    let shop = "[sources.db]\nconnector = \"mysql\"\nurl = \"mysql://u@h\"\ntables = [\"a.*\"]\n";
    let loaded = load(&[shop, &transform("clean", "db", ""), &two_sinks]);
    assert_eq!(codes(&loaded), ["plan.topic_ambiguous"]);
    assert!(help(&loaded).contains("`topics`"), "{}", help(&loaded));
    valid(&[shop, &transform("clean", "db", "topics = { side = \"clean-side\" }"), &two_sinks]);
}
