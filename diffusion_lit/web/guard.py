"""Which requests the page answers: those of a browser on this machine that has the page itself open."""

import re
from typing import Any
from urllib.parse import urlsplit

HOSTS = ("localhost", "127.0.0.1", "::1")
POSTS = re.compile(r"/gradio_api/(queue/join|call/(v2/)?generate|cancel|reset)/?")  # none of them takes a file
WRITING_READS = ("/gradio_api/deep_link",)  # stores the state of a visitor
MAX_BODY = 2**16  # bytes of a request, which holds six values


class LocalRequestsOnly:
    """ASGI middleware that answers 403 to requests of other host names, other pages, and to uploads.

    A page of another site can send requests to this machine, and with a name of its
    own that leads to 127.0.0.1 (DNS rebinding) also read the answers. The headers
    Host and Origin, which no page can change, show where a request is from.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass a request on to the page, or refuse it."""
        is_request = scope["type"] in ("http", "websocket")
        if not is_request or not (fault := find_request_fault(scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": fault.encode()})


def find_request_fault(scope: dict) -> str | None:
    """Return why a request, an ASGI scope, is refused, or None."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    hosts, origins, lengths = (headers.get(name, []) for name in ("host", "origin", "content-length"))
    if len(hosts) != 1 or _host_name(hosts[0]) not in HOSTS:
        return f"Host must be {', '.join(HOSTS)}: open the page under the address that the command printed"
    if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
        return "Origin is another page: this page answers requests of its own only"
    path, method = scope["path"], scope.get("method", "GET")
    if method in ("GET", "HEAD", "OPTIONS"):
        return "not part of this page" if path.startswith(WRITING_READS) else None
    if not POSTS.fullmatch(path):
        return "not part of this page, which takes no files"
    is_small = len(lengths) == 1 and lengths[0].isdigit() and int(lengths[0]) <= MAX_BODY
    return None if is_small else f"a request must have a Content-Length of at most {MAX_BODY} bytes"


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
