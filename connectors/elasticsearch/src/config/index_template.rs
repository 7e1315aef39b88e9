//! The option `template`: an index template that the sink creates.

use std::path::PathBuf;

use serde_json::Value;
use trunkline_connector::config::Section;

use super::check;

/// An index template.
#[derive(Debug, Clone)]
pub(crate) struct IndexTemplate {
    /// `None`: the name of the sink.
    pub(crate) name: Option<String>,
    /// A JSON object.
    pub(crate) body: Value,
}

impl IndexTemplate {
    /// Its `version`.
    pub(crate) fn version(&self) -> Option<i64> {
        self.body["version"].as_i64()
    }
}

/// Reads the table; `None` if it is wrong (reported).
pub(super) fn read(section: Section<'_>) -> Option<IndexTemplate> {
    let file = section.optional::<PathBuf>("file");
    let inline = section.optional::<String>("inline");
    let name = section.optional::<String>("name");
    let (key, text) = match (file, inline) {
        (Some(file), None) => match std::fs::read_to_string(section.base.join(file)) {
            Ok(text) => ("file", Some(text)),
            Err(error) => {
                check(&section, "file", false, &format!("cannot be read: {error}"), "a file with an index template");
                ("file", None)
            }
        },
        (None, Some(text)) => ("inline", Some(text)),
        (Some(_), Some(_)) => {
            check(&section, "inline", false, "is given together with `file`", "only one of the two");
            ("inline", None)
        }
        (None, None) => {
            section.missing("file", "an index template, or `inline`");
            ("file", None)
        }
    };
    let body = text.and_then(|text| match parse(&text) {
        Ok(body) => Some(body),
        Err(message) => {
            let expected = "an index template such as `{\"index_patterns\": [\"logs-*\"], \"version\": 1}`";
            check(&section, key, false, &message, expected);
            None
        }
    });
    section.finish();
    Some(IndexTemplate { name, body: body? })
}

fn parse(text: &str) -> Result<Value, String> {
    let body: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
    match &body["index_patterns"] {
        Value::Array(patterns) if !patterns.is_empty() => {}
        _ => return Err("has no `index_patterns`".to_owned()),
    }
    match &body["version"] {
        Value::Null => Ok(body),
        Value::Number(version) if version.is_i64() => Ok(body),
        _ => Err("has a `version` that is not a whole number".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use std::path::Path;

    use trunkline_connector::config::Report;
    use trunkline_connector::conformance::read_toml;

    use super::*;

    fn template(options: &str) -> (Option<IndexTemplate>, Vec<String>) {
        let (table, report) = (read_toml(options), Report::default());
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("a.json"), r#"{"index_patterns":["a*"],"version":3}"#).unwrap();
        let template = read(Section::new(&table, 0..0, "template", Path::new(base.path()), &report));
        (template, report.into_problems().into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn templates_are_read_from_a_file_or_the_option() {
        let (from_file, problems) = template("file = \"a.json\"\nname = \"x\"");
        assert_eq!((from_file.unwrap().version(), problems), (Some(3), Vec::new()));
        let (inline, problems) = template(r#"inline = '{"index_patterns":["a*"]}'"#);
        assert_eq!((inline.unwrap().version(), problems), (None, Vec::new()));
    }

    #[test]
    fn wrong_templates_are_reported() {
        for (options, expected) in [
            ("name = \"x\"", "`template.file` is missing"),
            (r#"inline = '{"template":{}}'"#, "`template.inline` has no `index_patterns`"),
            (
                r#"inline = '{"index_patterns":["a"],"version":"1"}'"#,
                "`template.inline` has a `version` that is not a whole number",
            ),
            ("inline = '{}'\nfile = \"a.json\"", "`template.inline` is given together with `file`"),
        ] {
            assert_eq!(template(options).1, [expected], "{options}");
        }
        assert!(template("file = \"none.json\"").1[0].starts_with("`template.file` cannot be read"));
    }
}
