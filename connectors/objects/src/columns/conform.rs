//! Brings decoded columns into the types of a file: columns the batch lacks become null, narrower
//! types are widened.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, StructArray, new_null_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Fields, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, make_encoder};

use super::finder::FieldFinder;
use super::layout::source_name;

/// The batch with the columns of `schema`, a [file's](super::file_schema) of a layout that holds
/// the batch's.
pub fn conform_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let columns = conform_columns(batch.schema_ref().fields(), batch.columns(), schema.fields(), batch.num_rows())?;
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn conform_columns(from: &Fields, columns: &[ArrayRef], to: &Fields, rows: usize) -> Result<Vec<ArrayRef>, ArrowError> {
    let mut from = FieldFinder::new(from);
    let conform_one = |field: &Arc<arrow::datatypes::Field>| match from.find(source_name(field)) {
        Some((index, _)) => conform(&columns[index], field.data_type()),
        None => Ok(new_null_array(field.data_type(), rows)),
    };
    to.iter().map(conform_one).collect()
}

fn conform(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    match (array.data_type(), to) {
        (DataType::Null, _) => Ok(new_null_array(to, array.len())),
        (DataType::Struct(from), DataType::Struct(members)) => {
            let object = array.as_struct();
            let columns = conform_columns(from, object.columns(), members, array.len())?;
            Ok(Arc::new(StructArray::try_new(members.clone(), columns, object.nulls().cloned())?))
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = conform(list.values(), item.data_type())?;
            let nulls: Option<NullBuffer> = list.nulls().cloned();
            Ok(Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), values, nulls)?))
        }
        (DataType::Struct(_) | DataType::List(_), DataType::Utf8) => json_text(array),
        _ => cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() }),
    }
}

/// Objects and lists whose column became text: their JSON.
pub fn json_text(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let field = Arc::new(arrow::datatypes::Field::new("value", array.data_type().clone(), true));
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(&field, array.as_ref(), &options)?;
    let mut texts = Vec::with_capacity(array.len());
    for row in 0..array.len() {
        if array.is_null(row) {
            texts.push(None);
            continue;
        }
        let mut text = Vec::new();
        encoder.encode(row, &mut text);
        texts.push(Some(String::from_utf8(text).map_err(|error| ArrowError::JsonError(error.to_string()))?));
    }
    Ok(Arc::new(StringArray::from(texts)))
}

#[cfg(test)]
mod tests {
    use super::super::layout::{file_schema, inferred, inferred_list};
    use super::*;
    use arrow::array::{Float64Array, Int64Array};
    use arrow::datatypes::{DataType::*, Schema};

    fn batch(name: &str, array: ArrayRef) -> RecordBatch {
        let schema = Schema::new(vec![inferred(name, array.data_type().clone())]);
        RecordBatch::try_new(Arc::new(schema), vec![array]).unwrap()
    }

    #[test]
    fn missing_columns_are_null_and_narrow_ones_are_widened() {
        let batch = batch("a", Arc::new(Int64Array::from(vec![Some(1), None])));
        let schema = file_schema(&vec![inferred("b", Utf8), inferred("a", Float64)].into());
        let conformed = conform_batch(&batch, &schema).unwrap();
        assert_eq!(conformed.column(0).null_count(), 2);
        assert_eq!(conformed.column(1).as_ref(), &Float64Array::from(vec![Some(1.0), None]) as &dyn Array);
    }

    #[test]
    fn objects_widen_to_their_json() {
        let members: Fields = vec![inferred("x", Int64)].into();
        let object = StructArray::new(
            members,
            vec![Arc::new(Int64Array::from(vec![Some(1), None]))],
            Some(NullBuffer::from(vec![true, false])),
        );
        let schema = file_schema(&vec![inferred("o", Utf8)].into());
        let conformed = conform_batch(&batch("o", Arc::new(object)), &schema).unwrap();
        assert_eq!(conformed.column(0).as_ref(), &StringArray::from(vec![Some(r#"{"x":1}"#), None]) as &dyn Array);
    }

    #[test]
    fn lists_widen_item_by_item() {
        let item = inferred("element", Int64);
        let list = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>(vec![Some(vec![Some(1)]), None]);
        let list = ListArray::new(item, list.offsets().clone(), Arc::clone(list.values()), list.nulls().cloned());
        let schema = file_schema(&vec![inferred("l", inferred_list(Utf8))].into());
        let conformed = conform_batch(&batch("l", Arc::new(list)), &schema).unwrap();
        assert_eq!(conformed.column(0).as_list::<i32>().value(0).as_string::<i32>().value(0), "1");
    }
}
