//! The options `template`: an index template that the sink creates.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use trunkline_connector::config::Section;

use super::{DocumentOptions, Target, check};
use crate::server::Product;

/// Templates that the sink generates have this priority: above templates of all indices, and below
/// those of the user.
const PRIORITY: u32 = 100;

/// An index template.
#[derive(Debug, Clone)]
pub(crate) struct IndexTemplate {
    /// `None`: the name of the sink.
    pub(crate) name: Option<String>,
    /// A JSON object, of `file` or `inline`; `None`: the template is generated.
    given: Option<Value>,
    pub(crate) options: TemplateOptions,
}

/// What the template sets, whether it is given or generated.
#[derive(Debug, Clone, Default)]
pub(crate) struct TemplateOptions {
    shards: Option<u64>,
    replicas: Option<u64>,
    refresh_interval: Option<Duration>,
    /// An ILM policy of Elasticsearch, or an ISM policy of OpenSearch.
    pub(crate) lifecycle_policy: Option<String>,
    /// `index` is an alias that rolls over.
    pub(crate) rollover: bool,
    /// Field types are those of the schemas of records.
    pub(crate) field_types: bool,
    pub(crate) decimals: DecimalType,
}

/// The field type of decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum DecimalType {
    #[default]
    Keyword,
    Double,
}

impl IndexTemplate {
    /// The body of the template; `None` if the options need none. A generated one has a mark with
    /// its options, so that it can be replaced after they change.
    pub(crate) fn body(&self, product: Option<Product>, documents: &DocumentOptions) -> Option<Value> {
        let settings = self.settings(product, documents);
        let mut body = match &self.given {
            Some(given) => given.clone(),
            None if self.options.need_template(&documents.target) => self.generated(documents),
            None => return None,
        };
        let template = &mut body["template"];
        if settings.is_empty() {
            return Some(body);
        }
        if !template.is_object() {
            *template = json!({});
        }
        if !template["settings"].is_object() {
            template["settings"] = json!({});
        }
        for (name, value) in settings {
            template["settings"][&name] = value;
        }
        if self.given.is_none() {
            body["_meta"] = json!({"trunkline": body["template"].to_string()});
        }
        Some(body)
    }

    fn generated(&self, documents: &DocumentOptions) -> Value {
        let mut pattern = documents.target.glob();
        if self.options.rollover {
            pattern.push_str("-*");
        }
        let mut body = json!({"index_patterns": [pattern], "priority": PRIORITY, "template": {"settings": {}}});
        let is_stream = matches!(documents.target, Target::DataStream(_));
        if is_stream {
            body["data_stream"] = json!({});
        }
        if is_stream || documents.timestamp.is_some() {
            body["template"]["mappings"] = json!({"properties": {"@timestamp": {"type": "date"}}});
        }
        body["_meta"] = json!({"trunkline": body["template"].to_string()});
        body
    }

