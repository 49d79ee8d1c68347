"""The roll-up of subjects over a whole run, as the server makes it of one call: from the images' mean logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from limner.decision import decide
from limner.scoring.run import RunModel
from limner.types import SubjectResult


class Scored(Protocol):
    """What counts of an image: `code` is empty where it did not fail, and `logits` where it did."""

    @property
    def subject(self) -> str: ...  # noqa: D102

    @property
    def code(self) -> str: ...  # noqa: D102

    @property
    def far(self) -> bool | None: ...  # noqa: D102

    @property
    def logits(self) -> Sequence[float]: ...  # noqa: D102


@dataclass(slots=True)
class _Sum:
    logits: list[float]
    images: int = 0
    failed: int = 0
    far: int = 0


class RollUp:
    """Gathers the logits of each subject's images; keeps sums, not the images. An image without subject is left out."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    def add(self, row: Scored) -> None:
        """Count one image."""
        if not row.subject:
            return
        total = self._sums.setdefault(row.subject, _Sum([]))
        if row.code:
            total.failed += 1
            return
        total.images += 1
        total.far += bool(row.far)
        total.logits = total.logits or [0.0] * len(row.logits)
        for index, logit in enumerate(row.logits):
            total.logits[index] += logit

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self._sums)

    def results(self, model: RunModel) -> Iterator[SubjectResult]:
        """One result for each subject by the model that answered, in order of first appearance."""
        for subject, total in self._sums.items():
            prediction = None
            if total.images:
                logits = (np.array(total.logits) / total.images).astype(np.float32)
                prediction = decide(logits, model.labels, temperature=model.temperature, threshold=model.threshold)
            yield SubjectResult(
                subject=subject, images=total.images, failed=total.failed, prediction=prediction, far=total.far
            )
