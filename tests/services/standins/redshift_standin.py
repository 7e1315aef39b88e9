"""A stand-in for Redshift: a proxy for the PostgreSQL protocol in front of a real PostgreSQL.

Arguments: PORT POSTGRES_PORT S3_ENDPOINT. A suite against it proves PostgreSQL's semantics with Redshift's
restrictions:

- `COPY table FROM 's3://..' FORMAT PARQUET` runs on the client's own backend connection, so that its rows are
  part of the client's transaction. Columns match by position. Manifests need meta.content_length.
- Statements that Redshift rejects are rejected, and abort an open transaction: ON CONFLICT, RETURNING, indexes,
  MERGE from a subquery or with AND, several ADD COLUMN in one ALTER, ADD COLUMN IF NOT EXISTS.
- TRUNCATE commits the open transaction.
- Distribution keys, sort keys and encodings are ignored; primary keys are not enforced; SUPER is jsonb; VARBYTE
  is bytea.
- STV_SESSIONS shows the sessions of PostgreSQL. STL_LOAD_ERRORS shows the last failed COPY of the session.
- COPY refuses files with a text such as `refuse:1220:why`, with this error code and reason in STL_LOAD_ERRORS.
- COPY through the extended query protocol is refused.
"""

import asyncio
import io
import json
import re
import struct
import sys

import boto3
import pyarrow.parquet

PORT, POSTGRES_PORT, S3_ENDPOINT = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
S3 = boto3.client("s3", endpoint_url=S3_ENDPOINT, aws_access_key_id="AKTEST", aws_secret_access_key="SKTESTSK",
                  region_name="us-east-1")

FLAGS = re.IGNORECASE | re.DOTALL
COPY = re.compile(r"""^\s*copy\s+(?P<table>[\w."]+)\s*(\((?P<columns>[^)]*)\))?\s+"""
                  r"""from\s+'s3://(?P<bucket>[^/']+)/(?P<key>[^']*)'\s*(?P<options>.*?);?\s*$""", FLAGS)
REJECTED = [(re.compile(pattern, FLAGS), code, message) for pattern, code, message in [
    (r"^\s*merge\b.*\busing\s*\(", "42601", 'syntax error at or near "("'),
    (r"when\s+matched\s+and\b", "42601", 'syntax error at or near "AND"'),
    (r"\bon\s+conflict\b", "42601", 'syntax error at or near "ON"'),
    (r"\breturning\b", "42601", 'syntax error at or near "RETURNING"'),
    (r"^\s*create\s+(unique\s+)?index", "0A000", "SQL command not supported on Redshift tables."),
    (r"\badd\s+column\s+if\s+not\s+exists\b", "42601", 'syntax error at or near "NOT"'),
    (r"^\s*alter\s+table.*add\s+column.*,\s*add\s+column", "42601", 'syntax error at or near ","'),
    (r"pg_catalog\.pg_range|pg_catalog\.pg_enum", "42P01", "relation does not exist"),
]]
TRUNCATE = re.compile(r"\s*truncate\b", FLAGS)
TABLE_DEFINITION = re.compile(r"\b(create\s+(temp(orary)?\s+)?|alter\s+)table", FLAGS)
# Replacements in CREATE TABLE and ALTER TABLE, in this order.
TABLE_SYNTAX = [(re.compile(pattern, FLAGS), by) for pattern, by in [
    (r"\b(distkey|sortkey)\s*\([^)]*\)|\bdiststyle\s+\w+|\bcompound\s+(?=sortkey)|\bencode\s+\w+|\bbackup\s+(yes|no)",
     ""),
    (r"\bprimary\s+key\s*\([^)]*\)\s*,?|\bprimary\s+key\b|\bunique\b", ""),
    (r"\bsuper\b", "jsonb"),
    (r"\bvarbyte(\(\d+\))?", "bytea"),
    (r"\bvarchar\s*\(\s*max\s*\)", "varchar(65535)"),
    (r",\s*\)", ")"),
]]
# Functions of SUPER, as casts, and of VARBYTE.
FUNCTIONS = [(re.compile(r"\bjson_parse\s*\(([^()]*)\)", FLAGS), r"(\1)::jsonb"),
             (re.compile(r"\bjson_serialize\s*\(([^()]*)\)", FLAGS), r"(\1)::varchar"),
             (re.compile(r"\bto_hex\s*\(([^()]*)\)", FLAGS), r"encode(\1, 'hex')")]
