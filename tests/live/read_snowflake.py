"""Runs a statement with Snowflake's own connector, as the account that LIVE_SNOWFLAKE_* name.

Argument: STATEMENT. Prints the rows: columns separated by tabs, null as NULL.
"""

import os
import sys
from urllib.parse import urlsplit

import snowflake.connector
from cryptography.hazmat.primitives import serialization


def variable(name):
    return os.environ.get(f"LIVE_SNOWFLAKE_{name}")


def login():
    options = {key: variable(key.upper()) for key in ["account", "user", "password", "role", "warehouse", "database",
                                                      "schema"]}
    if variable("PRIVATE_KEY"):
        key = serialization.load_pem_private_key(variable("PRIVATE_KEY").encode(), None)
        options["private_key"] = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8,
                                                   serialization.NoEncryption())
    if variable("URL"):
        url = urlsplit(variable("URL"))
        options.update(host=url.hostname, port=url.port or 443, protocol=url.scheme)
    return snowflake.connector.connect(**{key: value for key, value in options.items() if value})


with login() as connection:
    for row in connection.cursor().execute(sys.argv[1]).fetchall():
        print("\t".join("NULL" if value is None else str(value) for value in row))
