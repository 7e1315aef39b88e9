//! Requests that violate the protocol end their connection and affect no other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kafka_protocol::messages::*;
use kafka_protocol::protocol::Request;

use crate::common::{TestBroker, is_foreign, pause};
use crate::raw::{PLAIN, Raw, encode, large_batch, produce};

fn hello() -> ApiVersionsRequest {
    let name = || "raw".to_string().into();
    ApiVersionsRequest::default().with_client_software_name(name()).with_client_software_version(name())
}

fn is_alive(broker: &TestBroker) {
    let response = Raw::connect(&broker.address).call(3, &hello());
    assert_eq!(response.error_code, 0);
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn every_api_answers_in_every_version_it_announces() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let mut raw = Raw::connect(&broker.address);
    let announced = raw.call(3, &hello()).api_keys;
    assert!(announced.len() >= 35);
    let range = |key: ApiKey| {
        let entry = announced.iter().find(|entry| entry.api_key == key as i16).unwrap();
        let min = if key == ApiKey::Produce { 3 } else { entry.min_version };
        min..=entry.max_version
    };
    fn all<R: Request + Default>(raw: &mut Raw, versions: std::ops::RangeInclusive<i16>) {
        for version in versions {
            raw.call(version, &R::default());
        }
    }
    all::<ApiVersionsRequest>(&mut raw, range(ApiKey::ApiVersions));
    all::<MetadataRequest>(&mut raw, range(ApiKey::Metadata));
    all::<ListOffsetsRequest>(&mut raw, range(ApiKey::ListOffsets));
    all::<FetchRequest>(&mut raw, range(ApiKey::Fetch));
    all::<OffsetCommitRequest>(&mut raw, range(ApiKey::OffsetCommit));
    all::<OffsetFetchRequest>(&mut raw, range(ApiKey::OffsetFetch));
    all::<FindCoordinatorRequest>(&mut raw, range(ApiKey::FindCoordinator));
    all::<JoinGroupRequest>(&mut raw, range(ApiKey::JoinGroup));
    all::<HeartbeatRequest>(&mut raw, range(ApiKey::Heartbeat));
    all::<LeaveGroupRequest>(&mut raw, range(ApiKey::LeaveGroup));
    all::<SyncGroupRequest>(&mut raw, range(ApiKey::SyncGroup));
    all::<DescribeGroupsRequest>(&mut raw, range(ApiKey::DescribeGroups));
    all::<ListGroupsRequest>(&mut raw, range(ApiKey::ListGroups));
    all::<CreateTopicsRequest>(&mut raw, range(ApiKey::CreateTopics));
    all::<DeleteTopicsRequest>(&mut raw, range(ApiKey::DeleteTopics));
    all::<DeleteRecordsRequest>(&mut raw, range(ApiKey::DeleteRecords));
    all::<InitProducerIdRequest>(&mut raw, range(ApiKey::InitProducerId));
    all::<OffsetForLeaderEpochRequest>(&mut raw, range(ApiKey::OffsetForLeaderEpoch));
    all::<AddPartitionsToTxnRequest>(&mut raw, range(ApiKey::AddPartitionsToTxn));
    all::<AddOffsetsToTxnRequest>(&mut raw, range(ApiKey::AddOffsetsToTxn));
    all::<EndTxnRequest>(&mut raw, range(ApiKey::EndTxn));
    all::<TxnOffsetCommitRequest>(&mut raw, range(ApiKey::TxnOffsetCommit));
    all::<DescribeConfigsRequest>(&mut raw, range(ApiKey::DescribeConfigs));
    all::<AlterConfigsRequest>(&mut raw, range(ApiKey::AlterConfigs));
    all::<DescribeLogDirsRequest>(&mut raw, range(ApiKey::DescribeLogDirs));
    all::<CreatePartitionsRequest>(&mut raw, range(ApiKey::CreatePartitions));
    all::<DeleteGroupsRequest>(&mut raw, range(ApiKey::DeleteGroups));
    all::<IncrementalAlterConfigsRequest>(&mut raw, range(ApiKey::IncrementalAlterConfigs));
    all::<OffsetDeleteRequest>(&mut raw, range(ApiKey::OffsetDelete));
    all::<DescribeClusterRequest>(&mut raw, range(ApiKey::DescribeCluster));
    all::<WriteTxnMarkersRequest>(&mut raw, range(ApiKey::WriteTxnMarkers));
    all::<DescribeProducersRequest>(&mut raw, range(ApiKey::DescribeProducers));
    all::<DescribeTransactionsRequest>(&mut raw, range(ApiKey::DescribeTransactions));
    all::<ListTransactionsRequest>(&mut raw, range(ApiKey::ListTransactions));
    all::<DescribeAclsRequest>(&mut raw, range(ApiKey::DescribeAcls));
    all::<CreateAclsRequest>(&mut raw, range(ApiKey::CreateAcls));
    all::<DeleteAclsRequest>(&mut raw, range(ApiKey::DeleteAcls));
    all::<ElectLeadersRequest>(&mut raw, range(ApiKey::ElectLeaders));
    all::<ListPartitionReassignmentsRequest>(&mut raw, range(ApiKey::ListPartitionReassignments));
    all::<DescribeClientQuotasRequest>(&mut raw, range(ApiKey::DescribeClientQuotas));
    all::<DescribeQuorumRequest>(&mut raw, range(ApiKey::DescribeQuorum));
    all::<ListConfigResourcesRequest>(&mut raw, range(ApiKey::ListConfigResources));
    for version in range(ApiKey::Produce) {
        raw.call(version, &ProduceRequest::default().with_acks(1));
    }
}

