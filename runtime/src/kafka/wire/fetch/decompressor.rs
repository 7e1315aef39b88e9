//! Decompresses record batches, each into one buffer that is used again. What a broker sends is
//! not trusted: the decompressed size is limited.

use std::io::{self, Read};

use lz4::liblz4::{
    LZ4F_VERSION, LZ4F_createDecompressionContext, LZ4F_decompress, LZ4F_freeDecompressionContext,
    LZ4F_resetDecompressionContext, LZ4FDecompressionContext, check_error,
};
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation as _};

/// A batch is at most this large when decompressed. Trunkline's own producers send records of up to
/// half of that.
const MAX_BYTES: usize = 128 << 20;

/// A buffer of this size is kept for the next batch.
const KEPT_BYTES: usize = 4 << 20;

/// A buffer has at least this size.
const MIN_BYTES: usize = 64 << 10;

/// Records compress to about this part of their size.
const GUESSED_RATIO: usize = 6;

/// Codecs and a buffer, for one batch after the other.
#[derive(Default)]
pub(in crate::kafka::wire) struct Decompressor {
    spare: Vec<u8>,
    lz4: Option<Lz4>,
    zstd: Option<ZstdDecoder<'static>>,
}

impl Decompressor {
    /// Decompresses the records of a batch. `codec` is the number in the batch's attributes. The
    /// result is larger than the records: the second part is their size.
    pub(in crate::kafka::wire) fn decompress(&mut self, codec: i16, body: &[u8]) -> io::Result<(Vec<u8>, usize)> {
        let mut out = Output { bytes: std::mem::take(&mut self.spare), filled: 0 };
        let guess = body.len().saturating_mul(GUESSED_RATIO).clamp(MIN_BYTES, KEPT_BYTES);
        if out.bytes.len() < guess {
            out.bytes.resize(guess, 0);
        }
        match codec {
            1 => out.read_from(flate2::bufread::MultiGzDecoder::new(body))?,
            2 => unpack_snappy(body, &mut out)?,
            3 => {
                let lz4 = match &mut self.lz4 {
                    Some(lz4) => lz4,
                    None => self.lz4.insert(Lz4::new()?),
                };
                lz4.decompress(body, &mut out)?;
            }
            4 => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    None => self.zstd.insert(ZstdDecoder::new()?),
                };
                unpack_zstd(zstd, body, &mut out)?;
            }
            codec => return Err(io::Error::other(format!("unknown codec {codec}"))),
        }
        Ok((out.bytes, out.filled))
    }

    /// Takes a buffer back.
    pub(in crate::kafka::wire) fn recycle(&mut self, buffer: Vec<u8>) {
        if buffer.len() > self.spare.len() && buffer.len() <= KEPT_BYTES {
            self.spare = buffer;
        }
    }

    /// Releases the memory.
    pub(in crate::kafka::wire) fn release(&mut self) {
        *self = Self::default();
    }
}

/// The buffer and how much of it is filled. All of its bytes are initialised.
struct Output {
    bytes: Vec<u8>,
    filled: usize,
}

impl Output {
    /// The free part, which is not empty.
    fn free(&mut self) -> io::Result<&mut [u8]> {
        self.reserve(1)?;
        Ok(&mut self.bytes[self.filled..])
    }

