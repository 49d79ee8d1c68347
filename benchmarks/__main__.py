"""`python -m benchmarks [NAME | all] [--json]`: list the benchmarks, run one, or run them all."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    gateway,
    gateway_kill,
    identity,
    latency,
    memory,
    overload,
    report,
    rolling,
    sdk,
    server_kills,
    simulation,
    simulation_memory,
    soak,
    start,
    stream,
    training,
    triton,
)
from benchmarks.harness import PAIRS, Result


class Benchmark(Protocol):
    """A module or an object that measures one thing."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """Of the benchmark, as the command line and the page of results have it."""

    @property
    def SUMMARY(self) -> str:  # noqa: N802
        """What is measured against what."""

    def run(self, pairs: int = PAIRS) -> Result:
        """Measure it in so many pairs of runs, 1 or more."""
        ...


_ALL: tuple[Benchmark, ...] = (
    *(triton.W1, stream.W2, stream.W2_SMALL, stream.W3, triton.W4, identity),
    *(sdk, latency, memory, training, simulation, simulation_memory, gateway, gateway_kill),
    *(start, overload, rolling, server_kills, soak),
)
BENCHMARKS = {benchmark.NAME: benchmark for benchmark in _ALL}


def main(
    name: Annotated[str, typer.Argument(help="Which benchmark, or `all`; none: list them.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs; few are good for a quick look only.")] = PAIRS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, the last line of each run.")] = False,
    plan: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NUMBER", help="A field of the benchmark's plan, if it has one."),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the results for docs/performance.md.")] = False,
) -> None:
    """Measure Limner against a reference, in turns on this machine."""
    console = Console()
    if not name:
        for benchmark in BENCHMARKS.values():
            console.print(f"[bold]{benchmark.NAME}[/bold]  {benchmark.SUMMARY}", highlight=False)
        return
    if name != "all" and name not in BENCHMARKS:
        raise typer.BadParameter(f"{name!r} is none of: all, {', '.join(BENCHMARKS)}")
    for benchmark in BENCHMARKS.values() if name == "all" else [BENCHMARKS[name]]:
        result = _planned(benchmark, plan or [])(pairs)
        if record:
            report.record(result)
        if as_json:
            print(json.dumps(result.to_dict()), flush=True)
        else:
            console.print(table(result))


def _planned(benchmark: Benchmark, choices: list[str]) -> Callable[[int], Result]:
    """Return what runs a benchmark by its plan, with some fields chosen."""
    if not choices:
        return benchmark.run
    plan: Any = getattr(benchmark, "PLAN", None)
    known = {field.name: type(getattr(plan, field.name)) for field in fields(plan)} if plan is not None else {}
    chosen = {}
    for choice in choices:
        name, _, number = choice.partition("=")
        try:
            chosen[name] = known[name](number)
        except (KeyError, ValueError):
            raise typer.BadParameter(f"{choice!r}; {benchmark.NAME} takes: {known or 'no plan'}") from None
    return partial(benchmark.run, plan=replace(plan, **chosen))  # type: ignore[call-arg]


def table(result: Result) -> Table:
    """One benchmark's result, for a person."""
    shown = Table(title=result.name, title_justify="left", show_header=False)
    for ratio in (result, *result.also):
        spread = f"{ratio.ratio:.3f} ({min(ratio.pairs):.3f} to {max(ratio.pairs):.3f})"
        shown.add_row(ratio.unit, f"{spread}, {ratio.bound}: {'met' if ratio.met else 'missed'}")
    for name, value in report.figure_texts(result):
        shown.add_row(name, value)
    return shown


if __name__ == "__main__":
    typer.run(main)
