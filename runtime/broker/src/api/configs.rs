//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs (KIP-133, KIP-226, KIP-339).
//!
//! Topic configs can be changed. Broker configs show the broker's options and are read-only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_request::AlterConfigsResource as IncrementalResource;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::broker_configs::{BrokerConfig, broker_configs};
use super::{repeated, text};
use crate::error::ApiError;
use crate::request::Call;
use crate::state::NODE;
use crate::topics::Topic;
use crate::topics::config::{Definition, MAX_MESSAGE_BYTES, TopicConfig, ValueType, definition, described};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

pub(crate) fn describe_configs(call: &Call<'_>, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let describe = |resource: DescribeConfigsResource| {
        let result = describe(call, &resource, request.include_synonyms, request.include_documentation);
        let response = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        match result {
            Ok(configs) => response.with_error_message(None).with_configs(configs),
            Err(error) => response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        }
    };
    DescribeConfigsResponse::default().with_results(request.resources.into_iter().map(describe).collect())
}

fn describe(
    call: &Call<'_>,
    resource: &DescribeConfigsResource,
    include_synonyms: bool,
    include_documentation: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, ApiError> {
    let is_wanted =
        |name: &str| resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| &**key == name));
    match resource.resource_type {
        TOPIC => {
            let config = find_topic(call, &resource.resource_name)?.config();
            let describe = |definition: &'static Definition| {
                let described = describe_topic_config(&config, definition, include_synonyms);
                let documentation = include_documentation.then(|| StrBytes::from_static_str(definition.documentation));
                described.with_documentation(documentation)
            };
            Ok(described().filter(|definition| is_wanted(definition.name)).map(describe).collect())
        }
        BROKER => {
            let name = resource.resource_name.as_str();
            if !name.is_empty() && name != NODE.0.to_string() {
                let message = format!("Unexpected broker id, expected {} but received {name}", NODE.0);
                return Err(ApiError::new(ResponseError::InvalidRequest, message));
            }
            let configs = broker_configs(call).into_iter().filter(|config| is_wanted(config.name));
            let describe = |config: BrokerConfig| {
                let documentation = include_documentation.then(|| StrBytes::from_static_str(config.documentation));
                DescribeConfigsResourceResult::default()
                    .with_name(StrBytes::from_static_str(config.name))
                    .with_value(Some(text(config.value)))
                    .with_read_only(true)
                    .with_config_source(SOURCE_STATIC_BROKER)
                    .with_config_type(config.value_type as i8)
                    .with_documentation(documentation)
            };
            Ok(configs.map(describe).collect())
        }
        other => Err(ApiError::new(
            ResponseError::InvalidRequest,
            format!("resources of type {other} have no configuration"),
        )),
    }
}

fn describe_topic_config(
    config: &TopicConfig,
    definition: &'static Definition,
    include_synonyms: bool,
) -> DescribeConfigsResourceResult {
    let synonym = |name: &'static str, value: String, source: i8| {
        DescribeConfigsSynonym::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(Some(text(value)))
            .with_source(source)
    };
    let mut synonyms = Vec::new();
    if include_synonyms {
        if config.overrides.contains_key(definition.name) {
            synonyms.push(synonym(definition.name, config.value(definition), SOURCE_TOPIC));
        }
        if definition.name == MAX_MESSAGE_BYTES {
            synonyms.push(synonym("message.max.bytes", config.defaults.value(definition), SOURCE_STATIC_BROKER));
        }
        synonyms.push(synonym(definition.name, definition.default.to_owned(), SOURCE_DEFAULT));
    }
    DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(definition.name))
        .with_value(Some(text(config.value(definition))))
        .with_config_source(source(config, definition))
        .with_config_type(definition.value_type as i8)
        .with_synonyms(synonyms)
}

/// Where the effective value of a topic config comes from.
pub(super) fn source(config: &TopicConfig, definition: &Definition) -> i8 {
    if config.overrides.contains_key(definition.name) {
        SOURCE_TOPIC
    } else if definition.name == MAX_MESSAGE_BYTES {
        SOURCE_STATIC_BROKER
    } else {
        SOURCE_DEFAULT
    }
}

fn find_topic(call: &Call<'_>, name: &str) -> Result<Arc<Topic>, ApiError> {
    crate::topics::check_name(name)?;
    call.broker.topics.get(name).ok_or_else(ApiError::unknown_topic_partition)
}

/// Type and name of a config resource.
type Resource<'a> = (i8, &'a str);