#[test]
fn newer_clients_get_the_supported_versions_and_unknown_apis_no_response() {
    let broker = TestBroker::any();
    let mut raw = Raw::connect(&broker.address);
    let mut request = encode(3, &hello());
    request[6..8].copy_from_slice(&99i16.to_be_bytes());
    raw.stream.write_all(&request).unwrap();
    let answer = raw.read().unwrap();
    assert_eq!(answer[4..6], kafka_protocol::ResponseError::UnsupportedVersion.code().to_be_bytes());
    let mut request = encode(3, &hello());
    request[4..6].copy_from_slice(&999i16.to_be_bytes());
    raw.stream.write_all(&request).unwrap();
    assert_eq!(raw.read(), None);
    is_alive(&broker);
}

#[test]
fn claimed_lengths_allocate_nothing() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    is_alive(&broker);
    let before = resident();
    let mut held = Vec::new();
    for claim in [i32::MAX, -1, 100 << 20, 101 << 20, 0, 1] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(&broker.address).unwrap();
            let _ = stream.write_all(&claim.to_be_bytes());
            let _ = stream.write_all(&[0; 100]);
            held.push(stream);
        }
    }
    // An array that claims two billion elements.
    let mut request = encode(1, &MetadataRequest::default().with_topics(Some(vec![])));
    let at = request.len() - 4;
    request[at..].copy_from_slice(&i32::MAX.to_be_bytes());
    let mut raw = Raw::connect(&broker.address);
    raw.stream.write_all(&request).unwrap();
    assert_eq!(raw.read(), None);
    pause(Duration::from_millis(200));
    is_alive(&broker);
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more");
}

