//! Column types, their union, and the columns of a file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema as ArrowSchema, SchemaRef};

use super::finder::FieldFinder;

/// Metadata key of a column whose type was inferred from values.
pub(crate) const INFERRED: &str = "trunkline.inferred";
/// Metadata key of a column that has another name in the file than in the values.
pub(crate) const SOURCE_NAME: &str = "trunkline.name";

/// The columns that values are decoded with. Layouts never change; a wider one is another layout.
#[derive(Debug)]
pub struct ColumnLayout {
    /// Unique in the process: decoders are kept by it.
    pub id: u64,
    /// The columns.
    pub schema: SchemaRef,
    /// Number of columns, with the members of objects.
    pub width: usize,
}

impl ColumnLayout {
    /// A layout with these columns.
    pub fn new(fields: Fields) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let schema = ArrowSchema::new(fields);
        Arc::new(Self { id, width: schema.flattened_fields().len(), schema: Arc::new(schema) })
    }

    /// The layout of a declared schema.
    pub fn declared(schema: &ArrowSchema) -> Arc<Self> {
        Self::new(schema.fields().iter().map(with_known_zone).collect())
    }

    /// The layout before any value is known.
    pub fn empty() -> Arc<Self> {
        Self::new(Fields::empty())
    }

    /// The columns.
    pub fn fields(&self) -> &Fields {
        self.schema.fields()
    }
}

/// Names of UTC other than `+00:00` need a time zone database to be read.
fn with_known_zone(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Timestamp(unit, Some(zone)) if matches!(zone.as_ref(), "UTC" | "Z" | "Etc/UTC") => {
            DataType::Timestamp(*unit, Some(Arc::from("+00:00")))
        }
        DataType::Struct(members) => DataType::Struct(members.iter().map(with_known_zone).collect()),
        DataType::List(item) => DataType::List(with_known_zone(item)),
        _ => return Arc::clone(field),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// An inferred column.
pub(crate) fn inferred(name: &str, data_type: DataType) -> FieldRef {
    let mark = HashMap::from([(INFERRED.to_owned(), "true".to_owned())]);
    Arc::new(Field::new(name, data_type, true).with_metadata(mark))
}

/// The item of an inferred list.
pub(crate) fn inferred_list(item: DataType) -> DataType {
    DataType::List(inferred("element", item))
}

/// The column's type was inferred from values.
pub(crate) fn is_inferred(field: &Field) -> bool {
    field.metadata().contains_key(INFERRED)
}

/// The columns of both sides, each wide enough for both. `None`: a declared column has types that
/// no type holds without changing values.
pub fn union(left: &Fields, right: &Fields) -> Option<Fields> {
    if left == right {
        return Some(left.clone());
    }
    let mut found = HashSet::new();
    let mut fields = Vec::with_capacity(left.len().max(right.len()));
    let mut finder = FieldFinder::new(right);
    for field in left {
        match finder.find(field.name()) {
            Some((index, other)) => {
                found.insert(index);
                fields.push(union_field(field, other)?);
            }
            None => fields.push(nullable(field)),
        }
    }
    let others = right.iter().enumerate().filter(|(index, _)| !found.contains(index));
    fields.extend(others.map(|(_, field)| nullable(field)));
    Some(fields.into())
}

fn nullable(field: &FieldRef) -> FieldRef {
    if field.is_nullable() { Arc::clone(field) } else { Arc::new(field.as_ref().clone().with_nullable(true)) }
}

fn union_field(left: &FieldRef, right: &FieldRef) -> Option<FieldRef> {
    if left == right {
        return Some(Arc::clone(left));
    }
    let both_inferred = is_inferred(left) && is_inferred(right);
    let data_type = union_type(left.data_type(), right.data_type(), both_inferred)?;
    let mut metadata = left.metadata().clone();
    if !both_inferred {
        metadata.remove(INFERRED);
    }
    let is_nullable = left.is_nullable() || right.is_nullable();
    Some(Arc::new(Field::new(left.name(), data_type, is_nullable).with_metadata(metadata)))
}

/// The type that holds the values of both; inferred types always have one.
pub(crate) fn union_type(left: &DataType, right: &DataType, inferred: bool) -> Option<DataType> {
    use DataType::{Float32, Float64, Int64, List, Null, Struct, Utf8};
    if left == right {
        return Some(left.clone());
    }
    match (left, right) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (Struct(left), Struct(right)) => union(left, right).map(Struct),
        (List(left), List(right)) => union_field(left, right).map(List),
        (Int64, Float64) | (Float64, Int64) if inferred => Some(Float64),
        _ if inferred => Some(Utf8),
        (Float32, Float64) | (Float64, Float32) => Some(Float64),
        _ => wider_integer(left, right).or_else(|| wider_decimal(left, right)),
    }
}

