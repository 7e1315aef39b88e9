//! Geometries in well-known binary, for columns of geographies.
//!
//! The source writes a geometry as an object with `srid` and `wkb`. A destination that refuses a
//! geometry refuses the whole load, so each one is checked before it is staged. Reference: OGC
//! 06-103r4, part 8.2.

use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt32Type};
use arrow::error::ArrowError;

/// Longitude and latitude on the ellipsoid of WGS 84.
const WGS84: u32 = 4326;
/// The largest geography, in bytes.
const MAX_BYTES: usize = 8 << 20;
/// Nesting of collections.
const MAX_DEPTH: u32 = 16;

/// Whether values of this type are geometries of a source.
pub fn is_geometry(data_type: &DataType) -> bool {
    let DataType::Struct(fields) = data_type else { return false };
    let has = |name: &str, fits: fn(&DataType) -> bool| {
        fields.iter().any(|field| field.name() == name && fits(field.data_type()))
    };
    fields.len() == 2 && has("srid", DataType::is_integer) && has("wkb", |of| *of == DataType::Binary)
}

/// The geometries as hexadecimal digits; null where one is refused.
pub(crate) fn hexadecimal(array: &ArrayRef, refused: &mut Vec<(usize, String)>) -> Result<ArrayRef, ArrowError> {
    let geometries = array.as_struct();
    let (Some(srids), Some(values)) = (geometries.column_by_name("srid"), geometries.column_by_name("wkb")) else {
        return Err(ArrowError::SchemaError("a geometry has no `srid` or `wkb`".to_owned()));
    };
    let srids = cast(srids, &DataType::UInt32)?;
    let (srids, values) = (srids.as_primitive::<UInt32Type>(), values.as_binary::<i32>());
    let mut out = StringBuilder::new();
    for row in 0..array.len() {
        if array.is_null(row) || values.is_null(row) {
            out.append_null();
            continue;
        }
        let srid = if srids.is_null(row) { 0 } else { srids.value(row) };
        match problem(srid, values.value(row)) {
            None => {
                for byte in values.value(row) {
                    write!(out, "{byte:02X}").map_err(|error| ArrowError::ComputeError(error.to_string()))?;
                }
                out.append_value("");
            }
            Some(problem) => {
                refused.push((row, problem));
                out.append_null();
            }
        }
    }
    Ok(std::sync::Arc::new(out.finish()))
}

