"""What the page of the reading room talks to: its files, and a reader's calls passed on to the service by the SDK.

A reader's token comes in the Authorization header of each call, from the page's own session: there is no cookie, so two
readers may use one browser, and no other page can speak for either. Nothing is kept here, and nothing logged but what
the Limner server fails at.
"""

import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limner.aio import AsyncClient
from limner.errors import (
    DeadlineError,
    InvalidInputError,
    LimnerError,
    NotFoundError,
    UnavailableError,
    WrongStateError,
)
from limner.types import ReaderVerdict

MAX_BODY_BYTES = 64 * 1024
AWAY, FAILED = 503, 502
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page loads its own files and calls this server; it may do nothing else, whatever is injected into it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_STATUS: dict[type[LimnerError], int] = {
    NotFoundError: 401,  # of a token
    InvalidInputError: 400,
    WrongStateError: 409,
    UnavailableError: AWAY,
    DeadlineError: AWAY,
}
_TROUBLE = {
    AWAY: "The Limner server cannot be reached.",
    FAILED: "The Limner server failed at this; the log of this page says at what.",
}
_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def create_app(client: AsyncClient) -> Starlette:
    """Return the web application; the caller closes `client`."""
    calls = _Calls(client)
    routes = [Route(path, _file(name)) for path, name in _static_files().items()]
    routes += [
        Route("/api/reading", calls.reading),
        Route("/api/cases/{position:int}", calls.image),
        Route("/api/cases/{position:int}/verdict", calls.verdict),
        Route("/api/verdicts", calls.submit, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard)],
        exception_handlers={LimnerError: _refused},  # type: ignore[dict-item]
    )


class _Calls:
    """A reader's calls."""

    def __init__(self, client: AsyncClient) -> None:
        self._readings = client.readings

    async def reading(self, request: Request) -> Response:
        """Tell what is asked, and how far the reader is."""
        form = await self._readings.open(_token(request))
        return JSONResponse(form.to_dict())

    async def image(self, request: Request) -> Response:
        """Give the pixels of a case, nothing else: every case of a reading has as many bytes and the same headers."""
        case = await self._readings.case(_token(request), _position(request))
        return Response(case.pixels if case else b"", media_type="application/octet-stream")

    async def verdict(self, request: Request) -> Response:
        """Give the reader's own verdict on a case, null before the first."""
        case = await self._readings.case(_token(request), _position(request))
        return JSONResponse(case.verdict.to_dict() if case and case.verdict else None)

    async def submit(self, request: Request) -> Response:
        """Hand a verdict in; what is answered is kept."""
        body = await request.body()
        try:
            verdict = ReaderVerdict.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "verdict"
            raise InvalidInputError(f"{field}: {first['msg']}", field=field, expected=first["msg"]) from error
        receipt = await self._readings.submit(_token(request), verdict)
        return JSONResponse(receipt.to_dict())


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotFoundError("no token was given; expected Authorization: Bearer TOKEN")
    return token.strip()


def _position(request: Request) -> int:
    position = int(request.path_params["position"])
    if not 1 <= position < 2**31:
        raise InvalidInputError(f"position is {position}; expected the place of a case, from 1", field="position")
    return position


async def _refused(request: Request, error: LimnerError) -> Response:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), FAILED)
    if status in _TROUBLE:  # addresses and principals are the operator's business, not the reader's
        _log.error("%s failed, request %s: %s", request.url.path, error.request_id or "without an id", error)
    return JSONResponse({"error": _TROUBLE.get(status, str(error)), "code": error.code.name}, status)


def _static_files() -> dict[str, str]:
    """Return the files of the page by their addresses."""
    folder = files("limner.reading") / "static"
    names = sorted(entry.name for entry in folder.iterdir() if any(entry.name.endswith(end) for end in TYPES))
    return {"/" if name == "index.html" else f"/{name}": name for name in names}


def _file(name: str) -> Handler:
    content = (files("limner.reading") / "static" / name).read_bytes()
    media_type = TYPES["." + name.rpartition(".")[2]]

    async def send(_request: Request) -> Response:
        return Response(content, media_type=media_type)

    return send


class _Guard:
    """Gives every answer the same headers, and refuses bodies that no verdict has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                caching = {"cache-control": "no-store" if scope["path"].startswith("/api/") else "no-cache"}
                added = [(name.encode(), value.encode()) for name, value in {**_HEADERS, **caching}.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        sizes = [value for name, value in scope["headers"] if name == b"content-length"]
        bodiless = scope["method"] in ("GET", "HEAD")
        if not bodiless and (not sizes or int(sizes[0]) > MAX_BODY_BYTES):
            refusal = JSONResponse({"error": f"a body of at most {MAX_BODY_BYTES:,} bytes", "code": "TOO_LARGE"}, 413)
            await refusal(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)
