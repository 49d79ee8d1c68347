"""The forward pass on a CUDA device: pinned staging, copies beside computing, one CUDA graph for each size of batch.

Written after 'CUDA Graphs' and 'Use pinned memory buffers' of https://docs.pytorch.org/docs/stable/notes/cuda.html. Not
measured yet: no machine with a GPU was at hand (docs/performance.md says what to run on one).
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from limner_server.executor.engine import bucket_sizes
from limner_server.networks.artifact import Artifact
from limner_server.networks.resnet import Network

Outputs = tuple[Tensor, ...]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBABILITY_TOLERANCE = 0.01
"""How far a probability may be from the one in float32 for a shorter type to be used."""

_WARM_RUNS = 3
_CHECKED_IMAGES = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Step:
    """The forward pass for one size of batch, between two places on the device that stay where they are."""

    images: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class _Lane(threading.local):
    """What one thread has to itself: room for its images on the device, for its outputs here, and its own stream."""

    def __init__(self, images: tuple[int, int, int], outputs: Outputs, device: torch.device) -> None:
        self.images = torch.empty(images, device=device)
        self.outputs = tuple(torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in outputs)
        self.copying = torch.cuda.Stream(device)
        self.copied = torch.cuda.Event()
        self.done = torch.cuda.Event(blocking=True)


class CudaForward:
    """Runs batches one after the other; while one is computed, the next is copied to the device.

    Parameters
    ----------
    artifact
        The artifact as a plain module, on the device.
    device
        A CUDA device.
    precision
        One of `PRECISIONS`, or "auto": the shortest that the card computes fast. A short type is used only where its
        probabilities stay within `PROBABILITY_TOLERANCE` of float32.
    """

    lanes = 2
    spread = False

    def __init__(self, artifact: Artifact, device: torch.device, precision: str = "auto") -> None:
        self._artifact = artifact
        self._device = device
        if precision == "auto":
            precision = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        self._forward = Folded(artifact, PRECISIONS[precision])
        self._computing = torch.cuda.Stream(device)
        self._enqueuing = threading.Lock()
        self._steps: dict[int, _Step] = {}
        self._memory = torch.cuda.graph_pool_handle()

    @contextmanager
    def turn(self, images: int) -> Iterator[None]:
        """Let what this thread computes meanwhile run on the device."""
        with torch.cuda.device(self._device):
            yield

    @torch.inference_mode()
    def warm(self, grid_size: int, max_batch_size: int) -> int:
        """Check the precision, then capture a graph for batches of 1, 2, 4, ... images; return `max_batch_size`."""
        with self.turn(max_batch_size), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            self._check_precision(grid_size)
            for size in reversed(bucket_sizes(max_batch_size)):  # the largest first: the others fit in its memory
                self._steps[size] = self._capture(size, grid_size)
        largest = self._steps[max_batch_size]
        self._lane = _Lane((max_batch_size, grid_size, grid_size), largest.outputs, self._device)
        return max_batch_size

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Outputs:
        """The artifact's outputs, on the host, of images `(n, s, s)` there; n at most what was warmed."""
        n, lane = len(images), self._lane
        step = self._steps[min(size for size in self._steps if size >= n)]
        with self.turn(n):
            with torch.cuda.stream(lane.copying):
                lane.images[:n].copy_(images, non_blocking=True)
                lane.copied.record()
            # One lane at a time: a step's memory is another's again as soon as its outputs are on their way.
            with self._enqueuing, torch.cuda.stream(self._computing):
                lane.copied.wait()
                step.images[:n].copy_(lane.images[:n])
                step.replay()
                for here, there in zip(lane.outputs, step.outputs, strict=True):
                    here[:n].copy_(there[:n], non_blocking=True)
                lane.done.record()
            lane.done.synchronize()
            return tuple(output[:n].clone() for output in lane.outputs)

    def _check_precision(self, grid_size: int) -> None:
        if self._forward.dtype is torch.float32:
            return
        coarse = torch.rand(_CHECKED_IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(self._device)
        images = interpolate(coarse, size=(grid_size, grid_size), mode="bicubic")[:, 0]
        off = (self._forward(images)[1] - self._artifact(images)[1]).abs().max().item()
        if off <= PROBABILITY_TOLERANCE:
            _log.info("runs in %s: probabilities within %.2g of float32", self._forward.dtype, off)
        else:
            _log.warning("runs in float32: in %s a probability was off by %.2g", self._forward.dtype, off)
            self._forward = Folded(self._artifact, torch.float32)

    def _capture(self, size: int, grid_size: int) -> _Step:
        images = torch.zeros(size, grid_size, grid_size, device=self._device)
        self._computing.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._computing):
            for _ in range(_WARM_RUNS):
                outputs = self._forward(images)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other models serve meanwhile; what their threads do must not end this capture.
            with torch.cuda.graph(graph, self._memory, self._computing, capture_error_mode="thread_local"):
                captured = self._forward(images)
        except RuntimeError:
            _log.warning("no CUDA graph for batches of %d, which will run slower", size, exc_info=True)
            return _Step(images, outputs, lambda: _copy(self._forward(images), outputs))
        return _Step(images, captured, graph.replay)


class Folded(nn.Module):
    """An artifact's forward pass with each batch normalisation folded into its convolution, its layers in one dtype.

    Normalisation, the mean over each last map, and all that follows stay in float32.
    """

    def __init__(self, artifact: Artifact, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._normalise = artifact.normalise
        self._temperature = artifact.temperature
        self._reference = artifact.reference
        self._network = fold_batch_norms(artifact.network).to(dtype).to(memory_format=torch.channels_last)
        self._network.classifier.float()

    def forward(self, images: Tensor) -> Outputs:
        """Logits, probabilities, embedding and distance of images `(n, s, s)` float32, all float32."""
        normalised = self._normalise(images).to(dtype=self.dtype, memory_format=torch.channels_last)
        maps = self._network.maps(normalised)
        logits, embedding = self._network.head(maps[-1].float())
        return logits, torch.softmax(logits / self._temperature, dim=1), embedding, self._reference(maps)


def fold_batch_norms(network: Network) -> Network:
    """A copy of a network in eval mode, with each batch normalisation folded into the convolution before it."""
    folded = copy.deepcopy(network)
    for module in list(folded.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, norm_name, nn.Identity())
    return folded


def _copy(found: Outputs, places: Outputs) -> None:
    for tensor, place in zip(found, places, strict=True):
        place.copy_(tensor)
