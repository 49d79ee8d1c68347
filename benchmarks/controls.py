"""`python -m benchmarks.controls WHAT`: what the whole training says of phantoms whose answer is known.

`seeds`: the default training from several seeds, whose mean out-of-fold AUC has a level to reach. `permuted`: trainings
on labels that were permuted among subjects, whose intervals should hold 0.5 and whose permutation tests should find
nothing. `simulation`: simulations with every check, by such a model, by one with fresh weights in the trained model's
place, which should both fail, and by the trained model itself. Every piece is a job as the server runs it. What is done
is kept in `build/controls.jsonl` and not done again; `show` prints what is there.
"""

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cohorts import MODEL, Bar, StoredCohort, store_phantom, train
from limner.imaging.phantom import phantom_recurrent, phantom_severity
from limner_server.explain import job as simulation_job
from limner_server.explain.cohort import spool_cohort
from limner_server.explain.pipeline import CONTROL_SLICES
from limner_server.explain.randomise import randomised
from limner_server.explain.result import load_result
from limner_server.networks.artifact import eager, export, load
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ARTIFACT_FILE, CARD_FILE, ModelRepository
from limner_server.training.config import TrainingConfig
from limner_server.training.evaluation import weighted_auc

LEVEL = (0.94, 0.99)
"""Out-of-fold AUC by subject of the phantom, as first measured (docs/training.md)."""
RECORD = Path("build/controls.jsonl")
EPOCHS = TrainingConfig().epochs


class Model(StrEnum):
    """What a control simulates from."""

    TRAINED = "trained"
    """True labels: no control, but what the two others are held against."""
    PERMUTED = "permuted"
    """Labels permuted among the subjects."""
    FRESH = "fresh"
    """The trained model with its weights drawn anew; its halves are the trained ones."""


