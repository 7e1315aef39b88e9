import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.DslStoreSuppliers;
import org.apache.kafka.streams.state.BuiltInDslStoreSuppliers;

/**
 * Counts the records of each key and minute with Kafka Streams, exactly once, for the benchmark `streams-count`:
 *
 * <pre>WindowedCount BOOTSTRAP INPUT OUTPUT RECORDS STATE_DIR WINDOW_MS</pre>
 *
 * Writes final results as JSON. Exits when it has committed RECORDS records. The settings are those that its documentation
 * gives for throughput: in-memory stores with a large cache, commits every 200 ms (as Trunkline's), large fetches and
 * batches, lz4. The key of the input is the group, so there is no repartition topic.
 */
public final class WindowedCount {
    private WindowedCount() {}

    public static void main(String[] arguments) throws InterruptedException {
        String input = arguments[1];
        String output = arguments[2];
        long records = Long.parseLong(arguments[3]);
        Duration window = Duration.ofMillis(Long.parseLong(arguments[5]));

        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, output);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[4]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 200);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        settings.put(StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 16 << 20);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 50);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 1 << 20);

        CountDownLatch done = new CountDownLatch(1);
        AtomicLong seen = new AtomicLong();
        StreamsBuilder builder = new StreamsBuilder();
        DslStoreSuppliers inMemory = new BuiltInDslStoreSuppliers.InMemoryDslStoreSuppliers();
        builder.stream(input, Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .peek((key, value) -> {
                    if (seen.incrementAndGet() >= records) {
                        done.countDown();
                    }
                })
                .groupByKey()
                .windowedBy(TimeWindows.ofSizeWithNoGrace(window))
                .emitStrategy(EmitStrategy.onWindowClose())
                .count(Materialized.as(inMemory))
                .toStream()
                .map((group, count) -> new KeyValue<>(
                        group.key(),
                        "{\"status\":" + group.key() + ",\"window_start\":" + group.window().start() + ",\"window_end\":"
                                + group.window().end() + ",\"n\":" + count + "}"))
                .to(output, Produced.with(Serdes.String(), Serdes.String()));

        KafkaStreams streams = new KafkaStreams(builder.build(settings), settings);
        streams.setStateListener((now, before) -> {
            // Without records, it measures the start.
            if (records == 0 && now == KafkaStreams.State.RUNNING) {
                done.countDown();
            }
        });
        streams.start();
        done.await();
        // Commits what was processed.
        streams.close();
    }
}
