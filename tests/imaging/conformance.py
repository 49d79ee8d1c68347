"""`dciodvfy` of dicom3tools, the field's judge of whether a DICOM object is what it says it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def dicom_errors(path: Path) -> set[str]:
    """Return the ways in which a file breaks its IOD; skip where dicom3tools is not installed, but not in CI."""
    tool = shutil.which("dciodvfy")
    if tool is None:
        if os.environ.get("CI"):
            pytest.fail("dciodvfy is not installed; dicom3tools brings it")
        pytest.skip("dciodvfy is not installed; dicom3tools brings it")
    found = subprocess.run([tool, str(path)], capture_output=True, text=True, errors="replace", check=False)
    report = found.stdout + found.stderr
    assert report.strip(), "dciodvfy said nothing, not even the IOD"
    return {line for line in report.splitlines() if "Error" in line}


def assert_valid_dicom(path: Path) -> None:
    """Fail when the file breaks its IOD."""
    errors = dicom_errors(path)
    assert not errors, "\n".join(sorted(errors))
