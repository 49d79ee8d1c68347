"""What a training came to, epoch by epoch, for TensorBoard: numbers only, and nothing that names a subject."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score
from torch.utils.tensorboard import SummaryWriter

from limner_server.training.loop import EpochReport

_HELD_OUT = "held-out"

_log = logging.getLogger(__name__)


class Scalars:
    """Writes event files under a folder: a run for each network, by epoch, and one of held-out figures, by network.

    A training that was killed writes some epochs again. Its new event file hides what the old ones say of them
    (`purge_step`), so that no point is there twice. A disk that takes no event file ends the log, not the training.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._usable = True

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def follow(self, index: int, phase: str) -> Callable[[EpochReport], None]:
        """A callback for the epochs of one network, which ends the run of the one before."""
        for name in self._writers.keys() - {_HELD_OUT}:
            self._writers.pop(name).close()
        run = f"{index:03d} {phase}".translate(str.maketrans(" ,%", "---"))

        def on_epoch(report: EpochReport) -> None:
            figures = {
                "train/loss": report.loss,
                "train/accuracy": report.accuracy,
                "train/learning_rate": report.learning_rate,
                "train/images_per_second": report.images_per_second,
            }
            if report.watched_loss is not None:
                figures["watched/loss"] = report.watched_loss
            self._add(run, figures, report.epoch, first=report.epoch)

        return on_epoch

    def held_out(self, index: int, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Note what a network makes of the slices `(m,)` held out from it, if any: loss, accuracy, AUC of two labels.

        By slice, to be watched: the card has the figures by subject. A training that goes on notes all of them again.
        """
        if len(labels) == 0:
            return
        figures = {
            "held_out/loss": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
            "held_out/accuracy": float((logits.argmax(axis=1) == labels).mean()),
        }
        if logits.shape[1] == 2 and len(np.unique(labels)) == 2:
            figures["held_out/auc"] = float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
        self._add(_HELD_OUT, figures, index, first=0)

    def _add(self, run: str, figures: Mapping[str, float], step: int, first: int) -> None:
        """Write figures of one step; `first` is the first step that this process knows of."""
        if not self._usable:
            return
        try:
            if run not in self._writers:
                self._writers[run] = SummaryWriter(str(self._folder / run), purge_step=first)
            for name, value in figures.items():
                self._writers[run].add_scalar(name, value, step)
            self._writers[run].flush()
        except OSError:
            self._usable = False
            _log.warning("no more figures for TensorBoard: %s cannot be written", self._folder, exc_info=True)
