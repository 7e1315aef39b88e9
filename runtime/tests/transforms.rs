//! `trunkline transform` and `trunkline test`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use trunkline::plan::bundled::PLUGINS;
use trunkline::record_tests::{ExpectedRecord, TestRecord, compare, difference, run_plugin};
use trunkline_transform_host::{Host, HostOptions, Limits, embed_config_schema};

/// Runs the binary in a folder; the exit code, stdout and stderr.
fn trunkline(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_DATA")) {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.args(arguments).current_dir(folder).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

/// A project whose plugin is the bundled `mask.wasm`.
fn mask_project(config: &str, expected: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "name = \"cards\"\n\n[[tests]]\nname = \"cards are masked\"\nconfig = {config}\nrecords = \"in.jsonl\"\n\
         expected = \"out.jsonl\"\n"
    );
    write(folder.path(), "transform.toml", &manifest);
    write(
        folder.path(),
        "in.jsonl",
        "{\"key\":\"1\",\"value\":{\"card\":\"4111\",\"amount\":1.50}}\n{\"value\":\"text\"}\n",
    );
    write(folder.path(), "out.jsonl", expected);
    let host = Host::new(HostOptions::default()).unwrap();
    let mask = host.bundled("mask.wasm").unwrap().unwrap();
    std::fs::write(folder.path().join("cards.wasm"), mask.wasm()).unwrap();
    folder
}

const MASKED: &str = "{\"key\":\"1\",\"value\":{\"card\":\"***\",\"amount\":1.50}}\n{\"rejected\":\"mask.not_json\",\"value\":\"text\"}\n";

#[test]
fn project_tests_compare_and_update_expected_records() {
    let project = mask_project("{ fields = [\"card\"] }", MASKED);
    let (code, stdout, stderr) = trunkline(project.path(), &["transform", "test", "--bench"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.starts_with("ok      cards are masked: 2 records in, 2 out\n"), "{stdout}");
    assert!(stdout.contains(" records/s, ") && stdout.ends_with("1 passed, 0 failed\n"), "{stdout}");

    write(project.path(), "out.jsonl", &MASKED.replace("***", "hidden"));
    let (code, stdout, _) = trunkline(project.path(), &["transform", "test", "."]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("-     \"card\": \"hidden\",\n  +     \"card\": \"***\",\n"), "{stdout}");

    let (code, stdout, _) = trunkline(project.path(), &["transform", "test", ".", "--update"]);
    assert_eq!(code, Some(0), "{stdout}");
    let updated = std::fs::read_to_string(project.path().join("out.jsonl")).unwrap();
    let masked = "{\"port\":\"default\",\"key\":\"1\",\"value\":{\"card\":\"***\",\"amount\":1.50}}\n";
    assert!(updated.starts_with(masked) && updated.contains("\"rejected\":\"mask.not_json\""), "{updated}");
    assert_eq!(trunkline(project.path(), &["transform", "test"]).0, Some(0));
}

#[test]
fn problems_of_a_project_have_places() {
    let project = mask_project("{ feilds = [\"card\"] }", MASKED);
    let (code, _, stderr) = trunkline(project.path(), &["transform", "test"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("transform.toml:5:") && stderr.contains("did you mean `fields`?"), "{stderr}");

    let project = mask_project("{ fields = [\"card\"] }", "{\"valeu\":1}\n");
    let (code, _, stderr) = trunkline(project.path(), &["transform", "test"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("out.jsonl:1:2: a record has no member `valeu`; did you mean `value`?"), "{stderr}");

    std::fs::remove_file(project.path().join("cards.wasm")).unwrap();
    let (code, _, stderr) = trunkline(project.path(), &["transform", "test"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("trunkline transform build ."), "{stderr}");

    write(project.path(), "transform.toml", "name = \"a b\"\nlanguage = \"ruby\"\n");
    let (code, _, stderr) = trunkline(project.path(), &["transform", "build"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("transform.toml:1:8") && stderr.contains("transform.toml:2:12"), "{stderr}");
}

#[test]
fn a_missing_toolchain_is_reported_with_the_command_that_installs_it() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [("python", "pip install componentize-py"), ("js", "npm install --prefix demo-js")];
    for (language, command) in cases {
        let name = format!("demo-{language}");
        let (code, stdout, stderr) = trunkline(folder.path(), &["transform", "new", &name, "--lang", language]);
        assert_eq!((code, stdout), (Some(0), format!("{name}\n")), "{stderr}");
        let mut build = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        build.args(["transform", "build", "--offline", &name]).current_dir(folder.path());
        build.env("COMPONENTIZE_PY", "/not/there");
        let output = build.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(command) || stderr.contains("nodejs"), "{stderr}");
    }
}

/// Without a network, the command fails with what it wanted to fetch, and leaves nothing behind.
#[test]
fn a_toolchain_that_cannot_be_fetched_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let nowhere = "http://127.0.0.1:9/";
    for (language, part) in [("python", "componentize-py"), ("js", "@bytecodealliance/componentize-js")] {
        let name = format!("demo-{language}");
        assert_eq!(trunkline(folder.path(), &["transform", "new", &name, "--lang", language]).0, Some(0));
        let mut build = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        build.args(["transform", "build", &name]).current_dir(folder.path());
        build.env("XDG_CACHE_HOME", cache.path()).env("npm_config_cache", cache.path().join("npm"));
        build.env("PIP_INDEX_URL", nowhere).env("PIP_RETRIES", "0").env("PIP_CONFIG_FILE", "/dev/null");
        build.env("npm_config_registry", nowhere).env("npm_config_fetch_retries", "0");
        let output = build.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        // Componentize-py may be installed on this machine, and pip or npm may be missing.
        if stderr.contains("is not installed") || output.status.success() {
            println!("SKIP a toolchain that cannot be fetched: {language}");
            continue;
        }
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(&format!("cannot fetch {part}")) && stderr.contains("install it by hand"), "{stderr}");
        let left = std::fs::read_dir(cache.path().join("trunkline/toolchains")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{stderr}");
    }
}

#[test]
fn new_fills_every_template_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let leftover = regex::Regex::new("@[A-Z_]+@").unwrap();
    for language in ["rust", "python", "js"] {
        let into = format!("folder-{language}");
        let arguments = ["transform", "new", "fraud", "--lang", language, "--into", &into];
        assert_eq!(trunkline(folder.path(), &arguments).0, Some(0));
        let mut pending = vec![folder.path().join(&into)];
        while let Some(path) = pending.pop() {
            if path.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.is_empty() && !leftover.is_match(&text), "{}", path.display());
            }
        }
        let (code, _, stderr) = trunkline(folder.path(), &arguments);
        assert!(code == Some(2) && stderr.contains("exists and is not empty"), "{stderr}");
    }
    assert_eq!(trunkline(folder.path(), &["transform", "new", "a b"]).0, Some(2));
}

