"""A stand-in for Snowflake: fakesnow's server, with what a test of a real driver needs in addition.

Arguments: PORT STAGE_FOLDER S3_ENDPOINT. STAGE_FOLDER holds the internal stages. It is a bucket's folder of
the local S3 server, so that a client can upload to them with S3 requests; the folder above it holds the
buckets of external stages.

It adds: password, key-pair (RS256 JWT) and token logins that are checked, MERGE in a transaction, SWAP WITH,
COPY with FILES, stages in S3, session tokens that expire, slow statements, lost replies and killed sessions,
AUTOCOMMIT, CURRENT_TRANSACTION(), SHOW TRANSACTIONS, SYSTEM$ABORT_SESSION and
SYSTEM$ABORT_TRANSACTION. Tests control the faults with POST /__ctl and a JSON body:

    {"user": NAME, "pubkey": PEM}            lets this user log in with a key pair
    {"user": NAME, "token": TOKEN}           lets this user log in with this OAuth or programmatic access token
    {"expire": "token"}                      the tokens of all sessions must be renewed before the next statement
    {"expire": "master"}                     they cannot be renewed
    {"replace": true}                        the next renewal gives another session
    {"refuse": TEXT, "code": CODE, "message": MESSAGE, "times": N}
                                             answers the next N (1) statements that contain TEXT with this error
    {"slow": N, "text": TEXT}                the next statement (that contains TEXT) is answered after N polls of
                                             its result
    {"drop": TEXT, "when": "before|after"}   loses the reply to the next statement that contains TEXT,
                                             before or after (default) the statement runs
    {"kill": true}                           ends all sessions and rolls back their transactions
    {"encrypted_stages": true}               the files of the service's own stages are encrypted by clients
    {"refuse_values": true}                  COPY refuses files with a text such as `refuse:100078:why`, with this
                                             error code and message
    {"tags": true}                           the answer holds in `tags` the query tags of COPY and COMMIT since the
                                             last time
    {"abort": true}                          rolls back the transactions of all sessions, which go on
    {"database": NAME, "schema": NAME, "sql": QUERY}
                                             runs a query in another session; the answer holds its rows, as texts

Other answers hold in `left` how many of these faults of statements have not happened yet.

It differs from Snowflake: a failed statement aborts the transaction; DDL does not commit; primary keys are
enforced; MERGE accepts duplicate source rows; a statement that meets a lock fails at once (000625) instead of
waiting for it; `AT` is a reserved word; temporary tables outlive their session; NUMBER(38, 0) has 64 bits.
"""

import base64
import gzip
import hashlib
import json
import os
import re
import secrets
import sys
import time
import uuid

import duckdb
import fakesnow.copy_into
import fakesnow.cursor
import fakesnow.info_schema
import fakesnow.server
import fakesnow.transforms.stage
import jwt
import snowflake.connector.errors
import uvicorn
from cryptography.hazmat.primitives import serialization
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

PORT, STAGE_FOLDER, S3_ENDPOINT = int(sys.argv[1]), sys.argv[2], sys.argv[3]
BUCKETS = os.path.dirname(STAGE_FOLDER)

TEMPORARY_TABLE = r"(?i)^(\s*create\s+(?:or\s+replace\s+)?)temporary(\s+table\b)"
SWAP = re.compile(r'(?i)^\s*alter\s+table\s+("[^"]+")\s+swap\s+with\s+("[^"]+")\s*$')
# An open transaction that blocks another one is rolled back after this time without a statement.
IDLE_SECONDS = 300

PASSWORDS = {"FAKE": "snow"}
# Session parameters that fakesnow does not know; they have no effect here.
IGNORED_PARAMETERS = (
    r"\s*alter\s+session\s+(un)?set\s+"
    r"(lock_timeout|transaction_abort_on_error|abort_detached_query|statement_timeout_in_seconds|timezone)\b"
)


# ---- stages are folders of the local S3 server

