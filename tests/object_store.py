"""An S3-compatible server on loopback, of moto, whose answers a test can spoil."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

#: What becomes of a request: "" for its answer, "cut" for an end of the connection within its body, else
#: the code of a refusal.
Fault = Callable[[str, str], str]
BUCKET = "s3://books/lake"


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class ObjectStore:
    """``fault(method, path)`` decides on each request; ``asked`` has them all."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.fault: Fault = lambda method, path: ""
        self.asked: list[tuple[str, str]] = []

    def __call__(self, environ: Mapping[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path))
        told = self.fault(method, path)
        if told == "cut":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if told:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{told}</Code><Message>no</Message></Error>".encode()]
        return self._moto(environ, start)

    @contextmanager
    def faulty(self, fault: Fault) -> Iterator[None]:
        """The block with faults."""
        before, self.fault = self.fault, fault
        try:
            yield
        finally:
            self.fault = before


@contextmanager
def served(home: str) -> Iterator[ObjectStore]:
    """A server with an empty bucket of `BUCKET`, and the environment that leads there.

    moto keeps one state in a process, whatever the server: it is forgotten at the end, or the next test
    file would find this one's objects.
    """
    store = ObjectStore()
    thread = threading.Thread(target=store._server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": store.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "of-a-test",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "L2_HOME": home,
        }.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=store.url, region_name="us-east-1").create_bucket(
            Bucket="books"
        )
        yield store
    store._server.shutdown()
    thread.join()
    store._server.server_close()
    get_backend("s3").reset()
