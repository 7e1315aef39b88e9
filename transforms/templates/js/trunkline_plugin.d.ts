// Types of trunkline_plugin.js.

export type Header = [name: string, value: Uint8Array | null];

/** An input record. */
export interface PluginRecord {
  key: Uint8Array | null;
  value: Uint8Array | null;
  headers: Header[];
  /** Milliseconds since 1970. */
  timestamp: number | null;
  topic: string;
  partition: number;
  offset: number | null;
}

/** Parts of an output record; absent ones stay as they are in the input record. */
export interface Parts {
  key?: Uint8Array | null;
  value?: Uint8Array | null;
  headers?: Header[];
  timestamp?: number | null;
  port?: string;
}

export interface Verdict {
  readonly kind: 'pass' | 'drop' | 'value' | 'replace' | 'emit' | 'reject';
}

export interface Transform {
  /** Names of the output ports, without `default`. */
  ports?: string[];
  /** Whether every changed value still fits the schema of its record. */
  keepsSchema?: boolean;
  /**
   * The parts of records that the transform reads. The worker need not pass the others: they can be null, and output
   * records keep them.
   */
  inputs?: ('key' | 'value' | 'headers')[];
  /** The verdict on a record. */
  record?(record: PluginRecord): Verdict;
  /** The verdicts on the records of a batch, in order, instead of `record`. */
  process?(records: PluginRecord[]): Iterable<Verdict>;
  /**
   * The verdict on a timer that is due: `emit`, `drop` or `reject`. Emitted records have the timer's time as timestamp,
   * and no key, value and headers unless they are given.
   */
  timer?(timer: Timer): Verdict;
}

/** A timer that is due. */
export interface Timer {
  /** The name of its collection. */
  name: string;
  key: Uint8Array;
  /** Milliseconds since 1970. */
  time: number;
  topic: string;
  partition: number;
}

/** Keys are bytes; a string stands for its UTF-8. */
export type Key = string | Uint8Array;

/** A collection of durable entries, for the current topic partition. `transform.toml` needs `state = true`. */
export class State<V> {
  constructor(name: string, options?: { ttlMs?: number });
  get(key: Key): V | undefined;
  getAll(keys: Iterable<Key>): (V | undefined)[];
  put(key: Key, value: V): void;
  putAll(entries: Iterable<[Key, V]>): void;
  delete(key: Key): void;
  deleteAll(keys: Iterable<Key>): void;
  range(start?: Key, end?: Key, limit?: number): [Uint8Array, V][];
}

/** A collection of durable timers by event time, for the current topic partition. `transform.toml` needs `timers = true`. */
export class Timers {
  constructor(name: string);
  set(key: Key, time: number): void;
  setAll(timers: Iterable<[Key, number]>): void;
  delete(key: Key): void;
  deleteAll(keys: Iterable<Key>): void;
  get(key: Key): number | undefined;
  getAll(keys: Iterable<Key>): (number | undefined)[];
}

/**
 * The event time of the topic partition before this call; undefined if no record had a timestamp. It also counts time
 * that has advanced without records. `transform.toml` needs `timers = true`.
 */
export function eventTime(): number | undefined;

export class ConfigError extends Error {
  constructor(message: string, key?: string);
  key?: string;
}
export class BatchError extends Error {}

export function text(data: Uint8Array): string;
export function bytes(string: string): Uint8Array;
export function pass(port?: string): Verdict;
export function drop(): Verdict;
export function value(data: Uint8Array | null, port?: string): Verdict;
export function replace(parts: Parts): Verdict;
export function emit(records: Parts[]): Verdict;
export function reject(code: string, message: string): Verdict;
export function exportTransform(transform: new (config: any) => Transform): object;
