"""Reads the Parquet files under a directory with two independent readers, and prints one JSON object.

    read_parquet.py DIR [--key COLUMN[,COLUMN..]] [--sum COLUMN[,COLUMN..]] [--values COLUMN]
                         [--access-log FILE [FILE ..]] [--order COLUMN] [--fold KEY VERSION]

pyarrow opens each file separately, so that a truncated file is an error and not a smaller count. DuckDB then
reads all files as one table, with Hive partitions and columns united by name. Both must agree on the number
of rows. Hidden files and folders are skipped, because they have unpublished files.

    {"files": N, "rows": N, "distinct": N or null, "types": {column: [type, ..]},
     "partitions": {"day": ["2015-05-17", ..]}, "sums": {column: N}, "nulls": {column: N}, "values": [..],
     "missing": [..], "extra": [..]}

`distinct` counts the distinct values of the --key columns. `values` has up to ten values of the --values
column.

--access-log parses each line of these combined access logs by this script's own regular expression, and
compares the lines with the rows as multisets of (timestamp, method, path, protocol, status, bytes, referer,
user_agent). `missing` and `extra` have up to ten differences each, `missing_total` and `extra_total` their
numbers. `unparsed` is the number of malformed lines.

--order COLUMN sorts the files of each topic partition by their offsets (their metadata has both). The number
at the end of the column's text must ascend from row to row, separately for each billion. `out_of_order` has
up to ten places where it does not.

--fold KEY VERSION reads rows that are change events (`op`, `before`, `after`); KEY and VERSION are numeric
columns of the changed rows. It applies the events in the order of their offsets. `folded` has the resulting
tables, `{table: {key: {column: text or null}}}`. `changes` has `[table, op, key, version]` of every change
except rows of a snapshot; the version of a deletion is the deleted one. `out_of_order` has up to ten events
that do not begin with the version that the event before ended with.
"""

import argparse
import collections
import datetime
import gzip
import json
import os
import re
import sys

import duckdb
import pyarrow.parquet

COMBINED = re.compile(
    rb'^(\S+) \S+ (\S+) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"\r?$'
)
COMPARED = ["timestamp", "method", "path", "protocol", "status", "bytes", "referer", "user_agent"]


def parquet_files(root):
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".parquet") and not name.startswith("."):
                yield os.path.join(folder, name)


def hive_partitions(root, files):
    found = collections.defaultdict(set)
    for path in files:
        for part in os.path.relpath(path, root).split(os.sep)[:-1]:
            if "=" in part:
                key, value = part.split("=", 1)
                found[key].add(value)
    return {key: sorted(values) for key, values in found.items()}


def text(value):
    # "-" means null. A parser may keep or remove an escaping backslash: compare without backslashes.
    return None if value == b"-" else value.decode("utf-8", "replace").replace("\\", "")


def expected_rows(paths):
    rows, unparsed = collections.Counter(), 0
    for path in paths:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as log:
            for line in log.read().splitlines():
                match = COMBINED.match(line)
                request = match and match[4].split(b" ")
                if not match or len(request) != 3:
                    unparsed += 1
                    continue
                when = datetime.datetime.strptime(match[3].decode(), "%d/%b/%Y:%H:%M:%S %z")
                row = (int(when.timestamp()), *map(text, request), int(match[5]), 0 if match[6] == b"-" else int(match[6]), text(match[7]), text(match[8]))
                rows[row] += 1
    return rows, unparsed


def compared(row):
    when = row["timestamp"]
    if isinstance(when, str):
        when = datetime.datetime.fromisoformat(when)
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.timezone.utc)
    words = [None if row[name] is None else row[name].replace("\\", "") for name in ("method", "path", "protocol")]
    tail = [None if row[name] is None else row[name].replace("\\", "") for name in ("referer", "user_agent")]
    return (int(when.timestamp()), *words, int(row["status"]), int(row["bytes"] or 0), *tail)


def by_offsets(files):
    """The files of each topic partition, sorted by offset, and the places where their offsets overlap."""
    of, found = collections.defaultdict(list), []
    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
        partition = metadata["trunkline.topic"], int(metadata["trunkline.partition"])
        of[partition].append((int(metadata["trunkline.first_offset"]), int(metadata["trunkline.last_offset"]), path))
    for members in of.values():
        members.sort()
        for (_, end, _), (first, _, path) in zip(members, members[1:]):
            if first <= end:
                found.append(f"{path} begins at offset {first}, but the file before it ends at {end}")
    return {partition: [path for _, _, path in members] for partition, members in of.items()}, found


