//! `trunkline validate --check`: the prerequisites that the cluster does not meet, each with the
//! request that fixes it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trunkline_connector::{Error, PreflightIssue, Result};

use crate::client::{Client, Response, path_segment};
use crate::config::{ClientOptions, Config, Target};
use crate::index_template::{self, Found};
use crate::server::{self, Product};

/// Checks every prerequisite. `name` is the sink's.
pub(crate) async fn check(config: &Config, name: &str) -> Vec<PreflightIssue> {
    let mut issues = Vec::new();
    let mut product = None;
    let mut answers = false;
    // Each node, because a sink with one node that answers hides the others.
    for node in &config.client.nodes {
        let options = ClientOptions { nodes: vec![node.clone()], ..config.client.clone() };
        let checked = async { server::check_server(&Client::new(&options).await?).await };
        match checked.await {
            Ok(found) => {
                product = product.or(found);
                answers = true;
            }
            Err(error) => issues.push(issue_of(&error)),
        }
    }
    if !answers {
        return issues;
    }
    match Client::new(&config.client).await {
        Ok(client) => {
            let mut preflight = Preflight { client, config, product, issues };
            if let Err(error) = preflight.check_all(name).await {
                preflight.issues.push(issue_of(&error));
            }
            preflight.issues
        }
        Err(error) => {
            issues.push(issue_of(&error));
            issues
        }
    }
}

fn issue_of(error: &Error) -> PreflightIssue {
    let fix = match error.code {
        "elasticsearch.unauthorized" => {
            Some("give the right credentials: `username` and `password`, `api_key`, `bearer_token` or `auth = \"aws\"`")
        }
        "elasticsearch.unreachable" => Some("start the node, or correct `url` or `proxy`"),
        "elasticsearch.old_version" => Some("upgrade the cluster"),
        _ => None,
    };
    PreflightIssue { code: error.code, message: error.message().to_owned(), fix: fix.map(str::to_owned) }
}

/// A running check.
struct Preflight<'a> {
    client: Client,
    config: &'a Config,
    product: Option<Product>,
    issues: Vec<PreflightIssue>,
}

/// What a request about a name shows.
enum Existence {
    Exists,
    Missing,
    /// The user may not ask, or the server has no such request.
    Unknown,
}