fn wider_integer(left: &DataType, right: &DataType) -> Option<DataType> {
    use DataType::{Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    // (signed, bits)
    let rank = |data_type: &DataType| match data_type {
        Int8 => Some((true, 8)),
        Int16 => Some((true, 16)),
        Int32 => Some((true, 32)),
        Int64 => Some((true, 64)),
        UInt8 => Some((false, 8)),
        UInt16 => Some((false, 16)),
        UInt32 => Some((false, 32)),
        UInt64 => Some((false, 64)),
        _ => None,
    };
    let (left, right) = (rank(left)?, rank(right)?);
    // An unsigned integer needs one bit more in a signed type.
    let signed = left.0 || right.0;
    let needed = |(is_signed, bits): (bool, u32)| if signed && !is_signed { bits * 2 } else { bits };
    match (signed, needed(left).max(needed(right))) {
        (true, 16) => Some(Int16),
        (true, 32) => Some(Int32),
        (true, 64) => Some(Int64),
        (false, 16) => Some(UInt16),
        (false, 32) => Some(UInt32),
        (false, 64) => Some(UInt64),
        _ => None,
    }
}

fn wider_decimal(left: &DataType, right: &DataType) -> Option<DataType> {
    use DataType::{Decimal128, Decimal256};
    let parts = |data_type: &DataType| match data_type {
        Decimal128(precision, scale) | Decimal256(precision, scale) => Some((i16::from(*precision), i16::from(*scale))),
        _ => None,
    };
    let ((left_precision, left_scale), (right_precision, right_scale)) = (parts(left)?, parts(right)?);
    let scale = left_scale.max(right_scale);
    let precision = (left_precision - left_scale).max(right_precision - right_scale) + scale;
    let scale = i8::try_from(scale).ok()?;
    match u8::try_from(precision).ok()? {
        // The wider storage holds both.
        precision @ 1..=38 if matches!((left, right), (Decimal128(..), Decimal128(..))) => {
            Some(Decimal128(precision, scale))
        }
        precision @ 1..=76 => Some(Decimal256(precision, scale)),
        _ => None,
    }
}

/// The columns of a file. Columns without any typed value are left out, because Parquet has no type
/// for them that all readers know; if no other column remains, they are text. Of names that differ
/// only by case, which most readers ignore, one stays, and the others get a suffix. Which one, and
/// which suffix, depends on the names alone, so that all files agree.
pub fn file_schema(fields: &Fields) -> SchemaRef {
    let mut kept = file_fields(fields);
    if kept.is_empty() {
        let as_text = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8));
        kept = file_fields(&fields.iter().map(as_text).collect());
    }
    Arc::new(ArrowSchema::new(kept))
}

fn file_fields(fields: &Fields) -> Fields {
    let typed: Vec<(&FieldRef, DataType)> =
        fields.iter().filter_map(|field| Some((field, file_type(field.data_type())?))).collect();
    // The greatest of the names that differ only by case: the one with small letters.
    let mut owners: HashMap<String, &str> = HashMap::new();
    for (field, _) in &typed {
        let owner = owners.entry(field.name().to_lowercase()).or_insert(field.name());
        *owner = (*owner).max(field.name());
    }
    let mut taken: HashSet<String> = owners.keys().cloned().collect();
    let named = |(field, data_type): (&FieldRef, DataType)| {
        let mut kept = field.as_ref().clone().with_data_type(data_type);
        if owners.get(&field.name().to_lowercase()) != Some(&field.name().as_str()) {
            let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(field.name().as_bytes()));
            let suffixed = |digits: usize| format!("{}_{}", field.name(), &hash[..digits]);
            let free = [4, 8, 16].map(suffixed).into_iter().find(|name| taken.insert(name.to_lowercase()));
            let mut metadata = kept.metadata().clone();
            metadata.insert(SOURCE_NAME.to_owned(), field.name().clone());
            kept = kept.with_name(free.unwrap_or_else(|| suffixed(16))).with_metadata(metadata);
        }
        Arc::new(kept)
    };
    typed.into_iter().map(named).collect()
}

