"""What became of a malformed input, and what may not."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

LIMIT_S = 30.0
"""An input that takes longer hangs. Seconds would do on a machine that does nothing else."""
LIMIT_MIB = 1024.0

_MIB = 2**20


class Verdict(StrEnum):
    """What became of an input."""

    TAKEN = "taken"
    REFUSED = "refused"
    VIOLATION = "violation"


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes
    ----------
    case
        The input in words.
    detail
        The field that a refusal named; of a violation, what was wrong.
    seconds
        Until it was answered, or those that were sent with it; 0 where it was not timed.
    """

    case: str
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What a target did with all inputs.

    Attributes
    ----------
    target
        Its name.
    outcomes
        One for each input.
    peak_mib
        Most resident memory at any moment, above what the process had taken before the first input.
    wrong
        What was wrong with the target itself.
    resident_mib
        Most resident memory at any moment, with what the process had before.
    """

    target: str
    outcomes: tuple[Outcome, ...]
    peak_mib: float
    wrong: tuple[str, ...] = ()
    resident_mib: float = 0.0

    def count(self, verdict: Verdict) -> int:
        """How many inputs ended so."""
        return sum(outcome.verdict is verdict for outcome in self.outcomes)

    @property
    def causes(self) -> Counter[str]:
        """The fields that refusals named, and how often."""
        return Counter(outcome.detail for outcome in self.outcomes if outcome.verdict is Verdict.REFUSED)

    @property
    def violations(self) -> list[str]:
        """Everything that may not be."""
        found = [f"{one.case}: {one.detail}" for one in self.outcomes if one.verdict is Verdict.VIOLATION]
        if self.peak_mib > LIMIT_MIB:
            found.append(f"took {self.peak_mib:.0f} MiB")
        return [*found, *self.wrong]


def refused(case: object, field: str, message: str, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a refusal, a violation where it does not say why."""
    if field and message:
        return Outcome(str(case), Verdict.REFUSED, field, seconds)
    return Outcome(str(case), Verdict.VIOLATION, f"refused without a cause: {field!r}, {message!r}", seconds)


class Memory:
    """Resident memory of a process and its children, above what they had at first.

    The peak is the most that the process ever had since (VmHWM, proc(5)), and of its children the most seen together.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._children = 0.0
        self._before = self._process.memory_info().rss / _MIB + self._of_children()

    def look(self) -> None:
        """See how much the children have."""
        self._children = max(self._children, self._of_children())

    def begin_again(self) -> None:
        """Forget the process' own peak; it has to be this one."""
        Path("/proc/self/clear_refs").write_text("5")

    @property
    def peak_mib(self) -> float:
        """Of the process and its children, above what they had at first."""
        return self.resident_mib - self._before

    @property
    def resident_mib(self) -> float:
        """Of the process and its children, all of it."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
        return own + self._children

    def _of_children(self) -> float:
        return sum(child.memory_info().rss for child in self._process.children(recursive=True)) / _MIB
