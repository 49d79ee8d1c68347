"""`limner train`: start trainings, follow them, look at them, cancel them."""

from contextlib import suppress
from typing import Annotated

import typer
from rich.text import Text
from typer.core import TyperGroup

from limner.cli.common import (
    FAILED,
    NOTICE,
    SERVER,
    AsJson,
    Server,
    connect,
    make_table,
    note,
    percent,
    print_json,
    print_table,
    progress_bar,
)
from limner.cli.models import leakage
from limner.client import Client
from limner.errors import NotFoundError
from limner.imaging import Grid
from limner.types import JobState, Training, TrainingConfig

GRID = Grid()


class _FollowByDefault(TyperGroup):
    """Takes `limner train COHORT MODEL` for `limner train start --follow COHORT MODEL`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["start", "--follow", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FollowByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train models: `limner train COHORT MODEL` starts a training and follows it; Ctrl-C leaves it running.",
)

TrainingId = Annotated[str, typer.Argument(metavar="ID", help="Id of the training.")]


@app.command()
def start(
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Name of the cohort.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model; the result is its next version.")],
    architecture: Annotated[
        str | None, typer.Option(help="resnet18 (default), resnet34, resnet50, resnet101 or resnet152.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, max=1000, help="Passes over the slices; default 8.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Of the cross-validation, by subject; default 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, max=1024, help="Slices in a step; default 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the one-cycle schedule; default 1e-3.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's; default 1e-2.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="0 to 0.5; default 0.05.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random; default 0.")] = None,
    fov_mm: Annotated[float | None, typer.Option(help="Edge of the grid in mm; default 128.")] = None,
    grid_size: Annotated[int | None, typer.Option(help="Edge of the grid in pixels, 32 to 1024; default 64.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="File in the server's weights folder.")] = None,
    halves: Annotated[
        bool | None,
        typer.Option("--halves/--no-halves", help="Train what check 2 of a simulation needs; default yes."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, max=20, help="Of the cross-validation, with other folds and weights; default 1."),
    ] = None,
    class_weights: Annotated[
        bool | None, typer.Option("--class-weights/--no-class-weights", help="Let labels count alike; default no.")
    ] = None,
    augmentation: Annotated[str | None, typer.Option(help="none, light (default) or full.")] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Epochs without a better loss before a fold stops; default 0: never."),
    ] = None,
    ensemble: Annotated[
        bool | None, typer.Option("--ensemble/--no-ensemble", help="Serve the mean of the fold networks; default no.")
    ] = None,
    learning_curve: Annotated[
        bool | None,
        typer.Option("--learning-curve/--no-learning-curve", help="Train on fewer subjects as well; default no."),
    ] = None,
    sibling: Annotated[
        bool | None,
        typer.Option("--sibling/--no-sibling", help="Train what check 8 of a simulation needs; default no."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--detach", help="Follow it to its end.")] = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Start a training; `limner train COHORT MODEL` follows it too.

    \b
    Examples:
      limner train cervix-cohort cervix
      limner train cervix-cohort cervix --epochs 12 --architecture resnet34 --detach
    """  # noqa: D301  \b keeps the lines apart
    config = TrainingConfig(
        architecture=architecture,
        grid=Grid(fov_mm or GRID.fov_mm, grid_size or GRID.size) if fov_mm or grid_size else None,
        folds=folds,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        seed=seed,
        pretrained=pretrained,
        halves=halves,
        repeats=repeats,
        class_weights=class_weights,
        augmentation=augmentation,
        patience=patience,
        ensemble=ensemble,
        learning_curve=learning_curve,
        sibling=sibling,
    )
    with connect(server) as client:
        training = client.start_training(cohort, model, config)
        if follow:
            _finish(client, _follow(client, training.id), as_json)
        elif as_json:
            print_json(training)
        else:
            note(f"training {training.id} is {training.state}; follow it: limner train watch {training.id}")


@app.command()
def watch(training: TrainingId, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Follow a training to its end; Ctrl-C stops following, not training."""
    with connect(server) as client:
        _finish(client, _follow(client, training), as_json)


def _follow(client: Client, training_id: str) -> Training:
    """Show a progress bar until the training has ended."""
    state = client.training(training_id)
    try:
        with progress_bar() as bar:
            task = bar.add_task(state.state.value, total=1.0)
            for state in client.watch_training(training_id):
                fraction = state.progress.progress.fraction if state.progress else 0.0
                bar.update(task, completed=fraction, description=_describe(state))
    except KeyboardInterrupt:
        note(f"detached; training {training_id} goes on. Follow it again: limner train watch {training_id}")
        raise
    return state


def _describe(training: Training) -> str:
    now = training.progress
    if now is None or training.state.ended:
        return training.state.value
    if not now.epochs:
        return now.progress.phase
    return (
        f"{now.progress.phase}, epoch {now.epoch}/{now.epochs}, loss {now.loss:.3f}, "
        f"accuracy {percent(now.accuracy)}, {now.images_per_second:.0f} slices/s"
    )


def _finish(client: Client, training: Training, as_json: bool) -> None:
    if as_json:
        print_json(training)
    else:
        _show(training)
        _warn(client, training)
    if training.state is not JobState.SUCCEEDED:
        raise typer.Exit(FAILED)


def _warn(client: Client, training: Training) -> None:
    """Tell of slices that may leak from one fold into another, while the model is there."""
    with suppress(NotFoundError):
        if training.result and (alike := leakage(client.model(str(training.result)))):
            note(f"possible leakage: {alike}; `limner report` lists them")


def _show(training: Training) -> None:
    note(f"training {training.id} of {training.model} on {training.cohort}: {_describe(training)}")
    if training.error:
        note(f"error: {training.error}")
    if training.metrics:
        table = make_table("out-of-fold, by subject", "metric", "value", "95 % interval")
        for metric in training.metrics:
            table.add_row(metric.name, f"{metric.value:.3f}", f"{metric.low:.3f} to {metric.high:.3f}")
        print_table(table)
    if training.result:
        note(f"model {training.result}, digest {training.result.digest[:12]}; {NOTICE}")


@app.command()
def show(training: TrainingId, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Show where a training stands."""
    with connect(server) as client:
        state = client.training(training)
    if as_json:
        print_json(state)
    else:
        _show(state)


@app.command("list")
def list_(server: Server = SERVER, as_json: AsJson = False) -> None:
    """List the trainings, newest first."""
    with connect(server) as client:
        trainings = client.trainings()
    if as_json:
        print_json({"trainings": [training.to_dict() for training in trainings]})
        return
    table = make_table("trainings", "id", "model", "cohort", "state", "created", "result")
    for one in trainings:
        created = f"{one.created:%Y-%m-%d %H:%M} UTC"
        table.add_row(one.id, one.model, one.cohort, one.state.value, created, Text(str(one.result or one.error)))
    print_table(table)


@app.command()
def cancel(training: TrainingId, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Cancel a training that has not ended."""
    with connect(server) as client:
        state = client.cancel_training(training)
    if as_json:
        print_json(state)
    else:
        note(f"training {state.id} is {state.state}")