/// Builds the project of each language whose tools are there, and runs its tests and its pipeline's
/// tests. Needs a network.
#[test]
fn new_projects_build_and_pass_their_tests() {
    if std::env::var_os("TRUNKLINE_TEST_LONG").is_none() {
        println!("SKIP new_projects_build_and_pass_their_tests: runs with --long");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for language in ["rust", "python", "js"] {
        let name = format!("demo-{language}");
        assert_eq!(trunkline(folder.path(), &["transform", "new", &name, "--lang", language]).0, Some(0));
        if language == "js" {
            let _ = Command::new("npm").args(["install", "--prefix", &name]).current_dir(folder.path()).status();
        }
        let (code, _, stderr) = trunkline(folder.path(), &["transform", "build", &name]);
        if code == Some(3) {
            println!("SKIP new_projects_build_and_pass_their_tests: {language}: {stderr}");
            continue;
        }
        assert_eq!(code, Some(0), "{stderr}");
        let (code, stdout, stderr) = trunkline(folder.path(), &["transform", "test", &name]);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        let (code, stdout, stderr) = trunkline(&folder.path().join(&name), &["test", "pipeline.toml"]);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
    }
}

const STATEFUL_PYTHON: &str = r#"
from datetime import timedelta
from trunkline_plugin import Record, State, Timer, Timers, Transform, drop, emit, export, replace, value

class Visits(Transform):
    def __init__(self, config: dict):
        self.counts: State[int] = State("counts")
        self.recent: State[str] = State("recent", ttl=timedelta(seconds=10))
        self.missed = Timers("missed")

    def record(self, record: Record):
        if record.key is None:
            known = self.counts.range()
            self.counts.delete_all(key for key, _ in known)
            recent = [name for _, name in self.recent.range("a", "c")]
            return value(",".join([f"{key.decode()}={n}" for key, n in known] + recent).encode())
        count = (self.counts.get(record.key) or 0) + 1
        self.counts.put(record.key, count)
        self.recent.put_all({record.key: record.key.decode()})
        self.missed.set(record.key, record.timestamp + 5000)
        assert self.missed.get_all([record.key, "none"]) == [record.timestamp + 5000, None]
        return value(str(count).encode())

    def timer(self, timer: Timer):
        assert timer.name == "missed" and timer.time % 1000 == 0 and self.counts.get(timer.key) == 1
        return emit([replace(value=timer.key + b" missed")])

Plugin = export(Visits)
"#;

const STATEFUL_JS: &str = r#"
import { State, Timers, exportTransform, text, bytes, value, emit } from './trunkline_plugin.js';

class Visits {
  counts = new State('counts');
  recent = new State('recent', { ttlMs: 10_000 });
  missed = new Timers('missed');

  record(record) {
    if (record.key === null) {
      const known = this.counts.range();
      this.counts.deleteAll(known.map(([key]) => key));
      const recent = this.recent.range('a', 'c').map(([, name]) => name);
      return value(bytes([...known.map(([key, n]) => `${text(key)}=${n}`), ...recent].join(',')));
    }
    const count = (this.counts.get(record.key) ?? 0) + 1;
    this.counts.put(record.key, count);
    this.recent.putAll(new Map([[text(record.key), text(record.key)]]));
    this.missed.set(record.key, record.timestamp + 5000);
    const [time, none] = this.missed.getAll([record.key, 'none']);
    if (time !== record.timestamp + 5000 || none !== undefined) throw new Error(`${time} ${none}`);
    return value(bytes(String(count)));
  }

  timer(timer) {
    if (timer.name !== 'missed' || timer.time % 1000 !== 0 || this.counts.get(timer.key) !== 1) throw new Error(timer.name);
    return emit([{ value: bytes(`${text(timer.key)} missed`) }]);
  }
}

export const plugin = exportTransform(Visits);
"#;

/// The SDKs of other languages use state and timers as the one of Rust does. Needs a network for
/// JavaScript.
#[test]
fn python_and_javascript_projects_keep_state_and_have_timers() {
    if std::env::var_os("TRUNKLINE_TEST_LONG").is_none() {
        println!("SKIP python_and_javascript_projects_keep_state_and_have_timers: runs with --long");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (language, file, source) in [("python", "app.py", STATEFUL_PYTHON), ("js", "app.js", STATEFUL_JS)] {
        let name = format!("visits-{language}");
        assert_eq!(trunkline(folder.path(), &["transform", "new", &name, "--lang", language]).0, Some(0));
        let project = folder.path().join(&name);
        std::fs::remove_file(project.join("config.schema.json")).unwrap();
        write(&project, file, source);
        let manifest = std::fs::read_to_string(project.join("transform.toml")).unwrap();
        let manifest = manifest.replace("# timers = true", "timers = true");
        let manifest = manifest.replace("config = { over = 100 }\n", "advance_to = 20_000\n");
        write(&project, "transform.toml", &manifest);
        let records = [
            r#"{"key":"a","value":"","timestamp":1000}"#,
            r#"{"key":"a","value":"","timestamp":2000}"#,
            r#"{"key":"b","value":"","timestamp":3000}"#,
            r#"{"value":"","timestamp":3000}"#,
            r#"{"key":"a","value":"","timestamp":3000}"#,
            r#"{"key":"b","value":"","timestamp":9000}"#,
        ];
        write(&project, "tests/records.jsonl", &records.join("\n"));
        write(
            &project,
            "tests/expected.jsonl",
            &["1", "2", "1", "a=2,b=1,a,b", "1", "a missed", "b missed", "1", "b missed"]
                .map(|text| format!("{{\"value\":\"{text}\"}}"))
                .join("\n"),
        );
        if language == "js" {
            let _ = Command::new("npm").args(["install", "--prefix", &name]).current_dir(folder.path()).status();
        }
        let (code, _, stderr) = trunkline(folder.path(), &["transform", "build", &name]);
        if code == Some(3) {
            println!("SKIP python_and_javascript_projects_keep_state_and_have_timers: {language}: {stderr}");
            continue;
        }
        assert_eq!(code, Some(0), "{stderr}");
        let (_, stdout, _) = trunkline(&project, &["transform", "inspect", &format!("{name}.wasm"), "--json"]);
        let found: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((&found["uses_state"], &found["uses_timers"]), (&Value::Bool(true), &Value::Bool(true)), "{stdout}");
        let (code, stdout, stderr) = trunkline(folder.path(), &["transform", "test", &name]);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
    }
}

#[test]
fn inspect_shows_interface_ports_and_imports() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["transform", "inspect", "mask", "--config", "{\"fields\":[\"a\"]}", "--json"];
    let (code, stdout, stderr) = trunkline(folder.path(), &arguments);
    assert_eq!(code, Some(0), "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["interface"], "trunkline:transform/plugin@1.1.0");
    assert_eq!((&found["ports"], &found["keeps_schema"]), (&serde_json::json!(["default"]), &Value::Bool(true)));
    let imports = ["trunkline:transform/host@1.1.0", "trunkline:transform/inputs@1.1.0"];
    assert_eq!(found["imports"], serde_json::json!(imports));
    assert_eq!(found["uses_state"], Value::Bool(false));
    assert!(found["bytes"].as_u64().unwrap() > 10_000, "{stdout}");
    // without a configuration, the ports are unknown
    let (code, stdout, _) = trunkline(folder.path(), &["transform", "inspect", "mask.wasm"]);
    assert!(
        code == Some(0) && stdout.contains("rejected") && stdout.contains("the key `fields` is missing"),
        "{stdout}"
    );
    assert_eq!(trunkline(folder.path(), &["transform", "inspect", "none.wasm"]).0, Some(2));
}

#[test]
fn the_schema_of_a_plugin_is_shown_and_checked() {
    let project = mask_project("{ fields = [\"card\"], keep = 0 }", MASKED);
    let wasm = std::fs::read(project.path().join("cards.wasm")).unwrap();
    let schema = r#"{"type":"object","properties":{"keep":{"type":"integer","minimum":1},"fields":true}}"#;
    std::fs::write(project.path().join("cards.wasm"), embed_config_schema(&wasm, schema).unwrap()).unwrap();
    let (code, _, stderr) = trunkline(project.path(), &["transform", "test"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("transform.toml:5:38") && stderr.contains("expected at least 1"), "{stderr}");
    let (code, stdout, _) = trunkline(project.path(), &["transform", "inspect", "cards.wasm", "--json"]);
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &found["config_schema"]["properties"]["keep"]["minimum"]), (Some(0), &serde_json::json!(1)));
}

#[test]
fn bundled_transforms_are_listed_and_described_with_examples() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, _) = trunkline(folder.path(), &["transform", "list"]);
    assert!(code == Some(0) && stdout.contains("mask.wasm") && stdout.contains("options: fields, mode"), "{stdout}");
    let (code, stdout, _) = trunkline(folder.path(), &["transform", "describe", "mask"]);
    assert!(code == Some(0) && stdout.contains("\nExample: mask card numbers"), "{stdout}");
    let (code, _, stderr) = trunkline(folder.path(), &["transform", "describe", "maks"]);
    assert!(code == Some(2) && stderr.contains("did you mean `mask`?"), "{stderr}");
}

