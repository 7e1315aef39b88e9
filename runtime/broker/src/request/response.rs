//! Responses: encoded messages, and for fetches ranges of log files between them.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::ResponseHeader;
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request};

use super::Close;
use crate::log::Slice;

/// A part of a response.
#[derive(Debug)]
pub(crate) enum Part {
    Bytes(Bytes),
    File(Slice),
}

/// A response without its length prefix.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) parts: Vec<Part>,
}

impl Response {
    /// Length of all parts in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Bytes(bytes) => bytes.len() as u64,
                Part::File(slice) => slice.length,
            })
            .sum()
    }
}

/// The correlation id and the version of a response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope {
    pub(crate) correlation_id: i32,
    pub(crate) version: i16,
}

impl Envelope {
    /// Encodes the response header of an API.
    pub(crate) fn header<R: Request>(self, buffer: &mut BytesMut) -> Result<(), Close> {
        let header = ResponseHeader::default().with_correlation_id(self.correlation_id);
        let version = <R::Response as HeaderVersion>::header_version(self.version);
        header.encode(buffer, version).map_err(Close::bug)
    }

    /// Encodes a response.
    pub(crate) fn answer<R: Request>(self, response: &R::Response) -> Result<Response, Close> {
        let size = response.compute_size(self.version).map_err(Close::bug)?;
        let mut buffer = BytesMut::with_capacity(size + 16);
        self.header::<R>(&mut buffer)?;
        response.encode(&mut buffer, self.version).map_err(Close::bug)?;
        Ok(Response { parts: vec![Part::Bytes(buffer.freeze())] })
    }
}
