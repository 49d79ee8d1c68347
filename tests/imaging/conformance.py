"""dicom3tools, the field's judge of whether DICOM objects are what they say they are, alone and beside each other."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def dicom_errors(path: Path) -> set[str]:
    """Return the ways in which a file breaks its IOD; skip where dicom3tools is not installed, but not in CI."""
    report = _report("dciodvfy", [path])
    assert report, "dciodvfy said nothing, not even the IOD"
    return {line for line in report if "Error" in line}


def assert_valid_dicom(path: Path) -> None:
    """Fail when the file breaks its IOD."""
    errors = dicom_errors(path)
    assert not errors, "\n".join(sorted(errors))


def assert_consistent_entities(paths: Sequence[Path]) -> None:
    """Fail when files of one patient, study or series say different things of it; skip as `dicom_errors` does."""
    errors = _report("dcentvfy", paths)
    assert not errors, "\n".join(errors)


def _report(name: str, paths: Sequence[Path]) -> list[str]:
    tool = shutil.which(name)
    if tool is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed; dicom3tools brings it")
        pytest.skip(f"{name} is not installed; dicom3tools brings it")
    found = subprocess.run([tool, *map(str, paths)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (found.stdout + found.stderr).splitlines() if line.strip()]
