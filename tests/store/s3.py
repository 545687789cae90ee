"""An S3-compatible server on the loopback interface, and the URL of a run in it."""

import logging
import re
import urllib.request

import pytest


class Server:
    """An S3-compatible server that can be away for a while; what it holds stays."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        from moto.server import ThreadedMotoServer

        self.running = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port)
        self.running.start()
        _, self.port = self.running.get_host_and_port()

    def stop(self):
        self.running.stop()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def objects(self, name):
        """What lies below a name, by key, asked for with nothing of ours."""
        import obstore.store

        options = {"allow_http": True}
        there = obstore.store.S3Store("bucket", endpoint=self.url, client_options=options)
        keys = [each["path"] for page in obstore.list(there, name) for each in page]
        return {key: bytes(obstore.get(there, key).bytes()) for key in keys}


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("moto.server", reason="needs moto's server (the dev extra)")
    pytest.importorskip("obstore", reason="needs obstore (the cloud extra)")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = Server()
    put = urllib.request.Request(f"{running.url}/bucket", method="PUT")
    urllib.request.urlopen(put).close()
    yield running
    running.stop()


@pytest.fixture
def url(server, monkeypatch, tmp_path, request):
    """A place of this test's own in the object store."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("GRADSTATS_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr("gradstats.store.spool.RETRY_SECONDS", 0.1)
    name = re.sub(r"\W+", "-", request.node.name)
    return f"s3://bucket/{name}.zarr"