#[test]
fn examples_of_bundled_transforms_hold() {
    let host = Host::new(HostOptions::default()).unwrap();
    assert_eq!(Host::bundled_names().to_vec(), PLUGINS.iter().map(|plugin| plugin.name).collect::<Vec<_>>());
    for plugin in PLUGINS {
        assert!(!plugin.examples.is_empty(), "{}", plugin.name);
        for example in plugin.examples {
            let table: toml::Table = example.config.parse().unwrap();
            let config = serde_json::to_value(&table["config"]).unwrap();
            for key in table["config"].as_table().unwrap().keys() {
                assert!(plugin.options.iter().any(|option| option.key == key), "{}: `{key}`", plugin.name);
            }
            let loaded = host.bundled(plugin.name).unwrap().unwrap();
            let mut instance = loaded.start(&config, &Limits::default()).unwrap();
            let expected: Vec<_> = example.outputs.iter().map(|line| ExpectedRecord::parse(line).unwrap()).collect();
            let actual = run_plugin(&mut instance, &[TestRecord::parse(example.input).unwrap()], None).unwrap();
            assert!(compare(&expected, &actual), "{}:\n{}", plugin.name, difference(&expected, &actual));
        }
    }
}

#[test]
fn problems_of_expressions_have_places() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = PIPELINE.replace(
        "\"mask.wasm\"\nconfig = { fields = [\"name\"], with = \"-\" }",
        "\"filter.wasm\"\nconfig = { condition = \"value.n > 1 && amount\" }",
    );
    write(folder.path(), "shop.toml", &pipeline);
    let (code, _, stderr) = trunkline(folder.path(), &["validate", "shop.toml"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(
        stderr.contains("shop.toml:17:40") && stderr.contains("`condition`: there is no variable `amount`"),
        "{stderr}"
    );
}

const PIPELINE: &str = r#"
name = "shop"

[sources.orders]
connector = "logfile"
parser = "json"
paths = ["a.log"]
apply = ["mask"]

[transforms.mask]
plugin = "mask.wasm"
config = { fields = ["card"] }

[transforms.hide]
inputs = ["orders"]
plugin = "mask.wasm"
config = { fields = ["name"], with = "-" }
topic = "hidden"

[sinks.lake]
connector = "s3"
inputs = ["hide", "orders"]
url = "file:///lake"

[[tests]]
name = "cards and names are hidden"
records = [{ value = { card = "4111", name = "Ada" } }, { topic = "hidden", value = "other" }]
expected.hide = [{ topic = "hidden", value = { card = "***", name = "-" } }]
expected.lake = [
    { topic = "shop.orders", value = { card = "***", name = "Ada" } },
    { value = "other" },
    { value = { card = "***", name = "-" } },
]

[[tests]]
name = "text is rejected"
records = [{ value = "text" }]
expected.lake = []
dead_letters = [{ component = "mask", rejected = "mask.not_json", value = "text" }]
"#;

#[test]
fn tests_in_a_pipeline_file_run_without_kafka() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "shop.toml", PIPELINE);
    let (code, stdout, stderr) = trunkline(folder.path(), &["test", "shop.toml"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert_eq!(
        stdout,
        "ok      shop: cards and names are hidden\nok      shop: text is rejected\n2 passed, 0 failed\n"
    );
    // no dead letter is expected unless the test names it
    let unexpected = PIPELINE.replace("dead_letters = [", "# [");
    write(folder.path(), "shop.toml", &unexpected);
    let (code, stdout, _) = trunkline(folder.path(), &["test", "shop.toml", "--only", "rejected"]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("dead_letters: 0 expected, 1 actual") && stdout.contains("mask.not_json"), "{stdout}");
    assert!(stdout.ends_with("0 passed, 1 failed\n"), "{stdout}");
    let (code, stdout, _) = trunkline(folder.path(), &["test", "shop.toml", "--json"]);
    let outcomes: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &outcomes[0]["passed"], &outcomes[1]["passed"]),
        (Some(1), &Value::Bool(true), &Value::Bool(false))
    );
    let (code, _, stderr) = trunkline(folder.path(), &["test", "shop.toml", "--only", "nothing"]);
    assert!(code == Some(2) && stderr.contains("no test has a name that contains `nothing`"), "{stderr}");
}

