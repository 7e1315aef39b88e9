"""A stand-in for Snowflake: fakesnow's server, with what a test of a real driver needs in addition.

Arguments: PORT STAGE_FOLDER S3_ENDPOINT. STAGE_FOLDER holds the internal stages. It is a bucket's folder of
the local S3 server, so that a client can upload to them with S3 requests; the folder above it holds the
buckets of external stages.

It adds: password and key-pair (RS256 JWT) logins that are checked, MERGE in a transaction, COPY with FILES,
stages in S3, slow statements, lost replies and killed sessions. Tests control the last three, and the public
keys, with POST /__ctl and a JSON body:

    {"user": NAME, "pubkey": PEM}            lets this user log in with a key pair
    {"slow": N}                              the next statement is answered after N polls of its result
    {"drop": TEXT, "when": "before|after"}   loses the reply to the next statement that contains TEXT,
                                             before or after (default) the statement runs
    {"kill": true}                           ends all sessions and rolls back their transactions

It differs from Snowflake: a failed statement aborts the transaction; DDL does not commit; primary keys are
enforced; MERGE accepts duplicate source rows; a statement never waits for a lock; `AT` is a reserved word.
"""

import base64
import gzip
import hashlib
import json
import os
import sys
import uuid

import fakesnow.copy_into
import fakesnow.info_schema
import fakesnow.server
import fakesnow.transforms.stage
import jwt
import uvicorn
from cryptography.hazmat.primitives import serialization
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

PORT, STAGE_FOLDER, S3_ENDPOINT = int(sys.argv[1]), sys.argv[2], sys.argv[3]
BUCKETS = os.path.dirname(STAGE_FOLDER)

PASSWORDS = {"FAKE": "snow"}
# Session parameters that fakesnow does not know; they have no effect here.
IGNORED_PARAMETERS = r"\s*alter\s+session\s+(un)?set\s+(lock_timeout|transaction_abort_on_error|abort_detached_query)\b"


# ---- stages are folders of the local S3 server

def patch_stages():
    stage, copy_into, info_schema = fakesnow.transforms.stage, fakesnow.copy_into, fakesnow.info_schema
    source_urls, url_from_variable = copy_into._source_urls, copy_into.stage_url_from_var
    internal_files, table_comment = stage.internal_files_sql, info_schema.insert_table_comment_sql

    def is_internal(path):
        return path.startswith(BUCKETS + "/")

    def stage_url(*arguments, **options):
        url = url_from_variable(*arguments, **options)
        return os.path.join(BUCKETS, url.removeprefix("s3://")) if url.startswith("s3://") else url

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


# ---- requests

class Faults:
    """What tests asked for with /__ctl."""

    public_keys = {}          # user -> PEM
    slow_polls = 0            # polls until the next statement is answered
    drop_text = None          # loses the reply to the next statement with this text
    drop_before_run = False


# Answers of slow statements, by query id: [polls left, answer].
pending = {}


async def body_of(request):
    body = await request.body()
    if request.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return json.loads(body)


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
    def refuse(message):
        return JSONResponse({"data": {"authnMethod": "X", "errorCode": "390100"}, "code": "390100", "message": message,
                             "success": False})

    body = await body_of(request)
    login = body["data"]
    user = login["LOGIN_NAME"].upper()
    if login.get("AUTHENTICATOR") == "SNOWFLAKE_JWT":
        try:
            check_token(user, login)
        except Exception as error:
            return refuse(f"JWT token is invalid. {type(error).__name__} {error}")
    elif PASSWORDS.get(user) != login.get("PASSWORD"):
        return refuse("Incorrect username or password was specified.")

    login.setdefault("SESSION_PARAMETERS", {})["nop_regexes"] = [IGNORED_PARAMETERS]
    encoded = json.dumps(body).encode()
    request._body = gzip.compress(encoded) if request.headers.get("content-encoding") == "gzip" else encoded
    answer = json_of(await fakesnow.server.login_request(request))
    session = answer["data"]
    session.update(sessionId=abs(hash(session["token"])) >> 1, masterToken="M" + session["token"],
                   masterValidityInSeconds=14400, validityInSeconds=3600)
    session["sessionInfo"].update(roleName="SYSADMIN", warehouseName=None)
    return JSONResponse(answer)


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


async def run_statement(request):
    sql = (await body_of(request))["sqlText"]
    if Faults.drop_text and Faults.drop_text.lower() in sql.lower():
        Faults.drop_text = None
        if not Faults.drop_before_run:
            await fakesnow.server.query_request(request)
        return JSONResponse({"error": "connection lost"}, status_code=400)
    answer = complete(json_of(await fakesnow.server.query_request(request)))
    if Faults.slow_polls:
        query_id = str(uuid.uuid4())
        pending[query_id] = [Faults.slow_polls, answer]
        Faults.slow_polls = 0
        return in_progress(query_id, "333334", queryAbortsAfterSecs=300, progressDesc=None)
    return JSONResponse(answer)


async def poll_result(request):
    query_id = request.path_params["query_id"]
    pending[query_id][0] -= 1
    if pending[query_id][0] > 0:
        return in_progress(query_id, "333333")
    return JSONResponse(pending.pop(query_id)[1])


async def control(request):
    body = await body_of(request)
    if "pubkey" in body:
        Faults.public_keys[body["user"].upper()] = body["pubkey"]
    if body.get("kill"):
        for session in fakesnow.server.sessions.values():
            try:
                session._duck_conn.rollback()
            except Exception:
                pass  # it has no transaction
        fakesnow.server.sessions.clear()
    if "slow" in body:
        Faults.slow_polls = body["slow"]
    if "drop" in body:
        Faults.drop_text, Faults.drop_before_run = body["drop"], body.get("when", "after") == "before"
    return JSONResponse({"ok": True})


def main():
    os.makedirs(STAGE_FOLDER, exist_ok=True)
    patch_stages()
    routes = [
        Route("/session/v1/login-request", log_in, methods=["POST"]),
        Route("/queries/v1/query-request", run_statement, methods=["POST"]),
        Route("/queries/{query_id}/result", poll_result, methods=["GET"]),
        Route("/__ctl", control, methods=["POST"]),
    ]
    replaced = {route.path for route in routes}
    routes += [route for route in fakesnow.server.routes if route.path not in replaced]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=PORT, log_level="warning")


main()
