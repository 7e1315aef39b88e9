//! Checks the outline of a request before it is decoded.
//!
//! The decoder allocates for the element count that an array claims, before it has read an element:
//! twelve bytes could allocate a hundred gigabytes. So every request is first walked along the
//! outline of its API ([`schemas`]), which allocates nothing. A request that claims more bytes than
//! it has, or has more elements than any client needs, is refused.

mod schemas;

use kafka_protocol::messages::ApiKey;
use thiserror::Error;

/// Limit on the elements of all arrays of a request. A decoded element takes up to about 200 bytes.
const MAX_ELEMENTS: usize = 200_000;
/// Limit on the tagged fields of a request.
const MAX_TAGS: usize = 1000;

/// The encoding of a field.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A fixed number of bytes.
    Fixed(usize),
    /// A string, possibly null.
    Text,
    /// Bytes, possibly null.
    Bytes,
    /// An array of structures, possibly null.
    Array(&'static [Field]),
    /// An array of single values, possibly null.
    List(&'static Kind),
}

/// A field, with the versions that have it.
#[derive(Debug, Clone, Copy)]
struct Field {
    kind: Kind,
    since: i16,
    until: i16,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum OutlineError {
    #[error("the request is shorter than it claims to be")]
    TooShort,
    #[error("the request has too many elements")]
    TooManyElements,
    #[error("a length in the request is negative or too large")]
    BadLength,
}

/// Walks a request, including its header.
pub(crate) fn check(frame: &[u8], key: ApiKey, version: i16, header_version: i16) -> Result<(), OutlineError> {
    let Some((flexible_since, fields)) = schemas::find(key) else { return Ok(()) };
    let mut walk = Walk { rest: frame, elements: 0, tags: 0, is_flexible: false };
    walk.skip(8)?; // API, version, correlation id
    if header_version >= 1 {
        // The client id has the old encoding in every header version.
        walk.text()?;
    }
    if header_version >= 2 {
        walk.tagged_fields()?;
    }
    walk.is_flexible = version >= flexible_since;
    // Trailing bytes are ignored, as Kafka does: librdkafka's request for all topics has some.
    walk.structure(fields, version)
}

struct Walk<'request> {
    rest: &'request [u8],
    elements: usize,
    tags: usize,
    is_flexible: bool,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field], version: i16) -> Result<(), OutlineError> {
        for field in fields.iter().filter(|field| (field.since..=field.until).contains(&version)) {
            self.value(field.kind, version)?;
        }
        if self.is_flexible { self.tagged_fields() } else { Ok(()) }
    }

    fn value(&mut self, kind: Kind, version: i16) -> Result<(), OutlineError> {
        match kind {
            Kind::Fixed(length) => self.skip(length),
            Kind::Text => self.text(),
            Kind::Bytes => {
                let length = self.length()?;
                self.skip(length)
            }
            Kind::Array(fields) => {
                for _ in 0..self.count()? {
                    self.structure(fields, version)?;
                }
                Ok(())
            }
            Kind::List(kind) => {
                for _ in 0..self.count()? {
                    self.value(*kind, version)?;
                }
                Ok(())
            }
        }
    }

    fn skip(&mut self, length: usize) -> Result<(), OutlineError> {
        self.rest = self.rest.get(length..).ok_or(OutlineError::TooShort)?;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], OutlineError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(OutlineError::TooShort)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn text(&mut self) -> Result<(), OutlineError> {
        let length = if self.is_flexible {
            self.compact_length()?
        } else {
            match i16::from_be_bytes(self.take()?) {
                -1 => 0,
                length => usize::try_from(length).map_err(|_| OutlineError::BadLength)?,
            }
        };
        self.skip(length)
    }

    /// The length of bytes or of an array; null has length 0.
    fn length(&mut self) -> Result<usize, OutlineError> {
        if self.is_flexible {
            return self.compact_length();
        }
        match i32::from_be_bytes(self.take()?) {
            -1 => Ok(0),
            length => usize::try_from(length).map_err(|_| OutlineError::BadLength),
        }
    }

    /// Lengths are encoded plus one, so that 0 is null.
    fn compact_length(&mut self) -> Result<usize, OutlineError> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    fn count(&mut self) -> Result<usize, OutlineError> {
        let count = self.length()?;
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ELEMENTS { Err(OutlineError::TooManyElements) } else { Ok(count) }
    }

    fn varint(&mut self) -> Result<u32, OutlineError> {
        let mut value: u32 = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(OutlineError::BadLength)
    }

    fn tagged_fields(&mut self) -> Result<(), OutlineError> {
        let count = self.varint()? as usize;
        self.tags = self.tags.saturating_add(count);
        if self.tags > MAX_TAGS {
            return Err(OutlineError::TooManyElements);
        }
        for _ in 0..count {
            self.varint()?;
            let length = self.varint()? as usize;
            self.skip(length)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::*;
    use kafka_protocol::protocol::{Encodable, Request};
    use uuid::Uuid;

    use super::*;
    use crate::request::supported::SUPPORTED;

    /// A request with a header, as a client sends it.
    fn encode<R: Request>(version: i16, request: &R) -> Vec<u8> {
        let key = ApiKey::try_from(R::KEY).unwrap();
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_client_id(Some("client".to_string().into()));
        let mut buffer = BytesMut::new();
        header.encode(&mut buffer, key.request_header_version(version)).unwrap();
        request.encode(&mut buffer, version).unwrap();
        buffer.to_vec()
    }

    fn check_all<R: Request>(request: impl Fn(i16) -> R) {
        let key = ApiKey::try_from(R::KEY).unwrap();
        let supported = SUPPORTED.iter().find(|supported| supported.key == key).unwrap();
        for version in supported.min..=supported.max {
            let bytes = encode(version, &request(version));
            let header_version = key.request_header_version(version);
            assert_eq!(check(&bytes, key, version, header_version), Ok(()), "{key:?} {version}");
            for cut in 8..bytes.len() {
                assert!(check(&bytes[..cut], key, version, header_version).is_err(), "{key:?} {version} cut at {cut}");
            }
        }
    }

    #[test]
    fn outlines_match_requests_with_nested_arrays() {
        check_all(|version| {
            let partition = produce_request::PartitionProduceData::default().with_records(Some(vec![1u8; 300].into()));
            let topic = produce_request::TopicProduceData::default()
                .with_name(TopicName("t".to_string().into()))
                .with_partition_data(vec![partition.clone(), partition]);
            let _ = version;
            ProduceRequest::default().with_topic_data(vec![topic])
        });
        check_all(|version| {
            let partition = fetch_request::FetchPartition::default();
            let mut topic = fetch_request::FetchTopic::default().with_partitions(vec![partition.clone(), partition]);
            if version < 13 {
                topic.topic = TopicName("t".to_string().into());
            } else {
                topic.topic_id = Uuid::from_u128(7);
            }
            FetchRequest::default().with_topics(vec![topic])
        });
        check_all(|_| {
            let protocol = join_group_request::JoinGroupRequestProtocol::default().with_metadata(vec![0u8; 5].into());
            JoinGroupRequest::default().with_protocols(vec![protocol.clone(), protocol])
        });
        check_all(|version| {
            let topic = offset_fetch_request::OffsetFetchRequestTopic::default().with_partition_indexes(vec![1, 2, 3]);
            let topics = offset_fetch_request::OffsetFetchRequestTopics::default().with_partition_indexes(vec![1, 2]);
            let group = offset_fetch_request::OffsetFetchRequestGroup::default().with_topics(Some(vec![topics]));
            if version < 8 {
                OffsetFetchRequest::default().with_topics(Some(vec![topic]))
            } else {
                OffsetFetchRequest::default().with_groups(vec![group])
            }
        });
        check_all(|_| {
            let partition = txn_offset_commit_request::TxnOffsetCommitRequestPartition::default();
            let topic =
                txn_offset_commit_request::TxnOffsetCommitRequestTopic::default().with_partitions(vec![partition]);
            TxnOffsetCommitRequest::default().with_topics(vec![topic])
        });
        check_all(|_| {
            let config = create_topics_request::CreatableTopicConfig::default();
            let topic = create_topics_request::CreatableTopic::default().with_configs(vec![config.clone(), config]);
            CreateTopicsRequest::default().with_topics(vec![topic])
        });
    }

    #[test]
    fn outlines_match_every_supported_request() {
        check_all(|_| ListOffsetsRequest::default());
        check_all(|_| MetadataRequest::default());
        check_all(|_| OffsetCommitRequest::default());
        check_all(|version| {
            let keys = vec!["key".to_string().into()];
            if version < 4 {
                FindCoordinatorRequest::default()
            } else {
                FindCoordinatorRequest::default().with_coordinator_keys(keys)
            }
        });
        check_all(|_| HeartbeatRequest::default());
        check_all(|_| LeaveGroupRequest::default());
        check_all(|_| SyncGroupRequest::default());
        check_all(|_| DescribeGroupsRequest::default());
        check_all(|_| ListGroupsRequest::default());
        check_all(|_| ApiVersionsRequest::default());
        check_all(|_| DeleteTopicsRequest::default());
        check_all(|_| DeleteRecordsRequest::default());
        check_all(|_| InitProducerIdRequest::default());
        check_all(|_| OffsetForLeaderEpochRequest::default());
        check_all(|_| AddPartitionsToTxnRequest::default());
        check_all(|_| AddOffsetsToTxnRequest::default());
        check_all(|_| EndTxnRequest::default());
        check_all(|_| DescribeConfigsRequest::default());
        check_all(|_| AlterConfigsRequest::default());
        check_all(|_| DescribeLogDirsRequest::default());
        check_all(|_| CreatePartitionsRequest::default());
        check_all(|_| DeleteGroupsRequest::default());
        check_all(|_| IncrementalAlterConfigsRequest::default());
        check_all(|_| OffsetDeleteRequest::default());
        check_all(|_| DescribeClusterRequest::default());
        check_all(|_| {
            let topic = write_txn_markers_request::WritableTxnMarkerTopic::default().with_partition_indexes(vec![1, 2]);
            let marker = write_txn_markers_request::WritableTxnMarker::default().with_topics(vec![topic]);
            WriteTxnMarkersRequest::default().with_markers(vec![marker])
        });
        check_all(|_| SaslHandshakeRequest::default().with_mechanism("PLAIN".to_string().into()));
        check_all(|_| SaslAuthenticateRequest::default().with_auth_bytes(vec![1u8; 20].into()));
        check_all(|_| DescribeProducersRequest::default());
        check_all(|_| DescribeTransactionsRequest::default());
        check_all(|_| ListTransactionsRequest::default());
        check_all(|_| DescribeAclsRequest::default());
        check_all(|_| CreateAclsRequest::default().with_creations(vec![Default::default(); 2]));
        check_all(|_| DeleteAclsRequest::default().with_filters(vec![Default::default(); 2]));
        check_all(|_| ElectLeadersRequest::default().with_topic_partitions(Some(vec![Default::default(); 2])));
        check_all(|_| ListPartitionReassignmentsRequest::default().with_topics(Some(vec![Default::default()])));
        check_all(|_| DescribeClientQuotasRequest::default().with_components(vec![Default::default()]));
        check_all(|_| {
            let topic = describe_quorum_request::TopicData::default().with_partitions(vec![Default::default(); 2]);
            DescribeQuorumRequest::default().with_topics(vec![topic])
        });
        check_all(|version| {
            let types = if version == 0 { Vec::new() } else { vec![2, 4] };
            ListConfigResourcesRequest::default().with_resource_types(types)
        });
        for supported in SUPPORTED {
            assert!(schemas::find(supported.key).is_some(), "{:?} has no outline", supported.key);
        }
    }

    #[test]
    fn false_element_counts_are_refused() {
        let mut bytes = encode(1, &MetadataRequest::default().with_topics(Some(vec![])));
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&i32::MAX.to_be_bytes());
        assert_eq!(check(&bytes, ApiKey::Metadata, 1, 1), Err(OutlineError::TooManyElements));
        bytes[at..].copy_from_slice(&1000i32.to_be_bytes());
        assert_eq!(check(&bytes, ApiKey::Metadata, 1, 1), Err(OutlineError::TooShort));
        bytes[at..].copy_from_slice(&(-2i32).to_be_bytes());
        assert_eq!(check(&bytes, ApiKey::Metadata, 1, 1), Err(OutlineError::BadLength));
    }
}
