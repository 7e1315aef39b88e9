//! The types that a new column starts with: the pinned ones of the option `columns`, and those that
//! were inferred from earlier records of the topic. Without them, the type of a column would depend
//! on which of its values a file happens to hold.

use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};

use super::finder::FieldFinder;
use super::infer::{MAX_COLUMNS, count};
use super::layout::{inferred, inferred_list, is_inferred, union, union_type};

/// See the module's header.
#[derive(Debug, Clone, Default)]
pub struct KnownTypes {
    /// The columns of the option `columns`.
    pub pinned: Fields,
    /// Columns that were inferred from records of the topic, with the union of their types.
    pub remembered: Fields,
}

impl KnownTypes {
    /// Adds the inferred columns of a layout. Returns whether a type changed.
    pub fn remember(&mut self, fields: &Fields) -> bool {
        let Some(found) = inferred_part(fields) else { return false };
        let wider = union(&self.remembered, &found).unwrap_or_default();
        // Records with more columns mostly use keys as data: their types are of no use.
        if wider == self.remembered || count(&wider) > MAX_COLUMNS {
            return false;
        }
        self.remembered = wider;
        true
    }

    /// A declared schema with the pinned types of its columns.
    pub fn pin(&self, fields: &Fields) -> Fields {
        let mut finder = FieldFinder::new(&self.pinned);
        let pinned = |field: &FieldRef| match finder.find(field.name()) {
            Some((_, pinned)) => FieldRef::clone(pinned),
            None => FieldRef::clone(field),
        };
        fields.iter().map(pinned).collect()
    }
}

/// The known types of the members of an object.
#[derive(Default)]
pub(super) struct Hints<'a> {
    pinned: FieldFinder<'a>,
    remembered: FieldFinder<'a>,
}

impl<'a> Hints<'a> {
    pub(super) fn of(types: &'a KnownTypes) -> Self {
        Self { pinned: FieldFinder::new(&types.pinned), remembered: FieldFinder::new(&types.remembered) }
    }

    /// The known types of the members of a member.
    pub(super) fn member(&mut self, name: &str) -> Self {
        match self.remembered(name) {
            Some(DataType::Struct(members)) => Self { remembered: FieldFinder::new(members), ..Self::default() },
            _ => Self::default(),
        }
    }

    /// The field of a column with this name and observed type.
    pub(super) fn field(&mut self, name: &str, observed: DataType) -> FieldRef {
        if let Some((_, pinned)) = self.pinned.find(name) {
            return FieldRef::clone(pinned);
        }
        inferred(name, self.widen(name, observed))
    }

    /// The observed type, as wide as the known one.
    pub(super) fn widen(&mut self, name: &str, observed: DataType) -> DataType {
        match self.remembered(name) {
            Some(known) => widen(observed, known),
            None => observed,
        }
    }

    fn remembered(&mut self, name: &str) -> Option<&'a DataType> {
        self.remembered.find(name).map(|(_, field)| field.data_type())
    }
}

/// The union of both types. Objects get no member that was not observed, because columns without
/// values are useless.
fn widen(observed: DataType, known: &DataType) -> DataType {
    match (&observed, known) {
        (DataType::Struct(members), DataType::Struct(others)) => {
            let mut others = FieldFinder::new(others);
            let member = |field: &FieldRef| match others.find(field.name()) {
                Some((_, other)) => inferred(field.name(), widen(field.data_type().clone(), other.data_type())),
                None => FieldRef::clone(field),
            };
            DataType::Struct(members.iter().map(member).collect())
        }
        (DataType::List(item), DataType::List(other)) => {
            inferred_list(widen(item.data_type().clone(), other.data_type()))
        }
        (DataType::Null, DataType::Struct(_) | DataType::List(_)) => DataType::Null,
        _ => union_type(&observed, known, true).unwrap_or(DataType::Utf8),
    }
}

/// The inferred columns, without declared ones. Inferred members of declared objects stay.
fn inferred_part(fields: &Fields) -> Option<Fields> {
    let part = |field: &FieldRef| match field.data_type() {
        _ if is_inferred(field) => Some(FieldRef::clone(field)),
        DataType::Struct(members) => {
            inferred_part(members).map(|members| inferred(field.name(), DataType::Struct(members)))
        }
        _ => None,
    };
    let kept: Fields = fields.iter().filter_map(part).collect();
    (!kept.is_empty()).then_some(kept)
}

/// What the option `columns` accepts as a type.
pub const TYPES: &str = "`boolean`, `int`, `bigint`, `double`, `decimal(P,S)`, `date`, `timestamp`, `text` or `binary`";

/// A column with a pinned type; `None` if there is no type with this name.
pub fn pinned_column(name: &str, written: &str) -> Option<FieldRef> {
    let data_type = match written {
        "boolean" => DataType::Boolean,
        "int" => DataType::Int32,
        "bigint" => DataType::Int64,
        "double" => DataType::Float64,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        "binary" => DataType::Binary,
        // A column that widened to text accepts every value.
        "text" => return Some(inferred(name, DataType::Utf8)),
        _ => decimal(written)?,
    };
    Some(FieldRef::new(Field::new(name, data_type, true)))
}

fn decimal(written: &str) -> Option<DataType> {
    let (precision, scale) = written.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    let is_valid = (1..=76).contains(&precision) && scale >= 0 && i16::from(scale) <= i16::from(precision);
    is_valid.then_some(match precision {
        ..=38 => DataType::Decimal128(precision, scale),
        _ => DataType::Decimal256(precision, scale),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_types_widen_new_columns() {
        let mut types = KnownTypes::default();
        let object = |members: &[(&str, DataType)]| {
            DataType::Struct(members.iter().map(|(name, kind)| inferred(name, kind.clone())).collect())
        };
        let seen: Fields = vec![
            inferred("n", DataType::Utf8),
            inferred("f", DataType::Float64),
            inferred("o", object(&[("x", DataType::Utf8), ("y", DataType::Int64)])),
            FieldRef::new(Field::new("declared", DataType::Int8, true)),
        ]
        .into();
        assert!(types.remember(&seen) && !types.remember(&seen));
        let mut hints = Hints::of(&types);
        assert_eq!(hints.widen("n", DataType::Int64), DataType::Utf8);
        assert_eq!(hints.widen("f", DataType::Int64), DataType::Float64);
        assert_eq!(hints.widen("f", DataType::Null), DataType::Float64);
        assert_eq!(hints.widen("o", object(&[("x", DataType::Int64)])), object(&[("x", DataType::Utf8)]));
        assert_eq!(hints.widen("o", DataType::Null), DataType::Null);
        assert_eq!(hints.widen("declared", DataType::Utf8), DataType::Utf8);
        assert_eq!(hints.member("o").widen("y", DataType::Float64), DataType::Float64);
    }

    #[test]
    fn pinned_types_have_names() {
        for (written, expected) in [
            ("double", Some(DataType::Float64)),
            ("decimal(10, 2)", Some(DataType::Decimal128(10, 2))),
            ("decimal(40,0)", Some(DataType::Decimal256(40, 0))),
            ("text", Some(DataType::Utf8)),
            ("decimal(0,0)", None),
            ("decimal(5,6)", None),
            ("varchar", None),
        ] {
            assert_eq!(pinned_column("v", written).map(|field| field.data_type().clone()), expected, "{written}");
        }
    }
}
