//! Field types from the schemas of records (`template.field_types`): before the first record of a
//! schema goes to an index, the sink adds the fields that the mapping of the index lacks.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use trunkline_connector::headers::SCHEMA;
use trunkline_connector::{Error, RecordRef, Result, SchemaId, SchemaLookup};

use crate::client::{Client, Response, path_segment};
use crate::config::{Config, DecimalType, Target};
use crate::server::Product;

/// Longer texts are stored and not indexed: servers refuse terms of more than 32,766 bytes.
const MAX_KEYWORD: u32 = 8_191;

/// The indices of a delivery, with the schemas of their records.
#[derive(Debug, Default)]
pub(crate) struct IndexSchemas {
    pairs: HashSet<(String, SchemaId)>,
    last: Option<(String, SchemaId)>,
}

impl IndexSchemas {
    /// Adds the schema of a record that goes to `index`.
    pub(crate) fn add(&mut self, index: &str, record: RecordRef<'_>) {
        let header = record.header(SCHEMA).and_then(|raw| std::str::from_utf8(raw).ok());
        let Some(schema) = header.and_then(|text| text.parse::<SchemaId>().ok()) else { return };
        if self.last.as_ref().is_some_and(|(last, id)| *id == schema && last == index) {
            return;
        }
        let pair = (index.to_owned(), schema);
        self.pairs.insert(pair.clone());
        self.last = Some(pair);
    }
}

/// Keeps the mappings of indices up to date with the schemas of records.
pub(crate) struct FieldTypes {
    schemas: Arc<dyn SchemaLookup>,
    known: Mutex<HashSet<(String, SchemaId)>>,
    decimals: DecimalType,
    unwrap: bool,
    is_stream: bool,
    /// The index may be created: it is not an alias by name.
    may_create: bool,
    /// The fields of the sink's index template, which keep their types.
    of_template: Map<String, Value>,
    /// The index template, if later backing indices get their fields from it.
    template: Option<String>,
}

impl FieldTypes {
    /// `None` without the option. `sink` is the sink's name.
    pub(crate) fn new(
        config: &Config,
        product: Option<Product>,
        sink: &str,
        schemas: Arc<dyn SchemaLookup>,
    ) -> Option<Self> {
        let template = config.template.as_ref().filter(|template| template.options.field_types)?;
        let documents = &config.documents;
        let is_stream = matches!(documents.target, Target::DataStream(_));
        let body = template.body(product, documents).unwrap_or_default();
        let of_template = body["template"]["mappings"]["properties"].as_object().cloned().unwrap_or_default();
        let rolls_over = is_stream || template.options.rollover;
        let constant = documents.target.template().constant().is_some();
        Some(Self {
            schemas,
            known: Mutex::default(),
            decimals: template.options.decimals,
            unwrap: documents.unwrap,
            is_stream,
            may_create: !documents.require_alias && !template.options.rollover,
            of_template,
            template: (rolls_over && constant).then(|| template.name.clone().unwrap_or_else(|| sink.to_owned())),
        })
    }