#[test]
fn the_sample_pipelines_pass_their_tests() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (file, tests) in [
        ("pipelines/fraud.toml", 4),
        ("pipelines/iot.toml", 2),
        ("pipelines/payments.toml", 3),
        ("pipelines/fleet.toml", 3),
    ] {
        let (code, stdout, stderr) = trunkline(repository, &["test", file]);
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        assert!(stdout.ends_with(&format!("{tests} passed, 0 failed\n")), "{stdout}");
    }
}

/// Builds the example plugin.
#[test]
fn the_sample_pipeline_with_a_model_passes_its_tests() {
    if std::env::var_os("TRUNKLINE_TEST_LONG").is_none() {
        println!("SKIP the_sample_pipeline_with_a_model_passes_its_tests: runs with --long");
        return;
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in ["with_model.toml", "payments.log"] {
        std::fs::copy(repository.join("pipelines/fraud").join(file), folder.path().join(file)).unwrap();
    }
    let build = Command::new(repository.join("transforms/plugins/build"))
        .arg("score")
        .arg(folder.path().join("score.wasm"))
        .env("CARGO_TARGET_DIR", folder.path().join("target"))
        .env_remove("RUSTC_BOOTSTRAP")
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let (code, stdout, stderr) = trunkline(folder.path(), &["test", "with_model.toml"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("2 passed, 0 failed\n"), "{stdout}");
}

#[test]
fn problems_of_tests_have_places_and_fail_validation() {
    let folder = tempfile::tempdir().unwrap();
    let broken = PIPELINE
        .replace("expected.hide = [{ topic", "expected.hied = [{ topic")
        .replace("{ value = \"text\" }]\nexpected", "{ valeu = \"text\" }]\nexpected")
        .replace("dead_letters", "dead_leters");
    write(folder.path(), "shop.toml", &broken);
    for verb in ["test", "validate"] {
        let (code, _, stderr) = trunkline(folder.path(), &[verb, "shop.toml"]);
        assert_eq!(code, Some(2), "{stderr}");
        for place in ["shop.toml:28:10", "shop.toml:37:12", "shop.toml:39:1"] {
            assert!(stderr.contains(place), "{place}: {stderr}");
        }
        assert!(stderr.contains("did you mean `hide`?") && stderr.contains("did you mean `value`?"), "{stderr}");
    }
}

const STATEFUL: &str = r#"
name = "shop"

[sources.web]
connector = "logfile"
parser = "json"
paths = ["a.log"]

[transforms.unique]
inputs = ["web"]
plugin = "dedupe.wasm"
config = { fields = ["id"], within = "10s" }
state = { max_bytes = "1MiB" }

[transforms.totals]
inputs = ["unique"]
plugin = "aggregate.wasm"
config = { window = "1m", aggregates = { total = "sum(row.n)" }, emit = "updates" }

[sinks.lake]
connector = "s3"
inputs = ["totals"]
url = "file:///lake"

[[tests]]
name = "state lasts from record to record"
records = [
    { value = { id = 1, n = 0.1 }, timestamp = 1000 },
    { value = { id = 2, n = 0.2 }, timestamp = 2000 },
    { value = { id = 1, n = 0.1 }, timestamp = 3000 },
    { value = { id = 1, n = 0.1 }, timestamp = 11000 },
]
expected.unique = [{ timestamp = 1000 }, { timestamp = 2000 }, { timestamp = 11000 }]
expected.lake = [
    { value = '{"window_start":0,"window_end":60000,"total":0.1}' },
    { value = '{"window_start":0,"window_end":60000,"total":0.3}' },
    { value = '{"window_start":0,"window_end":60000,"total":0.4}', timestamp = 11000 },
]
"#;

#[test]
fn transforms_with_state_are_stages_with_a_state_topic() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "shop.toml", STATEFUL);
    let (code, stdout, stderr) = trunkline(folder.path(), &["test", "shop.toml"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let (_, stdout, _) = trunkline(folder.path(), &["graph", "shop.toml"]);
    assert_eq!(stdout.matches("separate stage with state").count(), 2, "{stdout}");
    let (_, stdout, _) = trunkline(folder.path(), &["acls", "shop.toml", "--format", "json"]);
    let rights: Value = serde_json::from_str(&stdout).unwrap();
    let is_state = |right: &&Value| {
        let name = right["name"].as_str().unwrap();
        name.starts_with("_trunkline.state.") && name.ends_with(".shop.unique")
    };
    let state = rights.as_array().unwrap().iter().find(is_state).unwrap();
    assert_eq!(state["operations"], serde_json::json!(["Create", "Read", "Write"]));
    for plugin in ["dedupe", "aggregate.wasm"] {
        let (_, stdout, _) = trunkline(folder.path(), &["transform", "inspect", plugin, "--json"]);
        let found: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(found["uses_state"], Value::Bool(true), "{stdout}");
    }
}

#[test]
fn state_where_there_is_none_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("within = \"10s\" }\n", "within = \"10s\" }\nfuse = true\n", "plan.cannot_fuse"),
        ("inputs = [\"web\"]\nplugin = \"dedupe.wasm\"", "plugin = \"dedupe.wasm\"", "plan.state_needs_stage"),
        ("\"dedupe.wasm\"\nconfig = { fields = [\"id\"], within = \"10s\" }", "\"flatten.wasm\"", "plan.no_state"),
        ("max_bytes", "max_byte", "config.unknown_key"),
    ];
    for (written, replacement, expected) in cases {
        let text = STATEFUL.replacen(written, replacement, 1);
        assert_ne!(text, STATEFUL, "{written}");
        // A transform without inputs is for a source.
        let text = match expected {
            "plan.state_needs_stage" => text
                .replace("[\"a.log\"]", "[\"a.log\"]\napply = [\"unique\"]")
                .replace("inputs = [\"unique\"]", "inputs = [\"web\"]"),
            _ => text,
        };
        write(folder.path(), "shop.toml", &text);
        let (code, stdout, _) = trunkline(folder.path(), &["validate", "shop.toml", "--json"]);
        assert!(code == Some(2) && stdout.contains(expected), "{expected}: {stdout}");
    }
}

