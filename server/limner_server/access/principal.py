"""Who calls: known to everything that a call runs through, without being handed down."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from limner_server.access.config import Limits
from limner_server.access.matrix import Role
from limner_server.errors import ForbiddenError


@dataclass(frozen=True)
class Principal:
    """A caller who has proven who it is.

    Attributes
    ----------
    name
        "token:SUBJECT" or "certificate:NAME"; as in the access file, the audit log and among owners.
    role
        The highest that it has; NOBODY where it has none.
    limits
        Of its calls.
    """

    name: str
    role: Role
    limits: Limits = field(default_factory=Limits)


_caller: ContextVar[Principal | None] = ContextVar("caller", default=None)


def enter(principal: Principal) -> None:
    """Note who the call is by. gRPC has a task, and so a context, for each call."""
    _caller.set(principal)


def caller() -> Principal | None:
    """Who the call is by; None where nobody is asked."""
    return _caller.get()


def caller_name() -> str | None:
    """Name of who the call is by; None where nobody is asked."""
    principal = _caller.get()
    return principal.name if principal else None


def check_owner(what: str, owner: str | None) -> None:
    """Refuse a change to `what` ("cohort 'pelvis'") by a caller who neither owns it nor is an admin.

    Parameters
    ----------
    owner
        None where it is nobody's: it was made before anybody was asked, or its files were put there by hand.

    Raises
    ------
    ForbiddenError
        Naming the owner.
    """
    principal = _caller.get()
    if principal is None or principal.role >= Role.ADMIN or principal.name == owner:
        return
    whose = f"belongs to {owner}" if owner else "belongs to nobody"
    raise ForbiddenError(f"{what} {whose}; only its owner and the role 'admin' may change it, you are {principal.name}")