/// Why a geometry is no geography.
fn problem(srid: u32, wkb: &[u8]) -> Option<String> {
    // 0: the source does not say it.
    if srid != 0 && srid != WGS84 {
        return Some(format!("has the SRID {srid}; a geography has {WGS84}"));
    }
    if wkb.len() > MAX_BYTES {
        return Some(format!("has {} bytes; a geography has at most {MAX_BYTES}", wkb.len()));
    }
    let mut reader = Reader { rest: wkb };
    match reader.geometry(0, None) {
        Err(problem) => Some(problem),
        Ok(()) if !reader.rest.is_empty() => Some("has bytes after its geometry".to_owned()),
        Ok(()) => None,
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or("ends in the middle of a geometry")?;
        self.rest = rest;
        Ok(*head)
    }

    fn number(&mut self, is_little: bool) -> Result<u32, String> {
        let bytes = self.take::<4>()?;
        Ok(if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn coordinate(&mut self, is_little: bool, limit: f64, name: &str) -> Result<u64, String> {
        let bytes = self.take::<8>()?;
        let value = if is_little { f64::from_le_bytes(bytes) } else { f64::from_be_bytes(bytes) };
        // Not a number is in no range.
        if (-limit..=limit).contains(&value) { Ok(value.to_bits()) } else { Err(format!("has the {name} {value}")) }
    }

    fn point(&mut self, is_little: bool) -> Result<(u64, u64), String> {
        let longitude = self.coordinate(is_little, 180.0, "longitude")?;
        Ok((longitude, self.coordinate(is_little, 90.0, "latitude")?))
    }

    fn points(&mut self, is_little: bool, least: u32) -> Result<Option<bool>, String> {
        let count = self.number(is_little)?;
        if count < least {
            return Err(format!("has a line of {count} points, at least {least} are needed"));
        }
        let (mut first, mut last) = (None, None);
        for _ in 0..count {
            let point = self.point(is_little)?;
            first.get_or_insert(point);
            last = Some(point);
        }
        Ok(first.map(|first| Some(first) == last))
    }

    /// Reads a geometry; `of` is the only kind that it may have.
    fn geometry(&mut self, depth: u32, of: Option<u32>) -> Result<(), String> {
        let is_little = match self.take::<1>()? {
            [0] => false,
            [1] => true,
            [other] => return Err(format!("has the byte order {other}")),
        };
        let kind = self.number(is_little)?;
        if of.is_some_and(|of| of != kind) || depth > MAX_DEPTH {
            return Err("has a part of another kind".to_owned());
        }
        match kind {
            1 => self.point(is_little).map(drop),
            2 => self.points(is_little, 2).map(drop),
            3 => {
                for _ in 0..self.number(is_little)? {
                    if self.points(is_little, 4)? != Some(true) {
                        return Err("has a ring that does not end where it begins".to_owned());
                    }
                }
                Ok(())
            }
            4..=7 => {
                let part = (kind < 7).then(|| kind - 3);
                for _ in 0..self.number(is_little)? {
                    self.geometry(depth + 1, part)?;
                }
                Ok(())
            }
            other => Err(format!("has the kind {other}; only geometries of two dimensions are known")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BinaryArray, StructArray, UInt32Array};
    use arrow::datatypes::Field;
    use std::sync::Arc;

    fn numbers(kind: u32, counts: &[u32], coordinates: &[f64]) -> Vec<u8> {
        let mut wkb = vec![1];
        wkb.extend(kind.to_le_bytes());
        counts.iter().for_each(|count| wkb.extend(count.to_le_bytes()));
        coordinates.iter().for_each(|value| wkb.extend(value.to_le_bytes()));
        wkb
    }

    #[test]
    fn geometries_that_are_no_geographies_are_refused() {
        let ring = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        let mut collection = numbers(7, &[2], &[]);
        collection.extend(numbers(1, &[], &[13.4, 52.5]));
        collection.extend(numbers(2, &[2], &[0.0, 0.0, 180.0, -90.0]));
        let mut points = numbers(4, &[1], &[]);
        points.extend(numbers(2, &[2], &[0.0; 4]));
        let mut big_endian = vec![0, 0, 0, 0, 1];
        [13.4_f64, 52.5].iter().for_each(|value| big_endian.extend(value.to_be_bytes()));
        for (srid, wkb, expected) in [
            (4326, numbers(1, &[], &[13.4, 52.5]), None),
            (0, big_endian, None),
            (4326, numbers(3, &[1, 4], &ring), None),
            (4326, collection, None),
            (4326, numbers(7, &[0], &[]), None),
            (3857, numbers(1, &[], &[1.0, 1.0]), Some("has the SRID 3857; a geography has 4326")),
            (4326, numbers(1, &[], &[190.0, 1.0]), Some("has the longitude 190")),
            (4326, numbers(1, &[], &[1.0, -91.0]), Some("has the latitude -91")),
            (4326, numbers(1, &[], &[f64::NAN, 0.0]), Some("has the longitude NaN")),
            (4326, numbers(1, &[], &[1.0]), Some("ends in the middle of a geometry")),
            (4326, numbers(1, &[], &[1.0, 2.0, 3.0]), Some("has bytes after its geometry")),
            (4326, numbers(2, &[u32::MAX], &[1.0, 2.0]), Some("ends in the middle of a geometry")),
            (4326, numbers(2, &[1], &[1.0, 2.0]), Some("has a line of 1 points, at least 2 are needed")),
            (
                4326,
                numbers(3, &[1, 4], &[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
                Some("has a ring that does not end where it begins"),
            ),
            (4326, points, Some("has a part of another kind")),
            (
                4326,
                numbers(1001, &[], &[1.0, 2.0, 3.0]),
                Some("has the kind 1001; only geometries of two dimensions are known"),
            ),
            (4326, vec![7], Some("has the byte order 7")),
        ] {
            assert_eq!(problem(srid, &wkb).as_deref(), expected, "{wkb:?}");
        }
    }

    #[test]
    fn geometries_become_hexadecimal_digits() {
        let point = numbers(1, &[], &[0.0, 0.0]);
        let wkb: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![Some(&point), Some(b"x"), None]));
        let srid: ArrayRef = Arc::new(UInt32Array::from(vec![4326, 4326, 0]));
        let fields =
            [("srid", DataType::UInt32), ("wkb", DataType::Binary)].map(|(name, of)| Field::new(name, of, true));
        let geometries: ArrayRef = Arc::new(StructArray::new(fields.to_vec().into(), vec![srid, wkb], None));
        assert!(is_geometry(geometries.data_type()) && !is_geometry(&DataType::Binary));
        let mut refused = Vec::new();
        let texts = hexadecimal(&geometries, &mut refused).unwrap();
        let texts: Vec<_> = texts.as_string::<i32>().iter().collect();
        assert_eq!(texts[0], Some(format!("0101000000{}", "0".repeat(32)).as_str()));
        assert_eq!(texts[1..], [None, None]);
        assert_eq!(refused, [(1, "has the byte order 120".to_owned())]);
    }
}
