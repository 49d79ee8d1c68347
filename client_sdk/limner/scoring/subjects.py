"""The roll-up of subjects over a whole run, as the server makes it of one stream: from the images' mean logits."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from limner.decision import decide
from limner.scoring.rows import Row
from limner.scoring.run import RunModel
from limner.types import SubjectResult


@dataclass(slots=True)
class _Sum:
    logits: list[float]
    images: int = 0
    failed: int = 0
    far: int = 0


class RollUp:
    """Gathers the logits of each subject's images; keeps sums, not the images. An image without subject is left out."""

    def __init__(self, model: RunModel) -> None:
        self._model = model
        self._sums: dict[str, _Sum] = {}

    def add(self, row: Row) -> None:
        """Count one image."""
        if not row.subject:
            return
        total = self._sums.setdefault(row.subject, _Sum([0.0] * len(self._model.labels)))
        if row.code:
            total.failed += 1
            return
        total.images += 1
        total.far += bool(row.far)
        for index, logit in enumerate(row.logits):
            total.logits[index] += logit

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self._sums)

    def results(self) -> Iterator[SubjectResult]:
        """One result for each subject, in order of first appearance."""
        model = self._model
        for subject, total in self._sums.items():
            prediction = None
            if total.images:
                logits = (np.array(total.logits) / total.images).astype(np.float32)
                prediction = decide(logits, model.labels, temperature=model.temperature, threshold=model.threshold)
            yield SubjectResult(
                subject=subject, images=total.images, failed=total.failed, prediction=prediction, far=total.far
            )
