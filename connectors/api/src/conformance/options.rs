//! The declarations of a connector's options, compared with what its code reads and with what its
//! README says.

use std::path::Path;

use super::read_toml;
use crate::config::{OptionDefault, OptionSpec, Report, Section, options_table};

const BEGIN: &str = "<!-- options: generated from the declarations in the code -->\n";
const END: &str = "<!-- end of options -->";

/// Checks that every declaration is complete: a meaning, and an example and a default that are
/// TOML.
///
/// # Panics
/// If one is not, or a key is declared twice.
pub fn check_options(options: &[OptionSpec]) {
    for (index, option) in options.iter().enumerate() {
        let key = option.key;
        assert!(options[..index].iter().all(|other| other.key != key), "`{key}` is declared twice");
        assert!(!option.value_type.is_empty() && option.doc.ends_with('.'), "`{key}` needs a type and a sentence");
        read_toml(&format!("value = {}", option.example));
        if let OptionDefault::Value(value) = option.default {
            read_toml(&format!("value = {value}"));
        }
    }
}

/// Checks that the table between the markers in a README is the one of these declarations. With
/// `TRUNKLINE_UPDATE_DOCS=1` in the environment it writes the table instead.
///
/// # Panics
/// If the table differs, or the file has no markers.
pub fn check_options_table(readme: &Path, options: &[OptionSpec]) {
    check_options(options);
    let text = match std::fs::read_to_string(readme) {
        Ok(text) => text,
        Err(error) => panic!("cannot read {}: {error}", readme.display()),
    };
    let parts =
        text.split_once(BEGIN).and_then(|(before, rest)| rest.split_once(END).map(|(old, after)| (before, old, after)));
    let Some((before, old, after)) = parts else {
        panic!("{} has no `{}` .. `{END}`", readme.display(), BEGIN.trim_end());
    };
    let table = options_table(options);
    if old == table {
        return;
    }
    if std::env::var_os("TRUNKLINE_UPDATE_DOCS").is_some() {
        if let Err(error) = std::fs::write(readme, format!("{before}{BEGIN}{table}{END}{after}")) {
            panic!("cannot write {}: {error}", readme.display());
        }
        return;
    }
    panic!(
        "{} differs from the declarations; run the test with TRUNKLINE_UPDATE_DOCS=1. Expected:\n{table}",
        readme.display()
    );
}

/// Checks that `configure` reads every declared option, and no other one: it is run on a section
/// that has each declared option with its example.
///
/// # Panics
/// If a declared option is unknown to the code.
pub fn check_options_are_read(options: &'static [OptionSpec], configure: impl Fn(&Section<'_>)) {
    for option in options {
        let example = read_toml(&format!("{} = {}", option.key, option.example));
        let report = Report::default();
        let section = Section::new(&example, 0..0, "component", Path::new("."), &report);
        configure(&section);
        section.finish();
        let unknown = report.into_problems().into_iter().find(|problem| problem.code == "config.unknown_key");
        assert!(unknown.is_none(), "`{}` is declared, but not read: {unknown:?}", option.key);
    }
}
