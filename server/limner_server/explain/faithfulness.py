"""Whether importance finds the channels that matter: deletion and insertion curves, and the same by chance.

Channels of one layer are set to their means over the training cohort, the most important first (deletion) or last
(insertion), and the network goes on from there. After RISE (Petsiuk et al. 2018, arXiv:1806.07421), by channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from torch import Tensor

from limner_server.explain.cohort import SliceCohort
from limner_server.explain.importance import ImportanceMethod, channel_importance
from limner_server.explain.stages import Arrays
from limner_server.networks.artifact import Artifact, margins
from limner_server.networks.card import Metric
from limner_server.networks.resnet import LAYERS

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
METHODS = (ImportanceMethod.GRADIENT_X_DEVIATION, ImportanceMethod.RANDOM)
SLICES = 40
"""At most, as many of each class, spread over the subjects."""
COST = 20.0
"""Of one slice: as much as this many images through the network, forth and back."""
BATCH = 8
RESAMPLES = 2_000

Drops = NDArray[np.float64]


@dataclass(frozen=True)
class FaithfulnessCurve:
    """One layer and one order of its channels, as `limner.v1.FaithfulnessCurve` has it."""

    layer: str
    method: ImportanceMethod
    fractions: tuple[float, ...]
    deletion: tuple[float, ...]
    deletion_low: tuple[float, ...]
    deletion_high: tuple[float, ...]
    insertion: tuple[float, ...]
    insertion_low: tuple[float, ...]
    insertion_high: tuple[float, ...]
    areas: tuple[Metric, ...]
    slices: int


def measure(
    artifact: Artifact, cohort: SliceCohort, seed: int, tell: Callable[[float], None] = lambda _: None
) -> Arrays:
    """Measure what every slice of a small cohort loses.

    Parameters
    ----------
    artifact
        The network.
    cohort
        The slices.
    seed
        Of the control's order, which is another one for each slice.
    tell
        Told the share that is done, 0 to 1.

    Returns
    -------
    `deletion` and `insertion` `(n, layers, methods, fractions)` float64, drops in logits of the margin for the slice's
    own label; `subjects` `(n,)`.
    """
    shape = (len(LAYERS), len(METHODS), len(FRACTIONS))
    found = {name: np.zeros((len(cohort), *shape)) for name in ("deletion", "insertion")}
    device = artifact.temperature.device
    for rows in cohort.blocks(BATCH):
        images = torch.from_numpy(cohort.images[rows]).to(device)
        target = torch.from_numpy(cohort.labels[rows]).to(device)
        logits, _, _, maps, gradients = artifact.explain(images, target)
        whole = margins(logits, target)
        for layer, mean in enumerate(artifact.channel_means()):
            for number, method in enumerate(METHODS):
                draw = int(np.random.SeedSequence([seed, layer, int(rows[0])]).generate_state(1)[0])
                importance = channel_importance(method, maps[layer], gradients[layer], mean, seed=draw)
                remaining = drops(artifact, layer, maps[layer], importance, target, whole, FRACTIONS)
                found["deletion"][rows, layer, number], found["insertion"][rows, layer, number] = remaining
        tell((int(rows[-1]) + 1) / len(cohort))
    return {**found, "subjects": cohort.subjects}


@torch.no_grad()
def drops(
    artifact: Artifact,
    layer: int,
    maps: Tensor,
    importance: Tensor,
    target: Tensor,
    whole: Tensor,
    fractions: Sequence[float],
) -> tuple[Drops, Drops]:
    """Drop of the margin with a share of the channels at their means, the most important first; and with all but those.

    Parameters
    ----------
    artifact, layer
        The network, and the number of the layer in `LAYERS`.
    maps
        `(n, C, h, w)`, the layer's activations.
    importance
        `(n, C)`; each row has an order of its own.
    target, whole
        `(n,)`, the label of the margin, and the margin of the untouched network.
    fractions
        Shares of the channels, 0 to 1, rounded to whole channels.

    Returns
    -------
    Deletion and insertion, `(n, len(fractions))` float64 each, in logits.
    """
    ranks = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    means = artifact.channel_means()[layer][None, :, None, None]
    channels = maps.shape[1]

    def drop(first: int, last: int) -> Tensor:
        """Set the channels with ranks from `first` to before `last` to their means."""
        chosen = ((ranks >= first) & (ranks < last))[:, :, None, None]
        return (whole - margins(artifact.resume(layer, torch.where(chosen, means, maps)), target)).double().cpu()

    counts = [round(fraction * channels) for fraction in fractions]
    none, every = torch.zeros(len(maps), dtype=torch.float64), drop(0, channels)
    deletion = [none if not count else every if count == channels else drop(0, count) for count in counts]
    insertion = [none if count == channels else drop(count, channels) if count else every for count in counts]
    return torch.stack(deletion, dim=1).numpy(), torch.stack(insertion, dim=1).numpy()


def curves(arrays: Arrays, seed: int) -> tuple[FaithfulnessCurve, ...]:
    """Average what `measure` found over slices, with 95 % intervals by bootstrap over subjects.

    The same resamples serve every curve, so that areas of two curves can be subtracted resample by resample.
    """
    subjects, rows = np.unique(arrays["subjects"], return_inverse=True)
    rng = np.random.default_rng([seed, RESAMPLES])
    times = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), RESAMPLES)
    weights = np.concatenate([np.ones((1, len(subjects))), times])[:, rows]
    weights /= weights.sum(1, keepdims=True)
    # (1 + resamples, layers, methods, fractions), the first of the slices as they are
    means = {name: np.tensordot(weights, arrays[name], 1) for name in ("deletion", "insertion")}
    control = METHODS.index(ImportanceMethod.RANDOM)
    return tuple(
        _curve(name, method, {key: mean[:, layer, [number, control]] for key, mean in means.items()}, len(rows))
        for layer, name in enumerate(LAYERS)
        for number, method in enumerate(METHODS)
    )


def _curve(layer: str, method: ImportanceMethod, means: dict[str, Drops], slices: int) -> FaithfulnessCurve:
    """Build one curve from means `(1 + resamples, 2, fractions)` of itself and of the control."""
    areas = {}
    for key, mean in means.items():
        under = trapezoid(mean, FRACTIONS, axis=-1)
        areas[key] = under[:, 0]
        if method is not ImportanceMethod.RANDOM:
            areas[f"{key}_over_random"] = under[:, 0] - under[:, 1]
    bands = {key: (mean[0, 0], *np.percentile(mean[1:, 0], [2.5, 97.5], axis=0)) for key, mean in means.items()}
    (deletion, deletion_low, deletion_high), (insertion, insertion_low, insertion_high) = (
        [tuple(line.tolist()) for line in bands[key]] for key in ("deletion", "insertion")
    )
    return FaithfulnessCurve(
        layer=layer,
        method=method,
        fractions=FRACTIONS,
        deletion=deletion,
        deletion_low=deletion_low,
        deletion_high=deletion_high,
        insertion=insertion,
        insertion_low=insertion_low,
        insertion_high=insertion_high,
        areas=tuple(_metric(name, area) for name, area in areas.items()),
        slices=slices,
    )


def _metric(name: str, values: Drops) -> Metric:
    low, high = np.percentile(values[1:], [2.5, 97.5]).tolist()
    return Metric(name=name, value=float(values[0]), low=low, high=high)