def patch_stages():
    stage, copy_into, info_schema = fakesnow.transforms.stage, fakesnow.copy_into, fakesnow.info_schema
    source_urls, url_from_variable = copy_into._source_urls, copy_into.stage_url_from_var
    from_source = copy_into._from_source
    internal_files, table_comment = stage.internal_files_sql, info_schema.insert_table_comment_sql

    def column_names(*arguments):
        """The names of a table's columns, in their own case."""
        return [column[0] for column in copy_into._describe_table(*arguments)]

    def is_internal(path):
        return path.startswith(BUCKETS + "/")

    def folder_of(url):
        return os.path.join(BUCKETS, url.removeprefix("s3://")) if url.startswith("s3://") else url

    def stage_url(*arguments, **options):
        return folder_of(url_from_variable(*arguments, **options))

    def source(expression):
        """COPY's source, which may be an address instead of a stage."""
        return folder_of(from_source(expression))

    def urls(source, files):
        """COPY with FILES=(..) also from a folder."""
        return [os.path.join(source, name) for name in files] if is_internal(source) else source_urls(source, files)

    def files_sql(path):
        if path.startswith(STAGE_FOLDER):
            return internal_files(path)
        return f"SELECT file FROM glob('{os.path.dirname(path)}/**/*') WHERE starts_with(file,'{path}')"

    def comment_sql(catalog, schema, table, comment):
        """No comment on the helper table of MERGE: it would end the transaction."""
        return "SELECT 1" if table.upper() == "MERGE_CANDIDATES" else table_comment(catalog, schema, table, comment)

    stage.LOCAL_BUCKET_PATH = STAGE_FOLDER
    stage.is_internal = is_internal
    stage.internal_file_name = lambda path: os.path.relpath(path, BUCKETS)
    stage.internal_files_sql = files_sql
    copy_into._source_urls = urls
    copy_into._get_table_columns = column_names
    copy_into._from_source = source
    copy_into.stage_url_from_var = stage_url
    copy_into.stage.is_internal = is_internal
    info_schema.insert_table_comment_sql = comment_sql
    fakesnow.server.gcs_stage_info = upload_target


def upload_target(_request, _expression, parameters):
    """Where and with which credentials a client uploads to an internal stage (the answer to PUT)."""
    folder = os.path.relpath(parameters["stageInfo"]["location"], STAGE_FOLDER).strip("/")
    return {
        "locationType": "S3",
        "location": f"{os.path.basename(STAGE_FOLDER)}/{folder}/",
        "region": "us-east-1",
        "endPoint": S3_ENDPOINT,
        "isClientSideEncrypted": False,
        "storageAccount": None,
        "presignedUrl": None,
        "creds": {"AWS_KEY_ID": "AKTEST", "AWS_SECRET_KEY": "SKTESTSK", "AWS_TOKEN": "", "AWS_ID": "AKTEST",
                  "AWS_KEY": "SKTESTSK"},
    }


def abort_idle_transactions():
    """Snowflake rolls back a transaction that blocks another one, after five minutes without a statement."""
    for token, session in list(fakesnow.server.sessions.items()):
        if time.monotonic() - last_used.get(token, 0) > IDLE_SECONDS:
            roll_back(token)


def roll_back(token):
    """Ends the open transaction of a session, if it has one."""
    transactions.pop(token, None)
    try:
        fakesnow.server.sessions[token]._duck_conn.rollback()
    except Exception:
        pass  # it has no transaction


def patch_conflicts():
    """Errors of concurrent transactions, as Snowflake's error of a statement that waited for a lock."""
    execute = fakesnow.cursor.FakeSnowflakeCursor.execute

    def translated(self, *arguments, **options):
        try:
            return execute(self, *arguments, **options)
        except duckdb.TransactionException as error:
            if "conflict" not in str(error).lower():
                raise
            abort_idle_transactions()
            raise snowflake.connector.errors.ProgrammingError(
                msg=f"Statement aborted because of a lock: {error}", errno=625, sqlstate="57014"
            ) from None

    fakesnow.cursor.FakeSnowflakeCursor.execute = translated


# ---- requests

