//! Answers that are lost after the work was done: the worker cannot know the outcome, asks again or begins anew, and every line arrives once
//! (I1, I2). The broker runs inside this process, because only it can drop exactly the n-th answer.

use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use trunkline_broker::{ApiKey, Broker, BrokerHandle, BrokerOptions, Fault, Faults};
use trunkline_tests::{Case, KafkaClient, LogWriter, Random, Reader, need};

use crate::{LONG, access_logs, assert_all_arrives, wait_for_rows};

/// Lines that are appended at a time; the next ones when these are in the lake, so that there are transactions all along.
const STEP: u64 = 2_000;
/// Far more than it takes until the last fault has come.
const MOST_STEPS: u64 = 40;

/// NOT_LEADER_OR_FOLLOWER and COORDINATOR_NOT_AVAILABLE: come again.
const MOVED: Fault = Fault::Error(6);
const COORDINATOR_MOVED: Fault = Fault::Error(15);

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

/// Runs the pipeline through these faults, and checks that each of them came and that every line arrived once all the same.
fn every_line_arrives_once_through(test: &str, seed: u64, faults: &[(ApiKey, u64, Fault)]) {
    let reader = need!(Reader::find());
    let broker = FaultyBroker::start();
    for (api, nth, fault) in faults {
        broker.faults().inject(*api, *nth, *fault);
    }
    // What a worker reads up to moves with its transactions and in no other way (I2): this fault is one that never comes.
    broker.faults().inject(ApiKey::OffsetCommit, 1, Fault::DropReply);

    let mut case = Case::new(test, &broker.client);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "100ms");
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), seed);
    let mut worker = case.start("a", &[]);
    while broker.faults().pending() > 1 && log.lines() < MOST_STEPS * STEP {
        log.append(STEP);
        wait_for_rows(&reader, &case.path("lake"), log.lines());
    }
    log.append(STEP);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    assert!(worker.runs(), "{}", worker.stderr());
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    assert_eq!(broker.faults().pending(), 1, "only the commit of offsets outside of a transaction is not to come");
    broker.faults().clear();
    assert_all_arrives(&case, &reader, &log);
    assert_eq!(broker.client.count(&format!("{}.web", case.name())), log.lines());
}

/// The same fault for some of the first requests of an API. The first ones begin, later ones are in the middle of work.
fn dropped(api: ApiKey, requests: &[u64]) -> Vec<(ApiKey, u64, Fault)> {
    requests.iter().map(|nth| (api, *nth, Fault::DropReply)).collect()
}

#[test]
fn of_produce() {
    every_line_arrives_once_through("produce", 900, &dropped(ApiKey::Produce, &[1, 2, 3, 5, 8, 13, 21]));
}

#[test]
fn of_the_end_of_a_transaction() {
    every_line_arrives_once_through("end-txn", 901, &dropped(ApiKey::EndTxn, &[1, 2, 3, 5, 8, 13, 14]));
}

#[test]
fn of_offsets_in_a_transaction() {
    every_line_arrives_once_through("txn-offsets", 902, &dropped(ApiKey::TxnOffsetCommit, &[1, 2, 3, 5, 8]));
}

#[test]
fn of_adding_to_a_transaction() {
    let faults =
        [dropped(ApiKey::AddPartitionsToTxn, &[1, 2, 3, 5, 8, 13]), dropped(ApiKey::AddOffsetsToTxn, &[1, 2, 3, 5, 8])];
    every_line_arrives_once_through("add", 903, &faults.concat());
}

#[test]
fn of_getting_a_producer_id() {
    every_line_arrives_once_through("init", 904, &dropped(ApiKey::InitProducerId, &[1, 2, 3]));
}

#[test]
fn of_anything_with_refusals_and_delays_in_between() {
    let mut random = Random::new(905);
    let mut faults = Vec::new();
    let apis = [
        (ApiKey::Produce, MOVED, 30),
        (ApiKey::EndTxn, COORDINATOR_MOVED, 15),
        (ApiKey::TxnOffsetCommit, COORDINATOR_MOVED, 10),
        (ApiKey::AddPartitionsToTxn, COORDINATOR_MOVED, 15),
        (ApiKey::AddOffsetsToTxn, COORDINATOR_MOVED, 10),
        (ApiKey::InitProducerId, COORDINATOR_MOVED, 3),
    ];
    for (api, refusal, requests) in apis {
        for nth in 1..=requests {
            let fault = match random.below(12) {
                0 => Fault::DropReply,
                1 => Fault::Delay(Duration::from_millis(random.below(300))),
                2 => refusal,
                _ => continue,
            };
            faults.push((api, nth, fault));
        }
    }
    every_line_arrives_once_through("mixed", 905, &faults);
}
