"""A server of W&B made by the tests."""

import contextlib
import http.server
import socket
import threading

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the form of a W&B key


@contextlib.contextmanager
def environment(**variables: str):
    """For the processes started inside; no login of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        for name, value in {"NETRC": "/nowhere", **variables}.items():
            patch.setenv(name, value)
        yield


@contextlib.contextmanager
def server(status: int | None, body: str = "{}"):
    """The address of a server that answers the question who we are with this, and others with 400.

    With None of one that accepts and says nothing.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            question = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status if b"query Viewer { viewer { id } }" in question else 400)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    if status is None:
        with socket.create_server(("127.0.0.1", 0), backlog=50) as hole:
            yield f"http://127.0.0.1:{hole.getsockname()[1]}"
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