# The catalog of sessions, whose ids are those that pg_terminate_backend ends.
SESSIONS = (re.compile(r"\bfrom\s+stv_sessions\b", FLAGS),
            "from (select pid as process, backend_start at time zone 'UTC' as starttime, usename as user_name "
            "from pg_stat_activity) as stv_sessions")
# The system table with the reason of a failed COPY.
LOAD_ERRORS = re.compile(r"\bfrom\s+stl_load_errors\b", FLAGS)
NO_LOAD_ERROR = "select 0, '', '' where false"
# A text that COPY refuses: the error code, and the reason.
REFUSED_TEXT = re.compile(r"refuse:(\d+):(.*)", re.DOTALL)
# A statement that fails with a syntax error: it aborts an open transaction, as a rejected statement does.
FAILING = "select redshift_syntax_error_x"


# ---- the protocol's messages

def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


def error(code, text, detail=None):
    fields = [b"SERROR", b"C" + code.encode(), b"M" + text.encode()] + ([b"D" + detail.encode()] if detail else [])
    return message(b"E", b"\0".join(fields) + b"\0\0")


async def read_message(reader):
    kind = await reader.readexactly(1)
    length = struct.unpack("!I", await reader.readexactly(4))[0]
    return kind, await reader.readexactly(length - 4)


def with_postgres_syntax(query):
    if TABLE_DEFINITION.search(query):
        for pattern, by in TABLE_SYNTAX:
            query = pattern.sub(by, query)
    for pattern, by in FUNCTIONS + [SESSIONS]:
        query = pattern.sub(by, query)
    return query


# ---- COPY from S3

def objects(copy):
    """The objects that a COPY loads: (bucket, key, mandatory, content length or None)."""
    bucket, key, options = copy["bucket"], copy["key"], copy["options"]
    if re.search(r"\bmanifest\b", options, re.IGNORECASE):
        entries = json.loads(S3.get_object(Bucket=bucket, Key=key)["Body"].read())["entries"]
        return [manifest_entry(entry, "PARQUET" in options.upper()) for entry in entries]
    pages = S3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    found = [(bucket, content["Key"], True, content["Size"]) for page in pages for content in page.get("Contents", [])]
    if not found:
        raise FileNotFoundError(f"The specified S3 prefix '{key}' does not exist")
    return found


def manifest_entry(entry, is_columnar):
    bucket, key = entry["url"].removeprefix("s3://").split("/", 1)
    length = entry.get("meta", {}).get("content_length")
    if is_columnar and length is None:
        raise ValueError("manifest needs meta.content_length for columnar files")
    return bucket, key, entry.get("mandatory", False), length


def copy_text(value):
    """A value in the text format of PostgreSQL's COPY."""
    if value is None:
        return r"\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\\\x" + value.hex()
    if isinstance(value, (dict, list)):
        value = json.dumps(value)
    return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class RefusedValue(Exception):
    """A value that COPY refuses: the error code of STL_LOAD_ERRORS, its reason, and the column."""


def check_values(table):
    for name, column in zip(table.column_names, table.columns):
        for value in column.to_pylist():
            found = REFUSED_TEXT.fullmatch(value) if isinstance(value, str) else None
            if found:
                raise RefusedValue(int(found[1]), found[2], name)


