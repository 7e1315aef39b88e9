//! The codecs of record batches. Compressed bytes are not trusted: callers limit what they read.

use std::io::{self, Read};

/// Decompresses every codec but Snappy, which is not a stream.
pub(crate) fn decompressing_reader(codec: i16, body: &[u8]) -> io::Result<Box<dyn Read + '_>> {
    Ok(match codec {
        1 => Box::new(flate2::read::MultiGzDecoder::new(body)),
        3 => Box::new(lz4::Decoder::new(body)?),
        4 => Box::new(zstd::stream::read::Decoder::with_buffer(body)?),
        codec => return Err(io::Error::other(format!("unknown codec {codec}"))),
    })
}

/// Java clients write Snappy in blocks after a header, others write one raw block.
pub(crate) fn decompressed_snappy(body: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    const JAVA_MAGIC: &[u8] = b"\x82SNAPPY\0";
    const JAVA_HEADER: usize = 16;
    let block = |block: &[u8], limit: u64| {
        if snap::raw::decompress_len(block)? as u64 > limit {
            return Err(too_large());
        }
        Ok(snap::raw::Decoder::new().decompress_vec(block)?)
    };
    if !body.starts_with(JAVA_MAGIC) {
        return block(body, limit);
    }
    let mut rest = body.get(JAVA_HEADER..).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut decompressed = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let compressed = after.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
        decompressed.extend(block(compressed, limit - decompressed.len() as u64)?);
        rest = &after[length..];
    }
    if rest.is_empty() { Ok(decompressed) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

pub(crate) fn too_large() -> io::Error {
    io::Error::other("the batch is too large when decompressed")
}

/// Compresses records. Snappy is written as one raw block, which every client reads.
pub(crate) fn compress(codec: i16, records: Vec<u8>) -> io::Result<Vec<u8>> {
    use std::io::Write;
    match codec {
        0 => Ok(records),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&records)?;
            encoder.finish()
        }
        2 => Ok(snap::raw::Encoder::new().compress_vec(&records)?),
        3 => {
            let mut encoder = lz4::EncoderBuilder::new().block_mode(lz4::BlockMode::Independent).build(Vec::new())?;
            encoder.write_all(&records)?;
            let (compressed, result) = encoder.finish();
            result.map(|()| compressed)
        }
        4 => zstd::stream::encode_all(&records[..], 0),
        codec => Err(io::Error::other(format!("unknown codec {codec}"))),
    }
}
