//! The files in `deploy/`: the metrics that they name exist, and the tools that read them accept
//! them. A test whose tool is missing skips itself.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;
use serde_json::Value;
use trunkline::plan::Registry;
use trunkline::plan::json_schema::{pipeline_schema, settings_schema};

use crate::validator::problems;
use crate::{repository, toml_as_json};

fn deploy() -> PathBuf {
    repository().join("deploy")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The output of a tool; `None`, with a reason, if it is not installed.
fn run(test: &str, command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("SKIP {test}: {}: {error}", command.get_program().display());
            None
        }
    }
}

fn assert_success(output: &Output) {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}{}", texts[0], texts[1]);
}

/// The metrics in a text of PromQL. A histogram has several series.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\b(trunkline|process)_[a-z_]+").unwrap();
    let base = |found: &str| {
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find(|suffix| found.ends_with(suffix));
        suffix.map_or(found, |suffix| found.strip_suffix(suffix).unwrap()).to_owned()
    };
    name.find_iter(text).map(|found| base(found.as_str())).collect()
}

/// The metrics in the reference, which is tested against the code.
fn documented_metrics() -> BTreeSet<String> {
    let row = Regex::new(r"(?m)^\| `([a-z_]+)` \| (gauge|counter|histogram) \|").unwrap();
    let found: BTreeSet<String> =
        row.captures_iter(&read("docs/reference/metrics.md")).map(|row| row[1].to_owned()).collect();
    assert!(found.len() > 10, "{found:?}");
    found
}

#[test]
fn every_metric_in_the_dashboard_and_the_alerts_is_documented() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/trunkline.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut expressions: Vec<String> = queries.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    expressions.extend(variables.iter().filter_map(|it| Some(it["query"]["query"].as_str()?.to_owned())));
    assert!(expressions.len() > 15, "{expressions:#?}");
    let alerts = read("deploy/prometheus/alerts.yml");
    let rules: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(rules.len(), alerts.matches("- alert: ").count());
    let documented = documented_metrics();
    let (in_dashboard, in_alerts) = (metrics_in(&expressions.join("\n")), metrics_in(&rules.join("\n")));
    assert_eq!(
        in_dashboard.union(&in_alerts).filter(|name| !documented.contains(*name)).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    // Each documented metric is shown, so that a new one is not forgotten.
    let missing: Vec<&String> = documented.difference(&in_dashboard).collect();
    assert_eq!(missing, Vec::<&String>::new(), "show these in deploy/grafana/trunkline.json");
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
        let expression = target["expr"].as_str().unwrap();
        assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{expression}");
    }
}

