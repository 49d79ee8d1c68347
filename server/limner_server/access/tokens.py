"""Bearer tokens: JWT (RFC 7519) whose signature, issuer, audience and time are checked once, and then remembered.

The token itself is not kept, only its digest, and it is in no message.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAlgorithmError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from limner_server.access.config import Tokens
from limner_server.access.keys import KeySource
from limner_server.access.matrix import Role
from limner_server.errors import UnauthenticatedError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a private key only: what checks a token here can make none."""
REMEMBERED = 10_000
"""Tokens whose check is remembered, at most."""
REMEMBER_S = 300.0
"""How long a check counts: after it, a key that was withdrawn is noticed."""

_REASONS: Mapping[type[PyJWTError], str] = {
    ExpiredSignatureError: "it has expired",
    ImmatureSignatureError: "it is not valid yet",
    InvalidAudienceError: "it is for another audience",
    InvalidIssuerError: "it is from another issuer",
    InvalidAlgorithmError: f"its algorithm is not one of {', '.join(ALGORITHMS)}",
    InvalidSignatureError: "its signature is wrong",
}


@dataclass(frozen=True)
class Holder:
    """What a good token says of who holds it."""

    subject: str
    role: Role


class TokenVerifier:
    """Checks tokens by one section of an access file. Belongs to the event loop's thread."""

    def __init__(self, rules: Tokens, keys: KeySource) -> None:
        self._rules = rules
        self._keys = keys
        self._checked: OrderedDict[bytes, tuple[Holder, float]] = OrderedDict()

    async def holder(self, token: str) -> Holder:
        """Return who holds a token.

        Raises
        ------
        UnauthenticatedError
            The token is not good; says why.
        UnavailableError
            The keys to check it with cannot be had.
        """
        digest = hashlib.sha256(token.encode()).digest()
        holder, until = self._checked.get(digest, (None, 0.0))
        if holder is not None and time.time() < until:
            return holder
        holder, expires = await self._check(token)
        self._remember(digest, holder, min(expires, time.time() + REMEMBER_S))
        return holder

    def _remember(self, digest: bytes, holder: Holder, until: float) -> None:
        self._checked[digest] = holder, until
        self._checked.move_to_end(digest)
        if len(self._checked) > REMEMBERED:
            self._checked.popitem(last=False)

    async def _check(self, token: str) -> tuple[Holder, float]:
        rules = self._rules
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise InvalidAlgorithmError
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._keys.key(header.get("kid")),
                algorithms=ALGORITHMS,
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except MissingRequiredClaimError as error:
            raise UnauthenticatedError(f"the token is not valid: it has no {error.claim!r}") from error
        except PyJWTError as error:
            raise UnauthenticatedError(
                f"the token is not valid: {_REASONS.get(type(error), 'it is no JWT')}"
            ) from error
        if not claims["sub"].strip():
            raise UnauthenticatedError("the token is not valid: its 'sub' is empty")
        return Holder(claims["sub"], claimed_role(claims, rules.roles_claim)), int(claims["exp"]) + rules.leeway_s


def claimed_role(claims: Mapping[str, Any], path: str) -> Role:
    """Return the highest role that a claim names, in a list or in a text with spaces; what names no role is ignored."""
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    words = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return Role.highest(word for word in words if isinstance(word, str))