    /// Makes room for at least this many more bytes.
    fn reserve(&mut self, more: usize) -> io::Result<()> {
        let needed = self.filled.saturating_add(more);
        if needed > MAX_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes when decompressed")));
        }
        if needed > self.bytes.len() {
            self.bytes.resize(needed.max(2 * self.bytes.len()).min(MAX_BYTES), 0);
        }
        Ok(())
    }

    fn read_from(&mut self, mut reader: impl Read) -> io::Result<()> {
        loop {
            // Full and at the limit: only the end of the stream is left.
            if self.filled == MAX_BYTES {
                return if reader.read(&mut [0])? == 0 { Ok(()) } else { self.reserve(1) };
            }
            match reader.read(self.free()?) {
                Ok(0) => return Ok(()),
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Java clients write Snappy in blocks after a header, others write one raw block.
fn unpack_snappy(body: &[u8], out: &mut Output) -> io::Result<()> {
    const JAVA_MAGIC: &[u8] = b"\x82SNAPPY\0";
    const JAVA_HEADER: usize = 16;
    let block = |block: &[u8], out: &mut Output| {
        let size = snap::raw::decompress_len(block)?;
        out.reserve(size)?;
        let end = out.filled + size;
        out.filled += snap::raw::Decoder::new().decompress(block, &mut out.bytes[out.filled..end])?;
        Ok(())
    };
    if !body.starts_with(JAVA_MAGIC) {
        return block(body, out);
    }
    let mut rest = body.get(JAVA_HEADER..).ok_or(io::ErrorKind::UnexpectedEof)?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (compressed, after) = after.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        block(compressed, out)?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn unpack_zstd(decoder: &mut ZstdDecoder<'static>, body: &[u8], out: &mut Output) -> io::Result<()> {
    decoder.reinit()?;
    let mut rest = body;
    loop {
        let status = decoder.run_on_buffers(rest, out.free()?)?;
        rest = &rest[status.bytes_read..];
        out.filled += status.bytes_written;
        if status.remaining == 0 {
            if rest.is_empty() {
                return Ok(());
            }
            decoder.reinit()?;
        } else if status.bytes_read == 0 && status.bytes_written == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A context of the LZ4 library. Its safe reader copies every block once more.
struct Lz4(LZ4FDecompressionContext);

// SAFETY: the library binds a context to no thread.
unsafe impl Send for Lz4 {}

impl Lz4 {
    fn new() -> io::Result<Self> {
        let mut context = LZ4FDecompressionContext(std::ptr::null_mut());
        // SAFETY: the library writes the pointer, or reports an error.
        check_error(unsafe { LZ4F_createDecompressionContext(&mut context, LZ4F_VERSION) })?;
        Ok(Self(context))
    }

    fn decompress(&mut self, body: &[u8], out: &mut Output) -> io::Result<()> {
        // SAFETY: the context is valid until `drop`.
        unsafe { LZ4F_resetDecompressionContext(self.0) };
        let mut rest = body;
        loop {
            let free = out.free()?;
            let (mut written, mut read) = (free.len(), rest.len());
            // SAFETY: the slices have the lengths that are passed. The library replaces these by
            // the numbers of bytes that it wrote and read.
            let hint = unsafe {
                LZ4F_decompress(self.0, free.as_mut_ptr(), &mut written, rest.as_ptr(), &mut read, std::ptr::null())
            };
            let hint = check_error(hint)?;
            rest = &rest[read..];
            out.filled += written;
            if hint == 0 && rest.is_empty() {
                return Ok(());
            }
            if hint != 0 && read == 0 && written == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Drop for Lz4 {
    fn drop(&mut self) {
        // SAFETY: the context is valid, and not used again.
        unsafe { LZ4F_freeDecompressionContext(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    pub(in crate::kafka::wire) fn compress(codec: i16, bytes: &[u8]) -> Vec<u8> {
        match codec {
            1 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            2 => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
            3 => {
                let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().0
            }
            _ => zstd::stream::encode_all(bytes, 0).unwrap(),
        }
    }

    fn unpacked(decompressor: &mut Decompressor, codec: i16, body: &[u8]) -> io::Result<Vec<u8>> {
        let (mut buffer, filled) = decompressor.decompress(codec, body)?;
        let bytes = buffer[..filled].to_vec();
        buffer.fill(0xee);
        decompressor.recycle(buffer);
        Ok(bytes)
    }

    #[test]
    fn every_codec_comes_back_as_written() {
        let mut decompressor = Decompressor::default();
        let pattern: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
        for size in [0, 1, 100, 64 << 10, 1 << 20, pattern.len()] {
            for codec in 1..=4 {
                let bytes = &pattern[..size];
                let packed = compress(codec, bytes);
                assert!(unpacked(&mut decompressor, codec, &packed).unwrap() == bytes, "codec {codec}, {size} bytes");
                // Nothing of it is left for the next batch.
                if size > 0 {
                    assert!(unpacked(&mut decompressor, codec, &packed[..packed.len() - 1]).is_err(), "codec {codec}");
                    let again = unpacked(&mut decompressor, codec, &packed).unwrap();
                    assert!(again == bytes, "codec {codec} after a failure");
                }
            }
        }
        assert!(decompressor.spare.len() <= KEPT_BYTES);
        assert!(decompressor.decompress(5, b"").is_err());
    }

    #[test]
    fn the_blocks_of_java_clients_are_read() {
        let block = |bytes: &[u8]| {
            let packed = compress(2, bytes);
            [&(packed.len() as u32).to_be_bytes()[..], &packed].concat()
        };
        let mut packed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
        packed.extend(block(b"abc"));
        packed.extend(block(&[b'x'; 100_000]));
        let mut decompressor = Decompressor::default();
        let bytes = unpacked(&mut decompressor, 2, &packed).unwrap();
        assert!(bytes.starts_with(b"abcx") && bytes.len() == 100_003);
        for length in [15, 18, 30, packed.len() - 1] {
            assert!(unpacked(&mut decompressor, 2, &packed[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn what_is_too_large_when_decompressed_is_refused() {
        let mut decompressor = Decompressor::default();
        let large = vec![0; MAX_BYTES + 1];
        for codec in 1..=4 {
            let error = decompressor.decompress(codec, &compress(codec, &large)).unwrap_err();
            assert!(error.to_string().contains("when decompressed"), "codec {codec}: {error}");
            let fits = unpacked(&mut decompressor, codec, &compress(codec, &large[..MAX_BYTES])).unwrap();
            assert!(fits.len() == MAX_BYTES, "codec {codec}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut decompressor = Decompressor::default();
        let mut state = 1_u64;
        for round in 0..2_000_usize {
            let codec = (round % 4) as i16 + 1;
            let mut packed = compress(codec, &[7; 300]);
            for _ in 0..1 + round % 3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % packed.len();
                packed[at] ^= (state >> 56) as u8;
            }
            let _ = unpacked(&mut decompressor, codec, &packed);
        }
    }
}
