//! `trunkline acls`: the rights in Kafka that pipelines need, in the form of the tool that grants
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::output::{Exit, print_data, print_error, report_problems};
use super::settings_args::SettingsArgs;
use super::validate::load_for_reading;
use crate::config::Settings;
use crate::worker::{Operation, Resource, ResourceKind, Rights, Use, rights_for};

/// `trunkline acls`.
#[derive(Args)]
pub(super) struct AclsArgs {
    /// Pipeline files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// What the principal does, or several of these, separated by commas
    #[arg(long = "for", value_enum, value_name = "USE", value_delimiter = ',', default_values_t = [Use::Worker])]
    uses: Vec<Use>,
    /// The form of the output
    #[arg(long, value_enum, default_value_t = Format::Commands)]
    format: Format,
    /// The principal of the worker in Kafka [default: User: and the setting sasl.username]
    #[arg(long, value_name = "TYPE:NAME")]
    principal: Option<String>,
    /// The cluster, for --format iam-policy: arn:aws:kafka:REGION:ACCOUNT:cluster/NAME/ID
    #[arg(long, value_name = "ARN", required_if_eq("format", "iam-policy"))]
    cluster_arn: Option<String>,
    /// Worker settings.
    #[command(flatten)]
    pub(super) settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Commands of Kafka's tool kafka-acls.sh
    Commands,
    /// [{resource_type, name, pattern_type, operations}]
    Json,
    /// A policy of AWS IAM, for Amazon MSK
    IamPolicy,
}

/// Runs the verb.
pub(super) fn acls(args: &AclsArgs, settings: &Settings) -> Exit {
    let loaded = match load_for_reading(&args.paths, settings) {
        Ok(loaded) if loaded.problems.is_empty() => loaded,
        Ok(loaded) => return report_problems(&loaded.problems, false),
        Err(exit) => return exit,
    };
    let rights = rights_for(&args.uses, &loaded.pipelines, settings);
    for resource in rights.keys().filter(|resource| resource.is_prefix && resource.name.is_empty()) {
        print_error(format_args!(
            "warning: these pipelines need rights on every {}, because a topic template starts with a placeholder: start \
             it with a fixed text, such as the pipeline's name",
            kind_name(resource.kind)
        ));
    }
    let text = match args.format {
        Format::Commands => {
            let named = settings.kafka.get("sasl.username").map(|name| format!("User:{name}"));
            let principal = args.principal.clone().or(named).unwrap_or_else(|| "User:trunkline".to_owned());
            commands(&rights, settings.brokers.as_deref().unwrap_or("BROKER:9092"), &principal)
        }
        Format::Json => json_list(&rights),
        Format::IamPolicy => {
            let arn = args.cluster_arn.as_deref().unwrap_or_default();
            let Some(policy) = iam_policy(&rights, arn) else {
                print_error(format_args!(
                    "error: --cluster-arn {arn} is not the ARN of an MSK cluster: expected \
                     arn:aws:kafka:REGION:ACCOUNT:cluster/NAME/ID, as `aws kafka list-clusters-v2` prints it"
                ));
                return Exit::Config;
            };
            policy
        }
    };
    print_data(&text)
}

fn kind_name(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Topic => "topic",
        ResourceKind::Group => "group",
        ResourceKind::TransactionalId => "transactional-id",
    }
}

/// A prefix of any name is written as the wildcard, because Kafka has no empty prefix.
fn name_and_pattern(resource: &Resource) -> (&str, &'static str) {
    match (resource.is_prefix, resource.name.as_str()) {
        (true, "") => ("*", "literal"),
        (true, name) => (name, "prefixed"),
        (false, name) => (name, "literal"),
    }
}

fn commands(rights: &Rights, brokers: &str, principal: &str) -> String {
    let mut text = String::new();
    for (resource, operations) in rights {
        let (name, pattern) = name_and_pattern(resource);
        text.push_str(&format!(
            "kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal {}",
            shell_word(principal)
        ));
        operations.iter().for_each(|operation| text.push_str(&format!(" --operation {operation:?}")));
        text.push_str(&format!(" --{} {}", kind_name(resource.kind), shell_word(name)));
        if pattern == "prefixed" {
            text.push_str(" --resource-pattern-type prefixed");
        }
        text.push('\n');
    }
    text
}

/// A word of a shell command, quoted if necessary.
fn shell_word(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-:/".contains(character);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn json_list(rights: &Rights) -> String {
    let list: Vec<_> = rights
        .iter()
        .map(|(resource, operations)| {
            let (name, pattern) = name_and_pattern(resource);
            let operations: Vec<String> = operations.iter().map(|operation| format!("{operation:?}")).collect();
            json!({
                "resource_type": kind_name(resource.kind),
                "name": name,
                "pattern_type": pattern,
                "operations": operations,
            })
        })
        .collect();
    format!("{:#}\n", json!(list))
}

