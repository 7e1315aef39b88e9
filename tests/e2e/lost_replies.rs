//! Replies that the broker loses after it has executed a request. The worker cannot know the
//! outcome: it asks again or restarts the transaction, and every line arrives once (I1, I2).
//!
//! The embedded broker runs inside this process, because only it can drop exactly the n-th reply.

use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use trunkline_broker::{ApiKey, Broker, BrokerHandle, BrokerOptions, Fault, Faults};
use trunkline_tests::{Case, KafkaClient, LogWriter, Random, Reader, need};

use crate::{access_logs, assert_all_arrives, stop, wait_for_rows};

/// Lines per step. The next step begins when these lines are in the lake, so that transactions run
/// during the whole test.
const STEP: u64 = 2_000;
/// More steps than any test needs until its last fault has applied.
const MAX_STEPS: u64 = 40;

/// NOT_LEADER_OR_FOLLOWER and COORDINATOR_NOT_AVAILABLE; both are retriable.
const NOT_LEADER: Fault = Fault::Error(6);
const COORDINATOR_NOT_AVAILABLE: Fault = Fault::Error(15);

/// A broker of one test.
struct FaultyBroker {
    client: KafkaClient,
    handle: BrokerHandle,
    _runtime: Runtime,
    _data: TempDir,
}

impl FaultyBroker {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let handle = runtime.block_on(Broker::start(BrokerOptions::new(data.path()))).unwrap();
        let client = KafkaClient::new(handle.address().to_string());
        Self { client, handle, _runtime: runtime, _data: data }
    }

    fn faults(&self) -> &Faults {
        self.handle.faults()
    }
}

/// Runs the pipeline with these faults, and checks that each fault applied and every line arrived
/// once.
fn every_line_arrives_once_with(test: &str, seed: u64, faults: &[(ApiKey, u64, Fault)]) {
    let reader = need!(Reader::find());
    let broker = FaultyBroker::start();
    for (api, nth, fault) in faults {
        broker.faults().inject(*api, *nth, *fault);
    }
    // Consumer offsets move only in transactions (I2): this fault must not apply.
    broker.faults().inject(ApiKey::OffsetCommit, 1, Fault::DropReply);

    let mut case = Case::new(test, &broker.client);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "100ms");
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), seed);
    let worker = case.start("a", &[]);
    while broker.faults().pending() > 1 && log.lines() < MAX_STEPS * STEP {
        log.append(STEP);
        wait_for_rows(&reader, &case.path("lake"), log.lines());
    }
    log.append(STEP);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    stop(worker);

    assert_eq!(broker.faults().pending(), 1, "only the fault of OffsetCommit is pending");
    broker.faults().clear();
    assert_all_arrives(&case, &reader, &log);
    assert_eq!(broker.client.count(&format!("{}.web", case.name())), log.lines());
}

/// Loses the replies to some of an API's first requests, at the start and in the middle of the
/// work.
fn lost(api: ApiKey, requests: &[u64]) -> Vec<(ApiKey, u64, Fault)> {
    requests.iter().map(|nth| (api, *nth, Fault::DropReply)).collect()
}

#[test]
fn replies_to_produce_may_be_lost() {
    every_line_arrives_once_with("produce", 900, &lost(ApiKey::Produce, &[1, 2, 3, 5, 8, 13, 21]));
}

#[test]
fn replies_to_end_txn_may_be_lost() {
    every_line_arrives_once_with("end-txn", 901, &lost(ApiKey::EndTxn, &[1, 2, 3, 5, 8, 13, 14]));
}

#[test]
fn replies_to_txn_offset_commit_may_be_lost() {
    every_line_arrives_once_with("txn-offsets", 902, &lost(ApiKey::TxnOffsetCommit, &[1, 2, 3, 5, 8]));
}

#[test]
fn replies_to_add_partitions_and_offsets_may_be_lost() {
    let faults =
        [lost(ApiKey::AddPartitionsToTxn, &[1, 2, 3, 5, 8, 13]), lost(ApiKey::AddOffsetsToTxn, &[1, 2, 3, 5, 8])];
    every_line_arrives_once_with("add", 903, &faults.concat());
}

#[test]
fn replies_to_init_producer_id_may_be_lost() {
    every_line_arrives_once_with("init", 904, &lost(ApiKey::InitProducerId, &[1, 2, 3]));
}

#[test]
fn lost_replies_may_mix_with_errors_and_delays() {
    let mut random = Random::new(905);
    let mut faults = Vec::new();
    let apis = [
        (ApiKey::Produce, NOT_LEADER, 30),
        (ApiKey::EndTxn, COORDINATOR_NOT_AVAILABLE, 15),
        (ApiKey::TxnOffsetCommit, COORDINATOR_NOT_AVAILABLE, 10),
        (ApiKey::AddPartitionsToTxn, COORDINATOR_NOT_AVAILABLE, 15),
        (ApiKey::AddOffsetsToTxn, COORDINATOR_NOT_AVAILABLE, 10),
        (ApiKey::InitProducerId, COORDINATOR_NOT_AVAILABLE, 3),
    ];
    for (api, error, requests) in apis {
        for nth in 1..=requests {
            let fault = match random.below(12) {
                0 => Fault::DropReply,
                1 => Fault::Delay(Duration::from_millis(random.below(300))),
                2 => error,
                _ => continue,
            };
            faults.push((api, nth, fault));
        }
    }
    every_line_arrives_once_with("mixed", 905, &faults);
}