First = Annotated[int, typer.Option(min=0, help="The first seed.")]
Record = Annotated[Path, typer.Option(help="Where results accumulate.")]
Subjects = Annotated[int, typer.Option(min=8, help="Of the phantom; of fewer, a fold would lack a label.")]
Phantom = Annotated[int, typer.Option(min=0, help="Seed of the phantom.")]
Epochs = Annotated[int, typer.Option(min=1, help="Fewer than the default are good for a quick look only.")]
Threads = Annotated[int, typer.Option(min=0, help="Of the CPU; 0: one for each core.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
def seeds(
    count: Annotated[int, typer.Option(min=1, help="Seeds of the training.")] = 5,
    first: First = 0,
    subjects: Subjects = 27,
    phantom: Phantom = 0,
    epochs: Epochs = EPOCHS,
    threads: Threads = 0,
    record: Record = RECORD,
) -> None:
    """Train with true labels from several seeds."""
    for seed in range(first, first + count):
        _once(record, {"kind": "seed", "seed": seed}, subjects, phantom, epochs, threads)
    show(record)


@app.command()
def permuted(
    count: Annotated[int, typer.Option(min=1, help="Seeds of the permutation, which are the trainings' too.")] = 20,
    first: First = 0,
    subjects: Subjects = 27,
    phantom: Phantom = 0,
    epochs: Epochs = EPOCHS,
    threads: Threads = 0,
    record: Record = RECORD,
) -> None:
    """Train with permuted labels."""
    for seed in range(first, first + count):
        _once(record, {"kind": "permuted", "seed": seed}, subjects, phantom, epochs, threads)
    show(record)


@app.command()
def simulation(
    of: Annotated[Model, typer.Argument(help="Which model.")] = Model.PERMUTED,
    seed: Annotated[int, typer.Option(min=0, help="Of permutation, training, fresh weights and simulation.")] = 0,
    steps: Annotated[int, typer.Option(min=10, help="Of the optimisation.")] = 150,
    subjects: Subjects = 27,
    phantom: Phantom = 0,
    epochs: Epochs = EPOCHS,
    threads: Threads = 0,
    record: Record = RECORD,
) -> None:
    """Train, halves included, and simulate from the model with every check."""
    what = {"kind": "simulation", "of": of, "seed": seed, "steps": steps}
    _once(record, what, subjects, phantom, epochs, threads)
    show(record)


@app.command()
def show(record: Record = RECORD, as_json: Annotated[bool, typer.Option("--json", help="One object.")] = False) -> None:
    """Print what was found so far, of the phantom and epochs that most is known of."""
    found = summary(_read(record))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(title="controls", title_justify="left", show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum results up; those of other phantoms or epochs than the last one's are left out."""
    same = ("subjects", "phantom", "epochs")
    alike = [result for result in results if all(result[name] == results[-1][name] for name in same)]
    seeds, permuted, simulated = (
        [r for r in alike if r["kind"] == kind] for kind in ("seed", "permuted", "simulation")
    )
    found: dict[str, Any] = {name: results[-1][name] for name in same} if results else {}
    if seeds:
        mean = float(np.mean([result["auc"] for result in seeds]))
        found |= {"seeds": len(seeds), "aucs": ", ".join(f"{result['auc']:.3f}" for result in seeds)}
        found |= {"mean_auc": mean, "level": f"{LEVEL[0]} to {LEVEL[1]}", "level_reached": LEVEL[0] <= mean <= LEVEL[1]}
        found |= {"auc_of_the_latent_severity": seeds[0]["latent_auc"]}
    if permuted:
        found |= {"permuted": len(permuted), "permuted_aucs": ", ".join(f"{r['auc']:.2f}" for r in permuted)}
        found |= {"intervals_that_hold_0.5": sum(r["low"] <= 0.5 <= r["high"] for r in permuted)}
        found |= {
            "bootstrap_intervals_that_hold_0.5": sum(r["bootstrap"][0] <= 0.5 <= r["bootstrap"][1] for r in permuted)
        }
        found |= {"p_above_0.05": sum(r["p"] > 0.05 for r in permuted)}
    for result in simulated:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in result["checks"].items())
        failed = ", ".join(result["failed"]) or "none"
        found[f"simulation_{result['of']}_{result['seed']}"] = f"{result['verdict']}; failed: {failed}; {figures}"
    return found


def _once(record: Path, what: dict[str, Any], subjects: int, phantom: int, epochs: int, threads: int) -> None:
    """Do one piece unless it is in the record, and add it there."""
    key = what | {"subjects": subjects, "phantom": phantom, "epochs": epochs}
    if any(key.items() <= result.items() for result in _read(record)):
        return
    simulated = what["kind"] == "simulation"
    # Folds are all that a cross-validation needs, and an ensemble trains no more than those.
    config = TrainingConfig(seed=what["seed"], epochs=epochs, ensemble=not simulated, halves=simulated)
    # Checkpoints stay beside the record until the piece is done: what is interrupted goes on.
    folder = record.parent / "controls" / "-".join(str(value) for value in key.values())
    order = what["seed"] if "permuted" in (what["kind"], what.get("of")) else None
    cohort = store_phantom((folder / "data").absolute(), subjects, phantom, order)
    card = train(folder, cohort, config, threads)
    found = _figures(card) | {"latent_auc": latent_auc(subjects, phantom)}
    if simulated:
        version = _publish_fresh(folder, cohort, card, what["seed"]) if what["of"] is Model.FRESH else 1
        found |= _simulate(folder, cohort, version, what["seed"], what["steps"], threads)
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as file:
        file.write(json.dumps(key | found) + "\n")
    shutil.rmtree(folder)


def latent_auc(subjects: int, phantom: int) -> float:
    """AUC of the severity that the phantom's traits follow: what a perfect reader would reach."""
    recurrent = phantom_recurrent(subjects, phantom)
    severity = [phantom_severity(phantom, index, label) for index, label in enumerate(recurrent.tolist())]
    return float(weighted_auc(np.array(severity), recurrent, np.ones((1, subjects)))[0])


def _figures(card: ModelCard) -> dict[str, Any]:
    auc, evaluation = card.metrics[0], card.evaluation
    assert auc.name == "auc"
    assert evaluation is not None
    assert evaluation.permutation is not None
    assert evaluation.bootstrap is not None
    found = {"auc": auc.value, "low": auc.low, "high": auc.high, "p": evaluation.permutation.p}
    return found | {"bootstrap": (evaluation.bootstrap.low, evaluation.bootstrap.high)}


def _publish_fresh(folder: Path, cohort: StoredCohort, card: ModelCard, seed: int) -> int:
    """Publish what was trained once more, with fresh weights in the model's place, and return the version."""
    repository = ModelRepository(folder / "models")
    trained, staging = repository.get(MODEL, 1), folder / "fresh"
    shutil.copytree(trained.folder, staging, dirs_exist_ok=True)
    slices = spool_cohort(cohort.snapshot(), card.grid, folder / "slices.f32").thin(CONTROL_SLICES)
    fresh = randomised(eager(load(trained.artifact, card.digest), card), slices, seed, shuffle=False)
    changed = {"training": str(Model.FRESH), "digest": export(fresh, staging / ARTIFACT_FILE)}
    (staging / CARD_FILE).write_text(card.model_copy(update=changed).model_dump_json())
    return repository.publish(MODEL, staging)


def _simulate(folder: Path, cohort: StoredCohort, version: int, seed: int, steps: int, threads: int) -> dict[str, Any]:
    request = simulation_job.SimulationRequest(
        model=MODEL,
        version=version,
        cohort=cohort.name,
        cohort_digest=cohort.snapshot().digest,
        seed=seed,
        steps=steps,
        database_url=cohort.url,
        data_dir=cohort.root,
        model_repository=(folder / "models").absolute(),
        threads=threads,
    )
    place = folder / "simulation"
    place.mkdir(exist_ok=True)
    (place / "request.json").write_text(request.model_dump_json())
    with Bar("simulating") as bar:
        simulation_job.run(place, bar)
    outcome = load_result(place)[1]
    failed = [check.name for check in outcome.checks if check.gate and not check.passed]
    values = {check.name: check.value for check in outcome.checks if check.ran}
    return {"verdict": outcome.verdict, "failed": failed, "checks": values}


def _read(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


if __name__ == "__main__":
    app()
