//! Decides which columns of a file get no dictionary.
//!
//! A dictionary that outgrows its page is given up by the writer, after it has hashed and copied
//! thousands of values of each row group. The first rows tell whether that will happen: if values
//! are drawn from `D` different ones, `n` of them have about `n² / 2D` repetitions. A column with
//! clearly fewer repetitions than one whose dictionary just fits gets none.

use std::collections::HashSet;

use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use xxhash_rust::xxh3::xxh3_64;

/// The size of a dictionary at which the writer gives it up.
const MOST_BYTES: usize = parquet::file::properties::DEFAULT_DICTIONARY_PAGE_SIZE_LIMIT;

/// Values that are looked at.
const SAMPLE: usize = 2_000;

/// Fewer repetitions than this, for the dictionary that just fits, are chance.
const FEWEST_EXPECTED: usize = 4;

/// The names of the columns whose dictionary would not fit, judged by the first rows of a file.
pub(crate) fn outgrown<'s>(schema: &'s Schema, first: &[RecordBatch]) -> Vec<&'s str> {
    let names =
        schema.fields().iter().filter(|field| !field.data_type().is_nested()).map(|field| field.name().as_str());
    let is_outgrown = |name: &&str| {
        let columns: Vec<&ArrayRef> = first.iter().filter_map(|batch| batch.column_by_name(name)).collect();
        Sample::of(&columns).is_some_and(|sample| sample.outgrows())
    };
    names.filter(is_outgrown).collect()
}

/// What the first values of a column are like.
struct Sample {
    values: usize,
    distinct: usize,
    bytes: usize,
}

impl Sample {
    /// `None` for a type that is not looked at.
    fn of(columns: &[&ArrayRef]) -> Option<Self> {
        let mut seen = HashSet::new();
        let mut sample = Self { values: 0, distinct: 0, bytes: 0 };
        let mut add = |value: &[u8]| {
            sample.values += 1;
            sample.bytes += value.len();
            sample.distinct += usize::from(seen.insert(xxh3_64(value)));
            sample.values < SAMPLE
        };
        for column in columns {
            let mut indices = (0..column.len()).filter(|index| column.is_valid(*index));
            match column.data_type() {
                DataType::Utf8 => {
                    let texts = column.as_string::<i32>();
                    indices.all(|index| add(texts.value(index).as_bytes()));
                }
                DataType::Binary => {
                    let values = column.as_binary::<i32>();
                    indices.all(|index| add(values.value(index)));
                }
                other => {
                    let width = other.primitive_width()?;
                    let data = column.to_data();
                    let bytes = data.buffers().first()?.as_slice();
                    let value = |index: usize| bytes.get((data.offset() + index) * width..)?.get(..width);
                    indices.all(|index| value(index).is_some_and(&mut add));
                }
            }
        }
        Some(sample)
    }

    fn outgrows(&self) -> bool {
        let Self { values, distinct, bytes } = *self;
        // n² / 2D with D = MOST_BYTES / (bytes / n).
        let expected = values * bytes / (2 * MOST_BYTES);
        expected >= FEWEST_EXPECTED && 2 * (values - distinct) < expected
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    /// Values in an order that does not repeat soon: pseudo-random ones of `different`.
    fn drawn(rows: usize, different: u64) -> impl Iterator<Item = u64> {
        (0..rows as u64).map(move |row| xxh3_64(&row.to_le_bytes()) % different)
    }

    fn outgrown_of(columns: Vec<(&str, ArrayRef)>) -> Vec<String> {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        // In two batches, the second of which begins within the arrays.
        let first = [batch.slice(0, 300), batch.slice(300, batch.num_rows() - 300)];
        outgrown(&batch.schema(), &first).into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_column_whose_values_do_not_repeat_has_no_dictionary() {
        let texts = |different| -> ArrayRef {
            Arc::new(drawn(2_000, different).map(|value| Some(format!("{value:0300}"))).collect::<StringArray>())
        };
        let numbers =
            |different| -> ArrayRef { Arc::new(drawn(2_000, different).map(|v| v as i64).collect::<Int64Array>()) };
        let columns = vec![
            ("lines", texts(u64::MAX)),
            // 3,000 texts of 300 bytes fit into 1 MB, and so do 100,000 numbers.
            ("pages", texts(2_000)),
            ("ids", numbers(u64::MAX)),
            ("customers", numbers(10_000)),
            ("states", numbers(5)),
        ];
        assert_eq!(outgrown_of(columns), ["lines", "ids"]);
    }

    #[test]
    fn a_few_rows_prove_nothing() {
        let few: ArrayRef = Arc::new((0..400).map(|row| Some(format!("{row:020}"))).collect::<StringArray>());
        let none: ArrayRef = Arc::new((0..400).map(|_| None::<i64>).collect::<Int64Array>());
        assert_eq!(outgrown_of(vec![("few", few), ("none", none)]), [""; 0]);
    }
}