fn file_type(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Null => None,
        DataType::Struct(members) => {
            let members = file_fields(members);
            (!members.is_empty()).then_some(DataType::Struct(members))
        }
        DataType::List(item) => {
            let data_type = file_type(item.data_type())?;
            Some(DataType::List(Arc::new(item.as_ref().clone().with_data_type(data_type))))
        }
        other => Some(other.clone()),
    }
}

/// The name that a column of a file has in the values.
pub(crate) fn source_name(field: &Field) -> &str {
    field.metadata().get(SOURCE_NAME).unwrap_or(field.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataType::{Decimal128, Decimal256, Float64, Int8, Int16, Int32, Int64, Null, UInt8, UInt32, UInt64, Utf8};

    fn declared(columns: &[(&str, DataType)]) -> Fields {
        columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), false)).collect()
    }

    #[test]
    fn declared_types_widen_only_without_a_change_of_values() {
        for (left, right, expected) in [
            (Int8, Int32, Some(Int32)),
            (UInt8, Int8, Some(Int16)),
            (UInt32, Int32, Some(Int64)),
            (UInt64, Int64, None),
            (Int64, Float64, None),
            (Int64, Utf8, None),
            (Decimal128(10, 2), Decimal128(12, 4), Some(Decimal128(12, 4))),
            (Decimal128(38, 0), Decimal128(38, 9), Some(Decimal256(47, 9))),
            (Decimal256(76, 0), Decimal128(10, 9), None),
            (Null, Int64, Some(Int64)),
        ] {
            assert_eq!(union_type(&left, &right, false), expected, "{left} {right}");
            assert_eq!(union_type(&right, &left, false), expected, "{right} {left}");
        }
    }

    #[test]
    fn inferred_types_always_have_a_union() {
        let object = DataType::Struct(vec![inferred("a", Int64)].into());
        for (left, right, expected) in [
            (Int64, Float64, Float64),
            (Int64, Utf8, Utf8),
            (DataType::Boolean, Int64, Utf8),
            (object.clone(), Int64, Utf8),
            (inferred_list(Null), inferred_list(Int64), inferred_list(Int64)),
            (inferred_list(Int64), Int64, Utf8),
        ] {
            assert_eq!(union_type(&left, &right, true), Some(expected), "{left} {right}");
        }
        let other = DataType::Struct(vec![inferred("b", Utf8)].into());
        let both = DataType::Struct(vec![inferred("a", Int64), inferred("b", Utf8)].into());
        assert_eq!(union_type(&object, &other, true), Some(both));
    }

    #[test]
    fn a_column_that_one_side_lacks_may_be_null() {
        let both = union(&declared(&[("a", Int64)]), &declared(&[("b", Utf8)])).unwrap();
        assert!(both.iter().all(|field| field.is_nullable()) && both.len() == 2);
        assert_eq!(union(&declared(&[("a", Int64)]), &declared(&[("a", Utf8)])), None);
    }

    #[test]
    fn files_hold_no_untyped_columns_and_no_names_that_differ_by_case_alone() {
        let object = DataType::Struct(vec![inferred("x", Null)].into());
        let fields: Fields = vec![
            inferred("id", Int64),
            inferred("ID", Utf8),
            inferred("Id", Utf8),
            inferred("n", Null),
            inferred("o", object),
            inferred("l", inferred_list(Null)),
        ]
        .into();
        let schema = file_schema(&fields);
        let names: Vec<_> = schema.fields().iter().map(|field| (field.name().as_str(), source_name(field))).collect();
        let [(name, "id"), (upper, "ID"), (mixed, "Id")] = names[..] else { panic!("{names:?}") };
        assert!(name == "id" && upper.len() == 7 && upper.starts_with("ID_") && mixed.starts_with("Id_"), "{names:?}");
        let reversed: Fields = fields.iter().rev().cloned().collect();
        let reversed = file_schema(&reversed);
        for field in schema.fields() {
            assert_eq!(reversed.field_with_name(field.name()).unwrap(), field.as_ref(), "the order does not matter");
        }
        let untyped = file_schema(&vec![inferred("n", Null)].into());
        assert_eq!(untyped.field(0).data_type(), &Utf8);
    }

    #[test]
    fn utc_by_any_name_needs_no_time_zone_database() {
        let unit = arrow::datatypes::TimeUnit::Microsecond;
        let schema = ArrowSchema::new(declared(&[("t", DataType::Timestamp(unit, Some("UTC".into())))]));
        assert_eq!(
            ColumnLayout::declared(&schema).fields()[0].data_type(),
            &DataType::Timestamp(unit, Some("+00:00".into()))
        );
    }
}
