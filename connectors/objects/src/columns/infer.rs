//! Infers types from values. Only values that the known columns cannot hold reach this code, so it
//! need not be fast. It uses the decoder's tokenizer, so that both agree on the values.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, NullArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::{ArrayDecoder, Decoder, DecoderContext, DecoderFactory, Tape, TapeElement};
use trunkline_connector::Reason;

use super::finder::FieldFinder;
use super::layout::{inferred, inferred_list, is_inferred, union_type};
use super::types::{Hints, KnownTypes};

/// Objects nested deeper are kept as JSON text.
const MAX_DEPTH: usize = 32;
/// Limit on columns, nested ones included. Records with more mostly use keys as data. Every column
/// costs memory in every open file.
pub(super) const MAX_COLUMNS: usize = 4000;

/// Widens columns by observed values.
#[derive(Default)]
pub(crate) struct Inference {
    walk: Arc<Mutex<Walk>>,
    decoder: Option<Decoder>,
}

/// The columns so far, handed to the decoder's walk and back.
#[derive(Debug, Default)]
struct Walk {
    fields: Fields,
    types: Arc<KnownTypes>,
    refused: Option<Reason>,
}

impl Inference {
    /// The columns with those widened or added that the record `json` needs, or why it cannot be a
    /// row. New columns are at least as wide as their known type.
    pub(crate) fn observe(&mut self, json: &[u8], fields: Fields, types: &Arc<KnownTypes>) -> Result<Fields, Reason> {
        *self.lock() = Walk { fields, types: Arc::clone(types), refused: None };
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => self.build().map_err(|error| Reason::new("s3.not_json", error.to_string()))?,
        };
        // After an error the decoder's state is undefined, so it is not used again.
        feed(&mut decoder, json)?;
        decoder.flush().map_err(|error| Reason::new("s3.not_json", plain(&error)))?;
        self.decoder = Some(decoder);
        let walk = std::mem::take(&mut *self.lock());
        match walk.refused {
            Some(reason) => Err(reason),
            None => Ok(walk.fields),
        }
    }

    fn build(&self) -> Result<Decoder, ArrowError> {
        let factory = WalkFactory { walk: Arc::clone(&self.walk) };
        ReaderBuilder::new_with_field(Field::new("value", DataType::Null, true))
            .with_batch_size(2)
            .with_decoder_factory(Arc::new(factory))
            .build_decoder()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes one record to a decoder and checks that it is exactly one JSON object: the tokenizer
/// would join a truncated record and the next one.
pub(crate) fn feed(decoder: &mut Decoder, json: &[u8]) -> Result<(), Reason> {
    let first = json.iter().copied().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|byte| byte != b'{') {
        let refused = match serde_json::from_slice::<serde::de::IgnoredAny>(json) {
            Ok(_) => Reason::new("s3.not_an_object", "a row must be a JSON object"),
            Err(error) => Reason::new("s3.not_json", format!("not JSON: {error}")),
        };
        return Err(refused);
    }
    let before = decoder.len();
    let read = decoder.decode(json).map_err(|error| Reason::new("s3.not_json", plain(&error)))?;
    if read == json.len() && decoder.len() == before + 1 && !decoder.has_partial_record() {
        return Ok(());
    }
    let message = match serde_json::from_slice::<serde::de::IgnoredAny>(json) {
        Ok(_) => "not JSON".to_owned(),
        Err(error) => format!("not JSON: {error}"),
    };
    Err(Reason::new("s3.not_json", message))
}

/// The text of an error without Arrow's classification.
pub(crate) fn plain(error: &ArrowError) -> String {
    match error {
        ArrowError::JsonError(message) | ArrowError::ParseError(message) => message.clone(),
        other => other.to_string(),
    }
}

#[derive(Debug)]
struct WalkFactory {
    walk: Arc<Mutex<Walk>>,
}

impl DecoderFactory for WalkFactory {
    fn make_default_decoder(
        &self,
        _: &DecoderContext,
        _: &FieldRef,
        _: bool,
    ) -> Result<Option<Box<dyn ArrayDecoder>>, ArrowError> {
        Ok(Some(Box::new(WalkDecoder { walk: Arc::clone(&self.walk) })))
    }
}

struct WalkDecoder {
    walk: Arc<Mutex<Walk>>,
}

