//! [`Fit`]: which columns of a schema a changed value still has. A plugin that changes one field of
//! a record must not cost the other fields their types.
//!
//! A value keeps its schema if each column that it has still fits. Members that the schema does not
//! know are allowed: typed sinks infer their columns. Of other values, a schema is derived:
//!
//! - A column whose value has another type is left out, and is inferred.
//! - A required column that is missing, or null, becomes nullable. If it belongs to the primary
//!   key, the derived schema has no primary key.
//! - If the value is the row of a change event, the columns are those of the event's `after`.
//!
//! A value that has less than half of the columns is another kind of record, and has no schema.
//! The result depends on the schema and the value alone.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema as ArrowSchema};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use serde_json::value::RawValue;

use super::json;
use super::schema::{Schema, SchemaError};

/// Metadata of a schema: the names of the primary key's columns, separated by commas.
const PRIMARY_KEY: &str = "primary_key";

/// How a value differs from a schema.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Fit {
    /// The value is the row of a change event that the schema describes.
    is_row: bool,
    misfits: Vec<Misfit>,
}

/// A column that differs: its index in each schema on the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Misfit {
    path: Vec<usize>,
    change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    LeftOut,
    Nullable,
}

impl Fit {
    /// Whether the value has the types of the schema.
    pub fn is_exact(&self) -> bool {
        !self.is_row && self.misfits.is_empty()
    }
}

impl Schema {
    /// Compares a JSON value with the schema. `None` if it is not an object, or another kind of
    /// record.
    pub fn compare(&self, value: &[u8]) -> Option<Fit> {
        let fields = self.arrow().fields();
        compare(fields, value, false).or_else(|| compare(row_of(fields)?, value, true))
    }

    /// The schema of values that differ in this way. `None` if no column is left.
    pub fn derive(&self, fit: &Fit) -> Result<Option<Schema>, SchemaError> {
        let all = self.arrow().fields();
        let before = if fit.is_row { row_of(all).unwrap_or(all) } else { all };
        let after = apply(before, &mut Vec::new(), &fit.misfits);
        if after.is_empty() {
            return Ok(None);
        }
        let mut metadata = self.arrow().metadata().clone();
        if let Some(key) = metadata.get(PRIMARY_KEY) {
            let (before, after) = (row_of(before).unwrap_or(before), row_of(&after).unwrap_or(&after));
            let is_kept = |name: &str| {
                let nullable = |fields: &Fields| fields.find(name).map(|(_, field)| field.is_nullable());
                nullable(after).is_some() && nullable(after) == nullable(before)
            };
            if !key.split(',').all(is_kept) {
                metadata.remove(PRIMARY_KEY);
            }
        }
        Schema::new(Arc::new(ArrowSchema::new_with_metadata(after, metadata))).map(Some)
    }
}

/// The columns of the row in a change event.
fn row_of(fields: &Fields) -> Option<&Fields> {
    fields.find("op")?;
    match fields.find("after")?.1.data_type() {
        DataType::Struct(members) => Some(members),
        _ => None,
    }
}

fn compare(fields: &Fields, value: &[u8], is_row: bool) -> Option<Fit> {
    let mut misfits = Vec::new();
    let present = members(fields, value, &mut Vec::new(), &mut misfits)?;
    (present > 0 && present * 2 >= fields.len()).then_some(Fit { is_row, misfits })
}

/// Compares the members of an object. Returns how many of the columns it has.
fn members(fields: &Fields, object: &[u8], path: &mut Vec<usize>, misfits: &mut Vec<Misfit>) -> Option<usize> {
    let mut seen = vec![false; fields.len()];
    // Members mostly have the order of the columns.
    let mut next = 0;
    for member in json::members(object) {
        let member = member.ok()?;
        let is_named = |field: &FieldRef| json::key_is(member.key, field.name());
        let index = match fields.get(next).is_some_and(is_named) {
            true => next,
            false => match fields.iter().position(is_named) {
                Some(index) => index,
                None => continue,
            },
        };
        next = index + 1;
        if !std::mem::replace(&mut seen[index], true) {
            path.push(index);
            column(&fields[index], member.value, path, misfits);
            path.pop();
        }
    }
    for (index, field) in fields.iter().enumerate().filter(|(index, _)| !seen[*index]) {
        if !field.is_nullable() {
            path.push(index);
            misfits.push(Misfit { path: path.clone(), change: Change::Nullable });
            path.pop();
        }
    }
    Some(seen.iter().filter(|seen| **seen).count())
}

/// Compares a value with its column.
fn column(field: &Field, raw: &[u8], path: &mut Vec<usize>, misfits: &mut Vec<Misfit>) {
    let before = misfits.len();
    let change = match field.data_type() {
        _ if raw == b"null" && field.is_nullable() => None,
        _ if raw == b"null" => Some(Change::Nullable),
        DataType::Struct(fields) => members(fields, raw, path, misfits).is_none().then_some(Change::LeftOut),
        data_type => (!has_type(data_type, raw)).then_some(Change::LeftOut),
    };
    if let Some(change) = change {
        misfits.truncate(before);
        misfits.push(Misfit { path: path.clone(), change });
    }
}

