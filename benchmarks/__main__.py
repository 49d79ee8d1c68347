"""`python -m benchmarks [NAME | all] [--json]`: list the benchmarks, run one, or run them all."""

import json
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import latency, stream
from benchmarks.harness import Result


class Benchmark(Protocol):
    """A module that measures one thing."""

    NAME: str
    SUMMARY: str

    def run(self) -> Result:
        """Measure it."""
        ...


BENCHMARKS: dict[str, Benchmark] = {module.NAME: module for module in (latency, stream)}


def main(
    name: Annotated[str, typer.Argument(help="Which benchmark, or `all`; none: list them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, the last line of each run.")] = False,
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
        result = benchmark.run()
        if as_json:
            print(json.dumps(result.to_dict()), flush=True)
        else:
            console.print(table(result))


def table(result: Result) -> Table:
    """One benchmark's result, for a person."""
    shown = Table(title=f"{result.name}: {result.unit}", title_justify="left", show_header=False)
    bound = "at most" if result.at_most else "at least"
    shown.add_row("ratio", f"{result.ratio:.3f} ({min(result.pairs):.3f} to {max(result.pairs):.3f})")
    shown.add_row("bar", f"{bound} {result.bar:g}: {'met' if result.met else 'missed'}")
    for name, value in result.figures.items():
        shown.add_row(name.replace("_", " "), f"{value:.4g}")
    return shown


if __name__ == "__main__":
    typer.run(main)
