//! `trunkline validate --check`: the connection to Kafka, the topics, and the rights on topics and
//! groups. Brokers do not say what a principal may do with transactional ids.

use crate::config::{FileProblems, Settings, problem_at};
use crate::kafka::embedded::EMBEDDED;
use crate::kafka::{Admin, Cluster, Permission, grant};
use crate::plan::Pipeline;
use crate::worker::{Operation, Resource, ResourceKind, rights_of};

/// The problems that these pipelines would have with the brokers.
pub(super) fn kafka_issues(pipelines: &[Pipeline], settings: &Settings) -> Vec<FileProblems> {
    let Some(brokers) = settings.brokers.as_deref().filter(|brokers| *brokers != EMBEDDED) else { return Vec::new() };
    let issue = |code, message: String, fix| vec![problem_at(None, code, format!("Kafka: {message}"), fix)];
    let admin = Cluster::new(brokers, &settings.kafka).and_then(|cluster| Admin::new(&cluster));
    let connected = admin.and_then(|admin| admin.connect().map(|()| admin));
    let admin = match connected {
        Ok(admin) => admin,
        Err(error) => return issue(error.code, error.message().to_owned(), None),
    };
    let rights = rights_of(pipelines, settings);
    let mut issues = Vec::new();
    for (kind, name_of_kind) in [(ResourceKind::Topic, "topic"), (ResourceKind::Group, "group")] {
        let wanted: Vec<(String, Vec<Operation>)> = rights
            .iter()
            .filter(|(resource, _)| resource.kind == kind)
            .filter_map(|(resource, operations)| {
                Some((existing_name(resource, settings)?, operations.iter().copied().collect()))
            })
            .collect();
        let names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        let permissions = match kind {
            ResourceKind::Topic => admin.permissions_on_topics(&names),
            _ => admin.permissions_on_groups(&names),
        };
        let permissions = match permissions {
            Ok(permissions) => permissions,
            Err(error) => return issue(error.code, error.message().to_owned(), None),
        };
        for ((name, operations), permission) in wanted.iter().zip(permissions) {
            let missing: Vec<String> = match permission {
                // A missing topic is created, or is the only problem that can be seen.
                Permission::Missing if settings.topics.create => continue,
                Permission::Missing => {
                    let message = format!("the topic `{name}` does not exist, and `topics.create` is false");
                    issues.extend(issue("kafka.missing_topics", message, Some("create it".to_owned())));
                    continue;
                }
                Permission::Unknown => continue,
                Permission::Denied => operations.iter().map(|operation| format!("{operation:?}")).collect(),
                Permission::Operations(permitted) => operations
                    .iter()
                    // An existing topic need not be created.
                    .filter(|operation| **operation != Operation::Create)
                    .map(|operation| format!("{operation:?}"))
                    .filter(|operation| !permitted.contains(&operation.as_str()))
                    .collect(),
            };
            if !missing.is_empty() {
                let message = format!("the {name_of_kind} `{name}`: missing rights: {}", missing.join(", "));
                let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
                issues.extend(issue("kafka.access_denied", message, Some(grant(&missing, name_of_kind, Some(name)))));
            }
        }
    }
    issues
}

/// The name of a resource that this machine uses; `None` if only the start of the name is known.
fn existing_name(resource: &Resource, settings: &Settings) -> Option<String> {
    match resource.kind {
        _ if !resource.is_prefix => Some(resource.name.clone()),
        // The leases of sources that run on every node.
        ResourceKind::Group => Some(format!("{}{}", resource.name, settings.node)),
        _ => None,
    }
}
