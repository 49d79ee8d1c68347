"""Convolutions by Winograd's algorithm: the same numbers by a half to a quarter of the multiplications.

After Lavin & Gray 2016, 'Fast Algorithms for Convolutional Neural Networks' (arXiv:1509.09308), whose F(m x m, 3 x 3)
this is: a tile of m x m outputs takes (m + 2)² products for each pair of channels instead of 9 m². oneDNN has it for
GPUs and AArch64 only, and torch's NNPACK is slow on small maps (docs/performance.md); products of matrices are not.

TorchScript has no such operator, so graphs are rewritten, by `torch._C`, which promises nothing to its next version.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, ...]]

_TIMED_RUNS = 3


class _Transforms(NamedTuple):
    """The paper's B^T, G and A^T: of a row of inputs, of a row of a kernel, and of products to a row of outputs."""

    inputs: list[list[float]]
    kernel: list[list[float]]
    outputs: list[list[float]]


_TRANSFORMS = {
    2: _Transforms(
        [
            [1.0, 0.0, -1.0, 0.0],
            [0.0, 1.0, 1.0, 0.0],
            [0.0, -1.0, 1.0, 0.0],
            [0.0, 1.0, 0.0, -1.0],
        ],
        [
            [1.0, 0.0, 0.0],
            [1 / 2, 1 / 2, 1 / 2],
            [1 / 2, -1 / 2, 1 / 2],
            [0.0, 0.0, 1.0],
        ],
        [
            [1.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, -1.0, -1.0],
        ],
    ),
    4: _Transforms(
        [
            [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
            [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
            [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
            [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
            [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
            [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
        ],
        [
            [1 / 4, 0.0, 0.0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0.0, 0.0, 1.0],
        ],
        [
            [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
            [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
            [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
        ],
    ),
}
"""By m. Larger ones cost more digits of float32."""


class _Convolution(NamedTuple):
    """A convolution that can be Winograd's: its place in a graph, its kernels `(k, c, 3, 3)` and bias `(k,)`."""

    node: torch._C.Node
    kernels: Tensor
    bias: Tensor


class WinogradForms:
    """Forms of a frozen artifact, each for one size of batch, some of whose convolutions are by Winograd's algorithm.

    Forms for several sizes share their kernels.

    Parameters
    ----------
    frozen
        The frozen artifact, in channels-last order. It stays as it is.
    """

    def __init__(self, frozen: torch.jit.ScriptModule) -> None:
        self._graph = frozen.graph.copy()
        module = next(self._graph.inputs())
        self._is_function = not module.uses()
        if self._is_function:
            self._graph.eraseInput(0)
        self._kernels: dict[tuple[int, int], Tensor] = {}

    @torch.inference_mode()
    def fastest(self, images: Tensor, least_gain: float) -> Forward | None:
        """The form that is fastest for batches like these images `(n, s, s)`, not run yet.

        None: all its convolutions together gain no more than `least_gain` seconds on torch's.
        """
        inputs = self.inputs(images)
        if not inputs:
            return None
        found: dict[tuple[torch.Size, torch.Size], tuple[int | None, float]] = {}
        edges, gain = [], 0.0
        for number, (convolution, x) in enumerate(zip(_convolutions(self._graph), inputs, strict=True)):
            shapes = x.shape, convolution.kernels.shape
            if shapes not in found:
                found[shapes] = self._fastest_edge(number, convolution, x)
            edge, gained = found[shapes]
            edges.append(edge)
            gain += gained
        return self.form(inputs, edges) if gain > least_gain else None

    def inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """What each convolution that can be Winograd's is given for these images, `(n, c, h, w)`."""
        graph = self._graph.copy()
        if not self._is_function or not (convolutions := _convolutions(graph)):
            return ()
        for convolution in convolutions:
            graph.registerOutput(convolution.node.inputsAt(0))
        graph.makeMultiOutputIntoTuple()
        outputs: tuple[Tensor, ...] = torch._C._create_function_from_graph("inputs", graph)(images)
        return outputs[1:]

    def form(self, inputs: Sequence[Tensor], edges: Sequence[int | None]) -> Forward:
        """The form for batches with such `inputs`, with an m for each of these convolutions; None: torch's own."""
        graph = self._graph.copy()
        for number, (convolution, x, edge) in enumerate(zip(_convolutions(graph), inputs, edges, strict=True)):
            if edge is None:
                continue
            node = convolution.node
            with graph.insert_point_guard(node):
                constants = self._constants(number, convolution, x, edge)
                values = [graph.insertConstant(value) for value in constants]  # type: ignore[attr-defined]
                (output,) = graph.insertGraph(_scripted().graph, [node.inputsAt(0), *values])
            node.output().replaceAllUsesWith(output)
            node.destroy()
        torch._C._jit_pass_dce(graph)
        form: Forward = torch._C._create_function_from_graph("winograd", graph)
        return form

    def _fastest_edge(self, number: int, convolution: _Convolution, x: Tensor) -> tuple[int | None, float]:
        """The m that is fastest for these maps, and the seconds it gains; None: torch's own convolution is."""
        _, kernels, bias = convolution
        edges = list(_TRANSFORMS)
        constants = [self._constants(number, convolution, x, edge) for edge in edges]
        plain, *seconds = fastest_seconds(
            partial(torch.conv2d, x, kernels, bias, padding=1), *(partial(_scripted(), x, *each) for each in constants)
        )
        least = min(seconds)
        return (edges[seconds.index(least)], plain - least) if least < plain else (None, 0.0)

    def _constants(self, number: int, convolution: _Convolution, x: Tensor, edge: int) -> tuple[Tensor | int, ...]:
        """What `convolve` is given besides its maps."""
        if (number, edge) not in self._kernels:
            self._kernels[number, edge] = transform(convolution.kernels, edge)
        return (self._kernels[number, edge], convolution.bias, *tile_transforms(edge), edge, *x.shape[2:])


def convolve(
    x: Tensor, kernels: Tensor, bias: Tensor, forth: Tensor, back: Tensor, edge: int, height: int, width: int
) -> Tensor:
    """The convolution of maps `(n, c, h, w)` with 3 x 3 kernels and a border of one zero: `(n, k, h, w)`. Scriptable.

    Parameters
    ----------
    x
        The maps, in channels-last order if it shall be fast; so is what is returned.
    kernels
        What `transform` gives.
    bias
        `(k,)`.
    forth, back
        What `tile_transforms` gives.
    edge
        m, the edge of a tile of outputs.
    height, width
        h and w: as constants, so that TorchScript computes every other shape only once.
    """
    places, c, k = kernels.shape
    tile, rows, columns = edge + 2, (height + edge - 1) // edge, (width + edge - 1) // edge
    padded = torch.constant_pad_nd(x, [1, columns * edge - width + 1, 1, rows * edge - height + 1])
    tiles = padded.permute(0, 2, 3, 1).unfold(1, tile, edge).unfold(2, tile, edge).permute(4, 5, 0, 1, 2, 3)
    transformed = torch.bmm(forth, tiles.reshape(1, places, -1)).view(places, -1, c)
    products = torch.bmm(transformed, kernels).view(1, places, -1)
    outputs = torch.bmm(back, products).view(edge, edge, -1, rows, columns, k).add_(bias)
    maps = outputs.permute(2, 3, 0, 4, 1, 5).reshape(-1, rows * edge, columns * edge, k)
    return maps[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@cache
def tile_transforms(edge: int) -> tuple[Tensor, Tensor]:
    """Matrices from tiles of inputs to factors of the products, and from products to tiles of outputs, all flat.

    `(1, (m + 2)², (m + 2)²)` and `(1, m², (m + 2)²)`.
    """
    forth, back = torch.tensor(_TRANSFORMS[edge].inputs), torch.tensor(_TRANSFORMS[edge].outputs)
    return torch.kron(forth, forth).unsqueeze(0), torch.kron(back, back).unsqueeze(0)


def transform(kernels: Tensor, edge: int) -> Tensor:
    """Kernels `(k, c, 3, 3)` as factors of the products: `((m + 2)², c, k)`. Computed in float64."""
    matrix = torch.tensor(_TRANSFORMS[edge].kernel, dtype=torch.float64)
    k, c = kernels.shape[:2]
    factors = torch.kron(matrix, matrix) @ kernels.double().permute(2, 3, 1, 0).reshape(9, c * k)
    return factors.to(kernels.dtype).view(-1, c, k)


def fastest_seconds(*runs: Callable[[], object]) -> list[float]:
    """Time of each at its fastest. They run in turns, so that whatever else the machine does meets all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_TIMED_RUNS):
        for run, its_times in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            its_times.append(time.perf_counter() - started)
    return [min(its_times) for its_times in times]


@cache
def _scripted() -> Any:  # a ScriptFunction, of whose attributes torch's annotations know nothing
    return torch.jit.script(convolve)


def _convolutions(graph: torch._C.Graph) -> list[_Convolution]:
    """The convolutions of 3 x 3, stride 1, a border of one zero and constant float32 weights, in the graph's order."""
    found = []
    for node in graph.nodes():
        if node.kind() != "aten::conv2d":
            continue
        constants: list[Any] = [value.toIValue() for value in list(node.inputs())[1:]]  # None: it is none
        kernels, bias, *how = constants
        constant = isinstance(kernels, Tensor) and isinstance(bias, Tensor) and kernels.dtype == torch.float32
        if constant and kernels.shape[2:] == (3, 3) and how == [[1, 1], [1, 1], [1, 1], 1]:
            found.append(_Convolution(node, kernels, bias))
    return found
