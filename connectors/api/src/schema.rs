//! [`Schema`]: the types of a topic's records. Values in a topic stay plain JSON; the header
//! `trunkline.schema` of a record names its schema, so that a typed sink gets decimals, unsigned
//! integers and timestamps right.
//!
//! The id is a hash of the canonical form: equal types have equal ids without coordination.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Fields, Schema as ArrowSchema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};

/// Names of the headers that Trunkline adds to records.
pub mod headers {
    /// Id of the record's [`super::Schema`], 16 hexadecimal digits.
    pub const SCHEMA: &str = "trunkline.schema";
    /// Path of the log file a record was read from; `{@path}` in templates.
    pub const PATH: &str = "trunkline.path";
    /// Byte offset in that file.
    pub const OFFSET: &str = "trunkline.offset";
    /// The history of the source that a change event belongs to, a number that grows: positions
    /// (`source.file`, `pos`, `row`) are comparable within one history. See `docs/adr/024`.
    pub const EPOCH: &str = "trunkline.epoch";
    /// Epoch, file number, position and row of a change whose value has no `source`, separated by
    /// dots: of two changes, the later one has the greater numbers.
    pub const ORDER: &str = "trunkline.order";
    /// The time of a timer that a transform rejected, in milliseconds since 1970. The dead letter
    /// has the timer's key.
    pub const TIMER: &str = "trunkline.timer";
}

/// Hash of a schema's canonical form; written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchemaId(pub u64);

impl fmt::Display for SchemaId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl FromStr for SchemaId {
    type Err = SchemaError;

    fn from_str(text: &str) -> Result<Self, SchemaError> {
        let valid = text.len() == 16;
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|_| valid)
            .map(Self)
            .ok_or_else(|| SchemaError(format!("`{text}` is no schema id")))
    }
}

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchemaError(pub String);

/// Column types with metadata (primary key, source types).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    arrow: SchemaRef,
    id: SchemaId,
}

/// A column of the canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type, for example `int64`, `decimal(38,9)`, `timestamp(us,+00:00)`, `list`, `struct`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Values may be null.
    pub nullable: bool,
    /// Item of a list, fields of a struct.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
    /// Metadata such as the source's own type name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// The canonical form: JSON with the keys in this order and no spaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Canonical {
    fields: Vec<Field>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Schema {
    /// From an Arrow schema. Fails for types that the canonical form has no name for.
    pub fn new(arrow: SchemaRef) -> Result<Self, SchemaError> {
        let canonical = Canonical {
            fields: arrow.fields().iter().map(|field| canonical_field(field)).collect::<Result<_, _>>()?,
            metadata: arrow.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        };
        let id = SchemaId(xxhash_rust::xxh3::xxh3_64(canonical_json(&canonical)?.as_bytes()));
        Ok(Self { arrow, id })
    }

    /// The Arrow schema.
    pub fn arrow(&self) -> &SchemaRef {
        &self.arrow
    }

    /// Its id.
    pub fn id(&self) -> SchemaId {
        self.id
    }

    /// The canonical form, as published.
    pub fn to_json(&self) -> Result<String, SchemaError> {
        let fields = self.arrow.fields().iter().map(|field| canonical_field(field)).collect::<Result<_, _>>()?;
        let metadata = self.arrow.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        canonical_json(&Canonical { fields, metadata })
    }

    /// Reads the canonical form.
    pub fn from_json(json: &[u8]) -> Result<Self, SchemaError> {
        let canonical: Canonical =
            serde_json::from_slice(json).map_err(|error| SchemaError(format!("not a schema: {error}")))?;
        let fields = canonical.fields.iter().map(arrow_field).collect::<Result<Fields, _>>()?;
        Self::new(Arc::new(ArrowSchema::new_with_metadata(
            fields,
            canonical.metadata.into_iter().collect::<HashMap<_, _>>(),
        )))
    }
}

fn canonical_json(canonical: &Canonical) -> Result<String, SchemaError> {
    serde_json::to_string(canonical).map_err(|error| SchemaError(error.to_string()))
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    }
}

fn unit_of(name: &str) -> Option<TimeUnit> {
    [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond]
        .into_iter()
        .find(|unit| unit_name(*unit) == name)
}

const PLAIN: [(&str, DataType); 15] = [
    ("bool", DataType::Boolean),
    ("int8", DataType::Int8),
    ("int16", DataType::Int16),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("uint8", DataType::UInt8),
    ("uint16", DataType::UInt16),
    ("uint32", DataType::UInt32),
    ("uint64", DataType::UInt64),
    ("float32", DataType::Float32),
    ("float64", DataType::Float64),
    ("utf8", DataType::Utf8),
    ("binary", DataType::Binary),
    ("date", DataType::Date32),
    ("null", DataType::Null),
];

