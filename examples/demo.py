"""The whole of Limner in one run, from DICOM to a judged simulated image: read `demo` from top to bottom.

Everything goes through the SDK and over gRPC to a server of its own, and is kept below one folder. Run again, it goes
on where it was stopped and does nothing twice. `make demo` runs it with its defaults. Not for diagnostic use.
"""

import csv
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from pydicom import dcmread
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from limner import Client, CohortPlan, CohortSlice, Image, LimnerError, TrainingConfig, plan_import
from limner.cohort_flow import import_flow
from limner.imaging import (
    Importance,
    ModelReference,
    heat_map_dicom,
    load_or_create_key,
    write_phantom,
)
from limner.report import LAYERS, ReportData, collect, verdict_words, write_figures, write_report
from limner.types import Cohort, ImportanceMethod, JobState, Model, ModelState, Verdict

MODEL = "demo"

console = Console()


def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything that is made.")] = Path("demo"),
    cohort: Annotated[Path | None, typer.Option(help="Folder of your own DICOM, in any arrangement.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with the columns subject (PatientID) and label; default: COHORT/labels.csv."),
    ] = None,
    subjects: Annotated[int, typer.Option(help="Subjects of the phantom, where no cohort is given.")] = 27,
    seed: Annotated[int, typer.Option(help="Of the phantom, the training and the simulation.")] = 0,
    fresh: Annotated[bool, typer.Option(help="Train again, even where a model of this cohort is there.")] = False,
) -> None:
    """Train, predict, explain and report, on a phantom cohort or on your own. Not for diagnostic use."""
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps()

    # Patients' images cannot be shipped with software: without a cohort of yours, one is painted.
    with steps("cohort") as show:
        if cohort is None:
            cohort = phantom(out / f"phantom-{subjects}-{seed}", subjects, seed, show)
        # Reads headers, chooses the T2-weighted series, and gives pseudonyms: nothing identifying goes to the server.
        key = load_or_create_key(out / "pseudonyms.key")
        planned = plan_import(cohort, labels or cohort / "labels.csv", key=key)
        plan = planned.plan

    with server(out) as address, Client(address) as client:
        client.wait_ready()

        with steps("import") as show:
            imported = client.import_cohort(
                name_of(cohort, plan),
                plan,
                progress=lambda done, total: show(done / total, f"{done} of {total} slices"),
            )
        console.print(f"  {imported.added} slices added, {imported.unchanged} there already")
        refused = {rejection.id: rejection.error for rejection in imported.rejected}
        for instance, error in refused.items():
            console.print(f"  {instance} was refused: {error}", style="yellow")
        slices = [one for one in plan.slices if one.instance not in refused]

        # Step A of the paper. Folds are by subject; the figures are of subjects that a network had not seen.
        with steps("train") as show:
            model = trained_model(client, imported.cohort, seed, fresh, show)
        for metric in model.metrics:
            console.print(f"  {metric.name:<18} {metric.value:.2f}  [{metric.low:.2f}, {metric.high:.2f}]")
        name = str(model.identity)

        # Every slice once. The model has seen these subjects: the honest figures are those above.
        with steps("predict") as show:
            predict(client, name, slices, out / "predictions.csv", show)

        # Steps D and E: one image for each class, and the checks that decide whether it explains anything.
        with steps("simulate") as show:
            simulation = client.simulate(
                name,
                imported.cohort.name,
                seed=seed,
                progress=lambda progress: show(progress.fraction, progress.phase),
            )

        # Steps B and C: which channels matter for a slice, and where they are active.
        with steps("features"):
            command = shlex.join(["python", *sys.argv])
            data = collect(
                client,
                model,
                imported.cohort,
                simulation,
                slices,
                command=command,
                flow=import_flow(planned, None),
                seconds=steps.seconds,
            )

    with steps("report") as show:
        export_heat_maps(out, data, slices)
        # What failed a check says so in its name, in the picture and in the DICOM.
        simulation.export(out / "simulated", allow_failed=True)
        write_report(out / "report.html", data)
        write_figures(out / "figures", data, lambda done, total: show(done / total, f"{done} of {total} figures"))

    console.print(
        f"\n{verdict_words(simulation)}", style="green" if simulation.verdict is Verdict.EXPLANATION else "red"
    )
    console.print(f"{sum(steps.seconds.values()):.0f} s in all. The report: {out / 'report.html'}")


