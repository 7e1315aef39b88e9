//! Debezium on Kafka Connect, on the same MySQL and the same broker as the worker.
//!
//! Its settings are the fastest of those that its documentation names: one standalone process, a
//! heap of 2 GB, JSON without schemas, large batches (16,384) and a large queue between reading and
//! sending, no waits between polls of a busy source, and a producer with lz4, batches of 1 MB and
//! 20 ms to fill them. It delivers at least once; exactly-once is slower. Its time is measured from
//! its first record in the topic to its last: its start of 4 to 10 s does not count.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use trunkline_tests::{Kafka, Mysql, Process, Skip, Tool, wait};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::cpu_seconds_of;
use crate::pipeline::Run;

/// The interval of polling its topic.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Debezium<'a> {
    tool: Tool,
    folder: tempfile::TempDir,
    kafka: &'a Kafka,
    mysql: &'a Mysql,
    next: AtomicU32,
}

/// A connector that has stored its position in the binlog.
pub(crate) struct Connector {
    name: String,
    table: String,
}

impl Connector {
    fn topic(&self) -> String {
        format!("{}.bench.{}", self.name, self.table)
    }
}

impl<'a> Debezium<'a> {
    pub(crate) fn find(kafka: &'a Kafka, mysql: &'a Mysql) -> Result<Self, Skip> {
        let tool = Tool::find("debezium")?;
        // Its snapshot reads the position of the server.
        mysql.run("GRANT RELOAD, SHOW DATABASES ON *.* TO cdc");
        Ok(Self { tool, folder: tempfile::tempdir().unwrap(), kafka, mysql, next: AtomicU32::new(0) })
    }

    fn connector(&self, table: &str) -> Connector {
        let name = format!("dbz{}", self.next.fetch_add(1, Ordering::Relaxed));
        let connector = Connector { name, table: table.to_owned() };
        self.kafka.create_topic(&connector.topic(), PARTITIONS);
        connector
    }

    /// A connector that has read the table with one row, whose id is 0: it stores no position
    /// before its first record.
    pub(crate) fn follower(&self, table: &str) -> Connector {
        let columns = "customer, status, price, placed, changed, email, note";
        self.mysql.run(&format!("INSERT IGNORE INTO bench.{table} SELECT 0, {columns} FROM bench.base LIMIT 1"));
        let connector = self.connector(table);
        let offsets = self.folder.path().join(&connector.name).with_extension("offsets");
        let mut process = self.start(&connector);
        wait::until("Debezium has stored its position", LIMIT, || {
            assert!(process.is_running(), "Debezium ended: {}", process.stderr());
            fs::metadata(&offsets).ok().filter(|file| file.len() > 0).map(|_| ())
        });
        process.sigterm();
        process.wait(Duration::from_secs(60));
        connector
    }

    /// Reads `rows` changes of the binlog.
    pub(crate) fn follow(&self, connector: &Connector, rows: u64) -> Run {
        self.run(connector, 1, rows)
    }

    /// Reads a table's rows into a topic.
    pub(crate) fn snapshot(&self, table: &str, rows: u64) -> Run {
        let connector = self.connector(table);
        self.run(&connector, 0, rows)
    }

    /// Runs it until it has written `rows` records to its topic, which has `already` records.
    fn run(&self, connector: &Connector, already: u64, rows: u64) -> Run {
        let topic = connector.topic();
        let mut process = self.start(connector);
        let pid = process.pid() as u32;
        let mut first = None;
        // One client for all polls, to save processor time.
        let consumer = client::consumer(self.kafka.brokers(), "count", &[]);
        let last = wait::until("Debezium has written all rows", LIMIT, || {
            assert!(process.is_running(), "Debezium ended: {}", process.stderr());
            std::thread::park_timeout(POLL_INTERVAL);
            let end = |partition| consumer.fetch_watermarks(&topic, partition, LIMIT).unwrap().1;
            let written = (0..PARTITIONS).map(end).sum::<i64>() as u64;
            if written == already {
                return None;
            }
            let now = (written, Instant::now(), cpu_seconds_of(pid));
            let _ = first.get_or_insert(now);
            (written >= already + rows).then_some(now)
        });
        let first = first.unwrap_or(last);
        let peak_rss = process.peak_rss();
        process.sigterm();
        process.wait(Duration::from_secs(60));
        client::consume(&client::consumer(self.kafka.brokers(), "count", &[]), &topic, already + rows);
        client::delete_topic(self.kafka.brokers(), &topic);
        Run { records: last.0 - first.0, seconds: (last.1 - first.1).as_secs_f64(), cpu: last.2 - first.2, peak_rss }
    }

    fn start(&self, connector: &Connector) -> Process {
        let path = |kind: &str| self.folder.path().join(&connector.name).with_extension(kind);
        let (worker, source) = (path("worker"), path("source"));
        let brokers = self.kafka.brokers();
        let (name, table, port) = (&connector.name, &connector.table, self.mysql.port());
        fs::write(
            &worker,
            format!(
                "bootstrap.servers={brokers}\nlisteners=http://127.0.0.1:0\noffset.storage.file.filename={}\noffset.flush.interval.ms=1000\n\
                 key.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter=org.apache.kafka.connect.json.JsonConverter\n\
                 key.converter.schemas.enable=false\nvalue.converter.schemas.enable=false\n\
                 producer.compression.type=lz4\nproducer.batch.size=1000000\nproducer.linger.ms=20\nproducer.buffer.memory=134217728\n",
                path("offsets").display()
            ),
        )
        .unwrap();
        let server_id = 100_000 + std::process::id() + self.next.fetch_add(1, Ordering::Relaxed);
        fs::write(
            &source,
            format!(
                "name={name}\nconnector.class=io.debezium.connector.mysql.MySqlConnector\ntasks.max=1\ntopic.prefix={name}\n\
                 database.hostname=127.0.0.1\ndatabase.port={port}\ndatabase.user=cdc\ndatabase.password={}\ndatabase.server.id={server_id}\n\
                 database.include.list=bench\ntable.include.list=bench.{table}\nsnapshot.mode=initial\nsnapshot.locking.mode=none\nsnapshot.fetch.size=10000\n\
                 max.batch.size=16384\nmax.queue.size=65536\npoll.interval.ms=10\ninclude.schema.changes=false\n\
                 schema.history.internal=io.debezium.storage.file.history.FileSchemaHistory\nschema.history.internal.file.filename={}\n\
                 schema.history.internal.store.only.captured.tables.ddl=true\n",
                Mysql::PASSWORD.1,
                path("history").display()
            ),
        )
        .unwrap();
        self.tool.start(&[worker.to_str().unwrap(), source.to_str().unwrap()])
    }
}
