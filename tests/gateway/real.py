"""Tests that need programs of Debian: they say so where these are missing, and fail without them in CI."""

import os
import shutil

import pytest

from tests.gateway.orthanc import PLUGIN, PROGRAM
from tests.gateway.processes import STORESCU

OPENSSL = shutil.which("openssl")

needs_real = pytest.mark.skipif(
    not (PROGRAM and PLUGIN.exists() and STORESCU and OPENSSL) and not os.environ.get("CI"),
    reason="needs Debian's orthanc, orthanc-dicomweb, dcmtk and openssl",
)
