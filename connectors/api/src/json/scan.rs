//! Searches text for the bytes that a JSON string must escape, 16 bytes at a time where the target
//! has vector instructions. Each string of each record passes this search, when it is written and
//! when it is read.

/// A block of bytes that is searched at once.
const BLOCK: usize = 16;

/// The number of bytes before the first quote, backslash or control character: all that a JSON
/// string holds as it is.
#[inline]
pub fn plain_len(bytes: &[u8]) -> usize {
    search::<false>(bytes)
}

/// Whether the text is ASCII without quotes, backslashes and control characters: it is valid UTF-8,
/// and a JSON string holds it as it is.
#[inline]
pub(super) fn is_plain_ascii(bytes: &[u8]) -> bool {
    search::<true>(bytes) == bytes.len()
}

/// The number of bytes before the first one that must be escaped, or, with `ASCII`, that is not
/// ASCII.
#[inline]
fn search<const ASCII: bool>(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let found = marked::<ASCII>(block);
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    match bytes.last_chunk() {
        // A block that ends with the text: the bytes before `at` are shifted out.
        Some(block) => {
            let found = marked::<ASCII>(block) >> (at + BLOCK - bytes.len());
            if found == 0 { bytes.len() } else { at + found.trailing_zeros() as usize }
        }
        None => short::<ASCII>(bytes),
    }
}

/// As [`search`], for less than a block.
#[inline]
fn short<const ASCII: bool>(bytes: &[u8]) -> usize {
    // Two words that cover the text. They overlap, so the second finds only what the first has not.
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        let found = marked_of_word::<ASCII>(u64::from_le_bytes(*first));
        if found != 0 {
            return found.trailing_zeros() as usize / 8;
        }
        let found = marked_of_word::<ASCII>(u64::from_le_bytes(*last));
        return bytes.len() - 8 + if found == 0 { 8 } else { found.trailing_zeros() as usize / 8 };
    }
    let is_marked = |byte: &u8| *byte < b' ' || matches!(byte, b'"' | b'\\') || ASCII && !byte.is_ascii();
    bytes.iter().position(is_marked).unwrap_or(bytes.len())
}

/// The highest bit of the first byte of the word, in little-endian order, that is searched for.
/// Bytes above it may be wrong.
#[inline]
fn marked_of_word<const ASCII: bool>(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let found = below(word, b' ') | equal(b'"') | equal(b'\\');
    (if ASCII { found | word } else { found }) & (ONES << 7)
}

/// A bit for each byte of the block that is searched for; the first byte has the lowest bit.
#[cfg(target_arch = "x86_64")]
#[inline]
fn marked<const ASCII: bool>(block: &[u8; BLOCK]) -> u32 {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: all processors of x86_64 have SSE2; the block has 16 bytes, and needs no alignment.
    unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast());
        let control = match ASCII {
            // As signed numbers, bytes that are not ASCII are below the space, too.
            true => _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20)),
            false => _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes),
        };
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"'.cast_signed()));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\'.cast_signed()));
        _mm_movemask_epi8(_mm_or_si128(control, _mm_or_si128(quote, backslash))).cast_unsigned()
    }
}

/// A bit for each byte of the block that is searched for; the first byte has the lowest bit. Bits
/// above the lowest one may be wrong.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn marked<const ASCII: bool>(block: &[u8; BLOCK]) -> u32 {
    let bits = |word: &[u8; 8]| {
        let found = marked_of_word::<ASCII>(u64::from_le_bytes(*word));
        if found == 0 { 0 } else { 1 << (found.trailing_zeros() / 8) }
    };
    let (words, _) = block.as_chunks::<8>();
    bits(&words[0]) | bits(&words[1]) << 8
}