def rows_of(copy, columns):
    """Yields parts of the rows as COPY text, each with the number of its rows."""
    for bucket, key, is_mandatory, length in objects(copy):
        try:
            content = S3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except S3.exceptions.NoSuchKey:
            if is_mandatory:
                raise FileNotFoundError(f"S3ServiceException: NoSuchKey {key}")
            continue
        if length is not None and length != len(content):
            raise ValueError(f"content_length mismatch for {key}: {length} != {len(content)}")
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        if table.num_columns != columns:
            raise ValueError(f"Unmatched number of columns between table and file. Table columns: {columns}, "
                             f"Data columns: {table.num_columns}, File name: s3://{bucket}/{key}")
        check_values(table)
        for batch in table.to_batches(5000):
            rows = zip(*[column.to_pylist() for column in batch.columns])
            text = "".join("\t".join(map(copy_text, row)) + "\n" for row in rows)
            yield text.encode(), batch.num_rows


def load_error(code, reason, column):
    """The row of STL_LOAD_ERRORS, as SQL."""
    texts = [text.replace("'", "''") for text in (reason[:100], column)]
    return f"select {code}, '{texts[0]}'::varchar, '{texts[1]}'::varchar"


def load_error_of(answer):
    """The row for an error of PostgreSQL: data exceptions are values out of range."""
    fields = {field[:1]: field[1:].decode() for field in answer.split(b"\0") if field}
    return load_error(1207 if fields[b"C"].startswith("22") else 1216, fields[b"M"], "")


# ---- one client connection

