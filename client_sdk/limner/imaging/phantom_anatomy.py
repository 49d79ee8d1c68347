"""The pixels of one phantom subject: a T2-weighted axial female pelvis with a tumour of the cervix.

Soft-edged ellipsoids in millimetres are painted over each other, then given texture, a bias field, a gain, a slight
blur and Rician noise. One latent severity drives five traits of the tumour; the anatomy around it knows nothing of the
class. A stand-in for a cohort that may be shipped, and not a model of the disease.
"""

from dataclasses import dataclass
from math import cos, inf, pi, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray

FOV_MM = 240.0
PIXELS = 128
SLICES = 12
SLICE_GAP_MM = 4.0
PIXEL_MM = FOV_MM / PIXELS

SIGNAL = {
    "urine": 1.0,
    "necrosis": 0.9,
    "fat": 0.78,
    "mucus": 0.7,
    "visceral fat": 0.62,
    "marrow": 0.5,
    "tumour": 0.44,
    "stool": 0.3,
    "stroma": 0.24,
    "wall": 0.2,
    "muscle": 0.17,
    "cortex": 0.06,
    "void": 0.03,
}
EDGE_MM = 2.5
NOISE_SIGMA = 0.03

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Tumour:
    """The five traits that follow the latent severity.

    Attributes
    ----------
    radius_mm
        8 to 30.
    irregularity, heterogeneity
        Relative amplitude of the margin's and of the signal's variation, over 0.
    core
        Radius of the necrotic core over the tumour's, 0 to 0.7.
    tongues
        Reach of the parametrial tongues past the margin, over the tumour's radius, 0 to 1.2.
    """

    radius_mm: float
    irregularity: float
    heterogeneity: float
    core: float
    tongues: float


def phantom_severity(seed: int, index: int, recurrent: bool, separation: float = 3.5) -> float:
    """Return a subject's latent severity, N(±separation/2, 1) by class; what a perfect reader could know."""
    return _severity(_streams(seed, index)[0], recurrent, separation)


def phantom_subject(
    seed: int, index: int, recurrent: bool, separation: float = 3.5, correlation: float = 0.9
) -> NDArray[np.float32]:
    """Return one subject's slices, from caudal to cranial, the same for the same arguments.

    Parameters
    ----------
    seed, index
        Of the cohort and of the subject in it, 0 and up. The anatomy depends on nothing else.
    recurrent
        The subject's class.
    separation
        Distance of the two classes' mean severities, in standard deviations (d').
    correlation
        Of each trait of the tumour with the severity, -1 to 1 (ρ).

    Returns
    -------
    NDArray[np.float32]
        `(12, 128, 128)`, 1.875 mm a pixel, 4 mm a slice; relative signal, 0 to about 2, urine about 1.
    """
    latent, anatomy, texture = _streams(seed, index)
    tumour = _traits(latent, _severity(latent, recurrent, separation), correlation)
    canvas = Canvas(anatomy, texture)
    _paint_pelvis(canvas)
    _paint_organs(canvas)
    _paint_tumour(canvas, tumour)
    return canvas.scan()


def _streams(seed: int, index: int) -> list[np.random.Generator]:
    # One stream per concern: drawing more of one leaves the others as they were.
    return [np.random.default_rng(child) for child in np.random.SeedSequence([seed, index]).spawn(3)]


def _severity(latent: np.random.Generator, recurrent: bool, separation: float) -> float:
    return float(latent.normal()) + (separation / 2 if recurrent else -separation / 2)


def _traits(latent: np.random.Generator, severity: float, correlation: float) -> Tumour:
    z = correlation * severity + sqrt(1 - correlation**2) * latent.normal(size=5)
    return Tumour(
        radius_mm=float(np.clip(17 + 3 * z[0], 8, 30)),
        irregularity=max(0.10 + 0.05 * z[1], 0.01),
        heterogeneity=max(0.07 + 0.03 * z[2], 0.01),
        core=float(np.clip(0.22 + 0.14 * z[3], 0, 0.7)),
        tongues=float(np.clip(0.30 + 0.30 * z[4], 0, 1.2)),
    )


