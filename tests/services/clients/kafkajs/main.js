// Uses Kafka through kafkajs. Arguments: BROKERS TOPIC GROUP. Creates the topic, writes to it in
// transactions of which one is aborted, reads it in a group that commits offsets, and sends offsets in
// transactions. Prints a report as one line of JSON.
"use strict";
const { Kafka, logLevel, CompressionTypes } = require("kafkajs");

const [brokers, topic, groupId] = process.argv.slice(2);
const retry = { initialRetryTime: 50, maxRetryTime: 1000, retries: 40 };
const kafka = new Kafka({ clientId: "kafkajs", brokers: [brokers], logLevel: logLevel.ERROR, retry });
const message = (text) => ({ key: text, value: text, headers: { from: "kafkajs" } });

/** Reads `count` records in a group, and commits their offsets. */
async function read(count) {
  const consumer = kafka.consumer({ groupId, readUncommitted: false, maxWaitTimeInMs: 100 });
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  const seen = [];
  await new Promise((resolve, reject) => {
    // The consumer restarts by itself after a retriable error.
    consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || reject(payload.error));
    const eachMessage = async ({ message }) => {
      seen.push(message.value.toString());
      if (seen.length === count) resolve();
    };
    consumer.run({ autoCommitThreshold: 1, eachMessage }).catch(reject);
  });
  await consumer.stop();
  await consumer.disconnect();
  return seen;
}

/**
 * Retries while the previous transaction is still ending: Apache Kafka completes it after its reply, and
 * kafkajs does not wait for that.
 */
async function retryConcurrent(send) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      if (error.type !== "CONCURRENT_TRANSACTIONS" || attempt === 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

async function main() {
  const admin = kafka.admin();
  await admin.connect();
  const created = await admin.createTopics({ topics: [{ topic, numPartitions: 3, replicationFactor: 1 }], waitForLeaders: true });

  const plain = kafka.producer({ idempotent: true });
  await plain.connect();
  const messages = Array.from({ length: 300 }, (_, number) => message(`plain ${number}`));
  await plain.send({ topic, messages, compression: CompressionTypes.GZIP });
  await plain.disconnect();

  const producer = kafka.producer({ transactionalId: `${groupId}-tx`, maxInFlightRequests: 1, idempotent: true });
  await producer.connect();
  for (const [name, commit] of [["committed", true], ["aborted", false], ["also committed", true]]) {
    const transaction = await producer.transaction();
    const messages = Array.from({ length: 100 }, (_, number) => message(`${name} ${number}`));
    await retryConcurrent(() => transaction.send({ topic, messages }));
    await (commit ? transaction.commit() : transaction.abort());
  }
  const seen = await read(500);

  // Only a committed transaction moves offsets. Each transaction has ended before the next one begins.
  const sent = [];
  for (const [offset, commit] of [["7", true], ["8", false], ["9", false]]) {
    const transaction = await producer.transaction();
    const topics = [{ topic, partitions: [{ partition: 0, offset }] }];
    await retryConcurrent(() => transaction.sendOffsets({ consumerGroupId: `${groupId}-sent`, topics }));
    const [fetched] = await admin.fetchOffsets({ groupId: `${groupId}-sent`, topics: [topic] });
    sent.push(fetched.partitions.find(({ partition }) => partition === 0).offset);
    await (commit ? transaction.commit() : transaction.abort());
  }
  await producer.disconnect();

  const offsets = await admin.fetchTopicOffsets(topic);
  const [committed] = await admin.fetchOffsets({ groupId, topics: [topic] });
  const lags = committed.partitions.map(({ partition, offset }) => {
    const { high } = offsets.find((end) => end.partition === partition);
    return Number(high) - Number(offset);
  });
  const { groups } = await admin.describeGroups([groupId]);
  await admin.deleteGroups([groupId]);
  await admin.disconnect();
  console.log(JSON.stringify({
    created,
    seen: seen.length,
    distinct: new Set(seen).size,
    aborted: seen.filter((value) => value.startsWith("aborted")).length,
    sent,
    lag: Math.max(...lags),
    group: groups[0].state,
  }));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