class Steps:
    """Shows how far each step is, and keeps how long it took, in `seconds`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator["Show"]:
        """Run one step; what it gives is called with the share that is done, 0 to 1, and what is being done."""
        columns = (TextColumn("{task.description:<9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        started = time.perf_counter()
        with Progress(*columns, TextColumn("{task.fields[doing]}"), console=console) as bar:
            task = bar.add_task(name, total=1.0, doing="")
            yield lambda fraction, doing: bar.update(task, completed=fraction, doing=doing)
            bar.update(task, completed=1.0, doing="")
        self.seconds[name] = time.perf_counter() - started


Show = Callable[[float, str], None]


def phantom(folder: Path, subjects: int, seed: int, show: Show) -> Path:
    """Write the phantom cohort where it is not there yet; `labels.csv` is the last of its files."""
    if not (folder / "labels.csv").exists():
        painted = iter(range(1, subjects + 1))
        write_phantom(folder, subjects, seed, progress=lambda: show(next(painted) / subjects, "painting subjects"))
    return folder


@contextmanager
def server(out: Path) -> Iterator[str]:
    """Run `limner-server` on a free port, and stop it whatever happens; gives its address."""
    command = [sys.executable, "-m", "limner_server", "--port=0"]
    command += [f"--data-dir={out / 'data'}", f"--model-repository={out / 'models'}", "--drain-s=1"]
    with (out / "server.log").open("ab") as log:
        # A session of its own: at Ctrl-C it is stopped from here, once.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)  # noqa: S603
    try:
        assert process.stdout is not None  # noqa: S101
        listening = re.search(r"listening on (\S+);", process.stdout.readline())
        if listening is None:
            raise RuntimeError(f"limner-server did not start; see {out / 'server.log'}")
        yield listening[1]
    finally:
        process.terminate()
        process.wait()


def name_of(folder: Path, plan: CohortPlan) -> str:
    """Name a cohort by its folder and by what is in it: other slices or labels make another cohort."""
    content = sorted((one.instance, one.label) for one in plan.slices)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)[:50]
    return f"{readable}-{sha256(repr(content).encode()).hexdigest()[:6]}"


def trained_model(client: Client, cohort: Cohort, seed: int, fresh: bool, show: Show) -> Model:
    """Return the newest model of this cohort and seed; where there is none, train it, or go on with what was begun."""
    if not fresh:
        for model in reversed(client.models()):
            if model.state is not ModelState.BROKEN and trained_on(model) == (cohort.digest, seed):
                return model

    begun = (one for one in client.trainings() if one.cohort == cohort.name and not one.state.ended)
    started = next(begun, None) or client.start_training(cohort.name, MODEL, TrainingConfig(seed=seed))
    for training in client.watch_training(started.id):
        if training.progress is not None:
            latest = training.progress
            show(latest.progress.fraction, f"{latest.progress.phase}, epoch {latest.epoch}, loss {latest.loss:.2f}")
    if training.state is not JobState.SUCCEEDED:
        raise RuntimeError(f"the training {training.state.value}: {training.error}")
    return client.model(str(training.result))


def trained_on(model: Model) -> tuple[object, object]:
    """Return digest of the cohort and seed, from the model's card."""
    cohort = model.card.get("cohort")
    return (cohort.get("digest") if isinstance(cohort, dict) else None, model.card.get("seed"))


def predict(client: Client, model: str, slices: Sequence[CohortSlice], path: Path, show: Show) -> None:
    """Score every slice through the stream, which has no limit of size; write the roll-up of each subject to a CSV."""
    stream = client.predict_stream(model, map(as_image, slices))
    for done, result in enumerate(stream, start=1):
        show(done / len(slices), f"{done} of {len(slices)} slices")
        if result.error:
            console.print(f"  {result.id}: {result.error}", style="yellow")
    true_labels = {one.subject: one.label for one in slices}
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["subject", "label", "predicted", *(f"probability of {label}" for label in stream.labels)])
        for subject in stream.subjects:
            if subject.prediction is not None:
                label, probabilities = subject.prediction.label, subject.prediction.probabilities
                rows.writerow([subject.subject, true_labels[subject.subject], label, *probabilities])


def as_image(one: CohortSlice) -> Image:
    """Return a slice of the cohort as an image to be scored, under its pseudonyms."""
    return Image(one.content, id=one.instance, subject=one.subject, frame=one.frame)


def export_heat_maps(out: Path, data: ReportData, slices: Sequence[CohortSlice]) -> None:
    """Write heat maps of the last layer as DICOM, in the source's study: alone of all here they name the patient."""
    by_instance = {one.instance: one for one in slices}
    model, layer = ModelReference(**data.model.identity.to_dict()), LAYERS[-1]
    for example in data.examples:
        source = by_instance[example.source.instance]
        assert isinstance(source.content, Path)  # noqa: S101  the plan of a folder holds paths
        path = out / f"heat-map-{source.instance}.dcm"
        importance = Importance(model, example.target, layer, ImportanceMethod.GRADIENT_X_DEVIATION)
        heat_map_dicom(path, dcmread(source.content), example.heat_maps[layer], importance, source.frame)


def main() -> None:
    """Run the demo; what the server refuses is said in one line."""
    # As Ctrl-C: the server that was started here is stopped here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        typer.run(demo)
    except (LimnerError, RuntimeError) as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
