//! [`SharedTopics`]: two data sets of a source (tables) never share a topic by accident.
//!
//! A name that is joined from several values is ambiguous: the table `c` of the database `a.b` and
//! the table `b.c` of the database `a` both give `a.b.c`. Records of one would replace those of the
//! other that have the same key. A template that does not distinguish two data sets, such as a
//! constant, is a choice of the user.

use std::collections::HashMap;

use trunkline_connector::batch::write_header;
use trunkline_connector::config::{Problem, Report};
use trunkline_connector::{Batch, Error, Escape, Result, Template};

use super::parsed::{ParsedPipeline, ParsedSource};

/// The headers of a data set.
pub(crate) type Headers = [(&'static str, String)];

/// The topics of a source's data sets.
#[derive(Debug, Default)]
pub(crate) struct SharedTopics {
    /// By topic, the values of the variables that its template uses.
    values: HashMap<String, Vec<(String, String)>>,
}

impl SharedTopics {
    /// Adds a data set. Returns its topic, unless it depends on records. Fails if another one has
    /// its topic, although the template distinguishes them.
    pub(crate) fn add(&mut self, template: &Template, headers: &Headers) -> Result<Option<String>> {
        let Some(topic) = topic_of_headers(template, headers) else { return Ok(None) };
        let used = |name: &str| headers.iter().find(|(header, _)| *header == name);
        let values: Vec<(String, String)> = template
            .headers()
            .filter_map(used)
            .map(|(name, value)| (name.trim_start_matches("trunkline.").to_owned(), value.clone()))
            .collect();
        match self.values.get(&topic) {
            Some(others) if *others != values => return Err(shared(template, &topic, others, &values)),
            Some(_) => {}
            None => drop(self.values.insert(topic.clone(), values)),
        }
        Ok(Some(topic))
    }
}

/// The topics of the data sets that the configuration of a source names, if they do not depend on
/// records.
pub(super) fn named_topics(source: &ParsedSource<'_>) -> Result<Vec<String>> {
    let (Some(spec), Some(template)) = (&source.spec, &source.topic) else { return Ok(Vec::new()) };
    let mut topics = SharedTopics::default();
    let data_sets = spec.named_data_sets();
    data_sets.iter().filter_map(|headers| topics.add(template, headers).transpose()).collect()
}

/// Reports the sources of which two named data sets have the same topic.
pub(super) fn check(parsed: &ParsedPipeline<'_>, report: &Report) {
    for source in &parsed.sources {
        let Err(error) = named_topics(source) else { continue };
        let section = &source.section;
        report.add(Problem {
            code: "plan.topic_taken",
            message: error.message().to_owned(),
            span: section.table.get("topic").map_or(section.span.clone(), |node| node.span.clone()),
            expected: "expected a topic for each of them".to_owned(),
            help: None,
        });
    }
}

fn shared(template: &Template, topic: &str, first: &[(String, String)], second: &[(String, String)]) -> Error {
    let described = |values: &[(String, String)]| {
        values.iter().map(|(name, value)| format!("{name} `{value}`")).collect::<Vec<_>>().join(", ")
    };
    let message = format!(
        "the records of {} and those of {} have the same topic `{topic}`, where they would replace each other; set `topic` to a \
         template that distinguishes them (now `{}`; try another separator, such as `--`), or exclude one of them from the source",
        described(first),
        described(second),
        template.source()
    );
    Error::config("source.shared_topic", message)
}

/// The topic of all records with these headers; `None` if it depends on more than headers.
pub(crate) fn topic_of_headers(template: &Template, headers: &Headers) -> Option<String> {
    let mut block = Vec::new();
    for (name, value) in headers {
        write_header(&mut block, name, Some(value.as_bytes()));
    }
    let mut batch = Batch::default();
    let mut record = batch.record();
    record.header_block(&block);
    record.finish();
    let mut rendered = String::new();
    let is_rendered = template.render(batch.get(0), Escape::Topic, &mut rendered).is_ok();
    (is_rendered && template.fields().next().is_none()).then_some(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(database: &str, table: &str) -> Vec<(&'static str, String)> {
        vec![("trunkline.database", database.to_owned()), ("trunkline.table", table.to_owned())]
    }

    #[test]
    fn data_sets_with_the_same_topic_are_refused() {
        let add = |template: &str, second: &Headers| {
            let template = Template::parse(template, &["database", "table"]).unwrap();
            let mut topics = SharedTopics::default();
            let topic = topics.add(&template, &table("dd.b", "c")).unwrap();
            assert_eq!(topics.add(&template, &table("dd.b", "c")).unwrap(), topic);
            topics.add(&template, second)
        };
        let error = add("p.{@database}.{@table}", &table("dd", "b.c")).unwrap_err();
        assert_eq!(error.code, "source.shared_topic");
        for part in
            ["database `dd.b`, table `c`", "database `dd`, table `b.c`", "`p.dd.b.c`", "`p.{@database}.{@table}`"]
        {
            assert!(error.message().contains(part), "{error}");
        }
        add("p.{@database}-{@table}", &table("dd", "b.c")).unwrap();
        // The user's choice: one topic for all tables, or for those of a database.
        add("p", &table("dd", "b.c")).unwrap();
        add("p.{@database}", &table("dd.b", "d")).unwrap();
        // Not known without the records.
        add("p.{kind}.{@database}.{@table}", &table("dd", "b.c")).unwrap();
        // Characters that Kafka does not accept are escaped, so these differ.
        add("p.{@database}.{@table}", &table("dd.b", "$c")).unwrap();
    }
}
