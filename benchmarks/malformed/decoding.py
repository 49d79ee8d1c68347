"""Selection, de-identification and decoding, in a child process that is watched case by case."""

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, Queue
from resource import RLIMIT_AS, setrlimit
from tempfile import TemporaryDirectory

from rich.progress import track

from benchmarks.malformed.outcome import LIMIT_S, Memory, Outcome, Report, Verdict, refused
from limner.imaging import ImageError, Pseudonymiser, decode, deidentified, find_series, select
from limner.imaging.profile import encoded
from tests.imaging.malformed import Case, malformed
from tests.imaging.malformed_bases import BASES

NAME = "select, de-identify, decode"
# Where a case takes more than it may, the machine is to survive that.
_ADDRESS_SPACE = 8 << 30


# Prints a line for each case from the first argument to the second.
PROGRAM = (sys.executable, "-m", "benchmarks.malformed.decoding")


def drive(cases: range, quiet: bool, program: Sequence[str] = PROGRAM) -> Report:
    """Select, de-identify and decode every case."""
    outcomes: list[Outcome] = []
    peak = resident = 0.0
    answers: Iterator[tuple[Outcome, float, float]] = iter(())
    for number in track(cases, NAME, transient=True, disable=quiet):
        answer = next(answers, None)
        if answer is None:  # at first, and where a case has ended the child
            answers = _child(range(number, cases.stop), program)
            answer = next(answers)
        outcomes.append(answer[0])
        peak, resident = max(peak, answer[1]), max(resident, answer[2])
    return Report(NAME, tuple(outcomes), peak, resident_mib=resident)


def _child(cases: range, program: Sequence[str]) -> Iterator[tuple[Outcome, float, float]]:
    """Yield the outcome of each case, the memory that it took and all that was resident, until one ends the child."""
    command = [*program, str(cases.start), str(cases.stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        lines: Queue[str] = Queue()
        threading.Thread(target=_pass_on, args=(child.stdout, lines), daemon=True).start()
        for number in cases:
            try:
                line = lines.get(timeout=2 * LIMIT_S)
            except Empty:
                child.kill()
                yield Outcome(str(malformed(number)), Verdict.VIOLATION, "hangs", 2 * LIMIT_S), 0.0, 0.0
                return
            if not line:
                yield Outcome(str(malformed(number)), Verdict.VIOLATION, f"ended the process: {child.wait()}"), 0.0, 0.0
                return
            answer = json.loads(line)
            outcome = Outcome(**answer["outcome"])
            yield replace(outcome, verdict=Verdict(outcome.verdict)), answer["peak_mib"], answer["resident_mib"]


def _pass_on(source: Iterable[str], lines: "Queue[str]") -> None:
    for line in source:
        lines.put(line)
    lines.put("")


def _work(cases: range) -> None:
    """Print a line for each case; what the child runs."""
    warnings.simplefilter("ignore")
    setrlimit(RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    for base in BASES.values():
        decode(base())
    memory = Memory(os.getpid())
    with TemporaryDirectory() as folder:
        for number in cases:
            case = malformed(number)
            memory.begin_again()
            outcome = _outcome(case, Path(folder))
            answer = {"outcome": asdict(outcome), "peak_mib": memory.peak_mib, "resident_mib": memory.resident_mib}
            print(json.dumps(answer), flush=True)


def _outcome(case: Case, folder: Path) -> Outcome:
    started = time.perf_counter()
    try:
        _select(case, folder)
        _deidentify(case)
        decode(case.content, case.number % 2 if "enhanced" in case.base else 0)
        outcome = Outcome(str(case), Verdict.TAKEN)
    except ImageError as error:
        outcome = refused(case, error.field, error.value and error.expected)
    except Exception as error:  # anything else is what is looked for
        outcome = Outcome(str(case), Verdict.VIOLATION, f"raised {type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    if seconds > LIMIT_S:
        outcome = Outcome(str(case), Verdict.VIOLATION, f"took {seconds:.1f} s")
    return replace(outcome, seconds=seconds)


def _select(case: Case, folder: Path) -> None:
    """Look for series in a folder of one file, which belongs to one or is named."""
    (folder / "case.dcm").write_bytes(case.content)
    found = find_series(folder)
    decisions = select(found.series)
    assert all(decision.accepted or all(decision.reasons) for decision in decisions)
    assert decisions or all(reason for _, reason in found.unreadable), "neither selected nor named"


def _deidentify(case: Case) -> None:
    """Rewrite a file without names; what is refused here is not asked of the decoder."""
    with suppress(ImageError):
        encoded(deidentified(case.content, Pseudonymiser(bytes(32))))


if __name__ == "__main__":
    _work(range(int(sys.argv[1]), int(sys.argv[2])))
