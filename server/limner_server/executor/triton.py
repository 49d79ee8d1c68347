"""The engine that has a real Triton predict, from the same model repository (docs/triton.md).

Triton's LibTorch backend calls nothing but `forward`, so what explains runs in this process, on the same artifact:
Triton must name its digest. Triton is asked for it each second and after each batch, so that an answer comes only from
between two looks at a Triton that serves this artifact, whatever was restarted or reloaded meanwhile.
"""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from limner_server.errors import LimnerError
from limner_server.executor.engine import Arrays, Operation
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.executor.triton_client import TritonClient
from limner_server.networks.artifact import load
from limner_server.networks.card import ModelCard
from limner_server.networks.resnet import LAYERS

_LOOK_EVERY_S = 1.0

_log = logging.getLogger(__name__)


class TritonEngine:
    """An `Engine` for one version of a model that Triton serves.

    While Triton does not answer, or serves another artifact, the engine is not healthy: predicting fails at once and
    says why. It recovers by itself when Triton does.

    Parameters
    ----------
    triton
        This version in Triton; closed with the engine.
    card, artifact
        Its card and its artifact file here.
    device, threads
        Where to explain, see `TorchScriptEngine`.

    Raises
    ------
    WrongStateError
        The artifact here is missing, or its digest is not the card's.
    """

    def __init__(
        self, triton: TritonClient, card: ModelCard, artifact: Path, device: str = "cpu", threads: int = 0
    ) -> None:
        self._triton = triton
        self._card = card
        self._artifact, self._device, self._threads = artifact, device, threads
        means = load(artifact, card.digest).channel_means()
        self._channel_means = {layer: mean.numpy() for layer, mean in zip(LAYERS, means, strict=True)}
        self._trouble: LimnerError | None = None
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._keep_looking, name="limner-triton-watch", daemon=True)
        self._torchscript: TorchScriptEngine | None = None  # loaded when something is first explained
        self._loading = threading.Lock()
        self._explain_lanes = threading.Semaphore(0)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the five layers, from input to output."""
        return LAYERS

    @property
    def labels(self) -> int:
        """Number of classes."""
        return len(self._card.labels)

    @property
    def lanes(self) -> int:
        """Two `run` calls at a time: a batch is on its way while Triton computes another."""
        return 2

    @property
    def spread(self) -> bool:
        """Lanes share Triton's instances: the larger batch is the faster one."""
        return False

    @property
    def healthy(self) -> bool:
        """Whether Triton served this artifact when last looked at, and is being looked at."""
        return self._trouble is None and self._watch.is_alive()

    @property
    def channel_means(self) -> Mapping[str, NDArray[np.float32]]:
        """Mean of each channel over the training cohort, `(C,)` for each layer."""
        return self._channel_means

    def warm(self, grid_size: int, max_batch_size: int) -> int:
        """Look at Triton, which has warmed the model itself, and go on looking. A Triton that is down is waited for.

        Raises
        ------
        UnavailableError
            Triton is up, and this version is not ready.
        WrongStateError
            Triton does not have this version, or has another artifact under its number.
        """
        self._look()
        if self._trouble is not None and self._triton.alive():
            raise self._trouble
        self._watch.start()
        return max_batch_size

    def staging(self, images: int, grid_size: int) -> NDArray[np.float32]:
        """Return memory `(images, grid_size, grid_size)` for one lane."""
        return np.empty((images, grid_size, grid_size), np.float32)

    def run(
        self,
        operation: Operation,
        layers: tuple[str, ...],
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> Arrays:
        """Run one batch, see `Engine.run`; `lanes` threads may call it at a time.

        Raises
        ------
        UnavailableError
            Triton does not answer, or not in time.
        WrongStateError
            It serves something else than this artifact.
        ArithmeticError
            A logit is not finite: one of the images has values beyond what float32 can standardise.
        RuntimeError
            Triton failed on this batch.
        OutOfMemory
            To explain it, the device has too little memory.
        """
        if operation is not Operation.PREDICT:
            with self._explainer() as engine:
                return engine.run(operation, layers, images, targets)
        if (trouble := self._trouble) is not None:
            raise trouble.with_traceback(None)  # else it would grow with each raise
        try:
            arrays = self._triton.infer(images)
            self._triton.check()
        except LimnerError as error:
            self._note(error)
            raise
        if not np.isfinite(arrays["logits"]).all():
            raise ArithmeticError("a logit is not finite")
        return arrays

    def close(self) -> None:
        """Let go of Triton, and of what was loaded to explain."""
        self._closed.set()
        if self._watch.is_alive():
            self._watch.join()
        self._triton.close()
        if self._torchscript is not None:
            self._torchscript.close()

    @contextmanager
    def _explainer(self) -> Iterator[TorchScriptEngine]:
        """The artifact in this process, when one of its lanes is free."""
        with self._loading:
            if self._torchscript is None:
                engine = TorchScriptEngine(self._artifact, self._card, self._device, self._threads)
                engine.warm(self._card.grid.size, 1)
                self._explain_lanes.release(engine.lanes)
                self._torchscript = engine
        with self._explain_lanes:
            yield self._torchscript

    def _keep_looking(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            self._triton.check()
        except LimnerError as error:
            self._note(error)
        else:
            self._note(None)

    def _note(self, trouble: LimnerError | None) -> None:
        before, self._trouble = self._trouble, trouble
        if type(trouble) is type(before):
            return
        if trouble is None:
            _log.info("well again: %s", self._triton.description)
        else:
            _log.error("not ready: %s", trouble)