impl ArrayDecoder for WalkDecoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        for position in pos {
            if let TapeElement::StartObject(end) = tape.get(*position) {
                if let Some(fields) =
                    observe_object(tape, *position, end, &walk.fields, &mut Hints::of(&walk.types), 0)?
                {
                    walk.fields = fields;
                }
            } else {
                walk.refused = Some(Reason::new("s3.not_an_object", "a row must be a JSON object"));
            }
        }
        if count(&walk.fields) > MAX_COLUMNS {
            walk.refused = Some(Reason::new(
                "s3.too_many_columns",
                format!("the file would have more than {MAX_COLUMNS} columns: are keys of an object used as data?"),
            ));
        }
        Ok(Arc::new(NullArray::new(pos.len())))
    }
}

/// The number of columns, nested ones included.
pub(super) fn count(fields: &Fields) -> usize {
    let nested = |data_type: &DataType| match data_type {
        DataType::Struct(members) => count(members),
        DataType::List(item) => match item.data_type() {
            DataType::Struct(members) => count(members),
            _ => 0,
        },
        _ => 0,
    };
    fields.iter().map(|field| 1 + nested(field.data_type())).sum()
}

/// The fields that the object needs, if they differ from the known ones.
fn observe_object(
    tape: &Tape<'_>,
    start: u32,
    end: u32,
    fields: &Fields,
    hints: &mut Hints<'_>,
    depth: usize,
) -> Result<Option<Fields>, ArrowError> {
    let mut changed: Option<Vec<FieldRef>> = None;
    let mut finder = FieldFinder::new(fields);
    // Indices of the fields that are not among the known ones.
    let mut added: HashMap<&str, usize> = HashMap::new();
    let mut at = start + 1;
    while at < end {
        let TapeElement::String(name) = tape.get(at) else { return Err(tape.error(at, "field name")) };
        let name = tape.get_string(name);
        let known = changed.as_deref().unwrap_or(fields);
        let found = finder.find(name).map(|(index, _)| index).or_else(|| added.get(name).copied());
        let observed = match found {
            None => Some(hints.field(name, value_type(tape, at + 1, depth + 1)?)),
            Some(index) => observe_value(tape, at + 1, &known[index], hints, depth + 1)?,
        };
        if let Some(field) = observed {
            let changed = changed.get_or_insert_with(|| fields.iter().cloned().collect());
            match found {
                Some(index) => changed[index] = field,
                None => {
                    added.insert(name, changed.len());
                    changed.push(field);
                }
            }
        }
        at = tape.next(at + 1, "field value")?;
    }
    Ok(changed.map(Fields::from))
}

/// The field that the value needs, if it differs from the known one. Declared types do not change;
/// only unknown members are added.
fn observe_value(
    tape: &Tape<'_>,
    index: u32,
    field: &FieldRef,
    hints: &mut Hints<'_>,
    depth: usize,
) -> Result<Option<FieldRef>, ArrowError> {
    if is_inferred(field) {
        let found = value_type(tape, index, depth)?;
        let wider = union_type(field.data_type(), &found, true).unwrap_or(DataType::Utf8);
        let wider = hints.widen(field.name(), wider);
        let changed = wider != *field.data_type();
        return Ok(changed.then(|| inferred(field.name(), wider)));
    }
    let wider = match (field.data_type(), tape.get(index)) {
        (DataType::Struct(members), TapeElement::StartObject(end)) => {
            observe_object(tape, index, end, members, &mut hints.member(field.name()), depth)?.map(DataType::Struct)
        }
        (DataType::List(item), TapeElement::StartList(end)) => {
            let mut known = Arc::clone(item);
            let mut at = index + 1;
            while at < end {
                if let Some(wider) = observe_value(tape, at, &known, &mut Hints::default(), depth + 1)? {
                    known = wider;
                }
                at = tape.next(at, "list value")?;
            }
            (known != *item).then_some(DataType::List(known))
        }
        _ => None,
    };
    Ok(wider.map(|data_type| Arc::new(field.as_ref().clone().with_data_type(data_type))))
}

fn value_type(tape: &Tape<'_>, index: u32, depth: usize) -> Result<DataType, ArrowError> {
    let data_type = match tape.get(index) {
        TapeElement::Null => DataType::Null,
        TapeElement::True | TapeElement::False => DataType::Boolean,
        TapeElement::Number(text) => number_type(tape.get_string(text)),
        TapeElement::StartObject(end) if depth < MAX_DEPTH => {
            let members = observe_object(tape, index, end, &Fields::empty(), &mut Hints::default(), depth)?;
            DataType::Struct(members.unwrap_or_default())
        }
        TapeElement::StartList(end) if depth < MAX_DEPTH => {
            let mut item = DataType::Null;
            let mut at = index + 1;
            while at < end {
                let found = value_type(tape, at, depth + 1)?;
                item = union_type(&item, &found, true).unwrap_or(DataType::Utf8);
                at = tape.next(at, "list value")?;
            }
            inferred_list(item)
        }
        _ => DataType::Utf8,
    };
    Ok(data_type)
}

