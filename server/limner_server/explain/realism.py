"""How alike real slices an image is: its power spectrum, its distance from the nearest slice. Evidence of no more."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from limner_server.explain.checks import Realism
from limner_server.explain.cohort import Images, Rows

MOST_SLICES = 500


def nearest(image: Images, blocks: Iterable[tuple[Rows, Images]]) -> tuple[int, Images]:
    """Find the slice with the least mean squared difference from the image `(s, s)`.

    Parameters
    ----------
    image
        Normalised.
    blocks
        Rows `(b,)` and the normalised slices `(b, s, s)` that they stand for, block by block.

    Returns
    -------
    The row of the slice, of equals the first one, and the slice `(s, s)`.
    """
    least, found = np.inf, (-1, image)
    for rows, slices in blocks:
        squares = _squares(image[None], slices)[0]
        place = int(squares.argmin())
        if squares[place] < least:
            least, found = squares[place], (int(rows[place]), slices[place])
    return found


def some_rows(slices: int) -> Rows:
    """Return at most `MOST_SLICES` rows, evenly taken from so many."""
    return np.unique(np.linspace(0, slices - 1, MOST_SLICES).astype(np.int64))


@dataclass(frozen=True, eq=False)
class RealSlices:
    """What real slices are like among themselves.

    Attributes
    ----------
    slices
        `(n, s, s)`, normalised.
    spectrum
        `(s // 2,)`, mean logarithm of their power at 0, 1 ... cycles an image.
    spread
        Mean distance of a slice's spectrum from that.
    high
        Mean power over half of the Nyquist frequency.
    apart
        Median distance of a slice from the nearest one of another subject.
    """

    slices: Images
    spectrum: NDArray[np.float64]
    spread: float
    high: float
    apart: float

    @classmethod
    def measure(cls, slices: Images, subjects: NDArray[np.str_]) -> Self:
        """Measure normalised slices `(n, s, s)` of `subjects` `(n,)`, at least two of them.

        Takes n² values of memory: `some_rows` keeps n at `MOST_SLICES`.
        """
        powers = _radial_power(slices)
        spectra = np.log(powers)
        mean = spectra.mean(0)
        squares = _squares(slices, slices)
        squares[subjects[:, None] == subjects] = np.inf
        return cls(
            slices,
            mean,
            float(np.sqrt(np.square(spectra - mean).mean(1)).mean()),
            float(_high(powers).mean()),
            float(np.median(np.sqrt(squares.min(1)))),
        )

    def judge(self, image: Images) -> Realism:
        """Compare one normalised image `(s, s)` with them; 1 is what real slices are among themselves."""
        powers = _radial_power(image[None])
        return Realism(
            float(_high(powers)[0]) / self.high,
            float(np.sqrt(np.square(np.log(powers[0]) - self.spectrum).mean())) / self.spread,
            float(np.sqrt(_squares(image[None], self.slices).min())) / self.apart,
        )


def _squares(first: Images, second: Images) -> NDArray[np.float64]:
    """Mean squared difference `(n, m)` of each image of `first` from each of `second`."""
    a, b = first.reshape(len(first), -1).astype(np.float64), second.reshape(len(second), -1).astype(np.float64)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    means: NDArray[np.float64] = np.maximum(squares, 0) / a.shape[1]
    return means


def _radial_power(images: Images) -> NDArray[np.float64]:
    """Mean power `(n, s // 2)` at each whole number of cycles an image, under a Hann window."""
    size = images.shape[-1]
    window = np.hanning(size)
    centred = images - images.mean((1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.rfft2(centred * window[:, None] * window)))
    rows, columns = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    radius = np.rint(np.hypot(rows[:, None], columns)).astype(int).ravel()
    inside = radius < size // 2
    sums = np.stack([np.bincount(radius[inside], plane.ravel()[inside], size // 2) for plane in power])
    return np.asarray(sums / np.bincount(radius[inside], minlength=size // 2) + 1e-12)


def _high(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power `(n,)` over half of the Nyquist frequency, from powers `(n, s // 2)` by frequency."""
    frequencies = np.arange(powers.shape[1])
    beyond = frequencies > powers.shape[1] / 2
    return np.asarray((powers * frequencies)[:, beyond].sum(1), np.float64)
