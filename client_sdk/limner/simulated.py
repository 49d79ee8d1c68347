"""The images of a simulation as files that say what they may be called: the one way from a result to pictures.

What failed a check is no explanation. It is written only where that is asked for, and then says so, with the reason, in
its name, in the picture and in the DICOM. Not for how a picture or an instance is made: that is `limner.imaging`'s.
"""

from importlib.util import find_spec
from pathlib import Path

from limner.errors import WrongStateError
from limner.imaging import ModelReference, simulated_dicom, write_png
from limner.imaging.export import SIMULATED_MARK
from limner.imaging.files import file_name
from limner.types import Check, SimulationResult, Verdict

# Values shown as black and white, in standard deviations of a normalised slice: the same for all classes.
WINDOW = (-2.5, 3.5)


def export(
    result: SimulationResult, folder: Path, *, allow_failed: bool = False, dicom: bool = True
) -> tuple[Path, ...]:
    """Write a simulation's images, as `SimulationResult.export` says.

    Parameters
    ----------
    result
        The simulation.
    folder
        Made when missing.
    allow_failed
        Write what is no explanation too. Its files are named `failed-check-...` with the gates that were not passed,
        or `unchecked-...`, and say why.
    dicom
        Write each image as Secondary Capture beside the PNG; needs the extra `limner[gateway]`.

    Returns
    -------
    The files, in the order of the labels.

    Raises
    ------
    WrongStateError
        The result is no explanation, and `allow_failed` is not given; nothing is written.
    ModuleNotFoundError
        `dicom` without the extra; nothing is written.
    OSError
        A file cannot be written; those before it are there.
    """
    reason = shortcoming(result)
    if reason and not allow_failed:
        raise WrongStateError(f"no explanation, so not exported: {reason}; allow_failed=True exports it marked as such")
    if dicom and find_spec("highdicom") is None:
        raise ModuleNotFoundError("DICOM output needs highdicom: pip install 'limner[gateway]'", name="highdicom")
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelReference(result.model.name, result.model.version, result.model.digest)
    spacing = result.grid.fov_mm / result.grid.size
    written = []
    for image in result.images:
        path = folder / f"{_prefix(result)}{file_name(image.label)}.png"
        caption = "\n".join(filter(None, (SIMULATED_MARK, f"simulated class: {image.label}", reason)))
        write_png(path, image.image, WINDOW, caption)
        written.append(path)
        if dicom:
            path = path.with_name(f"{path.stem}.dcm")
            simulated_dicom(path, image.image, image.label, model, spacing, WINDOW, note=reason)
            written.append(path)
    return tuple(written)


def shortcoming(result: SimulationResult) -> str:
    """Say what keeps the result from being an explanation, with the figures; nothing where it is one."""
    gates = ", ".join(f"{check.number} {check.name} {figure(check)}" for check in result.failed_gates)
    match result.verdict:
        case Verdict.EXPLANATION:
            return ""
        case Verdict.FAILED_CHECK:
            return f"failed check {gates}"
        case Verdict.UNCHECKED:
            return f"unchecked {gates}".strip()


def figure(check: Check) -> str:
    """Say what was measured and what was expected."""
    if not check.ran:
        return "not run"
    return f"{check.value:.3g}, expected at {'most' if check.at_most else 'least'} {check.threshold:g}"


def _prefix(result: SimulationResult) -> str:
    """Begin the name of a file that is no explanation: `failed-check-2-independent_judge-`."""
    if result.verdict is Verdict.EXPLANATION:
        return ""
    gates = "".join(f"{check.number}-{check.name}-" for check in result.failed_gates)
    return ("failed-check-" if result.verdict is Verdict.FAILED_CHECK else "unchecked-") + gates
