"""SDK for Trunkline transform plugins in Python.

A plugin is a subclass of `Transform` with a method `record` that returns a verdict, and the line
`Plugin = export(MyTransform)`. The byte layouts are those of `wit/transform.wit`, format 1.
"""

import json
import struct
from dataclasses import dataclass
from datetime import timedelta
from typing import Dict, Generic, Iterable, List, Mapping, Optional, Tuple, TypeVar, Union

from componentize_py_types import Err
from wit_world.exports.plugin import InitError, InitReply
from wit_world.imports import inputs as host_inputs

try:
    from wit_world.imports import state as host_state
except ImportError:  # built without `state = true`
    host_state = None
try:
    from wit_world.imports import timers as host_timers
except ImportError:  # built without `timers = true`
    host_timers = None

FORMAT = 1
TIMERS = 1  # the content of a batch of timers
Headers = List[Tuple[str, Optional[bytes]]]


class ConfigError(Exception):
    """The table `config` is not accepted. `key` is the key at fault, such as `fields[0]`."""

    def __init__(self, message: str, key: Optional[str] = None):
        super().__init__(message)
        self.key = key


class BatchError(Exception):
    """A temporary failure of the whole batch: the worker retries it.

    A message that starts with `stop: ` is not retried: the stage stops and shows it.
    """


@dataclass
class Record:
    """An input record. `None` stands for null."""

    key: Optional[bytes]
    value: Optional[bytes]
    headers: Headers
    timestamp: Optional[int]
    topic: str
    partition: int
    offset: Optional[int]

    def header(self, name: str) -> Optional[bytes]:
        """The value of the last header with this name."""
        return next((value for known, value in reversed(self.headers) if known == name), None)


V = TypeVar("V")
Key = Union[str, bytes]


class State(Generic[V]):
    """A collection of durable entries with keys, for the current topic partition.

    Values are stored as JSON; keys are bytes, and a text stands for its UTF-8. The changes of a batch are
    committed with its output. It can be used in `record` and `process` only. `transform.toml` needs
    `state = true`, and the transform is then a separate stage.

    Entries expire when the time of the partition, which is the greatest timestamp of its records, has advanced
    by `ttl` since they were stored. They are readable at least until then.
    """

    def __init__(self, name: str, ttl: Optional[timedelta] = None):
        """The collection of this name. The collections of a plugin have different names."""
        if host_state is None:
            raise ConfigError("the plugin was built without state; set `state = true` in transform.toml, and build it")
        self.prefix = name.encode() + b"\0"
        self.ttl_ms = None if ttl is None else ttl // timedelta(milliseconds=1)

    def get(self, key: Key) -> Optional[V]:
        """The value of a key; `None` if it has none."""
        return self.get_all([key])[0]

    def get_all(self, keys: Iterable[Key]) -> List[Optional[V]]:
        """The values of several keys, in order."""
        stored = host_state.get([self._stored(key) for key in keys])
        return [None if value is None else json.loads(value) for value in stored]

    def put(self, key: Key, value: V) -> None:
        """Stores a value."""
        self.put_all([(key, value)])

    def put_all(self, entries: Union[Mapping[Key, V], Iterable[Tuple[Key, V]]]) -> None:
        """Stores several values."""
        pairs = entries.items() if isinstance(entries, Mapping) else entries
        host_state.put(
            [
                host_state.NewEntry(self._stored(key), json.dumps(value, separators=(",", ":")).encode(), self.ttl_ms)
                for key, value in pairs
            ]
        )

    def delete(self, key: Key) -> None:
        """Removes an entry, if there is one."""
        self.delete_all([key])

    def delete_all(self, keys: Iterable[Key]) -> None:
        """Removes several entries."""
        host_state.delete([self._stored(key) for key in keys])

    def range(self, start: Key = b"", end: Optional[Key] = None, limit: int = 1000) -> List[Tuple[bytes, V]]:
        """At most `limit` entries from `start` (inclusive) to `end` (exclusive; `None` = the end of the collection), in
        the order of their keys. The host may return fewer; an empty list means that no entry is left."""
        stored_end = self.prefix[:-1] + b"\1" if end is None else self._stored(end)
        found = host_state.range(self._stored(start), stored_end, limit)
        return [(bytes(entry.key)[len(self.prefix) :], json.loads(entry.value)) for entry in found]

    def _stored(self, key: Key) -> bytes:
        return self.prefix + (key.encode() if isinstance(key, str) else bytes(key))


@dataclass
class Timer:
    """A timer that is due."""

    #: The name of its collection.
    name: str
    key: bytes
    #: Milliseconds since 1970.
    time: int
    topic: str
    partition: int


