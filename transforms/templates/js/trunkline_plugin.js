// SDK for Trunkline transform plugins in JavaScript. A plugin is a class with a method `record` that
// returns a verdict, and the line `export const plugin = exportTransform(MyTransform)`. The byte
// layouts are those of `wit/transform.wit`, format 1.

const FORMAT = 1;
const TIMERS = 1; // the content of a batch of timers
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** The table `config` is not accepted. `key` is the key at fault, such as `fields[0]`. */
export class ConfigError extends Error {
  constructor(message, key) {
    super(message);
    this.key = key;
  }
}

/**
 * A temporary failure of the whole batch: the worker retries it. A message that starts with `stop: ` is not
 * retried: the stage stops and shows it.
 */
export class BatchError extends Error {}

/** The characters of a key, value or header. */
export const text = (data) => decoder.decode(data);
/** The bytes of a string. */
export const bytes = (string) => encoder.encode(string);

/** Outputs the record unchanged. */
export const pass = (port = 'default') => ({ kind: 'pass', port });
/** Drops the record, and counts it. */
export const drop = () => ({ kind: 'drop' });
/** Outputs the record with another value (bytes, or null). */
export const value = (data, port = 'default') => ({ kind: 'value', data, port });
/** Outputs the record with other parts of `{ key, value, headers, timestamp, port }`; absent parts stay. */
export const replace = (parts) => ({ kind: 'replace', parts });
/** Outputs records, each an object as for `replace`, instead of the record. */
export const emit = (records) => ({ kind: 'emit', records });
/** Rejects the record: it becomes a dead letter with this code and message. */
export const reject = (code, message) => ({ kind: 'reject', code, message });

/**
 * A collection of durable entries with keys, for the current topic partition. Values are stored as JSON; keys are
 * bytes, and a string stands for its UTF-8. The changes of a batch are committed with its output. It can be used in
 * `record` and `process` only. `transform.toml` needs `state = true`, and the transform is then a separate stage.
 */
export class State {
  /**
   * The collection of this name. The collections of a plugin have different names. Entries expire when the time of
   * the partition, which is the greatest timestamp of its records, has advanced by `ttlMs` since they were stored.
   */
  constructor(name, { ttlMs } = {}) {
    if (hostState === undefined) {
      throw new ConfigError('the plugin was built without state; set `state = true` in transform.toml, and build it');
    }
    this.prefix = encoder.encode(`${name}\0`);
    this.ttlMs = ttlMs === undefined ? undefined : BigInt(ttlMs);
  }

  /** The value of a key; undefined if it has none. */
  get(key) {
    return this.getAll([key])[0];
  }

  /** The values of several keys, in order. */
  getAll(keys) {
    const stored = hostState.get([...keys].map((key) => this.stored(key)));
    return stored.map((data) => (data === undefined || data === null ? undefined : JSON.parse(text(data))));
  }

  /** Stores a value. */
  put(key, data) {
    this.putAll([[key, data]]);
  }

  /** Stores several values: pairs of key and value, or a Map. */
  putAll(entries) {
    const stored = [...entries].map(([key, data]) => ({
      key: this.stored(key),
      value: encoder.encode(JSON.stringify(data)),
      ttlMs: this.ttlMs,
    }));
    hostState.put(stored);
  }

  /** Removes an entry, if there is one. */
  delete(key) {
    this.deleteAll([key]);
  }

  /** Removes several entries. */
  deleteAll(keys) {
    hostState.delete([...keys].map((key) => this.stored(key)));
  }

  /**
   * At most `limit` pairs of key and value from `start` (inclusive) to `end` (exclusive; absent = the end of the
   * collection), in the order of their keys. The host may return fewer; an empty array means that no entry is left.
   */
  range(start = '', end = undefined, limit = 1000) {
    let storedEnd = this.prefix.slice();
    storedEnd[storedEnd.length - 1] = 1;
    if (end !== undefined) storedEnd = this.stored(end);
    const found = hostState.range(this.stored(start), storedEnd, limit);
    return found.map((entry) => [entry.key.slice(this.prefix.length), JSON.parse(text(entry.value))]);
  }

  stored(key) {
    return storedKey(this.prefix, key);
  }
}

/**
 * A collection of durable timers by event time, for the current topic partition. The method `timer` of the transform
 * gets a timer when the event time of the partition, which is the greatest timestamp of its records, reaches its time:
 * before the first record with this timestamp or a later one. Keys are bytes, and a string stands for its UTF-8; a key
 * has at most one timer. Times are milliseconds since 1970. `transform.toml` needs `timers = true`, and the transform
 * is then a separate stage.
 */
