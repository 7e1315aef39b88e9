import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.CooperativeStickyAssignor;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Consumes, transforms and produces exactly once: members of a group copy a topic. Each transaction
 * contains the copies and the offsets of their records. Every third transaction is aborted.
 *
 * <p>TransactionalCopy BROKERS INPUT OUTPUT GROUP MEMBERS RECORDS copies RECORDS records, and ends with the
 * line "committed=N aborted=N transactions=N fenced=true". The last word states that a producer was fenced
 * when another one used its transactional id.
 */
public final class TransactionalCopy {
    private static final long LIMIT_NANOS = Duration.ofSeconds(120).toNanos();

    private final String brokers;
    private final String input;
    private final String output;
    private final String group;
    private final long records;
    private final AtomicLong committed = new AtomicLong();
    private final AtomicLong aborted = new AtomicLong();
    private final AtomicInteger transactions = new AtomicInteger();

    private TransactionalCopy(String brokers, String input, String output, String group, long records) {
        this.brokers = brokers;
        this.input = input;
        this.output = output;
        this.group = group;
        this.records = records;
    }

    public static void main(String[] args) throws Exception {
        var copy = new TransactionalCopy(args[0], args[1], args[2], args[3], Long.parseLong(args[5]));
        List<Thread> members = new ArrayList<>();
        List<Throwable> failures = java.util.Collections.synchronizedList(new ArrayList<>());
        for (int member = 0; member < Integer.parseInt(args[4]); member++) {
            String id = copy.group + "-" + member;
            var thread = new Thread(() -> copy.run(id));
            thread.setUncaughtExceptionHandler((who, failure) -> {
                failure.printStackTrace();
                failures.add(failure);
            });
            thread.start();
            members.add(thread);
        }
        for (Thread member : members) {
            member.join();
        }
        if (!failures.isEmpty()) {
            throw new IllegalStateException(failures.size() + " members failed");
        }
        boolean fenced = copy.isFenced(copy.group + "-0");
        System.out.println("committed=" + copy.committed + " aborted=" + copy.aborted + " transactions=" + copy.transactions
            + " fenced=" + fenced);
    }

    private void run(String transactionalId) {
        long deadline = System.nanoTime() + LIMIT_NANOS;
        try (var consumer = consumer(); var producer = producer(transactionalId)) {
            producer.initTransactions();
            consumer.subscribe(List.of(input));
            while (committed.get() < records) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException("it takes too long: " + committed + " of " + records);
                }
                ConsumerRecords<String, String> polled = consumer.poll(Duration.ofMillis(200));
                if (!polled.isEmpty()) {
                    copy(consumer, producer, polled);
                }
            }
        }
    }

    private void copy(
        KafkaConsumer<String, String> consumer, KafkaProducer<String, String> producer, ConsumerRecords<String, String> polled) {
        producer.beginTransaction();
        for (ConsumerRecord<String, String> record : polled) {
            producer.send(new ProducerRecord<>(output, record.key(), "copy of " + record.value()));
        }
        boolean commit = transactions.incrementAndGet() % 3 != 0;
        try {
            producer.sendOffsetsToTransaction(polled.nextOffsets(), consumer.groupMetadata());
            if (commit) {
                producer.commitTransaction();
                committed.addAndGet(polled.count());
                return;
            }
        } catch (ProducerFencedException | InvalidProducerEpochException fenced) {
            throw fenced;
        } catch (KafkaException rebalanced) {
            // The group has rebalanced: another member reads these records, or this member again.
            System.err.println("not committed: " + rebalanced);
        }
        producer.abortTransaction();
        aborted.addAndGet(polled.count());
        Map<TopicPartition, OffsetAndMetadata> before = consumer.committed(consumer.assignment());
        for (TopicPartition partition : consumer.assignment()) {
            OffsetAndMetadata offset = before.get(partition);
            consumer.seek(partition, offset == null ? new OffsetAndMetadata(0) : offset);
        }
    }

    private boolean isFenced(String transactionalId) {
        try (var first = producer(transactionalId); var second = producer(transactionalId)) {
            first.initTransactions();
            first.beginTransaction();
            first.send(new ProducerRecord<>(output, "fenced", "never to be seen"));
            first.flush();
            second.initTransactions();
            try {
                first.commitTransaction();
                return false;
            } catch (ProducerFencedException | InvalidProducerEpochException fenced) {
                return true;
            }
        }
    }

    private KafkaConsumer<String, String> consumer() {
        Map<String, Object> config = new HashMap<>();
        config.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        config.put(ConsumerConfig.GROUP_ID_CONFIG, group);
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        config.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false);
        config.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed");
        config.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, 100);
        config.put(ConsumerConfig.PARTITION_ASSIGNMENT_STRATEGY_CONFIG, CooperativeStickyAssignor.class.getName());
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    private KafkaProducer<String, String> producer(String transactionalId) {
        var config = new Properties();
        config.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        config.put(ProducerConfig.TRANSACTIONAL_ID_CONFIG, transactionalId);
        config.put(ProducerConfig.COMPRESSION_TYPE_CONFIG, "zstd");
        config.put(ProducerConfig.LINGER_MS_CONFIG, 2);
        return new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
    }
}