def event_time() -> Optional[int]:
    """The event time of the topic partition before this call, in milliseconds since 1970; `None` if no record had a
    timestamp. In `process`, the records of the batch advance it one by one. It shows whether a record is late for what a
    timer has ended, also if event time has advanced without records. `transform.toml` needs `timers = true`."""
    return host_timers.event_time()


class Timers:
    """A collection of durable timers by event time, for the current topic partition.

    `Transform.timer` gets a timer when the event time of the partition, which is the greatest timestamp of its
    records, reaches its time: before the first record with this timestamp or a later one. Keys are bytes, and a text
    stands for its UTF-8; a key has at most one timer. Times are milliseconds since 1970. `transform.toml` needs
    `timers = true`, and the transform is then a separate stage.
    """

    def __init__(self, name: str):
        """The collection of this name. The collections of a plugin have different names."""
        if host_timers is None:
            raise ConfigError("the plugin was built without timers; set `timers = true` in transform.toml, and build it")
        self.prefix = name.encode() + b"\0"

    def set(self, key: Key, time: int) -> None:
        """Sets the timer of a key; it replaces an earlier one. If the time has passed, it fires after this record."""
        self.set_all([(key, time)])

    def set_all(self, timers: Union[Mapping[Key, int], Iterable[Tuple[Key, int]]]) -> None:
        """Sets several timers."""
        pairs = timers.items() if isinstance(timers, Mapping) else timers
        host_timers.set([host_timers.NewTimer(self._stored(key), time) for key, time in pairs])

    def delete(self, key: Key) -> None:
        """Removes the timer of a key, if there is one."""
        self.delete_all([key])

    def delete_all(self, keys: Iterable[Key]) -> None:
        """Removes several timers."""
        host_timers.delete([self._stored(key) for key in keys])

    def get(self, key: Key) -> Optional[int]:
        """The time of the timer of a key; `None` if it has none."""
        return self.get_all([key])[0]

    def get_all(self, keys: Iterable[Key]) -> List[Optional[int]]:
        """The times of the timers of several keys, in order."""
        return list(host_timers.get([self._stored(key) for key in keys]))

    def _stored(self, key: Key) -> bytes:
        return self.prefix + (key.encode() if isinstance(key, str) else bytes(key))


class Transform:
    """Base class of transforms. The constructor gets the table `config`."""

    #: Names of the output ports, without `default`.
    ports: List[str] = []
    #: True if every changed value still fits the schema of its record.
    keeps_schema: bool = False
    #: The parts of records that the transform reads. The worker need not pass the others: they can be `None`, and
    #: output records keep them.
    inputs: Iterable[str] = ("key", "value", "headers")

    def __init__(self, config: dict):
        pass

    def record(self, record: Record) -> tuple:
        """Returns the verdict on a record."""
        return pass_()

    def process(self, records: List[Record]) -> Iterable[tuple]:
        """Returns the verdicts on the records of a batch, in order. The default calls `record` for each."""
        return (self.record(record) for record in records)

    def timer(self, timer: Timer) -> tuple:
        """Returns the verdict on a timer that is due: `emit`, `drop` or `reject`. Emitted records have the timer's time
        as timestamp, and no key, value and headers unless they are given."""
        return drop()


UNCHANGED = object()


def pass_(port: str = "default"):
    """Outputs the record unchanged."""
    return ("pass", port)


def drop():
    """Drops the record, and counts it."""
    return ("drop",)


def value(new: Optional[bytes], port: str = "default"):
    """Outputs the record with another value."""
    return ("value", new, port)


def replace(key=UNCHANGED, value=UNCHANGED, headers=UNCHANGED, timestamp=UNCHANGED, port: str = "default"):
    """Outputs the record with other parts; parts that are not given stay unchanged."""
    return ("replace", key, value, headers, timestamp, port)


def emit(records: Iterable[tuple]):
    """Outputs these records, each made by `replace`, instead of the record."""
    return ("emit", list(records))


def reject(code: str, message: str):
    """Rejects the record: it becomes a dead letter with this code and message."""
    return ("reject", code, message)