impl Preflight<'_> {
    async fn check_all(&mut self, name: &str) -> Result<()> {
        if let Err(error) = server::check_pipeline(&self.client).await {
            self.issues.push(issue_of(&error));
        }
        self.check_template(name).await?;
        if let Some(template) = &self.config.template
            && let Err(error) = index_template::check_policy(&self.client, self.product, template).await
        {
            self.issues.push(issue_of(&error));
        }
        let target = &self.config.documents.target;
        let exists = match (target, target.template().constant()) {
            (Target::DataStream(_), Some(stream)) => self.check_data_stream(stream).await?,
            (Target::Index(_), Some(index)) => self.check_index(index).await?,
            // The names depend on the records.
            (_, None) => {
                self.check_auto_creation().await?;
                false
            }
        };
        self.check_privileges(exists).await
    }

    fn lack(&mut self, code: &'static str, message: String, fix: impl Into<String>) {
        self.issues.push(PreflightIssue { code, message, fix: Some(fix.into()) });
    }

    /// The sink creates its index template. It needs the privilege to.
    async fn check_template(&mut self, name: &str) -> Result<()> {
        let Some(template) = &self.config.template else { return Ok(()) };
        if template.body(self.product, &self.config.documents).is_none() {
            return Ok(());
        }
        let name = template.name.as_deref().unwrap_or(name);
        if let Found::Unknown(response) = index_template::find(&self.client, name).await?
            && response.status == StatusCode::FORBIDDEN
        {
            let message = format!("the index template `{name}` cannot be read: {}", response.describe());
            let fix =
                "give the cluster privilege `manage_index_templates` (OpenSearch: `indices:admin/index_template/*`)";
            self.lack("elasticsearch.template_forbidden", message, fix);
        }
        Ok(())
    }

    async fn existence(&self, path: &str) -> Result<Existence> {
        let status = self.client.call(Method::GET, path).await?.status;
        Ok(match status {
            StatusCode::NOT_FOUND => Existence::Missing,
            status if status.is_success() => Existence::Exists,
            _ => Existence::Unknown,
        })
    }

    /// As [`existence`](Preflight::existence). For the name of an index, OpenSearch answers with an
    /// empty list.
    async fn stream_existence(&self, stream: &str) -> Result<Existence> {
        let response = self.client.call(Method::GET, &format!("/_data_stream/{}", path_segment(stream))).await?;
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        Ok(match (response.status, &answer["data_streams"][0]) {
            (StatusCode::NOT_FOUND, _) => Existence::Missing,
            (status, Value::Object(_)) if status.is_success() => Existence::Exists,
            (status, _) if status.is_success() => Existence::Missing,
            _ => Existence::Unknown,
        })
    }

    /// Whether the data stream exists. The sink creates a missing one, which needs an index
    /// template.
    async fn check_data_stream(&mut self, stream: &str) -> Result<bool> {
        match self.stream_existence(stream).await? {
            Existence::Exists => return Ok(true),
            Existence::Unknown => return Ok(false),
            Existence::Missing => {}
        }
        let own = self.config.template.as_ref().is_some_and(|template| {
            let body = template.body(self.product, &self.config.documents);
            body.is_some_and(|body| {
                body.get("data_stream").is_some() && template_patterns(&body).any(|glob| matches(glob, stream))
            })
        });
        let templates = self.get("/_index_template").await?;
        let is_stream = match best_template(&templates, stream) {
            Some(template) => template.get("data_stream").is_some(),
            // The answer is not one: the user may not ask.
            None if templates.get("index_templates").is_none() => true,
            None => false,
        };
        if !own && !is_stream {
            let message = format!("no index template makes `{stream}` a data stream, so it cannot be created");
            let fix = format!(
                "PUT _index_template/{stream} {{\"index_patterns\": [\"{stream}\"], \"data_stream\": {{}}, \"priority\": 200}}"
            );
            self.lack("elasticsearch.no_data_stream_template", message, fix);
        }
        Ok(false)
    }

    /// Whether the index exists. A missing one must be created by the first document.
    async fn check_index(&mut self, index: &str) -> Result<bool> {
        let path = path_segment(index);
        let rolls_over = self.config.template.as_ref().is_some_and(|template| template.options.rollover);
        if self.config.documents.require_alias && !rolls_over {
            if let Existence::Missing = self.existence(&format!("/_alias/{path}")).await? {
                let message = format!("`{index}` is not an alias, and `require_alias` is true");
                let fix = format!("PUT {index}-000001 {{\"aliases\": {{\"{index}\": {{\"is_write_index\": true}}}}}}");
                self.lack("elasticsearch.alias_missing", message, fix);
                return Ok(false);
            }
        } else if let Existence::Exists = self.stream_existence(index).await? {
            let message = format!("`{index}` is a data stream, which takes no changes of documents");
            self.lack(
                "elasticsearch.is_data_stream",
                message,
                format!("set `data_stream = \"{index}\"` in place of `index`"),
            );
            return Ok(false);
        }
        match self.existence(&format!("/{path}/_settings")).await? {
            Existence::Exists => {
                self.check_blocks(index).await?;
                Ok(true)
            }
            // The sink creates its first index.
            Existence::Missing if rolls_over => Ok(false),
            Existence::Missing => {
                self.check_auto_creation().await?;
                Ok(false)
            }
            Existence::Unknown => Ok(false),
        }
    }

    /// Whether the first document may create the index.
    async fn check_auto_creation(&mut self) -> Result<()> {
        let index = &self.config.documents.target;
        let settings = self.get("/_cluster/settings?include_defaults=true&flat_settings=true").await?;
        let rule = ["transient", "persistent", "defaults"]
            .iter()
            .find_map(|level| settings[level]["action.auto_create_index"].as_str())
            .unwrap_or("true");
        let name = index.glob();
        let templates = self.get("/_index_template").await?;
        let by_template = best_template(&templates, &name).and_then(|template| template["allow_auto_create"].as_bool());
        if by_template.unwrap_or_else(|| may_create(rule, &name)) {
            return Ok(());
        }
        let message = format!(
            "the index `{name}` does not exist, and the setting `action.auto_create_index` is `{rule}`, so documents cannot create it"
        );
        let fix = match index.template().constant() {
            Some(index) => format!("PUT {index}"),
            None => format!(
                "PUT _cluster/settings {{\"persistent\": {{\"action.auto_create_index\": \"+{name},{rule}\"}}}}"
            ),
        };
        self.lack("elasticsearch.index_missing", message, fix);
        Ok(())
    }

    async fn check_blocks(&mut self, index: &str) -> Result<()> {
        let settings = self.get(&format!("/{}/_settings?flat_settings=true", path_segment(index))).await?;
        let blocks = ["index.blocks.write", "index.blocks.read_only", "index.blocks.read_only_allow_delete"];
        let of_any = |block: &str| {
            let indices = settings.as_object().into_iter().flat_map(|indices| indices.values());
            indices.into_iter().any(|settings| settings["settings"][block].as_str() == Some("true"))
        };
        for block in blocks.into_iter().filter(|block| of_any(block)) {
            let message = format!("the index `{index}` refuses writes: `{block}` is true");
            self.lack("elasticsearch.index_blocked", message, format!("PUT {index}/_settings {{\"{block}\": null}}"));
        }
        Ok(())
    }

    /// The answer to a request, as JSON; null if it is an error.
    async fn get(&self, path: &str) -> Result<Value> {
        let response = self.client.call(Method::GET, path).await?;
        let is_answer = response.status.is_success();
        Ok(if is_answer { serde_json::from_slice(&response.body).unwrap_or_default() } else { Value::Null })
    }

    /// Whether the user may write. `exists`: the index or data stream does.
    async fn check_privileges(&mut self, exists: bool) -> Result<()> {
        let target = &self.config.documents.target;
        if self.product == Some(Product::Elasticsearch) {
            // A privilege for a pattern covers all names that it matches.
            let name = target.glob();
            let body = json!({"index": [{"names": [name], "privileges": ["create_index", "write"]}]});
            let response = self.client.call_json(Method::POST, "/_security/user/_has_privileges", &body).await?;
            if response.status.is_success() {
                self.report_privileges(&name, &response);
                return Ok(());
            }
        }
        match target.template().constant().filter(|_| exists) {
            Some(name) => self.probe(name).await,
            None => Ok(()),
        }
    }

    fn report_privileges(&mut self, name: &str, response: &Response) {
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let granted = answer["index"][name].as_object();
        let missing: Vec<&String> =
            granted.into_iter().flatten().filter(|(_, granted)| **granted == false).map(|(name, _)| name).collect();
        if missing.is_empty() {
            return;
        }
        let missing: Vec<String> = missing.iter().map(|privilege| format!("`{privilege}`")).collect();
        let message = format!("the user or API key lacks index privileges on `{name}`: {}", missing.join(", "));
        let fix = format!(
            "give it a role: PUT _security/role/trunkline {{\"indices\": [{{\"names\": [\"{name}\"], \"privileges\": \
             [\"create_index\", \"write\"]}}]}}"
        );
        self.lack("elasticsearch.forbidden", message, fix);
    }

    /// Sends a write that the server cannot carry out: in an index the condition is never true, and
    /// in a data stream `@timestamp` is missing. A user without the privilege gets 403 before.
    async fn probe(&mut self, name: &str) -> Result<()> {
        let action = match &self.config.documents.target {
            Target::Index(_) => json!({"index": {
                "_index": name, "_id": "trunkline-check", "pipeline": "_none", "if_seq_no": i64::MAX - 1, "if_primary_term": 1,
            }}),
            Target::DataStream(_) => json!({"create": {"_index": name, "_id": "trunkline-check", "pipeline": "_none"}}),
        };
        let body = format!("{action}\n{{}}\n");
        let response = self.client.probe(body.into()).await?;
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let item = answer["items"][0].as_object().and_then(|item| item.values().next());
        let (status, error) = match item {
            Some(item) => (item["status"].as_u64(), &item["error"]),
            None => (Some(response.status.as_u16().into()), &answer["error"]),
        };
        // A blocked index answers 403, too.
        if !matches!(status, Some(401 | 403)) || error["type"] == "cluster_block_exception" {
            return Ok(());
        }
        let reason = error["reason"].as_str().map_or_else(|| response.describe(), str::to_owned);
        let message = format!("the user may not write to `{name}`: {reason}");
        let fix = format!(
            "give it a role: PUT _plugins/_security/api/roles/trunkline {{\"cluster_permissions\": [\"cluster_composite_ops\"], \
             \"index_permissions\": [{{\"index_patterns\": [\"{name}\"], \"allowed_actions\": [\"crud\", \"create_index\"]}}]}} \
             (Elasticsearch: the index privileges `create_index` and `write`)"
        );
        self.lack("elasticsearch.forbidden", message, fix);
        Ok(())
    }
}