/// A policy with one statement for each set of actions; `None` if the ARN is not that of a cluster.
fn iam_policy(rights: &Rights, cluster: &str) -> Option<String> {
    let (service, path) = cluster.split_once(":cluster/")?;
    if !service.starts_with("arn:") || path.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return None;
    }
    let mut statements: BTreeMap<BTreeSet<&str>, Vec<String>> = BTreeMap::new();
    for (resource, operations) in rights {
        let end = if resource.is_prefix { "*" } else { "" };
        let arn = format!("{service}:{}/{path}/{}{end}", kind_name(resource.kind), resource.name);
        let actions = operations.iter().flat_map(|operation| actions(resource.kind, *operation));
        statements.entry(actions.copied().collect()).or_default().push(arn);
    }
    let statement = |actions: &BTreeSet<&str>, resources: &[String]| {
        let actions: Vec<String> = actions.iter().map(|action| format!("kafka-cluster:{action}")).collect();
        json!({ "Effect": "Allow", "Action": actions, "Resource": resources })
    };
    // Producers with transactional ids are idempotent.
    let on_cluster = BTreeSet::from(["Connect", "WriteDataIdempotently"]);
    let mut list = vec![statement(&on_cluster, &[cluster.to_owned()])];
    list.extend(statements.iter().map(|(actions, resources)| statement(actions, resources)));
    Some(format!("{:#}\n", json!({ "Version": "2012-10-17", "Statement": list })))
}

fn actions(kind: ResourceKind, operation: Operation) -> &'static [&'static str] {
    match (kind, operation) {
        (ResourceKind::Topic, Operation::Create) => &["CreateTopic", "DescribeTopic"],
        (ResourceKind::Topic, Operation::Read) => &["DescribeTopic", "ReadData"],
        (ResourceKind::Topic, Operation::Write) => &["DescribeTopic", "WriteData"],
        (ResourceKind::Group, _) => &["AlterGroup", "DescribeGroup"],
        (ResourceKind::TransactionalId, _) => &["AlterTransactionalId", "DescribeTransactionalId"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights() -> Rights {
        let resource = |kind, name: &str, is_prefix| Resource { kind, name: name.to_owned(), is_prefix };
        Rights::from([
            (resource(ResourceKind::Topic, "web", false), BTreeSet::from([Operation::Create, Operation::Write])),
            (resource(ResourceKind::Topic, "", true), BTreeSet::from([Operation::Read])),
            (resource(ResourceKind::Group, "c.web.lake", false), BTreeSet::from([Operation::Read])),
            (resource(ResourceKind::TransactionalId, "c.web.", true), BTreeSet::from([Operation::Write])),
        ])
    }

    #[test]
    fn commands_name_the_pattern_and_quote_names() {
        let start = "kafka-acls.sh --bootstrap-server b:1 --add --allow-principal 'User:CN=a b'";
        let expected = [
            "--operation Read --topic '*'",
            "--operation Create --operation Write --topic web",
            "--operation Read --group c.web.lake",
            "--operation Write --transactional-id c.web. --resource-pattern-type prefixed",
        ];
        let expected: String = expected.iter().map(|end| format!("{start} {end}\n")).collect();
        assert_eq!(commands(&rights(), "b:1", "User:CN=a b"), expected);
    }

    #[test]
    fn policies_name_the_resources_of_the_cluster() {
        let policy = iam_policy(&rights(), "arn:aws:kafka:eu-central-1:123:cluster/shop/a-b").unwrap();
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap();
        let find = |action: &str| {
            let statements = policy["Statement"].as_array().unwrap();
            let has = |statement: &&serde_json::Value| statement["Action"].as_array().unwrap().contains(&json!(action));
            statements.iter().find(has).unwrap()["Resource"].clone()
        };
        assert_eq!(find("kafka-cluster:Connect"), json!(["arn:aws:kafka:eu-central-1:123:cluster/shop/a-b"]));
        assert_eq!(find("kafka-cluster:WriteData"), json!(["arn:aws:kafka:eu-central-1:123:topic/shop/a-b/web"]));
        assert_eq!(find("kafka-cluster:ReadData"), json!(["arn:aws:kafka:eu-central-1:123:topic/shop/a-b/*"]));
        let ids = json!(["arn:aws:kafka:eu-central-1:123:transactional-id/shop/a-b/c.web.*"]);
        assert_eq!(find("kafka-cluster:AlterTransactionalId"), ids);
        for wrong in ["", "shop", "arn:aws:kafka:eu-central-1:123:cluster/shop"] {
            assert!(iam_policy(&rights(), wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn json_lists_resources_and_operations() {
        let list: serde_json::Value = serde_json::from_str(&json_list(&rights())).unwrap();
        let first = json!({ "resource_type": "topic", "name": "*", "pattern_type": "literal", "operations": ["Read"] });
        assert_eq!((list.as_array().unwrap().len(), &list[0]), (4, &first));
    }
}
