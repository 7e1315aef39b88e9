//! Exact decimal numbers of up to 38 digits.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fractional digits, and significant digits at least, of a quotient that does not end.
const QUOTIENT_DIGITS: i32 = 20;
/// The digits, and a point, of a number whose digits fit into 64 bits.
const MAX_SHORT_DIGITS: usize = 18;
/// Numbers with more zeros than this are written with an exponent.
const MAX_ZEROS: i32 = 40;

/// A decimal number: `digits` times ten to the power of `exponent`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decimal {
    digits: i128,
    exponent: i32,
}

/// The result needs more than 38 digits, or the divisor is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inexact {
    Overflow,
    DivisionByZero,
}

impl fmt::Display for Inexact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Overflow => "the number has more than 38 digits",
            Self::DivisionByZero => "the divisor is 0",
        })
    }
}

/// As text, which is exact.
impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a number")))
    }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        Self { digits: number.into(), exponent: 0 }
    }
}

impl Decimal {
    /// Parses a JSON number. `None` if the text is no number or has more than 38 digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::parse_short(text.as_bytes()).or_else(|| Self::parse_any(text))
    }

    /// Like [`Decimal::parse`], for the bytes of a number.
    pub(crate) fn parse_bytes(text: &[u8]) -> Option<Self> {
        Self::parse_short(text).or_else(|| Self::parse_any(std::str::from_utf8(text).ok()?))
    }

    /// A number of few digits without exponent, as most are. 128-bit arithmetic is slow on wasm32.
    fn parse_short(text: &[u8]) -> Option<Self> {
        let unsigned = text.strip_prefix(b"-").unwrap_or(text);
        if unsigned.len() > MAX_SHORT_DIGITS {
            return None;
        }
        let mut digits = 0i64;
        let mut point = None;
        for (at, byte) in unsigned.iter().enumerate() {
            match byte {
                b'0'..=b'9' => digits = digits * 10 + i64::from(byte - b'0'),
                b'.' if point.is_none() && at > 0 => point = Some(at),
                _ => return None,
            }
        }
        let places = match point {
            Some(point) => unsigned.len() - 1 - point,
            None => 0,
        };
        if unsigned.is_empty() || (point.is_some() && places == 0) {
            return None;
        }
        let digits = if unsigned.len() < text.len() { -digits } else { digits };
        Some(Self { digits: digits.into(), exponent: -(places as i32) })
    }

    fn parse_any(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => (&unsigned[..at], unsigned[at + 1..].parse::<i32>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || mantissa.ends_with('.') {
            return None;
        }
        let mut digits = 0i128;
        for digit in whole.bytes().chain(fraction.bytes()) {
            digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
        }
        let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        Some(Self { digits: if negative { -digits } else { digits }, exponent })
    }

    /// The digits of both numbers with the smaller exponent.
    fn aligned(self, other: Self) -> Option<(i128, i128, i32)> {
        let exponent = self.exponent.min(other.exponent);
        Some((self.scaled_to(exponent)?, other.scaled_to(exponent)?, exponent))
    }

    fn scaled_to(self, exponent: i32) -> Option<i128> {
        if self.digits == 0 || self.exponent == exponent {
            return Some(self.digits);
        }
        let power = u32::try_from(self.exponent.checked_sub(exponent)?).ok()?;
        if let (Ok(digits), 0..10) = (i32::try_from(self.digits), power) {
            return Some((i64::from(digits) * 10i64.pow(power)).into());
        }
        self.digits.checked_mul(10i128.checked_pow(power)?)
    }

    pub(crate) fn add(self, other: Self) -> Result<Self, Inexact> {
        let (left, right, exponent) = self.aligned(other).ok_or(Inexact::Overflow)?;
        Ok(Self { digits: left.checked_add(right).ok_or(Inexact::Overflow)?, exponent })
    }

    pub(crate) fn negate(self) -> Self {
        // parsed digits are never i128::MIN
        Self { digits: self.digits.wrapping_neg(), ..self }
    }

    pub(crate) fn multiply(self, other: Self) -> Result<Self, Inexact> {
        let digits = self.digits.checked_mul(other.digits).ok_or(Inexact::Overflow)?;
        Ok(Self { digits, exponent: self.exponent.checked_add(other.exponent).ok_or(Inexact::Overflow)? })
    }

    /// The quotient: exact if it ends within [`QUOTIENT_DIGITS`] fractional digits, otherwise
    /// rounded half to even.
    pub(crate) fn divide(self, other: Self) -> Result<Self, Inexact> {
        if other.digits == 0 {
            return Err(Inexact::DivisionByZero);
        }
        let (mut dividend, divisor) = (self.digits, other.digits);
        let mut exponent = self.exponent.checked_sub(other.exponent).ok_or(Inexact::Overflow)?;
        let is_short = |quotient: i128| quotient.unsigned_abs() < 10u128.pow(QUOTIENT_DIGITS.unsigned_abs() - 1);
        while dividend % divisor != 0 && (exponent > -QUOTIENT_DIGITS || is_short(dividend / divisor)) {
            let Some(scaled) = dividend.checked_mul(10) else { break };
            (dividend, exponent) = (scaled, exponent - 1);
        }
        let (quotient, rest) = (dividend / divisor, dividend % divisor);
        let twice = rest.unsigned_abs().saturating_mul(2);
        let rounds_away = match twice.cmp(&divisor.unsigned_abs()) {
            Ordering::Greater => true,
            Ordering::Equal => quotient % 2 != 0,
            Ordering::Less => false,
        };
        let sign = if (dividend < 0) == (divisor < 0) { 1 } else { -1 };
        let digits = if rounds_away { quotient + sign } else { quotient };
        Ok(Self { digits, exponent }.without_trailing_zeros(0))
    }

    pub(crate) fn remainder(self, other: Self) -> Result<Self, Inexact> {
        let (left, right, exponent) = self.aligned(other).ok_or(Inexact::Overflow)?;
        let digits = left.checked_rem(right).ok_or(Inexact::DivisionByZero)?;
        Ok(Self { digits, exponent })
    }

    /// Removes fractional zeros while there are more than `keep` fractional digits.
    fn without_trailing_zeros(mut self, keep: i32) -> Self {
        while self.exponent < -keep && self.digits % 10 == 0 {
            (self.digits, self.exponent) = (self.digits / 10, self.exponent + 1);
        }
        self
    }

    /// Rounded to a number of fractional digits, half away from zero.
    pub(crate) fn round(self, places: i32) -> Result<Self, Inexact> {
        self.quantize(places, |quotient, rest, power| {
            if rest.unsigned_abs() * 2 >= power.unsigned_abs() { quotient + rest.signum() } else { quotient }
        })
    }

    pub(crate) fn floor(self) -> Result<Self, Inexact> {
        self.quantize(0, |quotient, rest, _| if rest < 0 { quotient - 1 } else { quotient })
    }

    pub(crate) fn ceiling(self) -> Result<Self, Inexact> {
        self.quantize(0, |quotient, rest, _| if rest > 0 { quotient + 1 } else { quotient })
    }

    pub(crate) fn truncate(self) -> Result<Self, Inexact> {
        self.quantize(0, |quotient, _, _| quotient)
    }

    fn quantize(self, places: i32, choose: impl Fn(i128, i128, i128) -> i128) -> Result<Self, Inexact> {
        let places = places.clamp(0, 38);
        if self.exponent >= -places {
            let digits = self.scaled_to(-places).ok_or(Inexact::Overflow)?;
            return Ok(Self { digits, exponent: -places });
        }
        let power = (-places - self.exponent).unsigned_abs();
        // with more than 38 digits to remove, nothing but the sign of the rest is left
        let power = 10i128.checked_pow(power).unwrap_or(i128::MAX);
        Ok(Self { digits: choose(self.digits / power, self.digits % power, power), exponent: -places })
    }

    /// The number as an integer, if it is one and fits.
    pub(crate) fn to_i64(self) -> Option<i64> {
        let whole = self.truncate().ok()?;
        (whole.cmp(&self) == Ordering::Equal).then(|| i64::try_from(whole.digits).ok()).flatten()
    }

    /// The digits of a whole number without exponent.
    pub(crate) fn to_i128(self) -> Option<i128> {
        self.truncate().ok().map(|whole| whole.digits)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.digits == 0
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        if let Some((left, right, _)) = self.aligned(*other) {
            return left.cmp(&right);
        }
        let signs = self.digits.signum().cmp(&other.digits.signum());
        if signs != Ordering::Equal {
            return signs;
        }
        // the number that cannot be scaled has the larger magnitude
        let magnitudes = self.exponent.cmp(&other.exponent);
        if self.digits < 0 { magnitudes.reverse() } else { magnitudes }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.digits < 0 { "-" } else { "" };
        let digits = self.digits.unsigned_abs();
        let digits = u64::try_from(digits).map_or_else(|_| digits.to_string(), |digits| digits.to_string());
        if self.exponent > MAX_ZEROS || self.exponent < -2 * MAX_ZEROS {
            return write!(formatter, "{sign}{digits}e{}", self.exponent);
        }
        match usize::try_from(-self.exponent) {
            Ok(0) => write!(formatter, "{sign}{digits}"),
            Ok(places) if digits.len() > places => {
                let (whole, fraction) = digits.split_at(digits.len() - places);
                write!(formatter, "{sign}{whole}.{fraction}")
            }
            Ok(places) => write!(formatter, "{sign}0.{digits:0>places$}"),
            Err(_) if self.digits == 0 => write!(formatter, "0"),
            Err(_) => write!(formatter, "{sign}{digits}{}", "0".repeat(self.exponent.unsigned_abs() as usize)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn texts_are_parsed_and_written_exactly() {
        for text in ["0", "-1", "12.50", "0.001", "-0.10", "12345678901234567890123456789012345678", "1e60"] {
            assert_eq!(decimal(text).to_string(), text);
        }
        assert_eq!(decimal("1.5e3").to_string(), "1500");
        assert_eq!(decimal("15e-3").to_string(), "0.015");
        for text in ["", "-", ".5", "1.", "1e", "0x1", "abc", "1 ", "1234567890123456789012345678901234567890"] {
            assert!(Decimal::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn short_numbers_are_those_of_the_general_parser() {
        let parts =
            ["", "-", "--", ".", "0", "7", "00", "12", "-0.", ".5", "1.", "0.10", "999999999999999", "x", " ", "e1"];
        for (first, second) in parts.iter().flat_map(|first| parts.map(|second| (first, second))) {
            let text = format!("{first}{second}");
            let form = |number: Option<Decimal>| number.map(|number| (number.digits, number.exponent));
            assert_eq!(form(Decimal::parse(&text)), form(Decimal::parse_any(&text)), "{text}");
        }
    }

    #[test]
    fn numbers_of_all_sizes_are_aligned_exactly() {
        let mut random = 1u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut number = || {
            let digits = i128::from(next(1 << 31)) >> next(31);
            let digits = if next(4) == 0 { digits * 1_000_000_007 } else { digits };
            let digits = if next(2) == 0 { -digits } else { digits };
            Decimal { digits, exponent: next(13) as i32 - 6 }
        };
        for _ in 0..10_000 {
            let (left, right) = (number(), number());
            let whole = |number: Decimal| number.digits * 10i128.pow((number.exponent + 6).unsigned_abs());
            assert_eq!(left.cmp(&right), whole(left).cmp(&whole(right)), "{left:?} {right:?}");
            assert_eq!(whole(left.add(right).unwrap()), whole(left) + whole(right), "{left:?} {right:?}");
        }
    }

    #[test]
    fn arithmetic_is_exact() {
        assert_eq!(decimal("0.1").add(decimal("0.2")).unwrap().to_string(), "0.3");
        assert_eq!(decimal("19.99").multiply(decimal("3")).unwrap().to_string(), "59.97");
        assert_eq!(decimal("7").divide(decimal("2")).unwrap().to_string(), "3.5");
        assert_eq!(decimal("6.00").divide(decimal("3")).unwrap().to_string(), "2");
        assert_eq!(decimal("1").divide(decimal("3")).unwrap().to_string(), "0.33333333333333333333");
        assert_eq!(decimal("-2").divide(decimal("3")).unwrap().to_string(), "-0.66666666666666666667");
        assert_eq!(decimal("1e-30").divide(decimal("3")).unwrap(), decimal("3.3333333333333333333e-31"));
        assert_eq!(decimal("7.5").remainder(decimal("2")).unwrap().to_string(), "1.5");
        assert_eq!(decimal("1").divide(decimal("0")), Err(Inexact::DivisionByZero));
        assert_eq!(decimal("1").remainder(decimal("0")), Err(Inexact::DivisionByZero));
        assert_eq!(decimal("1e38").add(decimal("1")).unwrap().to_string(), "100000000000000000000000000000000000001");
        assert_eq!(decimal("1e39").add(decimal("1")), Err(Inexact::Overflow));
        assert_eq!(decimal("1e30").multiply(decimal("1.5e20")).unwrap(), decimal("1.5e50"));
    }

    #[test]
    fn order_ignores_the_form_and_never_overflows() {
        assert_eq!(decimal("1.0"), decimal("1"));
        assert!(decimal("9007199254740993") > decimal("9007199254740992"));
        assert!(decimal("1e400") > decimal("99999999999999999999999999999999999999"));
        assert!(decimal("-1e400") < decimal("1e-400") && decimal("1e-400") < decimal("1"));
        assert!(decimal("0") > decimal("-1e400") && decimal("0e5") == decimal("0"));
    }

    #[test]
    fn rounding_follows_the_sign() {
        let rounded = |text: &str, places| decimal(text).round(places).unwrap().to_string();
        assert_eq!((rounded("2.345", 2), rounded("-2.345", 2)), ("2.35".to_owned(), "-2.35".to_owned()));
        assert_eq!((rounded("2", 2), rounded("0.4", 0)), ("2.00".to_owned(), "0".to_owned()));
        assert_eq!(decimal("-1.5").floor().unwrap().to_string(), "-2");
        assert_eq!(decimal("1.2").ceiling().unwrap().to_string(), "2");
        assert_eq!(decimal("-1.9").truncate().unwrap().to_string(), "-1");
        assert_eq!((decimal("5.0").to_i64(), decimal("5.5").to_i64()), (Some(5), None));
        assert_eq!(decimal("1e-60").ceiling().unwrap().to_string(), "1");
    }
}
