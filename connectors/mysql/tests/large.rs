//! Compressed transactions larger than the memory limit of the test. In a separate process, because
//! it measures the memory.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Server, peak_memory};
use trunkline_connector::Fill;

#[test]
fn a_compressed_transaction_takes_only_the_memory_of_its_events() {
    // The limit covers everything except the transactions: batches, zstd's window, buffers of
    // connections.
    const MOST: u64 = 64 << 20;
    const PATIENCE: Duration = Duration::from_secs(240);
    let Some(server) = Server::start("--max-allowed-packet=1G --tmp-table-size=64M") else { return };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.a (id INT PRIMARY KEY AUTO_INCREMENT, v VARBINARY(16000))"));
    let mut bench = Bench::new(&format!("{}columns = [\"*.*.id\"]\n", server.options(&format!("\"{database}.*\""))));
    bench.read();
    let numbers = |count: u32| {
        format!(
            "(WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s) t"
        )
    };
    // 320 MB that compress to a few KB, and 48 MB that do not compress, so that they are spooled.
    for (count, value) in [(20_000, "REPEAT('zstd', 4000)"), (48_000, "RANDOM_BYTES(1000)")] {
        let size = || -> u64 {
            let logs = server.run("SHOW BINARY LOGS");
            logs.lines().map(|line| line.split('\t').nth(1).unwrap().parse::<u64>().unwrap()).sum()
        };
        let size_before = size();
        server.run(&format!(
            "USE {database}; SET binlog_transaction_compression = ON, cte_max_recursion_depth = 1000000;
             INSERT INTO a (v) SELECT {value} FROM {}",
            numbers(count)
        ));
        let (begun, written, before) = (Instant::now(), size() - size_before, peak_memory());
        let mut rows = 0;
        while bench.fill(Duration::from_millis(500)).unwrap() != Fill::CaughtUp {
            rows += bench.take().len();
            assert!(begun.elapsed() < PATIENCE, "{rows} rows");
        }
        rows += bench.take().len();
        assert_eq!(rows, count as usize);
        let grown = peak_memory() - before;
        eprintln!(
            "{count} rows, {} MB in the binlog: {} MiB more, {:?}",
            written / 1_000_000,
            grown >> 20,
            begun.elapsed()
        );
        assert!(grown < MOST, "{} MiB more were resident", grown >> 20);
    }
}
