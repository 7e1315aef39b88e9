//! The reference pages in `docs/reference`, compared with the declarations and codes in the source.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;
use trunkline::cli::error_codes;
use trunkline::config::{SETTINGS, settings_table};
use trunkline::plan::{bundled, options};
use trunkline_connector::config::{OptionSpec, options_table};
use trunkline_connector::conformance::check_options;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Checks that the page holds the table between markers with this name. With
/// `TRUNKLINE_UPDATE_DOCS=1` in the environment it writes the table instead.
fn check_table(page: &str, name: &str, table: &str) {
    let path = repository().join("docs/reference").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- {name}: generated from the declarations in the code -->\n");
    let end = format!("<!-- end of {name} -->");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no `{}`", begin.trim_end()));
    let (old, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no `{end}`"));
    if old == table {
        return;
    }
    if std::env::var_os("TRUNKLINE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    panic!("{page} differs from the declarations; run the test with TRUNKLINE_UPDATE_DOCS=1. Expected:\n{table}");
}

#[test]
fn the_table_of_settings_matches_the_declarations() {
    check_options(SETTINGS);
    check_table("settings.md", "settings", &settings_table());
}

#[test]
fn the_tables_of_shared_options_match_the_declarations() {
    let tables: [(&str, &[OptionSpec]); 4] = [
        ("pipeline options", options::PIPELINE),
        ("source options", options::SOURCE),
        ("transform options", options::TRANSFORM),
        ("sink options", options::SINK),
    ];
    for (name, options) in tables {
        check_options(options);
        check_table("pipeline-files.md", name, &options_table(options));
    }
}

#[test]
fn the_tables_of_bundled_plugins_match_the_declarations() {
    for plugin in bundled::PLUGINS {
        check_options(plugin.options);
        check_table("plugins.md", plugin.name, &options_table(plugin.options));
    }
}

/// Rust sources of the product, without tests, examples and the plugin for tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "tests", "examples", "testing", "conformance", "bench"].contains(&name.as_str()) {
                sources(&path, found);
            }
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "fuzz.rs" && name != "failpoint.rs" {
            found.push(path);
        }
    }
}

/// The codes in the sources, each with the first place that uses it.
///
/// A code is a string literal of words joined by dots. It follows one of the constructs that take
/// codes: an error, a reason, a problem, a preflight issue, a rejection by a plugin, or a match arm
/// or constant in a file that builds errors from them.
fn codes_in_sources() -> BTreeMap<String, String> {
    let families = "audit|broker|checkpoint|cli|config|control|elasticsearch|environment|explode|filter|flatten|intent|io|kafka|line|logfile|mask|mysql|offsets|otlp|parse|plan|plugin|project|redshift|rekey|replay|route|s3|\
                    schema|sink|snapshot|snowflake|source|stage|test|timestamp|transform|unwrap_envelope|warehouse|worker|http|file|stdout";
    let code = format!(r#""((?:{families})(?:\.[a-z][a-z0-9_]*)+)""#);
    let constructs = Regex::new(&format!(
        r"(?s)(?:Error::[a-z_]+\(|Reason::new\(|problem_at\([^;]{{0,80}}?,|code:|ca:|cert:|code =|failed =|problem\(|lack\(|issue\(|\.stop\(|\.reject\(|=>|=> \(|\(|\{{|str =|,)\s*{code}"
    ))
    .unwrap();
    let mut files = Vec::new();
    for folder in ["connectors", "runtime/src", "transforms/host/src", "transforms/sdk/src", "transforms/plugins"] {
        sources(&repository().join(folder), &mut files);
    }
    let mut codes = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for found in constructs.captures_iter(text) {
            let literal = found.get(1).unwrap();
            if is_other_literal(text, found.get(0).unwrap().start(), literal.as_str()) {
                continue;
            }
            let line = text[..literal.start()].matches('\n').count() + 1;
            let place = file.strip_prefix(repository()).unwrap().display().to_string();
            codes.entry(literal.as_str().to_owned()).or_insert(format!("{place}:{line}"));
        }
    }
    codes
}

/// Names of failpoints, files, options and metadata have the form of codes.
fn is_other_literal(text: &str, start: usize, literal: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "mysql.type",
        "worker.lock",
        "config.schema.json",
        "stage.url",
        "stage.storage_integration",
        "broker.address.family",
    ];
    let before = String::from_utf8_lossy(&text.as_bytes()[start.saturating_sub(12)..=start]);
    let is_failpoint = before.contains("failpoint!(") || before.contains("at(");
    let is_file = [".rs", ".wasm", ".toml"].iter().any(|suffix| literal.ends_with(suffix));
    let is_option = before.contains("::optional(") || before.contains("with_default(");
    is_failpoint || is_file || is_option || OTHERS.contains(&literal)
}

#[test]
fn every_error_code_has_an_entry_and_every_entry_a_code() {
    let used = codes_in_sources();
    assert!(used.len() > 100, "the scan found only {} codes", used.len());
    let explained: Vec<&str> = error_codes().map(|(code, _)| code).collect();
    let unique: BTreeSet<&str> = explained.iter().copied().collect();
    assert_eq!(unique.len(), explained.len(), "docs/reference/errors.md explains a code twice");
    let missing: Vec<String> = used
        .iter()
        .filter(|(code, _)| !unique.contains(code.as_str()))
        .map(|(code, place)| format!("  {code}   used in {place}: add an entry to docs/reference/errors.md"))
        .collect();
    let stale: Vec<String> = explained
        .iter()
        .filter(|code| !used.contains_key(**code))
        .map(|code| format!("  {code}   no source uses it: remove its entry from docs/reference/errors.md"))
        .collect();
    assert!(missing.is_empty() && stale.is_empty(), "\n{}\n{}", missing.join("\n"), stale.join("\n"));
}

#[test]
fn every_entry_says_what_to_do() {
    for (code, entry) in error_codes() {
        assert!(entry.contains("**Do:**") && entry.split("**Do:**").all(|part| part.trim().len() > 5), "{code}");
    }
}
