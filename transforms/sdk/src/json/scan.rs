//! Searches JSON text 16 bytes at a time, where the target has vector instructions. Most searches
//! are for the end of a short string, for which the start of a general search costs more than the
//! search.

/// The position of the first `"` or `\` from `from` on, which is at most the length of the text.
#[inline(always)]
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) fn quote_or_escape(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let found = vector::either(block, b'"', b'\\');
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize);
        }
        at += vector::BYTES;
    }
    match text.last_chunk() {
        // a block that ends with the text: the bytes before `at` are shifted out
        Some(block) => {
            let found = vector::either(block, b'"', b'\\') >> (at + vector::BYTES - text.len());
            (found != 0).then(|| at + found.trailing_zeros() as usize)
        }
        None => text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\')).map(|found| at + found),
    }
}

/// The position of the first `"` or `\` from `from` on, which is at most the length of the text.
#[cfg(not(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128"))))]
pub(super) fn quote_or_escape(text: &[u8], from: usize) -> Option<usize> {
    memchr::memchr2(b'"', b'\\', text.get(from..)?).map(|found| from + found)
}

/// Whether `key` with quotes around it is somewhere in the text.
#[cfg(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128")))]
pub(super) fn has_quoted(text: &[u8], key: &[u8]) -> bool {
    let second = key.first().copied().unwrap_or(b'"');
    let matches = |at: usize| {
        let quoted = text.get(at + 1..).and_then(|rest| rest.strip_prefix(key));
        quoted.is_some_and(|rest| rest.first() == Some(&b'"'))
    };
    let any_of = |mut found: u32, at: usize| {
        while found != 0 {
            if matches(at + found.trailing_zeros() as usize) {
                return true;
            }
            found &= found - 1;
        }
        false
    };
    let pairs = |at: usize| {
        let first = text.get(at..)?.first_chunk()?;
        Some(vector::both(first, text.get(at + 1..)?.first_chunk()?, b'"', second))
    };
    let mut at = 0;
    while let Some(found) = pairs(at) {
        if any_of(found, at) {
            return true;
        }
        at += vector::BYTES;
    }
    match text.len().checked_sub(vector::BYTES + 1) {
        // it may repeat some of the last positions
        Some(last) => pairs(last).is_some_and(|found| any_of(found, last)),
        None => (at..text.len()).any(|at| text[at] == b'"' && matches(at)),
    }
}

/// Whether `key` with quotes around it is somewhere in the text.
#[cfg(not(any(target_arch = "x86_64", all(target_arch = "wasm32", target_feature = "simd128"))))]
pub(super) fn has_quoted(text: &[u8], key: &[u8]) -> bool {
    memchr::memchr_iter(b'"', text).any(|at| {
        let quoted = text.get(at + 1..).and_then(|rest| rest.strip_prefix(key));
        quoted.is_some_and(|rest| rest.first() == Some(&b'"'))
    })
}

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod vector {
    use std::arch::wasm32::{u8x16_bitmask, u8x16_eq, u8x16_splat, v128, v128_and, v128_load, v128_or};

    pub(super) const BYTES: usize = 16;

    /// A bit for each byte that is `a` or `b`; the first byte has the lowest bit.
    #[inline]
    pub(super) fn either(block: &[u8; BYTES], a: u8, b: u8) -> u32 {
        let bytes = load(block);
        u8x16_bitmask(v128_or(u8x16_eq(bytes, u8x16_splat(a)), u8x16_eq(bytes, u8x16_splat(b)))).into()
    }

    /// A bit for each position with `a` in the first block and `b` in the second one.
    #[inline]
    pub(super) fn both(first: &[u8; BYTES], second: &[u8; BYTES], a: u8, b: u8) -> u32 {
        u8x16_bitmask(v128_and(u8x16_eq(load(first), u8x16_splat(a)), u8x16_eq(load(second), u8x16_splat(b)))).into()
    }

    #[inline]
    fn load(block: &[u8; BYTES]) -> v128 {
        // SAFETY: the block has 16 bytes; the load needs no alignment.
        unsafe { v128_load(block.as_ptr().cast()) }
    }
}

/// For the tests of plugins: the same code as in a plugin, but for the instructions.
#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::{
        _mm_and_si128, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };

    pub(super) const BYTES: usize = 16;

    #[inline]
    pub(super) fn either(block: &[u8; BYTES], a: u8, b: u8) -> u32 {
        // SAFETY: all processors of x86_64 have SSE2; the block has 16 bytes, and needs no
        // alignment.
        unsafe {
            let bytes = _mm_loadu_si128(block.as_ptr().cast());
            let is_a = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(a.cast_signed()));
            let is_b = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b.cast_signed()));
            _mm_movemask_epi8(_mm_or_si128(is_a, is_b)).cast_unsigned()
        }
    }

    #[inline]
    pub(super) fn both(first: &[u8; BYTES], second: &[u8; BYTES], a: u8, b: u8) -> u32 {
        // SAFETY: as in `either`.
        unsafe {
            let is_a = _mm_cmpeq_epi8(_mm_loadu_si128(first.as_ptr().cast()), _mm_set1_epi8(a.cast_signed()));
            let is_b = _mm_cmpeq_epi8(_mm_loadu_si128(second.as_ptr().cast()), _mm_set1_epi8(b.cast_signed()));
            _mm_movemask_epi8(_mm_and_si128(is_a, is_b)).cast_unsigned()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts of few different bytes, around the length of one and two blocks.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![8 => Just(b'x'), 1 => Just(b'"'), 1 => Just(b'\\'), 1 => Just(b'o')],
            0..40,
        )
    }

    proptest! {
        #[test]
        fn searches_agree_with_the_obvious_ones(text in text(), from: prop::sample::Index, key in "[ox]{0,3}") {
            let from = from.index(text.len() + 1);
            let expected = text[from..].iter().position(|byte| matches!(byte, b'"' | b'\\')).map(|at| from + at);
            prop_assert_eq!(quote_or_escape(&text, from), expected);
            let quoted = format!("\"{key}\"");
            let expected = text.windows(quoted.len()).any(|window| window == quoted.as_bytes());
            prop_assert_eq!(has_quoted(&text, key.as_bytes()), expected);
        }
    }
}