/// Whether a value that is not null can be in a column of this type, as sinks decode it.
fn has_type(data_type: &DataType, raw: &[u8]) -> bool {
    let is_string = raw.first() == Some(&b'"');
    let Some(text) = json::text(raw) else { return false };
    match data_type {
        DataType::Boolean => matches!(raw, b"true" | b"false"),
        DataType::Int8 => is_integer(&text, i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => is_integer(&text, i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => is_integer(&text, i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => is_integer(&text, i64::MIN.into(), i64::MAX.into()),
        DataType::UInt8 => is_integer(&text, 0, u8::MAX.into()),
        DataType::UInt16 => is_integer(&text, 0, u16::MAX.into()),
        DataType::UInt32 => is_integer(&text, 0, u32::MAX.into()),
        DataType::UInt64 => is_integer(&text, 0, u64::MAX.into()),
        DataType::Float32 | DataType::Float64 => {
            !is_string && raw.first() != Some(&b't') && text.parse::<f64>().is_ok_and(f64::is_finite)
        }
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            is_decimal(&text, *precision, *scale)
        }
        DataType::Utf8 => is_string,
        DataType::Binary => is_string && is_base64(&text),
        DataType::Date32 => is_string && text.parse::<Date>().is_ok() && text.len() == 10,
        DataType::Time32(_) | DataType::Time64(_) => is_string && is_time(&text),
        DataType::Timestamp(_, zone) => {
            let is_local = || text.parse::<DateTime>().is_ok();
            is_string && if zone.is_some() { text.parse::<Timestamp>().is_ok() || is_local() } else { is_local() }
        }
        DataType::List(item) => is_list(item, raw),
        _ => false,
    }
}

fn is_integer(text: &str, min: i128, max: i128) -> bool {
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte == b'0') => whole,
        _ => text,
    };
    !whole.starts_with('+') && whole.parse::<i128>().is_ok_and(|number| (min..=max).contains(&number))
}

fn is_decimal(text: &str, precision: u8, scale: i8) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (scale, precision) = (usize::try_from(scale).unwrap_or(0), usize::from(precision));
    !whole.is_empty()
        && all_digits(whole)
        && all_digits(fraction)
        && fraction.len() <= scale
        && whole.trim_start_matches('0').len() <= precision.saturating_sub(scale)
}

fn is_base64(text: &str) -> bool {
    let data = text.trim_end_matches('=');
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    text.len().is_multiple_of(4) && text.len() - data.len() <= 2 && data.bytes().all(is_valid)
}

/// `HH:MM:SS`, with or without a fraction.
fn is_time(text: &str) -> bool {
    text.parse::<jiff::civil::Time>().is_ok() && text.as_bytes().get(2) == Some(&b':')
}

/// Whether all items fit. A list with an item that does not fit is left out as a whole.
fn is_list(item: &Field, raw: &[u8]) -> bool {
    let Ok(items) = serde_json::from_slice::<Vec<&RawValue>>(raw) else { return false };
    items.iter().all(|value| {
        let mut misfits = Vec::new();
        column(item, value.get().as_bytes(), &mut Vec::new(), &mut misfits);
        misfits.is_empty()
    })
}