export class Timers {
  /** The collection of this name. The collections of a plugin have different names. */
  constructor(name) {
    if (hostTimers === undefined) {
      throw new ConfigError('the plugin was built without timers; set `timers = true` in transform.toml, and build it');
    }
    this.prefix = encoder.encode(`${name}\0`);
  }

  /** Sets the timer of a key; it replaces an earlier one. If the time has passed, it fires after this record. */
  set(key, time) {
    this.setAll([[key, time]]);
  }

  /** Sets several timers: pairs of key and time, or a Map. */
  setAll(timers) {
    hostTimers.set([...timers].map(([key, time]) => ({ key: storedKey(this.prefix, key), time: BigInt(time) })));
  }

  /** Removes the timer of a key, if there is one. */
  delete(key) {
    this.deleteAll([key]);
  }

  /** Removes several timers. */
  deleteAll(keys) {
    hostTimers.delete([...keys].map((key) => storedKey(this.prefix, key)));
  }

  /** The time of the timer of a key; undefined if it has none. */
  get(key) {
    return this.getAll([key])[0];
  }

  /** The times of the timers of several keys, in order. */
  getAll(keys) {
    const times = hostTimers.get([...keys].map((key) => storedKey(this.prefix, key)));
    return [...times].map((time) => (time === undefined || time === null ? undefined : Number(time)));
  }
}

/**
 * The event time of the topic partition before this call, in milliseconds since 1970; undefined if no record had a
 * timestamp. In `process`, the records of the batch advance it one by one. It shows whether a record is late for what a
 * timer has ended, also if event time has advanced without records. `transform.toml` needs `timers = true`.
 */
export function eventTime() {
  const time = hostTimers.eventTime();
  return time === undefined || time === null ? undefined : Number(time);
}

/** The key of an entry of a collection. */
function storedKey(prefix, key) {
  const own = typeof key === 'string' ? encoder.encode(key) : key;
  const stored = new Uint8Array(prefix.length + own.length);
  stored.set(prefix);
  stored.set(own, prefix.length);
  return stored;
}

/** The exported interface of a class of transforms. */
export function exportTransform(TransformClass) {
  let transform;
  let portNumbers;
  return {
    init(config, host) {
      if (![...host.formats].includes(FORMAT)) {
        throw { message: `the plugin needs batch format ${FORMAT}; the worker offers ${[...host.formats]}` };
      }
      try {
        transform = new TransformClass(JSON.parse(config));
      } catch (error) {
        if (error instanceof ConfigError) throw { message: error.message, key: error.key };
        throw error;
      }
      const inputs = transform.inputs ?? ['key', 'value', 'headers'];
      declareInputs(...['key', 'value', 'headers'].map((part) => inputs.includes(part)));
      const ports = transform.ports ?? [];
      portNumbers = new Map(['default', ...ports].map((name, index) => [name, index]));
      return { format: FORMAT, ports, keepsSchema: transform.keepsSchema ?? false };
    },

    process(batch) {
      const out = new Writer();
      let count = 0;
      try {
        for (const verdict of verdictsOn(transform, batch)) {
          writeVerdict(out, verdict, portNumbers);
          count += 1;
        }
      } catch (error) {
        if (error instanceof BatchError) throw error.message;
        throw error;
      }
      return out.finish(count);
    },

    flush() {
      return new Writer().finish(0);
    },
  };
}

function* verdictsOn(transform, batch) {
  if (new DataView(batch.buffer, batch.byteOffset, batch.byteLength).getUint32(24, true) === TIMERS) {
    for (const entry of records(batch)) yield transform.timer?.(timerOf(entry)) ?? drop();
    return;
  }
  if (transform.process) {
    yield* transform.process([...records(batch)]);
    return;
  }
  for (const record of records(batch)) yield transform.record(record);
}

class Writer {
  constructor() {
    this.data = new Uint8Array(1 << 16);
    this.view = new DataView(this.data.buffer);
    this.length = 16;
  }

  reserve(length) {
    if (this.length + length > this.data.length) {
      const grown = new Uint8Array(Math.max(this.data.length * 2, this.length + length));
      grown.set(this.data);
      this.data = grown;
      this.view = new DataView(grown.buffer);
    }
    const at = this.length;
    this.length += length;
    return at;
  }

  word(kind, parts, port) {
    const at = this.reserve(4);
    this.view.setUint8(at, kind);
    this.view.setUint8(at + 1, parts);
    this.view.setUint16(at + 2, port, true);
    return at;
  }

