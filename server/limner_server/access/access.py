"""Who a call is by: the access file, the tokens and certificates that it trusts, and all of it read again on change."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner_server.access.config import AccessFile, Entry, load_access_file
from limner_server.access.keys import FileKeys, UrlKeys
from limner_server.access.matrix import Role
from limner_server.access.principal import Principal
from limner_server.access.tokens import TokenVerifier
from limner_server.errors import UnauthenticatedError
from limner_server.files import stamp

LOOK_S = 1.0
"""Between two looks whether a file has changed."""

_SCHEME = "bearer "
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rules:
    """An access file, as it is applied."""

    file: AccessFile
    keys: Path | None = None
    """The file of keys, where they are in one."""
    verifier: TokenVerifier | None = None


class Access:
    """Tells who calls, by one access file. Belongs to the event loop's thread.

    Parameters
    ----------
    path
        The access file.
    mutual_tls
        Whether callers show certificates.

    Raises
    ------
    OSError, ValueError
        The file or that of its keys is wrong, or by it nobody could ever call; names file, line and field.
    """

    def __init__(self, path: Path, *, mutual_tls: bool) -> None:
        self._path = path
        self._mutual_tls = mutual_tls
        seen = stamp([path])  # before it is read, so that no change is missed
        self._rules = self._read()
        self._seen = seen + stamp(self._files()[1:])
        self._trouble = ""

    async def identify(
        self, metadata: Iterable[tuple[str, str | bytes]], auth: Mapping[str, Iterable[bytes]]
    ) -> Principal:
        """Return who a call is by: by its token where it bears one, else by the certificate of its connection.

        Parameters
        ----------
        metadata
            Of the call.
        auth
            gRPC's auth context of its connection.

        Raises
        ------
        UnauthenticatedError
            It bears neither, or a token that is not good.
        UnavailableError
            The keys to check the token with cannot be had.
        """
        rules = self._rules
        shown = [value for key, value in metadata if key == "authorization"]
        if shown:
            holder = await _verifier(rules).holder(_token(shown))
            return self._principal(f"token:{holder.subject}", holder.role)
        name = next(iter([*auth.get("peer_uri", ()), *auth.get("x509_common_name", ())]), None)
        if name is None:
            raise UnauthenticatedError(f"the call says of nobody who it is by; expected {self._expected()}")
        return self._principal(f"certificate:{name.decode(errors='backslashreplace')}", Role.NOBODY)

    async def follow(self) -> None:
        """Read the access file and the file of keys again whenever they change, until cancelled.

        What is wrong is logged once, and what was there before stays; it is read again at each look until it is right.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(self._look)
            except Exception:  # whatever it is, the rules stay and the next look comes
                _log.exception("the access file could not be looked at")

    def _look(self) -> None:
        seen = stamp(self._files())
        if seen == self._seen and not self._trouble:  # what is wrong may be in a file that was not there to be seen
            return
        before, self._seen, self._trouble = self._trouble, seen, ""
        try:
            self._rules = self._read(self._rules)
        except (OSError, ValueError) as error:
            self._trouble = str(error)
            if self._trouble != before:
                _log.error("what has changed of the access file or its keys is not taken, the old stays: %s", error)
        else:
            _log.info("the access file and its keys have been read again: %s", self._path)

    def _read(self, before: _Rules | None = None) -> _Rules:
        file = load_access_file(self._path)
        if file.tokens is None:
            if not self._mutual_tls:
                raise ValueError(f"{self._path} has no 'tokens', and without --tls-client-ca nobody could ever call")
            return _Rules(file)
        source = file.tokens.jwks
        if "://" not in source:
            keys = FileKeys(self._path.parent / source)
            return _Rules(file, keys.path, TokenVerifier(file.tokens, keys))
        if before and before.file.tokens == file.tokens:  # its keys are there, whatever the URL says now
            return _Rules(file, None, before.verifier)
        return _Rules(file, None, TokenVerifier(file.tokens, UrlKeys(source)))

    def _files(self) -> list[Path]:
        return [file for file in (self._path, self._rules.keys) if file]

    def _principal(self, name: str, claimed: Role) -> Principal:
        file = self._rules.file
        entry = file.principals.get(name, _UNLISTED)
        role = claimed if entry.roles is None else Role.highest(entry.roles)
        return Principal(name, role, entry.limits or file.limits)

    def _expected(self) -> str:
        ways = ["'authorization: Bearer TOKEN'"] if self._rules.verifier else []
        ways += ["a client certificate"] if self._mutual_tls else []
        return " or ".join(ways)


_UNLISTED = Entry()


def _verifier(rules: _Rules) -> TokenVerifier:
    if rules.verifier is None:
        raise UnauthenticatedError("no tokens are taken here: a caller is known by its client certificate")
    return rules.verifier


def _token(shown: Sequence[str | bytes]) -> str:
    value = shown[0]
    if len(shown) > 1 or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError("'authorization' is not understood; expected it once, as 'Bearer TOKEN'")
    return value[len(_SCHEME) :].strip()


def check_access(path: Path, mutual_tls: bool) -> None:
    """Raise OSError or ValueError where `Access` would not take a file."""
    Access(path, mutual_tls=mutual_tls)
