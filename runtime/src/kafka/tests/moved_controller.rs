//! Admin calls when the controller of a cluster has moved: a node that answers `ApiVersions` and
//! `Metadata`, and names another node, which is down, as the controller at first.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::*;

const NODE: i32 = 1;
const DOWN: i32 = 2;

/// The number of `Metadata` replies that name the node that is down. The client's first reply is
/// among them.
const OUTDATED_REPLIES: u32 = 1;

struct Node {
    address: SocketAddr,
    down: SocketAddr,
    metadata_replies: AtomicU32,
}

impl Node {
    fn start() -> Arc<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Nothing listens on this port once the listener is dropped.
        let down = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let node =
            Arc::new(Self { address: listener.local_addr().unwrap(), down, metadata_replies: AtomicU32::new(0) });
        let shared = Arc::clone(&node);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let node = Arc::clone(&shared);
                // An error is the end of the client's connection.
                std::thread::spawn(move || node.serve(client));
            }
        });
        node
    }

    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            client.read_exact(&mut length)?;
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            client.read_exact(&mut frame)?;
            let reply = self.answer(&frame);
            client.write_all(&u32::try_from(reply.len()).unwrap().to_be_bytes())?;
            client.write_all(&reply)?;
        }
    }

    fn answer(&self, mut frame: &[u8]) -> Vec<u8> {
        let api = ApiKey::try_from(i16::from_be_bytes([frame[0], frame[1]])).unwrap();
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let header = RequestHeader::decode(&mut frame, api.request_header_version(version)).unwrap();
        let mut reply = Vec::new();
        ResponseHeader::default()
            .with_correlation_id(header.correlation_id)
            .encode(&mut reply, api.response_header_version(version))
            .unwrap();
        match api {
            ApiKey::ApiVersions => {
                let supported = |api: ApiKey, min, max| {
                    ApiVersion::default().with_api_key(api as i16).with_min_version(min).with_max_version(max)
                };
                let apis = vec![supported(ApiKey::ApiVersions, 0, 3), supported(ApiKey::Metadata, 0, 12)];
                ApiVersionsResponse::default().with_api_keys(apis).encode(&mut reply, version).unwrap();
            }
            ApiKey::Metadata => {
                let request = MetadataRequest::decode(&mut frame, version).unwrap();
                self.metadata(&request).encode(&mut reply, version).unwrap();
            }
            other => panic!("unexpected request {other:?}"),
        }
        reply
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let broker = |id: i32, address: SocketAddr| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_string(address.ip().to_string()))
                .with_port(i32::from(address.port()))
        };
        let partition = MetadataResponsePartition::default()
            .with_leader_id(BrokerId(NODE))
            .with_replica_nodes(vec![BrokerId(NODE)])
            .with_isr_nodes(vec![BrokerId(NODE)]);
        let requested = request.topics.iter().flatten();
        let topics = requested
            .map(|topic| {
                MetadataResponseTopic::default().with_name(topic.name.clone()).with_partitions(vec![partition.clone()])
            })
            .collect();
        let is_outdated = self.metadata_replies.fetch_add(1, Ordering::Relaxed) < OUTDATED_REPLIES;
        MetadataResponse::default()
            .with_brokers(vec![broker(NODE, self.address), broker(DOWN, self.down)])
            .with_controller_id(BrokerId(if is_outdated { DOWN } else { NODE }))
            .with_topics(topics)
    }
}

#[test]
fn an_admin_call_finds_a_controller_that_moved() {
    let node = Node::start();
    let cluster = Cluster::new(&node.address.to_string(), &BTreeMap::new()).unwrap();
    let begun = Instant::now();
    assert_eq!(Admin::new(&cluster).unwrap().partitions("a").unwrap(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
