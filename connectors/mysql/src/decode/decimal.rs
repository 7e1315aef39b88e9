//! MySQL's packed DECIMAL: groups of nine digits in four bytes, big endian. The first bit is
//! inverted, so that the bytes sort as the numbers do; a negative number has all bits inverted.

use super::{Malformed, big};

const DIGITS_OF_GROUP: usize = 9;
/// Bytes of a group, by its number of digits.
const BYTES: [usize; DIGITS_OF_GROUP + 1] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// Bytes of a packed decimal.
pub(crate) fn packed_bytes(precision: u8, scale: u8) -> usize {
    let half = |digits: usize| digits / DIGITS_OF_GROUP * 4 + BYTES[digits % DIGITS_OF_GROUP];
    half(usize::from(precision.saturating_sub(scale))) + half(usize::from(scale))
}

/// Appends the digits of a packed decimal, without leading zeros.
pub(crate) fn write_decimal(out: &mut Vec<u8>, packed: &[u8], precision: u8, scale: u8) -> Result<(), Malformed> {
    // Enough for the maximum precision of 65, with any scale.
    let mut bytes = [0u8; 34];
    let length = packed_bytes(precision, scale);
    if scale > precision || length > bytes.len() || packed.len() < length || length == 0 {
        return Err(Malformed(format!("no DECIMAL({precision},{scale}) in {} bytes", packed.len())));
    }
    let bytes = &mut bytes[..length];
    bytes.copy_from_slice(&packed[..length]);
    let negative = bytes[0] & 0x80 == 0;
    bytes[0] ^= 0x80;
    if negative {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        out.push(b'-');
    }
    let whole = usize::from(precision - scale);
    let fraction = usize::from(scale);
    let mut rest: &[u8] = bytes;
    let mut group = |digits: usize| {
        let (now, later) = rest.split_at(BYTES[digits]);
        rest = later;
        big(now)
    };
    let put = |out: &mut Vec<u8>, number: u64, digits: usize| {
        let mut buffer = itoa::Buffer::new();
        let text = buffer.format(number);
        // A group exceeds its number of digits only in malformed bytes.
        out.extend_from_slice(&b"000000000"[..digits.saturating_sub(text.len())]);
        out.extend_from_slice(text.as_bytes());
    };
    let first = (whole % DIGITS_OF_GROUP > 0).then_some(whole % DIGITS_OF_GROUP);
    let groups = first.into_iter().chain(std::iter::repeat_n(DIGITS_OF_GROUP, whole / DIGITS_OF_GROUP));
    let mut is_leading = true;
    for digits in groups {
        let number = group(digits);
        if !is_leading {
            put(out, number, DIGITS_OF_GROUP);
        } else if number > 0 {
            put(out, number, 0);
            is_leading = false;
        }
    }
    if is_leading {
        out.push(b'0');
    }
    if fraction > 0 {
        out.push(b'.');
        for _ in 0..fraction / DIGITS_OF_GROUP {
            put(out, group(DIGITS_OF_GROUP), DIGITS_OF_GROUP);
        }
        if fraction % DIGITS_OF_GROUP > 0 {
            put(out, group(fraction % DIGITS_OF_GROUP), fraction % DIGITS_OF_GROUP);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(packed: &[u8], precision: u8, scale: u8) -> String {
        let mut out = Vec::new();
        write_decimal(&mut out, packed, precision, scale).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Encodes as the manual describes, digit by digit.
    fn pack(digits: &str, negative: bool, precision: u8, scale: u8) -> Vec<u8> {
        let (whole, fraction) = digits.split_at(usize::from(precision - scale));
        let mut packed = Vec::new();
        let mut add = |group: &str| {
            let number: u32 = group.parse().unwrap_or(0);
            packed.extend_from_slice(&number.to_be_bytes()[4 - BYTES[group.len()]..]);
        };
        let (first, groups) = whole.split_at(whole.len() % 9);
        add(first);
        groups.as_bytes().chunks(9).for_each(|group| add(std::str::from_utf8(group).unwrap()));
        fraction.as_bytes().chunks(9).for_each(|group| add(std::str::from_utf8(group).unwrap()));
        if negative {
            packed.iter_mut().for_each(|byte| *byte = !*byte);
        }
        packed[0] ^= 0x80;
        packed
    }

    #[test]
    fn the_manuals_example() {
        assert_eq!(text(&[0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2], 14, 4), "1234567890.1234");
        assert_eq!(text(&[0x7e, 0xf2, 0x04, 0xc7, 0x2d, 0xfb, 0x2d], 14, 4), "-1234567890.1234");
    }

    proptest! {
        #[test]
        fn every_decimal_comes_back(precision in 1u8..=65, scale in 0u8..=30, seed in "[0-9]{65}", negative: bool) {
            let scale = scale.min(precision);
            let digits = &seed[..usize::from(precision)];
            let negative = negative && digits.contains(|digit| digit != '0');
            let (whole, fraction) = digits.split_at(usize::from(precision - scale));
            let whole = whole.trim_start_matches('0');
            let sign = if negative { "-" } else { "" };
            let whole = if whole.is_empty() { "0" } else { whole };
            let point = if scale > 0 { "." } else { "" };
            prop_assert_eq!(text(&pack(digits, negative, precision, scale), precision, scale), format!("{sign}{whole}{point}{fraction}"));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..40), precision: u8, scale: u8) {
            let _ = write_decimal(&mut Vec::new(), &bytes, precision, scale);
        }
    }
}
