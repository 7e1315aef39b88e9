//! Decoders that refuse values which Arrow's decoders would change, read binary columns from
//! base64, and accept any value as text in a column that widened to text.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, StringBuilder};
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;
use arrow::json::reader::{ArrayDecoder, DecoderContext, DecoderFactory, Tape, TapeElement};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::layout::is_inferred;
use super::text::write_json;

/// Makes the decoders described above.
#[derive(Debug)]
pub(crate) struct StrictDecoders;

impl DecoderFactory for StrictDecoders {
    fn make_default_decoder(
        &self,
        context: &DecoderContext,
        field: &FieldRef,
        is_nullable: bool,
    ) -> Result<Option<Box<dyn ArrayDecoder>>, ArrowError> {
        let inferred = is_inferred(field);
        let check: Check = match field.data_type() {
            DataType::Binary => return Ok(Some(Box::new(Base64Decoder))),
            DataType::Utf8 if inferred => return Ok(Some(Box::new(TextDecoder))),
            DataType::Int64 if inferred => inferred_integer,
            DataType::Float64 if inferred => inferred_float,
            data_type if data_type.is_integer() => integer,
            data_type if data_type.is_temporal() => temporal,
            DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale) => {
                let inner = context.make_builtin_decoder(field, is_nullable)?;
                return Ok(Some(Box::new(DecimalDecoder { inner, scale: i64::from(*scale) })));
            }
            _ => return Ok(None),
        };
        let inner = context.make_builtin_decoder(field, is_nullable)?;
        Ok(Some(Box::new(Checked { inner, check, expected: format!("{}", field.data_type()) })))
    }
}

/// The column can hold the value (element and its text).
type Check = fn(&TapeElement, &str) -> bool;

fn has_fraction_or_exponent(text: &str) -> bool {
    text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'))
}

fn inferred_integer(element: &TapeElement, text: &str) -> bool {
    matches!(element, TapeElement::Number(_)) && !has_fraction_or_exponent(text)
}

fn inferred_float(element: &TapeElement, _: &str) -> bool {
    matches!(element, TapeElement::Number(_))
}

/// 1.0 and 1e3 are integers, 1.5 is not. Above 2^53 a float does not identify an integer.
fn integer(element: &TapeElement, text: &str) -> bool {
    if !has_fraction_or_exponent(text) {
        return matches!(element, TapeElement::Number(_) | TapeElement::String(_));
    }
    text.parse::<f64>().is_ok_and(|value| value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0)
}

/// A number could be seconds, milliseconds or days; ISO 8601 is unambiguous.
fn temporal(element: &TapeElement, _: &str) -> bool {
    matches!(element, TapeElement::String(_))
}

struct Checked {
    inner: Box<dyn ArrayDecoder>,
    check: Check,
    expected: String,
}

impl ArrayDecoder for Checked {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        for position in pos {
            let element = tape.get(*position);
            let text = match element {
                TapeElement::Null => continue,
                TapeElement::Number(text) | TapeElement::String(text) => tape.get_string(text),
                _ => return Err(tape.error(*position, &self.expected)),
            };
            if !(self.check)(&element, text) {
                return Err(tape.error(*position, &self.expected));
            }
        }
        self.inner.decode(tape, pos)
    }
}

/// Arrow rounds what does not fit the scale; a digit lost is a value changed.
struct DecimalDecoder {
    inner: Box<dyn ArrayDecoder>,
    scale: i64,
}

impl ArrayDecoder for DecimalDecoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        for position in pos {
            if let TapeElement::Number(text) | TapeElement::String(text) = tape.get(*position) {
                let text = tape.get_string(text);
                if fraction_digits(text) > self.scale {
                    let scale = self.scale;
                    return Err(ArrowError::JsonError(format!("{text} has more than {scale} digits after the point")));
                }
            }
        }
        // The parser's errors lack the column, which only errors of JSON are given.
        self.inner.decode(tape, pos).map_err(|error| ArrowError::JsonError(super::infer::plain(&error)))
    }
}

/// Digits after the point that are not zeros at the end.
fn fraction_digits(text: &str) -> i64 {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], text[at + 1..].parse::<i64>().unwrap_or(0)),
        None => (text, 0),
    };
    let digits = match mantissa.split_once('.') {
        Some((_, fraction)) => fraction.trim_end_matches('0').len() as i64,
        None => 0,
    };
    digits.saturating_sub(exponent)
}

struct Base64Decoder;

impl ArrayDecoder for Base64Decoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        let mut builder = BinaryBuilder::with_capacity(pos.len(), 0);
        let mut bytes = Vec::new();
        for position in pos {
            match tape.get(*position) {
                TapeElement::Null => builder.append_null(),
                TapeElement::String(text) => {
                    bytes.clear();
                    STANDARD
                        .decode_vec(tape.get_string(text), &mut bytes)
                        .map_err(|error| ArrowError::JsonError(format!("is not base64: {error}")))?;
                    builder.append_value(&bytes);
                }
                _ => return Err(tape.error(*position, "base64 text")),
            }
        }
        Ok(Arc::new(builder.finish()))
    }
}

struct TextDecoder;

impl ArrayDecoder for TextDecoder {
    fn decode(&mut self, tape: &Tape<'_>, pos: &[u32]) -> Result<ArrayRef, ArrowError> {
        let mut builder = StringBuilder::with_capacity(pos.len(), 0);
        let mut json = Vec::new();
        for position in pos {
            match tape.get(*position) {
                TapeElement::Null => builder.append_null(),
                TapeElement::String(text) | TapeElement::Number(text) => builder.append_value(tape.get_string(text)),
                TapeElement::True => builder.append_value("true"),
                TapeElement::False => builder.append_value("false"),
                _ => {
                    json.clear();
                    write_json(tape, *position, &mut json);
                    let text = std::str::from_utf8(&json).map_err(|error| ArrowError::JsonError(error.to_string()))?;
                    builder.append_value(text);
                }
            }
        }
        Ok(Arc::new(builder.finish()))
    }
}