  int(number) {
    const at = this.reserve(4);
    this.view.setInt32(at, number, true);
  }

  /** A length and bytes; -1 for null. */
  prefixed(data) {
    if (data === null) return this.int(-1);
    this.int(data.length);
    const at = this.reserve(data.length);
    this.data.set(data, at);
  }

  finish(count) {
    this.data.set(encoder.encode('TLV1'));
    this.view.setUint32(4, FORMAT, true);
    this.view.setUint32(8, count, true);
    return this.data.slice(0, this.length);
  }
}

function portNumber(ports, name = 'default') {
  const number = ports.get(name);
  if (number === undefined) throw new Error(`the port ${name} is not declared`);
  return number;
}

function writeVerdict(out, verdict, ports) {
  switch (verdict?.kind) {
    case 'pass':
      out.word(0, 0, portNumber(ports, verdict.port));
      break;
    case 'drop':
      out.word(1, 0, 0);
      break;
    case 'value':
      out.word(2, 0, portNumber(ports, verdict.port));
      out.prefixed(verdict.data);
      break;
    case 'replace':
      writeParts(out, verdict.parts, ports);
      break;
    case 'emit':
      out.word(4, 0, 0);
      out.int(verdict.records.length);
      for (const parts of verdict.records) writeParts(out, parts, ports);
      break;
    case 'reject':
      out.word(5, 0, 0);
      out.prefixed(encoder.encode(verdict.code));
      out.prefixed(encoder.encode(verdict.message));
      break;
    default:
      throw new Error('`record` returned no verdict');
  }
}

function writeParts(out, parts, ports) {
  const given = [parts.key, parts.value, parts.headers, parts.timestamp].map((part) => part !== undefined);
  const bits = given.reduce((sum, isGiven, index) => sum | (isGiven ? 1 << index : 0), 0);
  out.word(3, bits, portNumber(ports, parts.port));
  if (given[0]) out.prefixed(parts.key);
  if (given[1]) out.prefixed(parts.value);
  if (given[2]) {
    const lengthAt = out.length;
    out.int(0);
    for (const [name, data] of parts.headers) {
      out.prefixed(encoder.encode(name));
      out.prefixed(data);
    }
    out.view.setUint32(lengthAt, out.length - lengthAt - 4, true);
  }
  if (given[3]) {
    const at = out.reserve(8);
    out.view.setBigInt64(at, BigInt(parts.timestamp ?? -1), true);
  }
}

/** The records of a batch: `{ key, value, headers, timestamp, topic, partition, offset }`. */
function* records(batch) {
  const view = new DataView(batch.buffer, batch.byteOffset, batch.byteLength);
  const word = (at) => view.getUint32(at, true);
  if (text(batch.subarray(0, 4)) !== 'TLB1' || word(4) !== FORMAT) throw new BatchError('not a batch of format 1');
  const [count, tableAt, topicCount] = [word(8), word(12), word(20)];
  const topics = [];
  for (let index = 0, at = word(16); index < topicCount; index += 1) {
    topics.push(text(batch.subarray(at + 4, at + 4 + word(at))));
    at += 4 + word(at);
  }
  const part = (at) => {
    const length = view.getInt32(at + 4, true);
    return length < 0 ? null : batch.subarray(word(at), word(at) + length);
  };
  const number = (at) => {
    const found = Number(view.getBigInt64(at, true));
    return found < 0 ? null : found;
  };
  for (let index = 0; index < count; index += 1) {
    const at = tableAt + 48 * index;
    yield {
      timestamp: number(at),
      offset: number(at + 8),
      partition: view.getInt32(at + 16, true),
      topic: topics[view.getUint16(at + 20, true)] ?? '',
      key: part(at + 24),
      value: part(at + 32),
      headers: headerBlock(part(at + 40) ?? new Uint8Array()),
    };
  }
}

/** The timer that an entry of a batch stands for. */
function timerOf({ key, timestamp, topic, partition }) {
  const at = key.indexOf(0);
  return { name: text(key.subarray(0, at)), key: key.subarray(at + 1), time: timestamp ?? 0, topic, partition };
}

function headerBlock(block) {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const headers = [];
  for (let at = 0; at < block.length; ) {
    const nameLength = view.getUint32(at, true);
    const name = text(block.subarray(at + 4, at + 4 + nameLength));
    at += 4 + nameLength;
    const length = view.getInt32(at, true);
    at += 4;
    headers.push([name, length < 0 ? null : block.subarray(at, at + length)]);
    at += Math.max(length, 0);
  }
  return headers;
}