class Faults:
    """What tests asked for with /__ctl."""

    public_keys = {}          # user -> PEM
    tokens = {}               # user -> OAuth or programmatic access token
    expired = set()           # tokens of sessions that must be renewed
    master_expired = False
    replace_session = False   # by the next renewal
    refuse = None             # (text, code, message) for the next statements with this text
    refuse_times = 0          # how many
    slow_polls = 0            # polls until the next statement with the text is answered
    slow_text = ""
    slow_running = 0          # statements whose answer will be polled, and that have not ended yet
    drop_text = None          # loses the reply to the next statement with this text
    drop_before_run = False
    encrypted_stages = False
    refuse_values = False     # by COPY
    tags = []                 # of COPY and COMMIT


# Answers of slow statements, by query id: [polls left, answer].
pending = {}
# Ids of sessions, and when they ran their last statement, by token.
session_ids = {}
last_used = {}
# Ids of open transactions, by token, and the tokens of sessions with AUTOCOMMIT = FALSE.
transactions = {}
manual_commit = set()


async def body_of(request):
    body = await request.body()
    if request.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return json.loads(body)


def replace_body(request, body):
    encoded = json.dumps(body).encode()
    request._body = gzip.compress(encoded) if request.headers.get("content-encoding") == "gzip" else encoded


def json_of(response):
    return json.loads(bytes(response.body))


def check_token(user, login):
    """Raises if the login's JWT is not signed by the user's key, or names another user or key."""
    key = serialization.load_pem_public_key(Faults.public_keys[user].encode())
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()
    claims = jwt.decode(login["TOKEN"], key, algorithms=["RS256"])
    subject = f"{login['ACCOUNT_NAME'].upper()}.{user}"
    if claims["sub"] != subject or claims["iss"] != f"{subject}.{fingerprint}":
        raise ValueError(f"wrong claims: {claims}")


async def log_in(request):
    def refuse(message, code="390100"):
        return JSONResponse({"data": {"authnMethod": "X", "errorCode": code}, "code": code, "message": message,
                             "success": False})

    body = await body_of(request)
    login = body["data"]
    user = login["LOGIN_NAME"].upper()
    if login.get("AUTHENTICATOR") == "SNOWFLAKE_JWT":
        try:
            check_token(user, login)
        except Exception as error:
            return refuse(f"JWT token is invalid. {type(error).__name__} {error}", "390144")
    elif login.get("AUTHENTICATOR") in ("OAUTH", "PROGRAMMATIC_ACCESS_TOKEN"):
        if login["TOKEN"] != Faults.tokens.get(user):
            return refuse("OAuth access token expired.", "390318")
    elif PASSWORDS.get(user) != login.get("PASSWORD"):
        return refuse("Incorrect username or password was specified.")

    login.setdefault("SESSION_PARAMETERS", {})["nop_regexes"] = [IGNORED_PARAMETERS]
    replace_body(request, body)
    answer = json_of(await fakesnow.server.login_request(request))
    session = answer["data"]
    session_ids[session["token"]] = new_session_id()
    session.update(sessionId=session_ids[session["token"]], masterToken="M" + session["token"],
                   masterValidityInSeconds=14400, validityInSeconds=3600)
    session["sessionInfo"].update(roleName="SYSADMIN", warehouseName=None)
    return JSONResponse(answer)


def new_session_id():
    return uuid.uuid4().int >> 66


async def renew_token(request):
    """Replaces a session's token (the request carries its master token)."""
    old = fakesnow.server.to_token(request)[1:]
    if Faults.master_expired or old not in fakesnow.server.sessions:
        return failure("390114", "Authentication token has expired. The user must authenticate again.")
    new = secrets.token_urlsafe(32)
    session = fakesnow.server.sessions.pop(old)
    session_ids[new] = session_ids.pop(old)
    if Faults.replace_session:
        Faults.replace_session = False
        transactions.pop(old, None)
        try:
            session._duck_conn.rollback()
        except Exception:
            pass  # it has no transaction
        session_ids[new] = new_session_id()
    fakesnow.server.sessions[new] = session
    if old in transactions:
        transactions[new] = transactions.pop(old)
    if old in manual_commit:
        manual_commit.add(new)
    Faults.expired.discard(old)
    return JSONResponse({
        "data": {"sessionToken": new, "validityInSecondsST": 3600, "masterToken": "M" + new,
                 "validityInSecondsMT": 14400, "sessionId": session_ids[new]},
        "code": None, "message": None, "success": True,
    })


