"""The public keys that an issuer signs its tokens with (JWKS, RFC 7517): from a file or from a URL."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from jwt import PyJWK, PyJWKClient, PyJWKSet
from jwt.exceptions import PyJWTError

from limner_server.errors import UnauthenticatedError, UnavailableError

FRESH_S = 300.0
"""How long fetched keys are taken without a look whether there are others: what the issuer withdraws is gone then."""
STALE_S = 3600.0
"""How long they are taken while the URL cannot be reached."""
PAUSE_S = 10.0
"""Between two fetches, whatever keys unknown callers name."""
TIMEOUT_S = 5.0

Keys = dict[str, PyJWK]

_NO_JWKS = (PyJWTError, ValueError, TypeError, AttributeError, RecursionError)
"""What is raised of something else than a JWKS; text that is not UTF-8 is a ValueError, too."""

_log = logging.getLogger(__name__)


class KeySource(Protocol):
    """Where keys are from."""

    async def key(self, kid: str | None) -> PyJWK:
        """Return the key of an id, or the only one there is for None.

        Raises
        ------
        UnauthenticatedError
            There is no such key.
        UnavailableError
            The keys cannot be had now.
        """
        ...


class FileKeys:
    """Keys of a file, as it is now. OSError or ValueError where it cannot be read or has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._keys = _by_id(PyJWKSet.from_json(path.read_text(encoding="utf-8")))
        except _NO_JWKS as error:
            raise ValueError(f'{path}: expected a JWKS, a JSON object with public "keys" ({error})') from error

    async def key(self, kid: str | None) -> PyJWK:
        """Return a key."""
        return _pick(self._keys, kid)


class UrlKeys:
    """Keys of a URL, fetched when they are needed, by one task at a time. What is wrong with it is logged once."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        # Its own cache knows no stale keys and lets every failed fetch be followed by another at once.
        self._client = PyJWKClient(url, cache_jwk_set=False, timeout=TIMEOUT_S)
        self._clock = clock
        self._keys: Keys = {}
        self._fetched = self._tried = -math.inf
        self._trouble = ""
        self._turn = asyncio.Lock()

    async def key(self, kid: str | None) -> PyJWK:
        """Return a key, fetching all of them where they are old or it is not among them."""
        if not self._has(kid, FRESH_S):
            async with self._turn:
                if not self._has(kid, FRESH_S) and self._clock() - self._tried >= PAUSE_S:
                    await self._fetch()
        if self._trouble and not self._has(kid, STALE_S):
            raise UnavailableError(f"the keys that tokens are checked with cannot be had: {self._trouble}")
        return _pick(self._keys, kid)

    def _has(self, kid: str | None, within_s: float) -> bool:
        return self._clock() - self._fetched < within_s and (kid in self._keys or (kid is None and bool(self._keys)))

    async def _fetch(self) -> None:
        self._tried = self._clock()
        before = self._trouble
        try:
            self._keys = _by_id(await asyncio.to_thread(self._client.get_jwk_set))
        except (OSError, *_NO_JWKS) as error:
            self._trouble = " ".join(str(error).split()) or type(error).__name__
            if self._trouble != before:
                _log.error("no JWKS can be had of %s, the keys of before last a while: %s", self._url, self._trouble)
        else:
            self._fetched, self._trouble = self._tried, ""
            if before:
                _log.info("keys can be had of %s again", self._url)


def _by_id(found: PyJWKSet) -> Keys:
    return {key.key_id or "": key for key in found.keys if key.public_key_use in ("sig", None)}


def _pick(keys: Keys, kid: str | None) -> PyJWK:
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    if kid is None or kid not in keys:
        raise UnauthenticatedError("the token is signed by a key that its issuer does not publish")
    return keys[kid]
