//! `trunkline explain`: the page of error codes, which is part of the binary.

use trunkline_connector::config::nearest;

use super::output::{Exit, print_data, print_error};

/// `docs/reference/errors.md`. Each code is a heading of level 3.
const PAGE: &str = include_str!("../../../docs/reference/errors.md");

/// Start of the heading of a code.
const HEADING: &str = "### `";

/// Codes and their entries, in the order of the page.
pub fn error_codes() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.split(HEADING).skip(1).filter_map(|section| {
        let (code, rest) = section.split_once('`')?;
        // The next heading of any level ends the entry.
        let entry = rest.split("\n## ").next().unwrap_or(rest);
        Some((code, entry.trim()))
    })
}

/// Prints the entry of a code, or lists all codes.
pub(super) fn explain(code: Option<&str>) -> Exit {
    let Some(code) = code else {
        return print_data(&error_codes().map(|(code, _)| format!("{code}\n")).collect::<String>());
    };
    // Codes appear in brackets at the end of messages.
    let code = code.trim_matches(['[', ']', '`']);
    if let Some((_, entry)) = error_codes().find(|(known, _)| *known == code) {
        return print_data(&format!("{code}\n\n{}\n", entry.replace("**Do:**", "Do:")));
    }
    let known: Vec<&str> = error_codes().map(|(code, _)| code).collect();
    let hint = match nearest(code, &known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`trunkline explain` lists all codes; plugins define further codes".to_owned(),
    };
    print_error(format_args!("error: there is no error code `{code}`; {hint}"));
    Exit::Config
}