def out_of_order(files, column):
    """The places where the number at the end of a column's text does not ascend, in the order of offsets."""
    partitions, found = by_offsets(files)
    for paths in partitions.values():
        last = {}
        for path in paths:
            with pyarrow.parquet.ParquetFile(path) as file:
                texts = file.read(columns=[column]).column(0).to_pylist()
            for text in texts:
                number = int(re.search(r"\d+$", text)[0])
                log = number // 1_000_000_000
                if number <= last.get(log, -1):
                    found.append(f"{number} after {last[log]} in {path}")
                last[log] = number
    return found


def shown(value):
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return None if value is None else str(value)


def fold(files, key, version):
    """The tables that result from change events, the changes, and the events that contradict earlier ones."""
    partitions, found = by_offsets(files)
    tables, changes = collections.defaultdict(dict), []
    known = lambda row: {name: value for name, value in row.items() if value is not None}
    for (topic, _), paths in sorted(partitions.items()):
        name = topic.rsplit(".", 1)[1]
        rows = tables[name]
        for path in paths:
            with pyarrow.parquet.ParquetFile(path) as file:
                events = file.read(columns=["op", "before", "after"]).to_pylist()
            for event in events:
                op, before, after = event["op"], event["before"], event["after"]
                row = before if op == "d" else after
                was = rows.get(row[key])
                # A row may change before the snapshot has read it: its earlier version is then unknown.
                if op == "c":
                    right = was is None
                elif op == "r":
                    right = was is None or known(was) == known(after)
                else:
                    right = was is None or was[version] == before[version]
                if not right:
                    found.append(f"{op} of {name} {row[key]} in {path}: it was {was}, the event has {before} and {after}")
                if op == "d":
                    rows.pop(row[key], None)
                else:
                    rows[row[key]] = after
                if op != "r":
                    changes.append([name, op, row[key], row[version]])
    texts = {name: {key: {column: shown(value) for column, value in row.items()} for key, row in rows.items()} for name, rows in tables.items()}
    return texts, changes, found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--key", default="")
    parser.add_argument("--sum", default="")
    parser.add_argument("--values", default="")
    parser.add_argument("--access-log", nargs="+", default=[])
    parser.add_argument("--order", default="")
    parser.add_argument("--fold", nargs=2, default=[])
    args = parser.parse_args()

    files = list(parquet_files(args.dir))
    types = collections.defaultdict(set)
    actual = collections.Counter()
    rows = 0
    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        rows += table.num_rows
        for field in table.schema:
            types[field.name].add(str(field.type))
        if args.access_log:
            actual.update(compared(row) for row in table.select(COMPARED).to_pylist())

    result = {
        "files": len(files),
        "rows": rows,
        "distinct": None,
        "types": {name: sorted(kinds) for name, kinds in sorted(types.items())},
        "partitions": hive_partitions(args.dir, files),
        "sums": {},
        "nulls": {},
        "values": [],
    }

    if files:
        database = duckdb.connect()
        database.execute("SET threads = 1")
        database.read_parquet(files, hive_partitioning=True, union_by_name=True).create_view("records")
        one = lambda sql: database.execute(sql).fetchone()
        quoted = lambda name: '"' + name.replace('"', '""') + '"'
        counted = one("SELECT count(*) FROM records")[0]
        if counted != rows:
            sys.exit(f"pyarrow reads {rows} rows, DuckDB {counted}")
        if args.key:
            key = ", ".join(quoted(name) for name in args.key.split(","))
            result["distinct"] = one(f"SELECT count(*) FROM (SELECT DISTINCT {key} FROM records)")[0]
        for name in filter(None, args.sum.split(",")):
            result["sums"][name] = int(one(f"SELECT coalesce(sum({quoted(name)}), 0) FROM records")[0])
        if args.values:
            sql = f"SELECT DISTINCT {quoted(args.values)} FROM records ORDER BY 1 LIMIT 10"
            result["values"] = [str(value) for (value,) in database.execute(sql).fetchall()]
        for name in types:
            result["nulls"][name] = one(f"SELECT count(*) - count({quoted(name)}) FROM records")[0]

    if args.access_log:
        expected, unparsed = expected_rows(args.access_log)
        missing, extra = expected - actual, actual - expected
        result.update(
            unparsed=unparsed,
            missing=[repr(row) for row in list(missing)[:10]],
            extra=[repr(row) for row in list(extra)[:10]],
            missing_total=missing.total(),
            extra_total=extra.total(),
        )
    if args.order:
        result["out_of_order"] = out_of_order(files, args.order)[:10]
    if args.fold:
        result["folded"], result["changes"], found = fold(files, *args.fold)
        result["out_of_order"] = found[:10]
    print(json.dumps(result))


main()