class Connection:
    def __init__(self, client_reader, client_writer):
        self.client, self.to_client = client_reader, client_writer
        self.load_error = NO_LOAD_ERROR  # the row of STL_LOAD_ERRORS: code, reason and column

    async def run(self):
        self.postgres, self.to_postgres = await asyncio.open_connection("127.0.0.1", POSTGRES_PORT)
        ended = asyncio.create_task(self.close_with_postgres())
        try:
            if await self.start() and await self.authenticate():
                while await self.handle_message():
                    pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one side closed its connection
        finally:
            ended.cancel()
            self.to_postgres.close()
            self.to_client.close()

    async def close_with_postgres(self):
        """Closes the client's connection when PostgreSQL has ended the session, also while it is idle."""
        # at_eof() is false as long as the last message has not been read.
        while not self.postgres._eof:
            await asyncio.sleep(0.2)
        self.to_client.close()

    async def start(self):
        """Passes on the startup message; refuses encryption, and parameters that Redshift refuses."""
        while True:
            length = struct.unpack("!I", await self.client.readexactly(4))[0]
            body = await self.client.readexactly(length - 4)
            if struct.unpack("!I", body[:4])[0] not in (80877103, 80877104):  # a request for TLS or GSSAPI
                break
            await self.reply(b"N")
        words = body[4:].split(b"\0")
        parameters = dict(zip(words[::2], words[1::2]))
        if int(parameters.get(b"extra_float_digits", b"0")) > 2:
            text = '3 is outside the valid range for parameter "extra_float_digits" (-15 .. 2)'
            await self.reply(error("22023", text))
            return False
        self.to_postgres.write(struct.pack("!I", length) + body)
        return True

    async def authenticate(self):
        while True:
            kind, body = await read_message(self.postgres)
            if kind == b"S" and body.startswith(b"server_version\0"):
                body = b"server_version\x008.0.2\0"
            await self.reply(message(kind, body))
            if kind == b"R" and struct.unpack("!I", body[:4])[0] in (3, 5, 10, 11):  # it expects an answer
                self.to_postgres.write(message(*await read_message(self.client)))
                await self.to_postgres.drain()
            if kind == b"E":
                return False
            if kind == b"Z":
                return True

    async def handle_message(self):
        """Handles one message of the client; false if it was the last one."""
        kind, body = await read_message(self.client)
        if kind == b"Q":
            await self.query(body[:-1].decode())
        elif kind == b"P" and re.search(rb"^[^\0]*\0\s*copy\b", body, re.IGNORECASE):
            await self.refuse_extended_copy(kind)
        else:
            await self.send(kind, body)
            if kind == b"S":
                await self.relay_until_ready()
        return kind != b"X"

    async def query(self, query):
        for pattern, code, text in REJECTED:
            if pattern.search(query):
                _, ready = await self.run_aside(FAILING)
                return await self.reply(error(code, text) + message(b"Z", ready))
        if TRUNCATE.match(query):
            await self.run_aside("commit")
        copy = COPY.match(query)
        if copy:
            return await self.copy(copy)
        query = LOAD_ERRORS.sub(
            f"from (select l.*, pg_backend_pid() as session, now() as starttime from ({self.load_error}) "
            "as l(err_code, err_reason, colname)) as stl_load_errors", with_postgres_syntax(query))
        await self.send(b"Q", query.encode() + b"\0")
        await self.relay_until_ready()

    async def copy(self, copy):
        columns = copy["columns"] or await self.columns_of(copy["table"])
        if columns is None:
            return
        await self.send(b"Q", f"COPY {copy['table']} ({columns}) FROM STDIN".encode() + b"\0")
        kind, body = await read_message(self.postgres)
        if kind != b"G":
            await self.reply(message(kind, body))
            return await self.relay_until_ready()
        total, failure, refused = 0, None, None
        try:
            for text, rows in rows_of(copy, columns.count(",") + 1):
                await self.send(b"d", text)
                total += rows
            await self.send(b"c", b"")
        except Exception as problem:
            refused = problem.args if isinstance(problem, RefusedValue) else None
            failure = str(problem)[:300]
            await self.send(b"f", b"load failed\0")
        messages, ready = await self.read_until_ready()
        failed = next((body for kind, body in messages if kind == b"E"), None)
        if refused or failed and not failure:
            self.load_error = load_error(*refused) if refused else load_error_of(failed)
            answer = error("XX000", f"Load into table '{copy['table']}' failed.  Check 'stl_load_errors' system table for details.")
        elif failure:
            answer = error("XX000", failure)
        else:
            text = f"Load into table '{copy['table']}' completed, {total} record(s) loaded successfully."
            answer = message(b"N", f"SINFO\0C00000\0M{text}\0\0".encode()) + message(b"C", b"COPY\0")
        await self.reply(answer + message(b"Z", ready))

    async def columns_of(self, table):
        """The table's columns; none, and PostgreSQL's answer to the client, if they cannot be had."""
        messages, _ = await self.run_aside(
            "select string_agg(quote_ident(attname), ',' order by attnum) from pg_attribute "
            f"where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped")
        for kind, body in messages:
            if kind == b"D":
                return body[6:].decode()
        await self.reply(b"".join(message(kind, body) for kind, body in messages))
        return None

    async def refuse_extended_copy(self, kind):
        await self.reply(error("XX000", "stand-in: COPY must use the simple query protocol"))
        while kind != b"S":
            kind, _ = await read_message(self.client)
        _, ready = await self.run_aside(FAILING)
        await self.reply(message(b"Z", ready))

    # Reading from PostgreSQL up to ReadyForQuery.

    async def relay_until_ready(self):
        while True:
            kind, body = await read_message(self.postgres)
            await self.reply(message(kind, body))
            if kind == b"Z":
                return

    async def read_until_ready(self):
        """All messages, and the transaction status."""
        messages = []
        while not messages or messages[-1][0] != b"Z":
            messages.append(await read_message(self.postgres))
        return messages, messages[-1][1]

    async def run_aside(self, query):
        """Runs a statement of which the client sees nothing."""
        await self.send(b"Q", query.encode() + b"\0")
        return await self.read_until_ready()

    async def send(self, kind, body):
        self.to_postgres.write(message(kind, body))
        await self.to_postgres.drain()

    async def reply(self, content):
        self.to_client.write(content)
        await self.to_client.drain()


async def main():
    async def serve(reader, writer):
        await Connection(reader, writer).run()

    async with await asyncio.start_server(serve, "127.0.0.1", PORT) as server:
        await server.serve_forever()


asyncio.run(main())