fn canonical_field(field: &ArrowField) -> Result<Field, SchemaError> {
    let mut fields = Vec::new();
    let kind = match field.data_type() {
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            format!("decimal({precision},{scale})")
        }
        DataType::Time32(unit) | DataType::Time64(unit) => format!("time({})", unit_name(*unit)),
        DataType::Timestamp(unit, None) => format!("timestamp({})", unit_name(*unit)),
        DataType::Timestamp(unit, Some(zone)) => format!("timestamp({},{zone})", unit_name(*unit)),
        DataType::List(item) => {
            fields.push(canonical_field(item)?);
            "list".to_owned()
        }
        DataType::Struct(members) => {
            fields = members.iter().map(|member| canonical_field(member)).collect::<Result<_, _>>()?;
            "struct".to_owned()
        }
        other => match PLAIN.iter().find(|(_, known)| known == other) {
            Some((name, _)) => (*name).to_owned(),
            None => {
                return Err(SchemaError(format!(
                    "column `{}` has the type {other}, which schemas cannot hold",
                    field.name()
                )));
            }
        },
    };
    let metadata = field.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Field { name: field.name().clone(), kind, nullable: field.is_nullable(), fields, metadata })
}

fn arrow_field(field: &Field) -> Result<ArrowField, SchemaError> {
    let unknown = || SchemaError(format!("column `{}` has the unknown type `{}`", field.name, field.kind));
    let (name, arguments) = match field.kind.strip_suffix(')').and_then(|kind| kind.split_once('(')) {
        Some((name, arguments)) => (name, arguments.split(',').collect::<Vec<_>>()),
        None => (field.kind.as_str(), Vec::new()),
    };
    let data_type = match (name, arguments.as_slice()) {
        ("decimal", [precision, scale]) => {
            let precision: u8 = precision.parse().map_err(|_| unknown())?;
            let scale = scale.parse().map_err(|_| unknown())?;
            match precision {
                1..=38 => DataType::Decimal128(precision, scale),
                39..=76 => DataType::Decimal256(precision, scale),
                _ => return Err(unknown()),
            }
        }
        ("time", [unit]) => match unit_of(unit).ok_or_else(unknown)? {
            unit @ (TimeUnit::Second | TimeUnit::Millisecond) => DataType::Time32(unit),
            unit => DataType::Time64(unit),
        },
        ("timestamp", [unit]) => DataType::Timestamp(unit_of(unit).ok_or_else(unknown)?, None),
        ("timestamp", [unit, zone]) => DataType::Timestamp(unit_of(unit).ok_or_else(unknown)?, Some(Arc::from(*zone))),
        ("list", []) => match field.fields.as_slice() {
            [item] => DataType::List(Arc::new(arrow_field(item)?)),
            _ => return Err(unknown()),
        },
        ("struct", []) => DataType::Struct(field.fields.iter().map(arrow_field).collect::<Result<Fields, _>>()?),
        (name, []) => {
            PLAIN.iter().find(|(known, _)| *known == name).map(|(_, kind)| kind.clone()).ok_or_else(unknown)?
        }
        _ => return Err(unknown()),
    };
    let metadata: HashMap<String, String> = field.metadata.clone().into_iter().collect();
    Ok(ArrowField::new(&field.name, data_type, field.nullable).with_metadata(metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_from_its_canonical_form_with_the_same_id() {
        let item = ArrowField::new("item", DataType::Decimal128(38, 9), true);
        let fields = vec![
            ArrowField::new("a", DataType::UInt64, false),
            ArrowField::new("t", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
            ArrowField::new("d", DataType::Decimal256(65, 30), true),
            ArrowField::new("l", DataType::List(Arc::new(item)), true),
            ArrowField::new(
                "s",
                DataType::Struct(vec![ArrowField::new("x", DataType::Time64(TimeUnit::Microsecond), true)].into()),
                true,
            ),
        ];
        let schema = Schema::new(Arc::new(ArrowSchema::new(fields))).unwrap();
        let read = Schema::from_json(schema.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(read, schema);
        assert_eq!(schema.id().to_string().parse(), Ok(schema.id()));
    }

    #[test]
    fn the_id_of_known_types_never_changes() {
        // Ids are stored in topics: with another hash, no earlier record would find its schema.
        let schema =
            Schema::new(Arc::new(ArrowSchema::new(vec![ArrowField::new("a", DataType::Int64, true)]))).unwrap();
        assert_eq!(schema.to_json().unwrap(), r#"{"fields":[{"name":"a","type":"int64","nullable":true}]}"#);
        assert_eq!(
            schema.id(),
            SchemaId(xxhash_rust::xxh3::xxh3_64(br#"{"fields":[{"name":"a","type":"int64","nullable":true}]}"#))
        );
    }

    #[test]
    fn types_without_a_name_are_refused() {
        let schema = ArrowSchema::new(vec![ArrowField::new("a", DataType::LargeUtf8, true)]);
        assert!(Schema::new(Arc::new(schema)).unwrap_err().0.contains("`a`"));
        assert!(Schema::from_json(br#"{"fields":[{"name":"a","type":"float128","nullable":true}]}"#).is_err());
    }
}