def export(transform_class):
    """The class `Plugin` that the interface requires."""

    class Plugin:
        # each call gets a new object, so the transform belongs to the class
        transform = None
        port_numbers: Dict[str, int] = {}

        def init(self, config: str, host) -> InitReply:
            if FORMAT not in host.formats:
                raise Err(InitError(f"the plugin needs batch format {FORMAT}; the worker offers {host.formats}", None))
            try:
                Plugin.transform = transform_class(json.loads(config))
            except ConfigError as error:
                raise Err(InitError(str(error), error.key))
            host_inputs.declare(*(part in self.transform.inputs for part in ("key", "value", "headers")))
            Plugin.port_numbers = {name: index for index, name in enumerate(["default", *Plugin.transform.ports])}
            return InitReply(FORMAT, list(self.transform.ports), self.transform.keeps_schema)

        def process(self, batch: bytes) -> bytes:
            out = bytearray()
            count = 0
            try:
                (content,) = struct.unpack_from("<I", batch, 24)
                if content == TIMERS:
                    verdicts = (self.transform.timer(timer_of(entry)) for entry in records(batch))
                else:
                    verdicts = self.transform.process(list(records(batch)))
                for verdict in verdicts:
                    self.write(out, verdict)
                    count += 1
            except BatchError as error:
                raise Err(str(error))
            return struct.pack("<4sII4x", b"TLV1", FORMAT, count) + bytes(out)

        def flush(self) -> bytes:
            return struct.pack("<4sII4x", b"TLV1", FORMAT, 0)

        def write(self, out: bytearray, verdict: tuple):
            kind = verdict[0]
            if kind == "pass":
                out += struct.pack("<BBH", 0, 0, self.port_numbers[verdict[1]])
            elif kind == "drop":
                out += struct.pack("<BBH", 1, 0, 0)
            elif kind == "value":
                out += struct.pack("<BBH", 2, 0, self.port_numbers[verdict[2]])
                out += nullable(verdict[1])
            elif kind == "replace":
                self.write_parts(out, verdict)
            elif kind == "emit":
                out += struct.pack("<BBHI", 4, 0, 0, len(verdict[1]))
                for record in verdict[1]:
                    self.write_parts(out, record)
            elif kind == "reject":
                out += struct.pack("<BBH", 5, 0, 0) + prefixed(verdict[1].encode()) + prefixed(verdict[2].encode())
            else:
                raise ValueError(f"`record` returned {verdict!r}; expected a verdict")

        def write_parts(self, out: bytearray, verdict: tuple):
            _, key, value, headers, timestamp, port = verdict
            parts = b""
            bits = 0
            if key is not UNCHANGED:
                bits, parts = bits | 1, parts + nullable(key)
            if value is not UNCHANGED:
                bits, parts = bits | 2, parts + nullable(value)
            if headers is not UNCHANGED:
                block = b"".join(prefixed(name.encode()) + nullable(value) for name, value in headers)
                bits, parts = bits | 4, parts + prefixed(block)
            if timestamp is not UNCHANGED:
                bits, parts = bits | 8, parts + struct.pack("<q", -1 if timestamp is None else timestamp)
            out += struct.pack("<BBH", 3, bits, self.port_numbers[port]) + parts

    return Plugin


def nullable(data: Optional[bytes]) -> bytes:
    return struct.pack("<i", -1) if data is None else struct.pack("<i", len(data)) + data


def prefixed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def records(batch: bytes) -> Iterable[Record]:
    """The records of a batch."""
    magic, batch_format, count, table_at, topics_at, topic_count = struct.unpack_from("<4sIIIII", batch)
    if magic != b"TLB1" or batch_format != FORMAT:
        raise BatchError("not a batch of format 1")
    topics = []
    for _ in range(topic_count):
        (length,) = struct.unpack_from("<I", batch, topics_at)
        topics.append(batch[topics_at + 4 : topics_at + 4 + length].decode())
        topics_at += 4 + length

    def part(at: int, length: int) -> Optional[bytes]:
        return None if length < 0 else batch[at : at + length]

    for index in range(count):
        timestamp, offset, partition, topic, _, key_at, key_len, value_at, value_len, headers_at, headers_len = (
            struct.unpack_from("<qqiHHIiIiIi", batch, table_at + 48 * index)
        )
        yield Record(
            part(key_at, key_len),
            part(value_at, value_len),
            list(header_block(part(headers_at, headers_len) or b"")),
            timestamp if timestamp >= 0 else None,
            topics[topic] if topic < len(topics) else "",
            partition,
            offset if offset >= 0 else None,
        )


def timer_of(entry: Record) -> Timer:
    """The timer that an entry of a batch stands for."""
    name, _, key = (entry.key or b"").partition(b"\0")
    return Timer(name.decode(), key, entry.timestamp or 0, entry.topic, entry.partition)


def header_block(block: bytes) -> Iterable[Tuple[str, Optional[bytes]]]:
    at = 0
    while at < len(block):
        (length,) = struct.unpack_from("<I", block, at)
        name = block[at + 4 : at + 4 + length].decode()
        at += 4 + length
        (length,) = struct.unpack_from("<i", block, at)
        at += 4
        yield name, None if length < 0 else block[at : at + length]
        at += max(length, 0)
