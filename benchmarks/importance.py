"""`python -m benchmarks.importance`: how well each measure of importance agrees with exact mean ablation, by layer.

The tables in docs/explain.md. Trains a ResNet-18 on the phantom first: agreement is a matter of what a network learned.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.cohorts import MODEL, store_phantom, train
from limner.imaging.grid import Grid
from limner_server.executor.engine import Arrays, Operation
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.explain.cohort import SliceCohort, spool_cohort
from limner_server.explain.faithfulness import drops
from limner_server.explain.importance import TOP_SHARE, ImportanceMethod, alive_channels, channel_importance
from limner_server.networks.artifact import eager, load, margins
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository, ModelVersion
from limner_server.networks.resnet import LAYERS
from limner_server.training.config import TrainingConfig

BATCH = 8

Figures = dict[str, dict[str, float]]
"""By layer and method."""


def main(
    slices: Annotated[int, typer.Option(min=2, help="Slices that are explained, as many of each label.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of the phantom and the training.")] = 0,
    fov_mm: Annotated[float, typer.Option(help="Edge of the model's field of view.")] = Grid().fov_mm,
    size: Annotated[int, typer.Option(help="Edge of the model's grid, in pixels.")] = Grid().size,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Train on the phantom, explain some of its slices by every method, and compare with mean ablation."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        stored = store_phantom(root / "data", seed=seed)
        # As few folds as there may be: the network on all subjects is what is looked at.
        card = train(root, stored, TrainingConfig.make(seed=seed, grid=Grid(fov_mm, size), folds=2, halves=False))
        version = ModelRepository(root / "models").get(MODEL, 1)
        cohort = spool_cohort(stored.snapshot(), card.grid, root / "slices.f32").thin(slices)
        found = measure(version, card, cohort, seed)
    if as_json:
        print(json.dumps(asdict(found) | {"slices": len(cohort)}))
        return
    console = Console()
    console.print(_table(f"rank correlation with mean ablation, mean of {len(cohort)} slices", found.by_slice))
    console.print(
        _table("the same of importance averaged over the slices of a label, mean of the labels", found.by_label)
    )
    console.print(_table("drop of the margin with the top tenth at its means, logits", found.drops))


@dataclass(frozen=True)
class Agreement:
    """How well each method agrees with mean ablation.

    Attributes
    ----------
    by_slice
        Rank correlation (Spearman) with the drop of the margin with one channel at its mean, over the channels that are
        not dead; mean over slices.
    by_label
        The same of the mean over a label's slices, by which a simulation chooses channels; mean over labels.
    drops
        Drop with the top tenth by the method at their means; mean over slices.
    """

    by_slice: Figures
    by_label: Figures
    drops: Figures


def measure(version: ModelVersion, card: ModelCard, cohort: SliceCohort, seed: int) -> Agreement:
    """Explain slices for their own labels by every method that a layer has."""
    engine = TorchScriptEngine(version.artifact, card)
    artifact = eager(load(version.artifact, card.digest), card)
    parts: list[tuple[Arrays, Arrays]] = []
    for rows in cohort.blocks(BATCH):
        images, targets = cohort.images[rows], cohort.labels[rows]
        parts.append((engine.run(Operation.EXPLAIN, LAYERS, images, targets), _ablate(engine, images, targets)))
    explained, ablated = (_joined(found) for found in zip(*parts, strict=True))
    target, logits = torch.from_numpy(explained["target"]), torch.from_numpy(explained["logits"])
    agreement = Agreement({}, {}, {})
    labels = [cohort.labels == label for label in range(len(cohort.classes))]
    for number, (layer, means) in enumerate(engine.channel_means.items()):
        maps, gradients = (torch.from_numpy(explained[f"{name}.{layer}"]) for name in ("maps", "gradients"))
        exact = torch.from_numpy(ablated[f"ablation.{layer}"])
        alive = alive_channels(maps.mean((2, 3)).std(0)).numpy()
        for method in ImportanceMethod:
            if method is ImportanceMethod.CAM and layer != LAYERS[-1]:
                continue
            found = channel_importance(method, maps, gradients, torch.from_numpy(means), ablation=exact, seed=seed)
            ours, theirs = found.numpy()[:, alive], exact.numpy()[:, alive]
            deletion, _ = drops(artifact, number, maps, found, target, margins(logits, target), (TOP_SHARE,))
            averaged = ([one[rows].mean(axis=0) for rows in labels] for one in (ours, theirs))
            for figures, value in (
                (agreement.by_slice, _rank_correlation(ours, theirs)),
                (agreement.by_label, _rank_correlation(*averaged)),
                (agreement.drops, float(deletion.mean())),
            ):
                figures.setdefault(layer, {})[method] = round(value, 4)
    return agreement


def _ablate(engine: TorchScriptEngine, images: NDArray[np.float32], targets: NDArray[np.int64]) -> Arrays:
    return engine.run(Operation.ABLATE, LAYERS, images, targets)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rank_correlation(first: Iterable[NDArray[np.float32]], second: Iterable[NDArray[np.float32]]) -> float:
    """Mean over pairs of rows of Spearman's correlation."""
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]))


def _table(title: str, figures: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("", *figures, title=title, title_justify="left")
    for method in ImportanceMethod:
        table.add_row(method, *(f"{row[method]:.2f}" if method in row else "" for row in figures.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