/// A number that no `int64` or `float64` holds is kept as text: a float would change the integer,
/// and would make 1e400 infinite.
fn number_type(text: &str) -> DataType {
    if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        let is_finite = text.parse::<f64>().is_ok_and(f64::is_finite);
        if is_finite { DataType::Float64 } else { DataType::Utf8 }
    } else if text.parse::<i64>().is_ok() {
        DataType::Int64
    } else {
        DataType::Utf8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(records: &[&str]) -> Result<Fields, Reason> {
        let mut inference = Inference::default();
        records
            .iter()
            .try_fold(Fields::empty(), |fields, record| inference.observe(record.as_bytes(), fields, &Arc::default()))
    }

    fn type_of(records: &[&str]) -> DataType {
        observe(records).unwrap().find("a").unwrap().1.data_type().clone()
    }

    #[test]
    fn types_come_from_all_values() {
        for (records, expected) in [
            (&[r#"{"a":1}"#, r#"{"a":2.5}"#][..], DataType::Float64),
            (&[r#"{"a":null}"#, r#"{"a":true}"#], DataType::Boolean),
            (&[r#"{"a":1}"#, r#"{"a":"x"}"#], DataType::Utf8),
            (&[r#"{"b":0,"a":1,"a":2.5,"b":1}"#], DataType::Float64),
            (&[r#"{"a":1,"b":0}"#, r#"{"c":0,"b":1,"a":2.5}"#], DataType::Float64),
            (&[r#"{"a":1}"#, r#"{"a":{"b":1}}"#], DataType::Utf8),
            (&[r#"{"a":18446744073709551615}"#], DataType::Utf8),
            (&[r#"{"a":1e400}"#], DataType::Utf8),
            (&[r#"{"a":-1e308}"#], DataType::Float64),
            (&[r#"{"a":[]}"#, r#"{"a":[1,null]}"#], inferred_list(DataType::Int64)),
            (&[r#"{"a":{}}"#, r#"{"a":{"b":1}}"#], DataType::Struct(vec![inferred("b", DataType::Int64)].into())),
        ] {
            assert_eq!(type_of(records), expected, "{records:?}");
        }
    }

    #[test]
    fn declared_columns_keep_their_types_and_gain_members() {
        let after = DataType::Struct(vec![Field::new("id", DataType::UInt8, false)].into());
        let fields: Fields = vec![Field::new("after", after, true), Field::new("n", DataType::Int8, true)].into();
        let record = br#"{"after":{"id":1,"score":0.5},"n":"text"}"#;
        let observed = Inference::default().observe(record, fields.clone(), &Arc::default()).unwrap();
        assert_eq!(observed[1], fields[1]);
        let DataType::Struct(members) = observed[0].data_type() else { panic!("{observed:?}") };
        assert_eq!(
            (members[1].name().as_str(), is_inferred(&members[1]), is_inferred(&members[0])),
            ("score", true, false)
        );
    }

    #[test]
    fn what_is_no_object_is_refused_and_the_next_record_is_not() {
        let mut inference = Inference::default();
        for (json, code) in [
            ("[1]", "s3.not_an_object"),
            ("7", "s3.not_an_object"),
            ("\"x\"", "s3.not_an_object"),
            ("nope", "s3.not_json"),
            ("", "s3.not_json"),
            ("{\"a\":1", "s3.not_json"),
            ("{\"a\":1}{\"a\":2}", "s3.not_json"),
            ("{\"a\":1}x", "s3.not_json"),
            ("{\"a\":\"\\ud800\"}", "s3.not_json"),
        ] {
            assert_eq!(
                inference.observe(json.as_bytes(), Fields::empty(), &Arc::default()).unwrap_err().code,
                code,
                "{json}"
            );
            assert_eq!(inference.observe(b" {\"a\":1} ", Fields::empty(), &Arc::default()).unwrap().len(), 1);
        }
        assert_eq!(
            inference.observe(b"{\"a\":\"\xff\"}", Fields::empty(), &Arc::default()).unwrap_err().code,
            "s3.not_json"
        );
    }

    #[test]
    fn depth_and_number_of_columns_are_bounded() {
        let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
        assert!(count(&observe(&[&deep]).unwrap()) <= MAX_DEPTH + 1);
        let members: Vec<_> = (0..=MAX_COLUMNS).map(|number| format!("\"k{number}\":1")).collect();
        let wide = format!("{{{}}}", members.join(","));
        assert_eq!(observe(&[&wide]).unwrap_err().code, "s3.too_many_columns");
    }
}