/// Prometheus accepts the rules, and each fires on the problem that it is for.
#[test]
fn prometheus_accepts_the_rules() {
    let (test, script) = ("prometheus_accepts_the_rules", repository().join("tests/services/prometheus"));
    let fetched = Command::new(&script).arg("fetch").output().unwrap();
    if !fetched.status.success() {
        return println!("SKIP {test}: {}", String::from_utf8_lossy(&fetched.stderr).trim());
    }
    for (verb, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let file = deploy().join("prometheus").join(file);
        assert_success(&Command::new(&script).args(["promtool", verb, "rules"]).arg(file).output().unwrap());
    }
    let (rules, tests) = (read("deploy/prometheus/alerts.yml"), read("deploy/prometheus/alerts_test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
    }
}

/// The documents of a YAML file as JSON; `None` if Python has no YAML.
fn yaml(test: &str, file: &Path) -> Option<Vec<Value>> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    if !run(test, Command::new("python3").args(["-c", "import yaml"]))?.status.success() {
        println!("SKIP {test}: python3 has no module yaml");
        return None;
    }
    let output = run(test, Command::new("python3").args(["-c", script]).arg(file))?;
    assert_success(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn manifests_have_probes_a_grace_period_and_few_rights_and_their_files_are_valid() {
    let test = "manifests_have_probes_a_grace_period_and_few_rights_and_their_files_are_valid";
    let (pipelines, settings) = (pipeline_schema(&Registry::new()), settings_schema());
    let (mut workloads, mut files) = (0, 0);
    for entry in fs::read_dir(deploy().join("kubernetes")).unwrap() {
        let path = entry.unwrap().path();
        let Some(documents) = yaml(test, &path) else { return };
        for document in documents {
            for (name, text) in document["data"].as_object().into_iter().flatten() {
                files += 1;
                let schema = if name == "trunkline.toml" { &settings } else { &pipelines };
                assert_eq!(problems(schema, &toml_as_json(text.as_str().unwrap()).unwrap()), Vec::<String>::new());
            }
            let pod = &document["spec"]["template"]["spec"];
            if pod.is_null() {
                continue;
            }
            workloads += 1;
            assert_eq!(pod["terminationGracePeriodSeconds"], 60, "{}", path.display());
            let container = &pod["containers"][0];
            for (probe, expected) in
                [("startupProbe", "/health"), ("livenessProbe", "/health"), ("readinessProbe", "/ready")]
            {
                assert_eq!(container[probe]["httpGet"]["path"], expected, "{}", path.display());
            }
            let security = &container["securityContext"];
            assert_eq!(
                (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
                (&Value::from(true), &Value::from(false))
            );
            assert_eq!(security["capabilities"]["drop"][0], "ALL");
            // Each mount names a volume of the pod or a claim.
            let claims = document["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
            let volumes = pod["volumes"].as_array().into_iter().flatten();
            let known: Vec<&Value> =
                volumes.map(|volume| &volume["name"]).chain(claims.map(|claim| &claim["metadata"]["name"])).collect();
            for mount in container["volumeMounts"].as_array().unwrap() {
                assert!(known.contains(&&mount["name"]), "{}: {mount}", path.display());
            }
        }
    }
    assert_eq!((workloads, files), (3, 5));
    assert!(yaml(test, &deploy().join("prometheus/alerts.yml")).unwrap()[0]["groups"].is_array());
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_hardened() {
    let test = "systemd_accepts_the_unit_and_finds_it_hardened";
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("trunkline.service");
    // Its paths must exist; man pages of the package do not here.
    let text = read("deploy/systemd/trunkline.service")
        .replace("/usr/bin/trunkline", env!("CARGO_BIN_EXE_trunkline"))
        .replace("Documentation=man:trunkline(1)\n", "");
    fs::write(&unit, text).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output();
    let output = match verify {
        Ok(output) => output,
        Err(error) => return println!("SKIP {test}: systemd-analyze: {error}"),
    };
    assert_success(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("trunkline.service").count(), 0, "{output:?}");
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager", "--threshold=25"]).arg(&unit);
    // The exit code is 1 if the exposure is above 2.5 of 10.
    let output = security.output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("unrecognized option") {
        return println!("SKIP {test}: systemd is too old to analyse files");
    }
    assert_success(&output);
}

/// The binary to pack. Copies of the unoptimised one take seconds: only a long run packs it itself.
fn packaged_binary(folder: &Path) -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_trunkline"));
    if std::env::var_os("TRUNKLINE_TEST_LONG").is_some() {
        return binary;
    }
    let script = folder.join("trunkline");
    fs::write(&script, format!("#!/bin/sh\nexec '{}' \"$@\"\n", binary.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Builds the package and installs it into a folder, as dpkg installs it into `/`.
#[test]
fn the_debian_package_installs_and_leaves_only_data_behind() {
    let test = "the_debian_package_installs_and_leaves_only_data_behind";
    for tool in ["dpkg-deb", "dpkg"] {
        if run(test, Command::new(tool).arg("--version")).is_none() {
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut build = Command::new(deploy().join("debian/build"));
    build.arg(packaged_binary(folder.path())).arg(folder.path()).env("COMPRESSION", "none");
    let output = build.output().unwrap();
    assert_success(&output);
    let package = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let root = folder.path().join("root");
    for part in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(part)).unwrap();
    }
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
    }
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display()));
        command.args(["--force-not-root", "--force-script-chrootless", "--force-depends", "--force-bad-path"]);
        command.arg("--log=/dev/null").args(arguments);
        let output = command.output().unwrap();
        assert_success(&output);
        output
    };
    dpkg(&["--install", package.to_str().unwrap()]);
    let binary = root.join("usr/bin/trunkline");
    let output = Command::new(&binary).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), concat!("trunkline ", env!("CARGO_PKG_VERSION")));
    for file in [
        "lib/systemd/system/trunkline.service",
        "usr/lib/sysusers.d/trunkline.conf",
        "usr/share/man/man1/trunkline.1.gz",
        "usr/share/man/man1/trunkline-doctor.1.gz",
        "usr/share/bash-completion/completions/trunkline",
        "usr/share/zsh/vendor-completions/_trunkline",
        "usr/share/fish/vendor_completions.d/trunkline.fish",
        "etc/trunkline/trunkline.toml",
    ] {
        assert!(fs::metadata(root.join(file)).is_ok_and(|found| found.len() > 0), "{file}");
    }
    // The settings file is valid as it is, and a change of it survives the next installation.
    let settings = root.join("etc/trunkline/trunkline.toml");
    let checked =
        Command::new(&binary).args(["doctor", "--config"]).arg(&settings).current_dir(&root).output().unwrap();
    assert_success(&checked);
    fs::write(&settings, "cluster = \"mine\"\n").unwrap();
    dpkg(&["--force-confdef", "--install", package.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "cluster = \"mine\"\n");
    fs::write(root.join("etc/trunkline/pipelines/mine.toml"), "").unwrap();
    dpkg(&["--purge", "trunkline"]);
    assert!(!binary.exists() && !settings.exists());
    assert!(root.join("etc/trunkline/pipelines/mine.toml").exists(), "pipelines belong to the user");
}
