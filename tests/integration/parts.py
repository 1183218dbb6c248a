"""Real parts that a test starts for itself: a PostgreSQL cluster, and an S3 endpoint."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


@contextlib.contextmanager
def postgres():
    """The SQLAlchemy URI of a database on a cluster of its own, reached by a socket in a temporary folder."""
    tools = _postgres_tools()
    # The socket's path may hold no more than about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="gate-pg-"))
    try:
        as_user = _as_other_than_root(folder)
        cluster = folder / "data"
        quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, "timeout": 240}
        initdb = [tools / "initdb", "--auth=trust", "--username=gate", "--no-sync", "--encoding=UTF8"]
        subprocess.run([*as_user, *map(str, initdb), "-D", cluster], check=True, **quiet)
        options = (
            f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=80"
        )
        start = [tools / "pg_ctl", "-D", cluster, "-l", folder / "log", "-w", "-t", "120", "-o", options]
        subprocess.run([*as_user, *map(str, start), "start"], check=True, **quiet)
        try:
            subprocess.run([tools / "createdb", "-h", folder, "-U", "gate", "mlflow"], check=True, **quiet)
            yield f"postgresql+psycopg2://gate@/mlflow?host={folder}"
        finally:
            stop = [*as_user, str(tools / "pg_ctl"), "-D", str(cluster), "-m", "immediate", "stop"]
            subprocess.run(stop, check=False, **quiet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_tools():
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install psycopg2-binary")
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/pgsql/bin")]
    if found := shutil.which("initdb"):
        places.insert(0, Path(found).resolve().parent)
    for place in places:
        if all((place / tool).exists() for tool in ("initdb", "pg_ctl", "createdb")):
            return place
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql")


def _as_other_than_root(folder):
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            return ["setpriv", *ids]
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def s3(bucket):
    """The environment that leads to an S3 endpoint of moto's, with one empty bucket."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install boto3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "moto's server did not start"
            time.sleep(0.1)
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        yield environment, client
    finally:
        server.kill()
        server.wait()