fn template_patterns(template: &Value) -> impl Iterator<Item = &str> {
    template["index_patterns"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The index template that the server uses for a new index of this name. A name may be a pattern
/// itself, of which `*` stands for text of records.
fn best_template<'a>(templates: &'a Value, name: &str) -> Option<&'a Value> {
    let templates = templates["index_templates"].as_array()?.iter().map(|template| &template["index_template"]);
    let matching = templates.filter(|template| template_patterns(template).any(|glob| matches(glob, name)));
    matching.max_by_key(|template| template["priority"].as_i64().unwrap_or(0))
}

/// Whether a new index may be created, by the setting `action.auto_create_index`: `true`, `false`,
/// or patterns, of which the first one that matches decides.
fn may_create(rule: &str, name: &str) -> bool {
    match rule {
        "true" | "" => true,
        "false" => false,
        patterns => {
            patterns.split(',').map(str::trim).find_map(|pattern| {
                let (allows, glob) = match pattern.strip_prefix('-') {
                    Some(glob) => (false, glob),
                    None => (true, pattern.strip_prefix('+').unwrap_or(pattern)),
                };
                matches(glob, name).then_some(allows)
            }) == Some(true)
        }
    }
}

/// Whether a glob with `*` matches a name.
fn matches(glob: &str, name: &str) -> bool {
    let Some((start, rest)) = glob.split_once('*') else { return glob == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_matches_decides_about_automatic_creation() {
        for (rule, name, expected) in [
            ("true", "a", true),
            ("false", "a", false),
            ("logs-*", "logs-web", true),
            ("logs-*", "other", false),
            ("-logs-secret*,+logs-*", "logs-secret-1", false),
            ("-logs-secret*,+logs-*", "logs-web", true),
            ("+logs-*,-*", "a", false),
            ("*", "a", true),
        ] {
            assert_eq!(may_create(rule, name), expected, "{rule} {name}");
        }
    }

    #[test]
    fn globs_match_names() {
        for (glob, name) in
            [("a", "a"), ("*", ""), ("a*", "a"), ("a*c", "abc"), ("a*b*c", "axbyc"), ("*-*", "a-b"), ("a-*", "a-*")]
        {
            assert!(matches(glob, name), "{glob} {name}");
        }
        for (glob, name) in [("a", "b"), ("a*", "b"), ("a*c", "ab"), ("a*b*c", "acb"), ("ab*b", "ab")] {
            assert!(!matches(glob, name), "{glob} {name}");
        }
    }

    #[test]
    fn the_template_with_the_highest_priority_is_used() {
        let template = |pattern: &str, priority: i64| json!({"index_template": {"index_patterns": [pattern], "priority": priority}});
        let templates =
            json!({"index_templates": [template("*", 0), template("logs-*", 200), template("metrics-*", 300)]});
        assert_eq!(best_template(&templates, "logs-web").map(|found| found["priority"] == 200), Some(true));
        assert_eq!(best_template(&json!({}), "logs-web"), None);
    }
}