/// The topic that a resource names. `repeated` holds the resources that the request names twice.
fn changeable(
    call: &Call<'_>,
    resource: Resource<'_>,
    repeated: &HashSet<Resource<'_>>,
) -> Result<Arc<Topic>, ApiError> {
    if repeated.contains(&resource) {
        return Err(ApiError::new(ResponseError::InvalidRequest, "Each resource must appear at most once."));
    }
    let (resource_type, name) = resource;
    match resource_type {
        TOPIC => find_topic(call, name),
        BROKER => Err(ApiError::new(
            ResponseError::InvalidRequest,
            "broker configs are read-only; restart the broker with other options",
        )),
        other => Err(ApiError::new(
            ResponseError::InvalidRequest,
            format!("resources of type {other} have no configuration"),
        )),
    }
}

fn configure(
    call: &Call<'_>,
    topic: &Topic,
    configs: BTreeMap<String, String>,
    validate_only: bool,
) -> Result<(), ApiError> {
    let altered = topic.config().altered(configs);
    let config = altered.map_err(|message| ApiError::new(ResponseError::InvalidConfig, message))?;
    if validate_only {
        return Ok(());
    }
    call.broker.topics.configure(&call.broker.store, topic, config)
}

/// Replaces all overrides of a topic by those in the request.
pub(crate) fn alter_configs(call: &Call<'_>, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let repeated =
        repeated(request.resources.iter().map(|resource| (resource.resource_type, &*resource.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let topic = changeable(call, (resource.resource_type, &*resource.resource_name), &repeated);
        let result = topic.and_then(|topic| {
            let pair = |config: &kafka_protocol::messages::alter_configs_request::AlterableConfig| {
                config.value.as_ref().map(|value| (config.name.to_string(), value.to_string()))
            };
            configure(call, &topic, resource.configs.iter().filter_map(pair).collect(), request.validate_only)
        });
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        responses.push(match result {
            Ok(()) => response.with_error_message(None),
            Err(error) => response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        });
    }
    AlterConfigsResponse::default().with_responses(responses)
}

pub(crate) fn incremental_alter_configs(
    call: &Call<'_>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let repeated =
        repeated(request.resources.iter().map(|resource| (resource.resource_type, &*resource.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let topic = changeable(call, (resource.resource_type, &*resource.resource_name), &repeated);
        let result = topic.and_then(|topic| {
            let configs = changed(&topic.config(), resource)?;
            configure(call, &topic, configs, request.validate_only)
        });
        let response = IncrementalResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        responses.push(match result {
            Ok(()) => response.with_error_message(None),
            Err(error) => response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

/// The overrides of a topic after the operations of a request.
fn changed(config: &TopicConfig, resource: &IncrementalResource) -> Result<BTreeMap<String, String>, ApiError> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    const APPEND: i8 = 2;
    const SUBTRACT: i8 = 3;
    let mut overrides = config.overrides.clone();
    let mut seen = BTreeSet::new();
    for change in &resource.configs {
        let invalid = |message: String| ApiError::new(ResponseError::InvalidConfig, message);
        if !seen.insert(change.name.as_str()) {
            return Err(ApiError::new(ResponseError::InvalidRequest, format!("{} is changed twice", change.name)));
        }
        let name = change.name.as_str();
        let known = definition(name).ok_or_else(|| invalid(format!("unknown topic config name: {name}")))?;
        let value = || {
            let value = change.value.as_ref().map(ToString::to_string);
            value.ok_or_else(|| ApiError::new(ResponseError::InvalidRequest, format!("{name} needs a value")))
        };
        match change.config_operation {
            SET => {
                overrides.insert(name.to_owned(), value()?);
            }
            DELETE => {
                overrides.remove(name);
            }
            APPEND | SUBTRACT if known.value_type == ValueType::List => {
                let current = overrides.get(name).map_or(known.default, String::as_str).to_owned();
                let operands = value()?;
                let is_operand = |item: &str| operands.split(',').any(|operand| operand == item);
                let kept = current.split(',').filter(|item| !item.is_empty() && !is_operand(item));
                let added = operands.split(',').filter(|_| change.config_operation == APPEND);
                let items: Vec<&str> = kept.chain(added).collect();
                overrides.insert(name.to_owned(), items.join(","));
            }
            APPEND | SUBTRACT => {
                return Err(invalid(format!("{name} is not a list")));
            }
            other => {
                return Err(ApiError::new(ResponseError::InvalidRequest, format!("unknown config operation {other}")));
            }
        }
    }
    Ok(overrides)
}
