//! Every file and folder in `tests/pipelines` is a case. Its first lines list the codes of its problems,
//! `# expect: CODE CODE ..`, and a snapshot holds their text. A new file is a new case.

use std::fs;
use std::path::Path;

use trunkline::config::{FileProblems, RenderStyle, json, render, summary};

use crate::support::{Folder, fixtures};

/// The codes that a file, or the files of a folder, list.
fn expected_codes(path: &Path) -> Vec<String> {
    if path.is_dir() {
        let mut codes: Vec<String> =
            fs::read_dir(path).unwrap().flat_map(|entry| expected_codes(&entry.unwrap().path())).collect();
        codes.sort();
        return codes;
    }
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let expected = text.lines().filter_map(|line| line.strip_prefix("# expect: "));
    let mut codes: Vec<String> = expected.flat_map(str::split_whitespace).map(str::to_owned).collect();
    codes.sort();
    codes
}

fn codes(files: &[FileProblems]) -> Vec<String> {
    let mut codes: Vec<String> =
        files.iter().flat_map(|file| &file.problems).map(|problem| problem.code.to_owned()).collect();
    codes.sort();
    codes
}

fn shown(files: &[FileProblems]) -> String {
    format!("{}{}", render(files, RenderStyle::PLAIN), summary(files))
}

#[test]
fn problems_of_every_case_are_reported() {
    let folder = Folder::with_fixtures();
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".wasm") && !name.ends_with(".txt"))
        .collect();
    names.sort();
    assert!(names.len() > 30, "only {} cases", names.len());
    let mut unexpected = Vec::new();
    for name in names {
        let problems = folder.load(&[&name]).problems;
        let expected = expected_codes(&folder.path().join(&name));
        assert!(!expected.is_empty(), "{name} lists no codes");
        insta::assert_snapshot!(name.trim_end_matches(".toml"), shown(&problems));
        if codes(&problems) != expected {
            unexpected.push(format!("{name}: {:?}", codes(&problems)));
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[test]
fn unreadable_paths_are_reported() {
    let folder = Folder::new();
    folder.write("empty.toml", "");
    fs::create_dir(folder.path().join("nothing")).unwrap();
    let problems = folder.load(&["gone.toml", "nothing", "empty.toml"]).problems;
    insta::assert_snapshot!("unreadable_paths", shown(&problems));
}

#[test]
fn json_has_places_in_characters() {
    let folder = Folder::with_fixtures();
    let problems = folder.load(&["bad_templates.toml", "gone.toml"]).problems;
    insta::assert_snapshot!("json", json(&problems));
}

/// The value of a reference never appears in output (I8).
#[test]
fn resolved_values_are_never_shown() {
    let folder = Folder::with_fixtures();
    let problems = folder.load(&["resolved_value_is_hidden.toml"]).problems;
    assert_eq!(problems[0].problems.len(), 2);
    for shown in [shown(&problems), json(&problems)] {
        assert!(!shown.contains("hunter2") && !shown.contains("parsecs"), "{shown}");
    }
}