/// The columns after these changes.
fn apply(fields: &Fields, path: &mut Vec<usize>, misfits: &[Misfit]) -> Fields {
    let changed = |(index, field): (usize, &FieldRef)| {
        path.push(index);
        let own = misfits.iter().find(|misfit| misfit.path == *path).map(|misfit| misfit.change);
        let inner =
            misfits.iter().any(|misfit| misfit.path.len() > path.len() && misfit.path.starts_with(path.as_slice()));
        let column = match (own, field.data_type()) {
            (Some(Change::LeftOut), _) => None,
            (Some(Change::Nullable), _) => Some(Arc::new(field.as_ref().clone().with_nullable(true))),
            (None, DataType::Struct(members)) if inner => {
                let members = apply(members, path, misfits);
                let data_type = DataType::Struct(members.clone());
                (!members.is_empty()).then(|| Arc::new(field.as_ref().clone().with_data_type(data_type)))
            }
            (None, _) => Some(Arc::clone(field)),
        };
        path.pop();
        column
    };
    fields.iter().enumerate().filter_map(changed).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::datatypes::TimeUnit;

    use super::*;

    fn schema() -> Schema {
        let fields = vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
            Field::new("name", DataType::Utf8, true),
        ];
        let metadata = HashMap::from([(PRIMARY_KEY.to_owned(), "id".to_owned())]);
        Schema::new(Arc::new(ArrowSchema::new_with_metadata(fields, metadata))).unwrap()
    }

    fn names(schema: &Schema) -> Vec<&str> {
        schema.arrow().fields().iter().map(|field| field.name().as_str()).collect()
    }

    fn derived(value: &str) -> Schema {
        let fit = schema().compare(value.as_bytes()).unwrap();
        assert!(!fit.is_exact(), "{value}");
        schema().derive(&fit).unwrap().unwrap()
    }

    #[test]
    fn a_small_change_keeps_the_schema() {
        for value in [
            r#"{"id":1,"price":"12.30","at":"2015-05-17T10:05:03Z","name":"a"}"#,
            r#"{"name":"b","at":"2015-05-17T10:05:03.5+02:00","price":12.3,"id":-7}"#,
            r#"{"id":1,"price":null,"at":null,"name":null,"added":{"x":[1]}}"#,
            r#"{"id":2.0,"name":"nullable columns may be missing"}"#,
        ] {
            assert!(schema().compare(value.as_bytes()).is_some_and(|fit| fit.is_exact()), "{value}");
        }
    }

    #[test]
    fn a_column_with_another_type_is_left_out_alone() {
        for (value, column) in [
            (r#"{"id":1,"price":"12.305","at":null,"name":"a"}"#, "price"),
            (r#"{"id":1,"price":"123456789.00","at":null,"name":"a"}"#, "price"),
            (r#"{"id":1,"price":"1e3","at":null,"name":"a"}"#, "price"),
            (r#"{"id":1,"price":"1.00","at":"soon","name":"a"}"#, "at"),
            (r#"{"id":1,"price":"1.00","at":1431857103,"name":"a"}"#, "at"),
            (r#"{"id":1,"price":"1.00","at":null,"name":7}"#, "name"),
        ] {
            let derived = derived(value);
            let expected: Vec<_> = ["id", "price", "at", "name"].into_iter().filter(|name| *name != column).collect();
            assert_eq!(names(&derived), expected, "{value}");
            assert!(derived.compare(value.as_bytes()).is_some_and(|fit| fit.is_exact()), "{value}");
            assert_eq!(derived.arrow().metadata()[PRIMARY_KEY], "id");
        }
    }

    #[test]
    fn a_key_that_is_gone_is_no_primary_key() {
        for value in [
            r#"{"price":"1.00","at":null,"name":"a"}"#,
            r#"{"id":null,"price":"1.00","name":"a"}"#,
            r#"{"id":"3fb2c8","price":"1.00","at":null,"name":"a"}"#,
        ] {
            let derived = derived(value);
            assert!(
                derived.arrow().field_with_name("id").is_err() || derived.arrow().field(0).is_nullable(),
                "{value}"
            );
            assert_eq!(derived.arrow().metadata().get(PRIMARY_KEY), None, "{value}");
        }
    }

    #[test]
    fn other_records_have_no_schema() {
        for value in ["{}", "[1]", "7", "text", r#"{"id":1"#, r#"{"count":3,"id":1}"#, r#"{"a":1,"b":2}"#] {
            assert_eq!(schema().compare(value.as_bytes()), None, "{value}");
        }
    }

    fn envelope() -> Schema {
        let row = || DataType::Struct(schema().arrow().fields().clone());
        let source = DataType::Struct(vec![Field::new("file", DataType::Utf8, false)].into());
        let fields = vec![
            Field::new("before", row(), true),
            Field::new("after", row(), true),
            Field::new("source", source, false),
            Field::new("op", DataType::Utf8, false),
        ];
        let metadata = HashMap::from([(PRIMARY_KEY.to_owned(), "id".to_owned())]);
        Schema::new(Arc::new(ArrowSchema::new_with_metadata(fields, metadata))).unwrap()
    }

    #[test]
    fn the_row_of_a_change_event_has_the_columns_of_the_row() {
        let value = r#"{"id":1,"price":"12.30","at":"2015-05-17T10:05:03Z","name":"a"}"#;
        let fit = envelope().compare(value.as_bytes()).unwrap();
        assert!(!fit.is_exact());
        assert_eq!(envelope().derive(&fit).unwrap(), Some(schema()));
    }

    #[test]
    fn a_changed_field_of_a_change_event_leaves_the_others() {
        let event = |name: &str| {
            format!(
                r#"{{"before":null,"after":{{"id":1,"price":"1.00","at":null,"name":{name}}},"source":{{"file":"f"}},"op":"c"}}"#
            )
        };
        assert!(envelope().compare(event("\"a\"").as_bytes()).is_some_and(|fit| fit.is_exact()));
        let fit = envelope().compare(event("[1,2]").as_bytes()).unwrap();
        let derived = envelope().derive(&fit).unwrap().unwrap();
        let DataType::Struct(after) = derived.arrow().field(1).data_type() else { panic!("{derived:?}") };
        assert_eq!(after.iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["id", "price", "at"]);
        assert_eq!(derived.arrow().field(0), envelope().arrow().field(0));
        assert_eq!(derived.arrow().metadata()[PRIMARY_KEY], "id");
    }

    #[test]
    fn lists_fit_as_a_whole() {
        let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
        let schema = Schema::new(Arc::new(ArrowSchema::new(vec![Field::new("l", list, true)]))).unwrap();
        for (value, fits) in [("[1,null,3]", true), ("[]", true), ("[1,\"x\"]", false), ("{}", false)] {
            let fit = schema.compare(format!("{{\"l\":{value}}}").as_bytes()).unwrap();
            assert_eq!(fit.is_exact(), fits, "{value}");
        }
    }
}