class Canvas:
    """The volume being painted; `x` grows to the patient's left, `y` to the back, `z` to the head; 0 is the middle."""

    def __init__(self, anatomy: np.random.Generator, texture: np.random.Generator) -> None:
        self.anatomy = anatomy
        self.texture = texture
        axis = ((np.arange(PIXELS) - (PIXELS - 1) / 2) * PIXEL_MM).astype(np.float32)
        depth = ((np.arange(SLICES) - (SLICES - 1) / 2) * SLICE_GAP_MM).astype(np.float32)
        self.x, self.y, self.z = axis[None, None, :], axis[None, :, None], depth[:, None, None]
        self.image: Volume = np.full((SLICES, PIXELS, PIXELS), 0.01, np.float32)

    def vary(self, mean: float, deviation: float) -> float:
        """Draw a length or a place in mm, within two deviations of its mean."""
        return float(mean + deviation * np.clip(self.anatomy.normal(), -2, 2))

    def signal(self, tissue: str) -> float:
        """Draw this subject's signal of a tissue."""
        return SIGNAL[tissue] * float(np.exp(self.anatomy.normal(0, 0.06)))

    def noise(self, sigma_mm: float) -> Volume:
        """Draw smooth noise of mean 0 and deviation 1, `(slices, rows, columns)`."""
        white = self.texture.standard_normal(self.image.shape, np.float32)
        field = _blur(white, sigma_mm, sigma_mm)
        field -= field.mean()
        field /= field.std()
        return field

    def distance(
        self, center: tuple[float, float, float], axes: tuple[float, float, float], degrees: float = 0.0
    ) -> Volume:
        """Return each voxel's distance from `center` in semi-axes: 1 on the surface of the ellipsoid."""
        dx, dy, dz = self.x - center[0], self.y - center[1], self.z - center[2]
        across, along = cos(radians(degrees)), sin(radians(degrees))
        u, v = dx * across + dy * along, dy * across - dx * along
        squared: Volume = (u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (dz / axes[2]) ** 2
        return np.sqrt(squared)

    def fill(self, distance: Volume, radius_mm: float, signal: float | Volume) -> None:
        """Paint what lies within distance 1, with an edge `EDGE_MM` wide."""
        mask = np.clip((1 - distance) * (radius_mm / EDGE_MM) + 0.5, 0, 1)
        self.image += mask * (signal - self.image)

    def ellipsoid(
        self,
        center: tuple[float, float, float],
        axes: tuple[float, float, float],
        signal: float | Volume,
        degrees: float = 0.0,
    ) -> None:
        """Paint one ellipsoid; a third axis of `inf` makes it a tube along the body."""
        self.fill(self.distance(center, axes, degrees), min(axes[:2]), signal)

    def scan(self) -> Volume:
        """Return the painted volume as a scanner would have shown it."""
        bias = np.exp(0.08 * self.noise(60.0))
        gain = np.exp(self.anatomy.normal(0, 0.15))
        tissue = self.image * (1 + 0.04 * self.noise(2.5)) * bias * gain
        blurred = _blur(tissue, 1.1, 0.0)
        real, imaginary = self.texture.normal(0, NOISE_SIGMA, (2, *blurred.shape)).astype(np.float32)
        scanned: Volume = np.hypot(blurred + real, imaginary)
        return scanned


def _blur(volume: Volume, sigma_mm: float, sigma_z_mm: float) -> Volume:
    depth = _gaussian(np.fft.fftfreq(SLICES, SLICE_GAP_MM), sigma_z_mm)
    rows = _gaussian(np.fft.fftfreq(PIXELS, PIXEL_MM), sigma_mm)
    columns = _gaussian(np.fft.rfftfreq(PIXELS, PIXEL_MM), sigma_mm)
    spectrum = np.fft.rfftn(volume) * depth[:, None, None] * rows[:, None] * columns
    return np.fft.irfftn(spectrum, volume.shape, axes=(0, 1, 2)).astype(np.float32)


def _gaussian(frequencies: NDArray[np.floating], sigma: float) -> Volume:
    response: Volume = np.exp(-2 * (pi * sigma * frequencies) ** 2).astype(np.float32)
    return response


def _paint_pelvis(canvas: Canvas) -> None:
    vary, signal = canvas.vary, canvas.signal
    x, y = vary(0, 3), vary(0, 3)
    width, height, rim = vary(142, 6), vary(98, 5), vary(22, 5)
    muscle = signal("muscle")
    canvas.ellipsoid((x, y, 0), (width, height, inf), signal("fat"))
    canvas.ellipsoid((x, y, 0), (width - rim, height - rim, inf), muscle * (1 + 0.10 * canvas.noise(4.0)))
    fat = signal("visceral fat") * (1 + 0.16 * canvas.noise(5.0))
    canvas.ellipsoid((x, y - 2, 0), (vary(64, 4), vary(62, 3), inf), fat)
    cortex, marrow, void = signal("cortex"), signal("marrow"), signal("void")
    head, head_z = vary(25, 2), vary(6, 8)
    for side in (-1, 1):
        canvas.ellipsoid((x + side * vary(60, 3), y + vary(32, 3), 0), (17, 36, inf), muscle, degrees=side * 28)
        _paint_bone(canvas, (x + side * vary(95, 3), y - 5, head_z), (head, head, head + 6), cortex, marrow)
        for along in (-5.5, 5.5):
            place = (x + side * vary(47 + along, 2), y + vary(-27 + along, 2), 0.0)
            canvas.ellipsoid(place, (vary(5.5, 0.6), vary(5.5, 0.6), inf), void)
    _paint_bone(canvas, (x, y + vary(68, 2), 20), (vary(32, 3), vary(10, 1), 34), cortex, marrow)


def _paint_bone(
    canvas: Canvas,
    center: tuple[float, float, float],
    axes: tuple[float, float, float],
    cortex: float,
    marrow: float,
) -> None:
    canvas.ellipsoid(center, (axes[0] + 2.5, axes[1] + 2.5, axes[2] + 2.5), cortex)
    canvas.ellipsoid(center, axes, marrow)


def _paint_organs(canvas: Canvas) -> None:
    vary, wall = canvas.vary, canvas.signal("wall")
    bladder = (vary(0, 3), vary(-41, 2), vary(4, 5))
    width, height, depth = vary(31, 6), vary(18, 5), vary(36, 3)
    canvas.ellipsoid(bladder, (width + 3, height + 3, depth + 3), wall)
    canvas.ellipsoid(bladder, (width, height, depth), canvas.signal("urine"))
    rectum = (vary(0, 3), vary(47, 2), 0.0)
    radius = vary(15, 2)
    fillings = [canvas.signal(tissue) for tissue in ("void", "stool", "mucus")]
    filling = fillings[int(canvas.anatomy.integers(3))]
    canvas.ellipsoid(rectum, (radius + 3, radius + 3, inf), wall)
    canvas.ellipsoid(rectum, (radius, radius, inf), filling * (1 + 0.2 * canvas.noise(3.0)))


def _paint_tumour(canvas: Canvas, tumour: Tumour) -> None:
    vary, radius = canvas.vary, tumour.radius_mm
    x, y = vary(0, 3), vary(8, 3)
    canvas.ellipsoid((x, y, 0), (vary(23, 1.5), vary(21, 1.5), inf), canvas.signal("stroma"))
    margin, grain = canvas.noise(4.0), canvas.noise(2.5)
    flesh = canvas.signal("tumour") * (1 + tumour.heterogeneity * 2 * grain)
    # Long enough to be cut by every slice: its radius is about two thirds in the first and the last.
    distance = canvas.distance((x, y, 0), (radius, radius * 0.92, 30)) - tumour.irregularity * margin
    canvas.fill(distance, radius, flesh)
    for angle in (vary(0, 15), vary(180, 15), vary(-40, 15), vary(220, 15)):
        reach = radius * (1 + tumour.tongues)
        middle, half = (radius * 0.5 + reach) / 2, (reach - radius * 0.5) / 2
        place = (x + middle * cos(radians(angle)), y + middle * sin(radians(angle)), vary(0, 5))
        canvas.ellipsoid(place, (half, vary(4, 0.6), 18), flesh, degrees=angle)
    necrosis = canvas.signal("necrosis")
    if tumour.core > 0:
        core = max(tumour.core * radius, 0.5)
        ragged = canvas.distance((x, y, 0), (core, core, 24)) - tumour.irregularity * margin
        canvas.fill(ragged, core, necrosis)
