"""A real Orthanc with its DICOMweb plugin, on free ports and a folder of its own: killed and started again at will."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import requests

PROGRAM = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


class Orthanc:
    """One Orthanc, AE title ORTHANC.

    Parameters
    ----------
    folder
        Of its storage; made where it is missing.
    user
        Name and password that its HTTP asks for; None: it asks for none.
    settings
        Further ones of its configuration.
    """

    def __init__(self, folder: Path, user: tuple[str, str] | None = None, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dicom_port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self._folder = folder
        self._session = requests.Session()
        self._session.auth = user
        self._log = folder / "orthanc.log"
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "DicomPort": self.dicom_port,
                    "HttpPort": self.http_port,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": user is not None,
                    "RegisteredUsers": dict([user] if user else []),
                    "OverwriteInstances": False,
                    "Plugins": [str(PLUGIN)],
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                    "DicomAlwaysAllowEcho": True,
                    "DicomAlwaysAllowStore": True,
                    "DicomAlwaysAllowFind": True,
                    "DicomAlwaysAllowGet": True,
                    "DicomAlwaysAllowMove": True,
                    **settings,
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Orthanc":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it answers."""
        assert PROGRAM
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(self._configuration)], stdout=log, stderr=log)
        for _ in range(200):
            try:
                self._session.get(f"{self.url}/system", timeout=1).raise_for_status()
                return
            except requests.RequestException:
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.1)
        raise AssertionError(f"Orthanc does not answer: {self._log.read_text()}")

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    @property
    def version(self) -> str:
        """Its version, while it runs."""
        return str(self._get("system").json()["Version"])

    def count(self) -> int:
        """Number of its instances."""
        return int(self._get("statistics").json()["CountInstances"])

    def add(self, content: bytes) -> None:
        """Store a file."""
        self._session.post(f"{self.url}/instances", data=content, timeout=30).raise_for_status()

    def lose(self, uid: str) -> None:
        """Have the disk lose the file of an instance, which stays in the index."""
        for path in (self._folder / "storage").glob("*/*/*"):
            if uid.encode() in path.read_bytes():
                path.unlink()

    def instances(self, **query: str) -> list[dict[str, object]]:
        """The tags of every instance that has these."""
        answer = self._session.post(
            f"{self.url}/tools/find",
            json={"Level": "Instance", "Query": query, "Expand": True, "RequestedTags": []},
            timeout=30,
        )
        answer.raise_for_status()
        found: list[dict[str, object]] = answer.json()
        return found

    def file(self, instance: str) -> bytes:
        """The content of an instance, by Orthanc's own id of it."""
        return self._get(f"instances/{instance}/file").content

    def _get(self, path: str) -> requests.Response:
        answer = self._session.get(f"{self.url}/{path}", timeout=30)
        answer.raise_for_status()
        return answer