#[test]
fn slow_senders_of_huge_requests_do_not_starve_others() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let topic = broker.topic("slow", 1, &[]);
    let claim = |length: i32, sent: usize| {
        let mut stream = TcpStream::connect(&broker.address).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&vec![0; sent]).unwrap();
        stream
    };
    // More than all memory for requests, claimed by clients that send one byte.
    let _claims: Vec<TcpStream> = (0..10).map(|_| claim(100 << 20, 1)).collect();
    let begun = std::time::Instant::now();
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(produce(&mut raw, &topic, None, large_batch(PLAIN, 500 << 10)).0, 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn stalled_requests_that_fill_the_memory_do_not_starve_others() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|options| {
        options.max_request_bytes = 1 << 20;
        options.max_requests_bytes = 3 << 20;
    });
    let topic = broker.topic("stalled", 1, &[]);
    let _stalled: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = TcpStream::connect(&broker.address).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            stream.write_all(&(1i32 << 20).to_be_bytes()).unwrap();
            // The broker reads no more than it has memory for.
            let _ = stream.write_all(&vec![0; 500 << 10]);
            stream
        })
        .collect();
    let begun = std::time::Instant::now();
    let mut raw = Raw::connect(&broker.address);
    for _ in 0..3 {
        assert_eq!(produce(&mut raw, &topic, None, large_batch(PLAIN, 500 << 10)).0, 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn randomly_damaged_requests_affect_no_other_connection() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    broker.topic("damage", 2, &[]);
    let samples = [
        encode(12, &MetadataRequest::default()),
        encode(9, &ProduceRequest::default().with_acks(1)),
        encode(12, &FetchRequest::default()),
        encode(7, &CreateTopicsRequest::default().with_topics(vec![Default::default()])),
        encode(9, &JoinGroupRequest::default().with_protocols(vec![Default::default()])),
        encode(5, &SyncGroupRequest::default().with_assignments(vec![Default::default()])),
        encode(8, &OffsetFetchRequest::default().with_groups(vec![Default::default()])),
        encode(4, &InitProducerIdRequest::default()),
        encode(4, &DescribeConfigsRequest::default().with_resources(vec![Default::default()])),
    ];
    let mut random = Random(42);
    for _ in 0..3000 {
        let mut request = samples[random.below(samples.len() as u64) as usize].clone();
        for _ in 0..=random.below(4) {
            let at = 8 + random.below(request.len() as u64 - 8) as usize;
            request[at] = random.below(256) as u8;
        }
        if random.below(4) == 0 {
            request.truncate(4 + random.below(request.len() as u64 - 4) as usize);
            let length = request.len() as u32 - 4;
            request[..4].copy_from_slice(&length.to_be_bytes());
        }
        let mut stream = TcpStream::connect(&broker.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let _ = stream.write_all(&request);
        let _ = stream.read(&mut [0; 64]);
    }
    is_alive(&broker);
}

#[test]
fn idle_connections_use_little_memory() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    is_alive(&broker);
    let before = resident();
    // Both ends are in this process, and its descriptors may be limited.
    let limit = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limit.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: usize = files.split_whitespace().nth(3).unwrap().parse().unwrap_or(1024);
    let count = 10_000.min((files.saturating_sub(500)) / 2 - 500);
    let begun = std::time::Instant::now();
    let held: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(&broker.address).unwrap()).collect();
    is_alive(&broker);
    let grown = resident().saturating_sub(before);
    println!("{count} connections in {:?}: {} KiB", begun.elapsed(), grown >> 10);
    assert!(grown < 120 << 20, "{grown} bytes more for {count} connections");
    drop(held);
    is_alive(&broker);
}

#[test]
fn only_idle_connections_are_closed() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|options| options.max_idle = Duration::from_millis(1500));
    let connect = || Raw::connect(&broker.address);
    let (mut silent, mut spoke, mut halfway, mut busy) = (connect(), connect(), connect(), connect());
    spoke.call(3, &hello());
    // A partial request is not idle; it has its own limit.
    halfway.stream.write_all(&encode(3, &hello())[..6]).unwrap();
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        busy.call(3, &hello());
        pause(Duration::from_millis(200));
    }
    for closed in [&mut silent, &mut spoke] {
        closed.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        assert_eq!(closed.stream.read(&mut [0; 1]).unwrap(), 0);
    }
    halfway.stream.write_all(&encode(3, &hello())[6..]).unwrap();
    assert!(halfway.read().is_some());
    // A client that reconnects does not notice.
    let topic = broker.topic("idle", 1, &[]);
    let producer = broker.producer(&[]);
    for value in ["before", "after"] {
        crate::common::send(&producer, &topic, 0, "k", value);
        crate::common::drain(&producer);
        pause(Duration::from_millis(1800));
    }
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["before", "after"]);
}