async def close_session(request):
    """A session that logs out rolls back its transaction."""
    token = fakesnow.server.to_token(request)
    if request.query_params.get("delete") and token in fakesnow.server.sessions:
        roll_back(token)
    return await fakesnow.server.session(request)


def failure(code, message):
    return JSONResponse(complete({"data": None, "code": code, "message": message, "success": False}))


def complete(answer):
    """Adds the fields that drivers require and fakesnow leaves out."""
    data = answer.get("data")
    if not answer["success"]:
        state = (data or {}).get("sqlState") or "XX000"
        answer["data"] = {"age": 0, "errorCode": answer.get("code") or "000603", "internalError": False,
                          "queryId": str(uuid.uuid4()), "sqlState": state}
    elif isinstance(data, dict) and "rowtype" in data:
        data.setdefault("returned", data.get("total", 0))
        data.setdefault("finalRoleName", "SYSADMIN")
        data.setdefault("version", 1)
    elif isinstance(data, dict) and data.get("command") == "UPLOAD":
        data.update(threshold=209715200, parallel=data.get("parallel", 4), encryptionMaterial=[], presignedUrls=[])
    return answer


def in_progress(query_id, code, **more):
    data = {"queryId": query_id, "getResultUrl": f"/queries/{query_id}/result", **more}
    return JSONResponse({"data": data, "code": code, "message": "in progress", "success": True})


def control_answer(sql, token):
    """The answer to a statement about sessions and transactions; none for others."""
    words = sql.upper()
    if "CURRENT_TRANSACTION()" in words:
        return table_answer(["CURRENT_TRANSACTION()"], [[transactions.get(token)]])
    if words.startswith("SHOW TRANSACTIONS"):
        rows = [[id, str(session_ids[of])] for of, id in transactions.items() if of in fakesnow.server.sessions]
        return table_answer(["id", "session"], rows)
    found = re.match(r"\s*SELECT SYSTEM\$ABORT_(SESSION|TRANSACTION)\((\d+)\)", words)
    if not found:
        return None
    kind, id = found.groups()
    if kind == "TRANSACTION":
        for other in [other for other, open_id in transactions.items() if open_id == id]:
            roll_back(other)
    for other in [other for other, session in session_ids.items() if kind == "SESSION" and str(session) == id]:
        if other in fakesnow.server.sessions:
            roll_back(other)
            fakesnow.server.sessions.pop(other)
    return table_answer(["status"], [["terminated"]])


def table_answer(columns, rows):
    return {"data": {"rowtype": [{"name": name, "type": "text", "nullable": True} for name in columns], "rowset": rows,
                     "total": len(rows), "queryResultFormat": "json", "queryId": str(uuid.uuid4())},
            "code": None, "message": None, "success": True}


def note_transaction(sql, token):
    """Follows BEGIN, COMMIT and ROLLBACK; begins a transaction where AUTOCOMMIT = FALSE does."""
    word = sql.split(None, 1)[0].upper() if sql.strip() else ""
    if "AUTOCOMMIT = FALSE" in sql.upper():
        manual_commit.add(token)
    elif "AUTOCOMMIT = TRUE" in sql.upper():
        manual_commit.discard(token)
    if word in ("COMMIT", "ROLLBACK"):
        if transactions.pop(token, None) is None and token in manual_commit:
            return False
    elif word == "BEGIN":
        if token in transactions:
            return False  # it is ignored
        transactions[token] = str(uuid.uuid4().int >> 66)
    elif word in ("INSERT", "UPDATE", "DELETE", "MERGE", "COPY") and token in manual_commit and token not in transactions:
        transactions[token] = str(uuid.uuid4().int >> 66)
        fakesnow.server.sessions[token]._duck_conn.begin()
    return True


STAGE_STATEMENT = re.compile(r"\s*(PUT|LIST|REMOVE)\s.*?'@([\w$.]+)((?:/[^']*)?)'", re.IGNORECASE)