    /// Adds the fields of schemas that were not seen before. A server that does not allow it gets
    /// the documents all the same, and chooses the types itself.
    pub(crate) async fn ensure(&self, client: &Client, found: IndexSchemas) -> Result<()> {
        for pair in found.pairs {
            if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&pair) {
                continue;
            }
            let (index, id) = &pair;
            match self.schemas.schema(*id)? {
                Some(schema) => {
                    let canonical = schema.to_json().unwrap_or_default();
                    let fields = fields_of(&serde_json::from_str(&canonical).unwrap_or_default(), self.unwrap);
                    let mut wanted = properties(&fields, self.decimals);
                    wanted.retain(|name, _| !self.of_template.contains_key(name));
                    self.add_fields(client, index, wanted).await?;
                }
                None => tracing::warn!(index, schema = %id, "the schema is unknown; the server chooses field types"),
            }
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(pair);
        }
        Ok(())
    }

    async fn add_fields(&self, client: &Client, index: &str, wanted: Map<String, Value>) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let path = path_segment(index);
        if let Some(template) = &self.template {
            self.add_to_template(client, template, &wanted).await?;
        }
        let mapping = format!("/{path}/_mapping");
        let mut response = client.call(Method::GET, &mapping).await?;
        if response.status == StatusCode::NOT_FOUND {
            let created = if self.is_stream {
                client.call(Method::PUT, &format!("/_data_stream/{path}")).await?
            } else if self.may_create {
                let body = json!({"mappings": {"properties": wanted}});
                client.call_json(Method::PUT, &format!("/{path}"), &body).await?
            } else {
                // The documents report the missing alias.
                return Ok(());
            };
            if created.status.is_success() && !self.is_stream {
                tracing::info!(index, fields = wanted.len(), "created the index with field types of the schema");
                return Ok(());
            }
            // Another task may have created it meanwhile.
            response = client.call(Method::GET, &mapping).await?;
            if response.status == StatusCode::NOT_FOUND {
                return not_changed(index, &created);
            }
        }
        if !response.status.is_success() {
            return not_changed(index, &response);
        }
        let existing: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let missing = missing_fields(&existing, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let response = client.call_json(Method::PUT, &mapping, &json!({"properties": missing})).await?;
        if response.status.is_success() {
            tracing::info!(index, fields = missing.len(), "added field types of the schema to the index");
            return Ok(());
        }
        not_changed(index, &response)
    }

    /// Adds the fields to the index template, for the indices that a rollover creates.
    async fn add_to_template(&self, client: &Client, name: &str, wanted: &Map<String, Value>) -> Result<()> {
        let path = format!("/_index_template/{}", path_segment(name));
        let response = client.call(Method::GET, &path).await?;
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let Value::Object(mut body) = answer["index_templates"][0]["index_template"].clone() else {
            return not_changed(name, &response);
        };
        let template = object(body.entry("template"));
        let mapped = object(object(template.entry("mappings")).entry("properties"));
        let before = mapped.len();
        for (field, kind) in wanted {
            mapped.entry(field).or_insert_with(|| kind.clone());
        }
        if mapped.len() == before {
            return Ok(());
        }
        let response = client.call_json(Method::PUT, &path, &Value::Object(body)).await?;
        if response.status.is_success() { Ok(()) } else { not_changed(name, &response) }
    }
}

/// The object at an entry, which becomes an empty one if it is none.
fn object(entry: serde_json::map::Entry<'_>) -> &mut Map<String, Value> {
    let value = entry.or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object"),
    }
}

/// A server that did not change a mapping. It is asked again if it may answer otherwise later.
fn not_changed(name: &str, response: &Response) -> Result<()> {
    let reason = response.describe();
    let status = response.status;
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        let code =
            if status == StatusCode::UNAUTHORIZED { "elasticsearch.unauthorized" } else { "elasticsearch.unavailable" };
        return Err(Error::external(code, format!("the fields of `{name}` cannot be set: {reason}")));
    }
    tracing::warn!(
        name,
        reason,
        "the server did not take the field types of the schema, and chooses types itself; give the index privilege `manage`, and \
         for data streams and rollover the cluster privilege `manage_index_templates`"
    );
    Ok(())
}

/// The fields that are missing in one of the indices of an answer.
fn missing_fields(answer: &Value, mut wanted: Map<String, Value>) -> Map<String, Value> {
    let indices: Vec<&Value> = answer.as_object().into_iter().flat_map(|indices| indices.values()).collect();
    let is_in_all = |name: &str| indices.iter().all(|index| index["mappings"]["properties"].get(name).is_some());
    wanted.retain(|name, _| !is_in_all(name));
    wanted
}

/// The fields of documents: the row in an envelope, or the fields themselves.
fn fields_of(schema: &Value, unwrap: bool) -> Vec<Value> {
    let fields = schema["fields"].as_array().cloned().unwrap_or_default();
    let named = |name: &str| fields.iter().find(|field| field["name"] == name);
    match named("after").filter(|after| unwrap && after["type"] == "struct" && named("op").is_some()) {
        Some(row) => row["fields"].as_array().cloned().unwrap_or_default(),
        None => fields,
    }
}

