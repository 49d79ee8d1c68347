"""The roll-up of subjects on this side, as the server makes it of one stream: from the images' mean logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from limner.decision import decide
from limner.types import SubjectResult


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

    def add(self, subject: str, logits: Sequence[float] | None, *, far: bool = False) -> None:
        """Count one image: its logits, or None where it failed."""
        if not subject:
            return
        total = self._sums.setdefault(subject, _Sum([]))
        if logits is None:
            total.failed += 1
            return
        total.images += 1
        total.far += far
        total.logits = [a + b for a, b in zip(total.logits or [0.0] * len(logits), logits, strict=True)]

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self._sums)

    def results(self, labels: Sequence[str], *, temperature: float, threshold: float) -> Iterator[SubjectResult]:
        """One result for each subject, in order of first appearance; the parameters are those of `decide`."""
        for subject, total in self._sums.items():
            prediction = None
            if total.images:
                logits = (np.array(total.logits) / total.images).astype(np.float32)
                prediction = decide(logits, labels, temperature=temperature, threshold=threshold)
            yield SubjectResult(
                subject=subject, images=total.images, failed=total.failed, prediction=prediction, far=total.far
            )
