//! The text of a new pipeline file: required options with their example or a placeholder, the
//! others as comments with their default.

use textwrap::WordSplitter;
use trunkline_connector::config::{OptionDefault, OptionSpec};
use trunkline_connector::{SinkConnector, SourceConnector};

use crate::plan::json_schema::without_links;
use crate::plan::options;

/// Width of comments.
const WIDTH: usize = 98;

/// Options of all components that the file sets by itself.
const GIVEN: [&str; 2] = ["connector", "inputs"];

/// A pipeline file for a source and a sink. `schema` is the name of the schema's file.
pub(super) fn pipeline_file(
    name: &str,
    source: &dyn SourceConnector,
    sink: &dyn SinkConnector,
    schema: &str,
) -> String {
    let (from, to) = (source.name(), sink.name());
    let mut text = format!("#:schema {schema}\n# {}\n# {}\n", source.summary(), sink.summary());
    text.push_str(&format!(
        "#\n#   trunkline connectors describe {from}\n#   trunkline connectors describe {to}\n\
         #   trunkline validate {name}.toml --check\n#   trunkline run {name}.toml\n#\n"
    ));
    push_comment(
        &mut text,
        "Options in comments show their default or an example. Keep secrets out of this file: `${env:NAME}` reads a \
         variable, `${file:PATH}` a file, `${secret:NAME}` a file in the folder of the setting `secrets`.",
    );
    text.push_str(&format!("\nname = \"{name}\"\n"));
    for option in options::PIPELINE.iter().filter(|option| ["description", "dead_letter_topic"].contains(&option.key)) {
        push_optional(&mut text, option);
    }
    let (of_source, of_sink) = presets(name, from, to);
    text.push_str(&format!("\n[sources.{from}]\nconnector = \"{from}\"\n"));
    push_options(&mut text, &[source.options(), options::SOURCE], &of_source);
    text.push_str(&format!("\n[sinks.{to}]\nconnector = \"{to}\"\ninputs = [\"{from}\"]\n"));
    push_options(&mut text, &[sink.options(), options::SINK], &of_sink);
    text
}

/// The environment variables that a text refers to.
pub(super) fn variables(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for part in line.split("${env:").skip(1) {
            let name = part.split('}').next().unwrap_or(part);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Options with values of a new file.
type Presets = Vec<(&'static str, String)>;

/// The options of the source and of the sink that the file sets besides the required ones, or to
/// another value than their example. A connector without presets has its required options.
fn presets(name: &str, from: &str, to: &str) -> (Presets, Presets) {
    let has_tables = from == "mysql";
    let lower = name.trim_start_matches(['-', '_']).to_lowercase();
    let lower = if lower.is_empty() { "records".to_owned() } else { lower };
    let mut of_source: Presets = match from {
        "mysql" => vec![("url", r#""mysql://cdc:${env:MYSQL_PASSWORD}@db.example.com:3306""#.to_owned())],
        _ => Vec::new(),
    };
    if has_tables && to == "s3" {
        // A record without a value cannot be a Parquet row.
        of_source.push(("tombstones", "false".to_owned()));
    }
    let mut of_sink: Presets = match to {
        "s3" => vec![("url", format!("\"s3://lake/{name}\""))],
        "elasticsearch" => vec![
            ("url", r#"["https://search.example.com:9200"]"#.to_owned()),
            ("index", if has_tables { format!("\"{lower}-{{@table}}\"") } else { format!("\"{lower}\"") }),
            ("username", "\"trunkline\"".to_owned()),
            ("password", "\"${env:ELASTICSEARCH_PASSWORD}\"".to_owned()),
        ],
        "redshift" => vec![("stage.url", "\"s3://lake/stage\"".to_owned())],
        "snowflake" => vec![
            ("password", "\"${env:SNOWFLAKE_PASSWORD}\"".to_owned()),
            ("warehouse", "\"LOADING\"".to_owned()),
            ("stage.url", "\"s3://lake/stage\"".to_owned()),
            ("stage.storage_integration", "\"LAKE\"".to_owned()),
        ],
        _ => Vec::new(),
    };
    match to {
        "s3" if has_tables => of_sink.push(("path", "\"table={@table}\"".to_owned())),
        "redshift" | "snowflake" if has_tables => {
            of_sink.push(("table", "\"{@table}\"".to_owned()));
            of_sink.push(("mode", "\"upsert\"".to_owned()));
        }
        "redshift" | "snowflake" => of_sink.push(("table", format!("\"{}\"", lower.replace('-', "_")))),
        _ => {}
    }
    (of_source, of_sink)
}

fn push_options(text: &mut String, lists: &[&[OptionSpec]], presets: &Presets) {
    let preset =
        |option: &OptionSpec| presets.iter().find(|(key, _)| *key == option.key).map(|(_, value)| value.as_str());
    // `stage = ".."` and `stage.url = ".."` exclude each other.
    let is_table = |key: &str| presets.iter().any(|(set, _)| set.starts_with(&format!("{key}.")));
    let all = || lists.iter().copied().flatten().filter(|option| !GIVEN.contains(&option.key));
    let is_set = |option: &&OptionSpec| {
        preset(option).is_some() || option.default == OptionDefault::Required && !is_table(option.key)
    };
    for option in all().filter(is_set) {
        text.push('\n');
        push_comment(text, option.doc);
        text.push_str(&format!("{} = {}\n", option.key, preset(option).unwrap_or(option.example)));
    }
    for option in all().filter(|option| !is_set(option) && !is_table(option.key)) {
        push_optional(text, option);
    }
}

/// An option as a comment.
fn push_optional(text: &mut String, option: &OptionSpec) {
    text.push('\n');
    // The first sentence of a list of choices would explain only one of them.
    push_comment(text, if option.value_type.contains('`') { option.doc } else { first_sentence(option.doc) });
    let (value, note) = match option.default {
        OptionDefault::Value(value) => (value, String::new()),
        OptionDefault::Required => (option.example, String::new()),
        OptionDefault::Words(words) => (option.example, format!("    # default: {words}")),
    };
    text.push_str(&format!("# {} = {value}{note}\n", option.key));
}

fn first_sentence(doc: &str) -> &str {
    doc.find(". ").map_or(doc, |end| &doc[..=end])
}

fn push_comment(text: &mut String, comment: &str) {
    let options = textwrap::Options::new(WIDTH).word_splitter(WordSplitter::NoHyphenation);
    for line in textwrap::wrap(&without_links(comment), options) {
        text.push_str(&format!("# {line}\n"));
    }
}
