//! `trunkline new` writes files that are valid at once.

use regex::Regex;
use trunkline::plan::Registry;
use trunkline::plan::json_schema::pipeline_schema;

use crate::validator::problems;
use crate::{command, outcome, toml_as_json, trunkline};

#[test]
fn the_file_of_every_pair_is_valid_and_so_is_each_of_its_comments() {
    let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::new());
    let schema = pipeline_schema(&registry);
    let option = Regex::new(r"(?m)^# ([a-z_.]+ = .+)$").unwrap();
    let reference = Regex::new(r"\$\{env:([A-Z_]+)\}").unwrap();
    let mut validate = command(folder.path(), &["validate", "pipelines"]);
    let (mut count, mut options) = (0, 0);
    for source in registry.source_names() {
        for sink in registry.sink_names() {
            count += 1;
            let name = format!("{source}-to-{sink}");
            let arguments = ["new", &name, "--from", source, "--to", sink, "--dir", "pipelines"];
            let (code, stdout, stderr) = trunkline(folder.path(), &arguments);
            assert_eq!((code, stdout), (Some(0), format!("pipelines/{name}.toml\n")), "{stderr}");
            let text = std::fs::read_to_string(folder.path().join(format!("pipelines/{name}.toml"))).unwrap();
            for (_, [variable]) in reference.captures_iter(&text).map(|found| found.extract()) {
                validate.env(variable, "placeholder");
                // Commented options may name others.
                let is_set = text.lines().any(|line| !line.starts_with('#') && line.contains(variable));
                assert_eq!(stderr.contains(variable), is_set, "{stderr}");
            }
            assert_eq!(problems(&schema, &toml_as_json(&text).unwrap()), Vec::<String>::new());
            for (whole, [assignment]) in option.captures_iter(&text).map(|found| found.extract()) {
                options += 1;
                let changed = text.replacen(whole, assignment, 1);
                let value = toml_as_json(&changed).unwrap_or_else(|error| panic!("{name}: {assignment}: {error}"));
                assert_eq!(problems(&schema, &value), Vec::<String>::new(), "{name}: {assignment}");
            }
        }
    }
    assert!(options > 20 * count, "{options} options in {count} files");
    let (code, stdout, stderr) = outcome(&mut validate);
    assert_eq!((code, stdout.matches(": ok: ").count()), (Some(0), count), "{stdout}{stderr}");
    // Nothing in a new file needs a warning.
    assert_eq!(stderr, "");
    // The schema is where `#:schema` names it.
    let stored = std::fs::read_to_string(folder.path().join("pipelines/trunkline.schema.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&stored).unwrap(), schema);
}

#[test]
fn a_file_is_replaced_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.toml");
    std::fs::write(&path, "mine").unwrap();
    let arguments = ["new", "shop", "--from", "mysql", "--to", "s3"];
    let (code, stdout, stderr) = trunkline(folder.path(), &arguments);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("shop.toml exists") && stderr.contains("--force"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    let (code, _, stderr) = trunkline(folder.path(), &[&arguments[..], &["--force"]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("#:schema trunkline.schema.json\n"));
    assert!(stderr.contains("export MYSQL_PASSWORD=.."), "{stderr}");
}

#[test]
fn missing_and_unknown_choices_are_named_without_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["new"], "the name of the pipeline is missing; for example `trunkline new shop --from mysql --to s3`"),
        (&["new", "shop", "--to", "s3"], "`--from` is missing (known: logfile, mysql"),
        (
            &["new", "shop", "--from", "mysq", "--to", "s3"],
            "there is no source connector `mysq`; did you mean `mysql`?",
        ),
        (&["new", "shop", "--from", "mysql", "--to", "mysql"], "there is no sink connector `mysql`"),
        (&["new", "a/b", "--from", "mysql", "--to", "s3"], "the name `a/b` has the character `/`"),
    ];
    for (arguments, expected) in cases {
        let (code, stdout, stderr) = outcome(command(folder.path(), arguments).stdin(std::process::Stdio::null()));
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains(expected), "{stderr}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