const LOOKUP: &str = r#"
name = "shop"

[sources.payments]
connector = "logfile"
parser = "json"
paths = ["payments.log"]

[sources.raw_accounts]
connector = "logfile"
parser = "json"
paths = ["accounts.log"]

[transforms.accounts]
inputs = ["raw_accounts"]
plugin = "rekey.wasm"
config = { fields = ["id"] }

[transforms.holder]
inputs = ["payments"]
plugin = "lookup.wasm"
table = "accounts"
config = { fields = ["account"], into = "holder", missing = "port" }
state = { max_bytes = "8MiB" }

[sinks.lake]
connector = "s3"
inputs = ["holder"]
url = "file:///lake"

[[tests]]
name = "the table has all rows before the first record"
records = [
    { source = "payments", value = '{"account":7}' },
    { source = "payments", value = '{"account":8}' },
    { source = "raw_accounts", value = '{"id":7,"name":"Ada"}' },
    { source = "raw_accounts", value = '{"id":7,"name":"Ada Lovelace"}' },
]
expected.lake = [{ value = '{"account":7,"holder":{"id":7,"name":"Ada Lovelace"}}' }]
expected."holder.missing" = [{ value = '{"account":8}' }]
"#;

#[test]
fn a_lookup_reads_a_topic_as_its_table() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "shop.toml", LOOKUP);
    let (code, stdout, stderr) = trunkline(folder.path(), &["test", "shop.toml"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    // The table is a topic, although only the lookup reads it; the lookup has no state topic.
    let (_, stdout, _) = trunkline(folder.path(), &["graph", "shop.toml"]);
    assert_eq!(stdout.matches("separate stage").count(), 2, "{stdout}");
    assert!(stdout.contains("-->|table|") && !stdout.contains("with state"), "{stdout}");
    let (_, stdout, _) = trunkline(folder.path(), &["acls", "shop.toml", "--format", "json"]);
    let rights: Value = serde_json::from_str(&stdout).unwrap();
    let rights = rights.as_array().unwrap();
    let of = |name: &str| rights.iter().find(|right| right["name"] == name).map(|right| right["operations"].clone());
    assert_eq!(of("shop.accounts"), Some(serde_json::json!(["Create", "Read", "Write"])));
    assert!(!rights.iter().any(|right| right["name"].as_str().unwrap().contains(".state.")), "{stdout}");
}

#[test]
fn invalid_tables_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("table = \"accounts\"\n", "", "config.missing_key"),
        ("table = \"accounts\"", "table = \"acounts\"", "plan.missing_input"),
        ("table = \"accounts\"", "table = \"holder\"", "plan.input_cycle"),
        ("config = { fields = [\"id\"] }", "config = { fields = [\"id\"] }\ntable = \"payments\"", "plan.no_table"),
        ("config = { fields = [\"id\"] }", "config = { fields = [\"id\"] }\nfuse = true", "plan.cannot_fuse"),
        ("config = { fields = [\"id\"] }", "config = { fields = [\"id\"] }\ntopic = \"t-{id}\"", "plan.table_topics"),
    ];
    // One process, so that the plugin is compiled once.
    for (number, (written, replacement, _)) in cases.iter().enumerate() {
        let text = LOOKUP.replacen(written, replacement, 1);
        assert_ne!(text, LOOKUP, "{written}");
        write(folder.path(), &format!("shop{number}.toml"), &text.replace("\"shop\"", &format!("\"shop{number}\"")));
    }
    let (code, stdout, _) = trunkline(folder.path(), &["validate", ".", "--json"]);
    assert_eq!(code, Some(2), "{stdout}");
    let problems: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    for (number, (_, _, expected)) in cases.iter().enumerate() {
        let file = format!("./shop{number}.toml");
        let found = problems.iter().any(|problem| problem["file"] == file.as_str() && problem["code"] == *expected);
        assert!(found, "{file}: {expected}: {stdout}");
    }
}
