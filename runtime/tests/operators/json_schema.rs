//! The schemas accept what `validate` accepts, and refuse typical mistakes at their place.

use std::path::Path;

use serde_json::{Value, json};
use trunkline::config::SETTINGS;
use trunkline::plan::bundled::PLUGINS;
use trunkline::plan::json_schema::{pipeline_schema, settings_schema};
use trunkline::plan::{Registry, options};
use trunkline_connector::config::OptionDefault;

use crate::validator::problems;
use crate::{repository, toml_as_json, trunkline};

fn schema() -> Value {
    pipeline_schema(&Registry::new())
}

fn markdown_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
            markdown_files(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The TOML examples in a Markdown text.
fn examples(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        match &mut current {
            Some(example) if line.trim_start().starts_with("```") => {
                found.push(std::mem::take(example));
                current = None;
            }
            Some(example) => example.push_str(&format!("{line}\n")),
            None if line.trim_start().starts_with("```toml") => current = Some(String::new()),
            None => {}
        }
    }
    found
}

#[test]
fn every_pipeline_file_and_every_documented_example_is_accepted() {
    let (pipelines, settings) = (schema(), settings_schema());
    let is_setting = |key: &String| settings["properties"].get(key).is_some();
    let (mut of_pipelines, mut of_settings) = (0, 0);
    let mut check = |place: &str, text: &str| {
        // A fragment such as `template = { .. }`, or one with `..` in it.
        let Ok(mut value) = toml_as_json(text) else { return };
        let found = if ["sources", "transforms", "sinks"].iter().any(|kind| value.get(kind).is_some()) {
            of_pipelines += 1;
            let members = value.as_object_mut().unwrap();
            // A fragment may lack a name, and a component in it what the text leaves out.
            let is_whole = members.contains_key("name");
            members.entry("name").or_insert_with(|| json!("example"));
            let mut found = problems(&pipelines, &value);
            found.retain(|problem| is_whole || !problem.ends_with("is missing"));
            found
        } else if value.as_object().is_some_and(|members| !members.is_empty() && members.keys().all(is_setting)) {
            of_settings += 1;
            problems(&settings, &value)
        } else {
            return;
        };
        assert!(found.is_empty(), "{place}: {found:#?}\n{text}");
    };
    let mut files = Vec::new();
    markdown_files(&repository(), &mut files);
    for file in files {
        for example in examples(&std::fs::read_to_string(&file).unwrap()) {
            check(&file.display().to_string(), &example);
        }
    }
    for entry in std::fs::read_dir(repository().join("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        }
    }
    assert!(of_pipelines >= 20 && of_settings >= 2, "{of_pipelines} pipelines, {of_settings} settings");
}

#[test]
fn mistakes_are_refused_at_their_place() {
    let schema = schema();
    let cases = [
        ("[sources.a]\nconnector = \"mysqll\"", ".sources.a.connector"),
        ("[sources.a]\npaths = [\"a\"]", ".sources.a: \"connector\" is missing"),
        ("[sources.a]\nconnector = \"logfile\"", ".sources.a: \"paths\" is missing"),
        ("[sources.a]\nconnector = \"logfile\"\npaths = \"a\"", ".sources.a.paths"),
        ("[sources.a]\nconnector = \"logfile\"\npaths = [\"a\"]\ntables = [\"b\"]", ".sources.a.tables"),
        ("[sources.\"a.b\"]\nconnector = \"logfile\"\npaths = [\"a\"]", ".sources.a.b"),
        ("[sinks.a]\nconnector = \"s3\"\nurl = \"s3://a\"", ".sinks.a: \"inputs\" is missing"),
        (
            "[sinks.a]\nconnector = \"s3\"\ninputs = [\"b\"]\nurl = \"s3://a\"\nrotate.age = \"5 parsecs\"",
            ".sinks.a.rotate.age",
        ),
        (
            "[sinks.a]\nconnector = \"s3\"\ninputs = [\"b\"]\nurl = \"s3://a\"\nrotate.aeg = \"5s\"",
            ".sinks.a.rotate.aeg",
        ),
        (
            "[sinks.a]\nconnector = \"s3\"\ninputs = [\"b\"]\nurl = \"s3://a\"\ncompression = \"zip\"",
            ".sinks.a.compression",
        ),
        ("[sinks.a]\nconnector = \"s3\"\ninputs = [\"b\"]\nurl = \"s3://a\"\npart_size = true", ".sinks.a.part_size"),
        ("[transforms.a]\ninputs = [\"b\"]", ".transforms.a: \"plugin\" is missing"),
        ("[transforms.a]\nplugin = \"mask.wasm\"", ".transforms.a: \"config\" is missing"),
        ("[transforms.a]\nplugin = \"mask.wasm\"\nconfig = { field = [\"a\"] }", ".transforms.a.config.field"),
        ("[transforms.a]\nplugin = \"own.wasm\"\ntimeot = \"1s\"", ".transforms.a.timeot"),
        ("[source.a]\nconnector = \"logfile\"", ".source"),
    ];
    for (text, place) in cases {
        let found = problems(&schema, &toml_as_json(&format!("name = \"a\"\n{text}")).unwrap());
        assert!(found.iter().any(|problem| problem.starts_with(place)), "{text}: {found:?}");
    }
    assert_eq!(problems(&schema, &json!({})), [": \"name\" is missing"]);
    let settings = json!({ "memory": "256MiBs", "topics": { "replicas": 3 } });
    assert_eq!(problems(&settings_schema(), &settings).len(), 2);
}

#[test]
fn references_and_own_plugins_are_accepted() {
    let text = r#"
        name = "a"
        [sources.web]
        connector = "logfile"
        paths = ["${env:FOLDER}/*.log"]
        compression = "${env:COMPRESSION}"
        poll_interval = "${env:POLL}"
        [transforms.own]
        plugin = "own.wasm"
        inputs = ["web"]
        config = { anything = [1, 2] }
        [sinks.lake]
        connector = "s3"
        inputs = ["own"]
        url = "s3://lake"
        rotate = { bytes = 1_000, age = "1h30m" }
    "#;
    assert_eq!(problems(&schema(), &toml_as_json(text).unwrap()), Vec::<String>::new());
}

#[test]
fn each_default_and_example_has_the_type_of_its_option() {
    let registry = Registry::new();
    let shared = [("sources", options::SOURCE), ("transforms", options::TRANSFORM), ("sinks", options::SINK)];
    let mut lists = vec![("PIPELINE", options::PIPELINE), ("SETTINGS", SETTINGS)];
    lists.extend(shared);
    lists.extend(registry.sources().map(|it| (it.name(), it.options())));
    lists.extend(registry.sinks().map(|it| (it.name(), it.options())));
    lists.extend(PLUGINS.iter().map(|it| (it.name, it.options)));
    for (list, options) in lists {
        for option in options {
            let schema = trunkline::plan::json_schema::option_schema(option);
            let default = match option.default {
                OptionDefault::Value(default) => Some(default),
                OptionDefault::Required | OptionDefault::Words(_) => None,
            };
            for text in default.into_iter().chain([option.example]) {
                let value = &toml_as_json(&format!("value = {text}")).unwrap()["value"];
                let found = problems(&schema, value);
                assert!(found.is_empty(), "{list}: {}: {} is no {}: {found:?}", option.key, text, option.value_type);
            }
        }
    }
}

#[test]
fn the_command_prints_both_schemas() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (vec!["json-schema"], schema()),
        (vec!["json-schema", "pipeline"], schema()),
        (vec!["json-schema", "settings"], settings_schema()),
    ] {
        let (code, stdout, _) = trunkline(folder.path(), &arguments);
        assert_eq!((code, serde_json::from_str(&stdout).ok()), (Some(0), Some(expected)));
    }
}

#[test]
fn a_description_of_a_connector_has_types_defaults_and_examples() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, _) = trunkline(folder.path(), &["connectors", "describe", "s3"]);
    assert_eq!(code, Some(0));
    for expected in ["rotate.age (duration, default \"5m\")", "url (string, required)", "Example: url = \"s3://"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    let (_, stdout, _) = trunkline(folder.path(), &["connectors", "describe", "s3", "--json"]);
    let described: Value = serde_json::from_str(&stdout).unwrap();
    let option = described[0]["options"].as_array().unwrap().iter().find(|it| it["key"] == "rotate.age").unwrap();
    assert_eq!((&option["type"], &option["default"]), (&json!("duration"), &json!("\"5m\"")));
}