def stage_answer(sql, session):
    """The answer to a statement about a stage of the service: a folder of the S3 server."""
    found = STAGE_STATEMENT.match(sql)
    if not found:
        return None
    kind, name, path = found[1].upper(), found[2].rsplit(".", 1)[-1], found[3].strip("/")
    try:
        session.cursor().execute(f"LIST @{name}")
    except snowflake.connector.errors.ProgrammingError:
        return {"data": None, "code": "002003", "success": False,
                "message": f"SQL compilation error: Stage '{name}' does not exist or not authorized."}
    root = os.path.join(STAGE_FOLDER, name.lower())
    if kind == "PUT":
        info = {**upload_target(None, None, {"stageInfo": {"location": os.path.join(root, path)}}),
                "isClientSideEncrypted": Faults.encrypted_stages}
        return {"data": {"command": "UPLOAD", "stageInfo": info}, "code": None, "message": None, "success": True}
    files = [os.path.relpath(os.path.join(folder, file), root) for folder, _, names in os.walk(root) for file in names]
    files = sorted(file for file in files if file.startswith(path))
    if kind == "REMOVE":
        for file in files:
            os.remove(os.path.join(root, file))
    return table_answer(["name", "size"], [[f"{name.lower()}/{file}", "1"] for file in files])


async def answer_of(request, sql, token):
    if token in fakesnow.server.sessions:
        answer = control_answer(sql, token)
        if not answer:
            answer = await run_in_threadpool(stage_answer, sql, fakesnow.server.sessions[token])
        if not answer and not note_transaction(sql, token):
            answer = table_answer(["status"], [["ignored"]])
        if answer:
            return complete(answer)
    return complete(json_of(await fakesnow.server.query_request(request)))


async def run_statement(request):
    body = await body_of(request)
    # COPY of fakesnow does not find temporary tables.
    sql = re.sub(TEMPORARY_TABLE, r"\1transient\2", body["sqlText"])
    # A stage of the service is a folder, as an external one is.
    sql = re.sub(r"(?i)^(COPY INTO .*? FROM )'@(?:\w+\.)*(\w+)/",
                 lambda found: f"{found[1]}'s3://{os.path.basename(STAGE_FOLDER)}/{found[2].lower()}/", sql)
    replace_body(request, {**body, "sqlText": sql})
    token = fakesnow.server.to_token(request)
    last_used[token] = time.monotonic()
    if sql.startswith(("COPY", "COMMIT")):
        Faults.tags.append(body.get("parameters", {}).get("QUERY_TAG"))
    if token in Faults.expired:
        return failure("390112", "Your session has expired. Please login again.")
    if Faults.refuse_times and Faults.refuse[0].lower() in sql.lower():
        Faults.refuse_times -= 1
        return failure(*Faults.refuse[1:])
    if Faults.refuse_values and (refused := await run_in_threadpool(refused_value, sql)):
        return failure(*refused)
    if Faults.drop_text and Faults.drop_text.lower() in sql.lower():
        Faults.drop_text = None
        if not Faults.drop_before_run:
            await answer_of(request, sql, token)
        return JSONResponse({"error": "connection lost"}, status_code=400)
    if swap := SWAP.match(sql):
        return await exchange_tables(request, body, *swap.groups())
    polls = Faults.slow_polls if Faults.slow_text.lower() in sql.lower() else 0
    if polls:
        Faults.slow_polls = 0
        Faults.slow_running += 1
    try:
        answer = await answer_of(request, sql, token)
    finally:
        Faults.slow_running -= polls > 0
    if polls:
        query_id = str(uuid.uuid4())
        pending[query_id] = [polls, answer]
        return in_progress(query_id, "333334", queryAbortsAfterSecs=300, progressDesc=None)
    return JSONResponse(answer)


REFUSED_TEXT = re.compile(r"refuse:(\d+):(.*)", re.DOTALL)
COPY_FILES = re.compile(r"(?is)^\s*copy into .*? from 's3://([^']*)'.*? files = \(([^)]*)\)")


