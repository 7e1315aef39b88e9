"""SDK for Trunkline transform plugins in Python.

A plugin is a subclass of `Transform` with a method `record` that returns a verdict, and the line
`Plugin = export(MyTransform)`. The byte layouts are those of `wit/transform.wit`, format 1.
"""

import json
import struct
from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

from componentize_py_types import Err
from wit_world.exports.plugin import InitError, InitReply

FORMAT = 1
Headers = List[Tuple[str, Optional[bytes]]]


class ConfigError(Exception):
    """The table `config` is not accepted. `key` is the key at fault, such as `fields[0]`."""

    def __init__(self, message: str, key: Optional[str] = None):
        super().__init__(message)
        self.key = key


class BatchError(Exception):
    """A temporary failure of the whole batch: the worker retries it."""


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


class Transform:
    """Base class of transforms. The constructor gets the table `config`."""

    #: Names of the output ports, without `default`.
    ports: List[str] = []
    #: True if every changed value still fits the schema of its record.
    keeps_schema: bool = False

    def __init__(self, config: dict):
        pass

    def record(self, record: Record):
        """Returns the verdict on a record."""
        return pass_()


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
        port_numbers: dict = {}

        def init(self, config: str, host) -> InitReply:
            if FORMAT not in host.formats:
                raise Err(InitError(f"the plugin needs batch format {FORMAT}; the worker offers {host.formats}", None))
            try:
                Plugin.transform = transform_class(json.loads(config))
            except ConfigError as error:
                raise Err(InitError(str(error), error.key))
            Plugin.port_numbers = {name: index for index, name in enumerate(["default", *Plugin.transform.ports])}
            return InitReply(FORMAT, list(self.transform.ports), self.transform.keeps_schema)

        def process(self, batch: bytes) -> bytes:
            out = bytearray()
            count = 0
            try:
                for record in records(batch):
                    self.write(out, self.transform.record(record))
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