    fn settings(&self, product: Option<Product>, documents: &DocumentOptions) -> Map<String, Value> {
        let TemplateOptions { shards, replicas, refresh_interval, lifecycle_policy, rollover, .. } = &self.options;
        let alias = documents.target.template().constant().filter(|_| *rollover);
        let is_opensearch = product == Some(Product::OpenSearch);
        let refresh = refresh_interval.map(|interval| match interval.as_millis() {
            0 => "-1".to_owned(),
            milliseconds => format!("{milliseconds}ms"),
        });
        let policy = lifecycle_policy.as_ref().filter(|_| !is_opensearch);
        // OpenSearch attaches a policy by the patterns in the policy.
        let alias_setting = if is_opensearch {
            "index.plugins.index_state_management.rollover_alias"
        } else {
            "index.lifecycle.rollover_alias"
        };
        let settings = [
            ("index.number_of_shards", shards.map(Value::from)),
            ("index.number_of_replicas", replicas.map(Value::from)),
            ("index.refresh_interval", refresh.map(Value::from)),
            ("index.lifecycle.name", policy.map(|policy| Value::from(policy.as_str()))),
            (alias_setting, alias.filter(|_| lifecycle_policy.is_some()).map(Value::from)),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl TemplateOptions {
    /// The options need a template, so that one is generated if none is given.
    fn need_template(&self, target: &Target) -> bool {
        let has_settings = self.shards.is_some()
            || self.replicas.is_some()
            || self.refresh_interval.is_some()
            || self.lifecycle_policy.is_some();
        has_settings || self.rollover || matches!(target, Target::DataStream(_))
    }
}

/// Reads the table; `None` if it is wrong (reported).
pub(super) fn read(section: Section<'_>, target: Option<&Target>) -> Option<IndexTemplate> {
    let file = section.optional::<PathBuf>("file");
    let inline = section.optional::<String>("inline");
    let name = section.optional::<String>("name");
    let options = read_options(&section, target);
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
        (None, None) if section.table.entries.iter().any(|(key, _)| key.name != "name") => {
            // A generated template would apply to every index of the server.
            if target.is_some_and(|target| options.need_template(target) && target.glob().starts_with('*')) {
                section.missing(
                    "file",
                    "an index template, or `inline`, because the name of an index begins with a placeholder",
                );
            }
            section.finish();
            return Some(IndexTemplate { name, given: None, options });
        }
        (None, None) => {
            section.missing("file", "an index template, `inline`, or an option such as `shards`");
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
    Some(IndexTemplate { name, given: Some(body?), options })
}

fn read_options(section: &Section<'_>, target: Option<&Target>) -> TemplateOptions {
    let shards: Option<u64> = section.optional("shards");
    let is_count = shards.is_none_or(|shards| (1..=1024).contains(&shards));
    check(section, "shards", is_count, "is out of range", "a number from 1 to 1024");
    let replicas: Option<u64> = section.optional("replicas");
    check(section, "replicas", replicas.is_none_or(|count| count <= 100), "is out of range", "a number from 0 to 100");
    let rollover: bool = section.value("rollover");
    let is_alias = target.is_none_or(|target| matches!(target, Target::Index(name) if name.constant().is_some()));
    let expected = "an `index` without placeholders, which is the alias";
    check(section, "rollover", !rollover || is_alias, "is true, but `index` is not the name of an alias", expected);
    let field_types = section.one_of("field_types", &[("server", false), ("schema", true)]);
    let decimals = section.one_of("decimals", &[("keyword", DecimalType::Keyword), ("double", DecimalType::Double)]);
    let is_used = field_types || decimals == DecimalType::Keyword;
    let message = "has no effect without `field_types = \"schema\"`";
    check(section, "decimals", is_used, message, "`field_types = \"schema\"` too");
    TemplateOptions {
        shards,
        replicas,
        refresh_interval: section.optional("refresh_interval"),
        lifecycle_policy: section.optional("lifecycle_policy"),
        rollover,
        field_types,
        decimals,
    }
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

    use trunkline_connector::Template;
    use trunkline_connector::config::{OptionSpec, Report};
    use trunkline_connector::conformance::read_toml;

    use super::*;
    use crate::config::{IdRule, Mode, VersionRule};

    const DECLARED: &[OptionSpec] = &[
        OptionSpec::with_default("rollover", "", "false", ""),
        OptionSpec::with_default("field_types", "", "\"server\"", ""),
        OptionSpec::with_default("decimals", "", "\"keyword\"", ""),
    ];

    fn template(options: &str) -> (Option<IndexTemplate>, Vec<String>) {
        let (table, report) = (read_toml(options), Report::default());
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("a.json"), r#"{"index_patterns":["a*"],"version":3}"#).unwrap();
        let section = Section::new(&table, 0..0, "template", Path::new(base.path()), &report);
        section.declare(DECLARED);
        let target = Target::Index(Template::parse("logs-{day}", &[]).unwrap());
        let template = read(section, Some(&target));
        (template, report.into_problems().into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn templates_are_read_from_a_file_or_the_option() {
        let (from_file, problems) = template("file = \"a.json\"\nname = \"x\"");
        assert_eq!((from_file.unwrap().given.unwrap()["version"].as_i64(), problems), (Some(3), Vec::new()));
        let (inline, problems) = template(r#"inline = '{"index_patterns":["a*"]}'"#);
        assert_eq!((inline.unwrap().given.unwrap()["version"].as_i64(), problems), (None, Vec::new()));
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
            ("shards = 0", "`template.shards` is out of range"),
            ("rollover = true", "`template.rollover` is true, but `index` is not the name of an alias"),
            ("decimals = \"double\"", "`template.decimals` has no effect without `field_types = \"schema\"`"),
            ("inline = '{}'\nfile = \"a.json\"", "`template.inline` is given together with `file`"),
        ] {
            assert_eq!(template(options).1, [expected], "{options}");
        }
        assert!(template("file = \"none.json\"").1[0].starts_with("`template.file` cannot be read"));
    }

    fn documents(target: Target) -> DocumentOptions {
        DocumentOptions {
            target,
            mode: Mode::Index,
            id: IdRule::Offset,
            version: VersionRule::Offset,
            epoch: 0,
            unwrap: true,
            timestamp: None,
            routing: None,
            require_alias: false,
            supersedes: false,
        }
    }

    #[test]
    fn options_generate_a_template_or_change_the_given_one() {
        let name = |source: &str| Template::parse(source, &[]).unwrap();
        let (generated, problems) =
            template("shards = 3\nreplicas = 0\nrefresh_interval = \"5s\"\nlifecycle_policy = \"p\"");
        assert_eq!(problems, [""; 0]);
        let mut body = generated
            .unwrap()
            .body(Some(Product::Elasticsearch), &documents(Target::Index(name("logs-{day}"))))
            .unwrap();
        let settings = json!({
            "index.number_of_shards": 3, "index.number_of_replicas": 0, "index.refresh_interval": "5000ms",
            "index.lifecycle.name": "p",
        });
        assert_eq!(body["_meta"]["trunkline"].take(), json!({"settings": &settings}).to_string());
        let expected = json!({
            "index_patterns": ["logs-*"], "priority": 100, "template": {"settings": settings}, "_meta": {"trunkline": null},
        });
        assert_eq!(body, expected);

        let (inline, _) =
            template("inline = '{\"index_patterns\":[\"a\"],\"template\":{\"mappings\":{}}}'\nshards = 2");
        let body = inline.unwrap().body(None, &documents(Target::Index(name("a")))).unwrap();
        let template_of_body = json!({"mappings": {}, "settings": {"index.number_of_shards": 2}});
        assert_eq!(body, json!({"index_patterns": ["a"], "template": template_of_body}));
    }

    #[test]
    fn rollover_and_data_streams_have_their_settings() {
        let name = |source: &str| Template::parse(source, &[]).unwrap();
        let options =
            TemplateOptions { rollover: true, lifecycle_policy: Some("p".to_owned()), ..TemplateOptions::default() };
        let rolling = IndexTemplate { name: None, given: None, options };
        let alias = documents(Target::Index(name("logs")));
        for (product, expected) in [
            (Product::Elasticsearch, json!({"index.lifecycle.name": "p", "index.lifecycle.rollover_alias": "logs"})),
            (Product::OpenSearch, json!({"index.plugins.index_state_management.rollover_alias": "logs"})),
        ] {
            let body = rolling.body(Some(product), &alias).unwrap();
            assert_eq!((&body["index_patterns"], &body["template"]["settings"]), (&json!(["logs-*"]), &expected));
        }
        let plain = IndexTemplate { name: None, given: None, options: TemplateOptions::default() };
        let body = plain.body(None, &documents(Target::DataStream(name("logs-web-default")))).unwrap();
        assert_eq!(body["data_stream"], json!({}));
        assert_eq!(plain.body(None, &documents(Target::Index(name("logs")))), None);
        assert_eq!(body["template"]["mappings"]["properties"], json!({"@timestamp": {"type": "date"}}));
    }
}
