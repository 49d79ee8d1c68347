"""A small HTTP proxy before a real service: asks for a token, answers in its place, cuts answers short."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext

import requests

_OF_THE_TRANSFER = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}


@dataclass
class Proxy:
    """What the proxy does with the next requests.

    Attributes
    ----------
    target
        Base address of the real service.
    token
        Bearer token to ask for; empty: none.
    answers
        To the next requests, in place of those of the service: status, and seconds of Retry-After.
    cut
        How many of the next multipart answers lack their last kilobyte, without a length that would tell.
    broken
        What is in the paths of requests that are answered by `broken_status`; empty: none.
    ignored
        A parameter of queries that the service does not know.
    seen
        Paths asked for, with their queries.
    """

    target: str
    token: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)
    cut: int = 0
    broken: str = ""
    broken_status: int = 500
    ignored: str = ""
    seen: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def proxying(target: str, tls: SSLContext | None = None, **behaviour: object) -> Iterator[Proxy]:
    """Serve a proxy on a free port of the loopback address."""
    proxy = Proxy(target, **behaviour)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, proxy)

        def do_POST(self) -> None:
            _answer(self, proxy)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        proxy.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()


def _answer(request: BaseHTTPRequestHandler, proxy: Proxy) -> None:
    proxy.seen.append(request.path)
    body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
    if proxy.token and request.headers.get("Authorization") != f"Bearer {proxy.token}":
        request.send_error(401)
        return
    if proxy.broken and proxy.broken in request.path:
        request.send_error(proxy.broken_status)
        return
    if proxy.answers:
        status, retry_after = proxy.answers.pop(0)
        request.send_response(status)
        request.send_header("Retry-After", str(retry_after))
        request.end_headers()
        return
    headers = {name: value for name, value in request.headers.items() if name.lower() not in {"host", "authorization"}}
    address = proxy.target + (re.sub(f"{proxy.ignored}=[^&]*", "", request.path) if proxy.ignored else request.path)
    answer = requests.request(request.command, address, headers=headers, data=body, timeout=30)
    content = answer.content
    if proxy.cut and answer.headers.get("Content-Type", "").startswith("multipart/"):
        proxy.cut -= 1
        content = content[:-1024]
    request.send_response(answer.status_code)
    for name, value in answer.headers.items():
        if name.lower() not in _OF_THE_TRANSFER:
            request.send_header(name, value)
    request.end_headers()  # of HTTP/1.0: the answer ends where the connection does
    request.wfile.write(content)