def refused_value(sql):
    """The code and the message of a text that COPY refuses; none if it refuses none."""
    found = COPY_FILES.match(sql)
    if not found:
        return None
    for name in re.findall(r"'([^']*)'", found[2]):
        path = os.path.join(BUCKETS, found[1], name)
        relation = duckdb.connect().execute("SELECT * FROM read_parquet(?)", [path])
        names = [column[0] for column in relation.description]
        for number, row in enumerate(relation.fetchall()):
            for column, value in zip(names, row):
                refused = REFUSED_TEXT.fullmatch(value) if isinstance(value, str) else None
                if refused:
                    place = f'  File \'{name}\', line 1, character 1  Row {number}, column "{column}"'
                    return refused[1], refused[2] + place
    return None


async def exchange_tables(request, body, one, other):
    """ALTER TABLE one SWAP WITH other: renames in a transaction."""
    aside = '"TRUNKLINE_ASIDE"'
    renames = [f"ALTER TABLE {old} RENAME TO {new}" for old, new in ((one, aside), (other, one), (aside, other))]
    for sql in ["BEGIN", *renames, "COMMIT"]:
        replace_body(request, {**body, "sqlText": sql})
        answer = complete(json_of(await fakesnow.server.query_request(request)))
        if not answer["success"]:
            replace_body(request, {**body, "sqlText": "ROLLBACK"})
            await fakesnow.server.query_request(request)
            break
    return JSONResponse(answer)


async def poll_result(request):
    query_id = request.path_params["query_id"]
    pending[query_id][0] -= 1
    if pending[query_id][0] > 0:
        return in_progress(query_id, "333333")
    return JSONResponse(pending.pop(query_id)[1])


def rows_of(body):
    connection = fakesnow.server.shared_fs.connect(body["database"], body["schema"])
    try:
        rows = connection.cursor().execute(body["sql"]).fetchall()
    finally:
        connection.close()
    return [[None if value is None else str(value) for value in row] for row in rows]


async def control(request):
    body = await body_of(request)
    if "sql" in body:
        try:
            return JSONResponse({"rows": await run_in_threadpool(rows_of, body)})
        except Exception as error:
            return JSONResponse({"error": str(error)}, status_code=400)
    if "pubkey" in body:
        Faults.public_keys[body["user"].upper()] = body["pubkey"]
    if "token" in body:
        Faults.tokens[body["user"].upper()] = body["token"]
    if "expire" in body:
        Faults.expired.update(fakesnow.server.sessions)
        Faults.master_expired = body["expire"] == "master"
    if "encrypted_stages" in body:
        Faults.encrypted_stages = body["encrypted_stages"]
    if "refuse_values" in body:
        Faults.refuse_values = body["refuse_values"]
    if "replace" in body:
        Faults.replace_session = body["replace"]
    if "refuse" in body:
        Faults.refuse, Faults.refuse_times = (body["refuse"], body["code"], body["message"]), body.get("times", 1)
    if body.get("kill") or body.get("abort"):
        for token in list(fakesnow.server.sessions):
            roll_back(token)
    if body.get("kill"):
        fakesnow.server.sessions.clear()
    if "slow" in body:
        Faults.slow_polls, Faults.slow_text = body["slow"], body.get("text", "")
    if "drop" in body:
        Faults.drop_text, Faults.drop_before_run = body["drop"], body.get("when", "after") == "before"
    if body.get("tags"):
        tags, Faults.tags = Faults.tags, []
        return JSONResponse({"tags": tags})
    left = Faults.refuse_times + (Faults.slow_polls > 0) + Faults.slow_running + (Faults.drop_text is not None)
    return JSONResponse({"left": left})


def main():
    os.makedirs(STAGE_FOLDER, exist_ok=True)
    patch_stages()
    patch_conflicts()
    routes = [
        Route("/session/v1/login-request", log_in, methods=["POST"]),
        Route("/session/token-request", renew_token, methods=["POST"]),
        Route("/session", close_session, methods=["POST"]),
        Route("/queries/v1/query-request", run_statement, methods=["POST"]),
        Route("/queries/{query_id}/result", poll_result, methods=["GET"]),
        Route("/__ctl", control, methods=["POST"]),
    ]
    replaced = {route.path for route in routes}
    routes += [route for route in fakesnow.server.routes if route.path not in replaced]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=PORT, log_level="warning")


main()