/// The mapping of fields in the canonical form of a schema. JSON and geometry columns, unsigned
/// 64-bit numbers and columns without a type are left to the template and the server.
fn properties(fields: &[Value], decimals: DecimalType) -> Map<String, Value> {
    let typed = fields.iter().filter_map(|field| {
        let name = field["name"].as_str().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), mapping_of(field, decimals)?))
    });
    typed.collect()
}

fn mapping_of(field: &Value, decimals: DecimalType) -> Option<Value> {
    if matches!(field["metadata"]["mysql.type"].as_str(), Some("json" | "geometry")) {
        return None;
    }
    let kind = field["type"].as_str()?;
    let simple = |name: &str| Some(json!({ "type": name }));
    match kind.split('(').next()? {
        "bool" => simple("boolean"),
        "int8" => simple("byte"),
        "int16" | "uint8" => simple("short"),
        "int32" | "uint16" => simple("integer"),
        "int64" | "uint32" => simple("long"),
        "float32" => simple("float"),
        "float64" => simple("double"),
        "utf8" | "time" => Some(json!({"type": "keyword", "ignore_above": MAX_KEYWORD})),
        "decimal" => match decimals {
            DecimalType::Keyword => simple("keyword"),
            DecimalType::Double => simple("double"),
        },
        "binary" => simple("binary"),
        "date" | "timestamp" => simple("date"),
        "list" => mapping_of(&field["fields"][0], decimals),
        "struct" => Some(json!({"properties": properties(field["fields"].as_array()?, decimals)})),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use super::*;

    fn schema() -> Value {
        json!({"fields": [
            {"name": "before", "type": "struct", "fields": []},
            {"name": "after", "type": "struct", "nullable": true, "fields": [
                {"name": "id", "type": "int64"}, {"name": "name", "type": "utf8"}, {"name": "price", "type": "decimal(10,2)"},
                {"name": "at", "type": "timestamp(us,+00:00)"}, {"name": "big", "type": "uint64"},
                {"name": "tags", "type": "list", "fields": [{"name": "item", "type": "utf8"}]},
                {"name": "extra", "type": "utf8", "metadata": {"mysql.type": "json"}},
                {"name": "spot", "type": "struct", "metadata": {"mysql.type": "geometry"}, "fields": []},
                {"name": "box", "type": "struct", "fields": [{"name": "w", "type": "float64"}]},
            ]},
            {"name": "op", "type": "utf8"},
        ]})
    }

    #[test]
    fn columns_have_the_field_types_of_their_schema() {
        let keyword = json!({"type": "keyword", "ignore_above": MAX_KEYWORD});
        let expected = json!({
            "id": {"type": "long"}, "name": keyword, "price": {"type": "keyword"}, "at": {"type": "date"},
            "tags": keyword, "box": {"properties": {"w": {"type": "double"}}},
        });
        let row = fields_of(&schema(), true);
        assert_eq!(Value::Object(properties(&row, DecimalType::Keyword)), expected);
        assert_eq!(properties(&row, DecimalType::Double)["price"], json!({"type": "double"}));
        let kept = properties(&fields_of(&schema(), false), DecimalType::Keyword);
        assert_eq!((&kept["after"]["properties"], &kept["op"]), (&expected, &keyword));
    }

    #[test]
    fn only_fields_that_an_index_lacks_are_added() {
        let wanted = properties(&fields_of(&schema(), true)[..3], DecimalType::Keyword);
        let index = |fields: Value| json!({"mappings": {"properties": fields}});
        let answer =
            json!({"a-1": index(json!({"id": {"type": "text"}})), "a-2": index(json!({"id": {}, "name": {}}))});
        let missing = missing_fields(&answer, wanted.clone());
        assert_eq!(missing.keys().collect::<Vec<_>>(), ["name", "price"]);
        assert_eq!(missing_fields(&json!({"a": {"mappings": {}}}), wanted.clone()), wanted);
    }
}
