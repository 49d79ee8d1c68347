"""The guide for other languages: what it shows is what runs, plain and through nginx, against a live server.

Node.js needs `npm ci` in `examples/node`, Java the Debian packages that `examples/java/build.sh` names. Where grpcurl
is not installed, `tests.e2e.reflect` stands in for it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.models import publish_untrained
from limner import Client
from limner.channel import Role, service_config
from limner.imaging.dicom import decode
from limner.v1 import inference_pb2
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from tests.certificates import make_certificate
from tests.e2e import reflect
from tests.e2e.nginx import PROGRAM, Nginx
from tests.live import LiveServer
from tests.sdk.servers import Inference, serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = (ROOT / "docs" / "integrate.md").read_text()
SHOWN = re.findall(r'^```(?:js|java) title="(\S+)"\n(.*?)^```$', GUIDE, re.MULTILINE | re.DOTALL)
CALLS = re.findall(r'^```sh title="grpcurl"\n(.*?)^```$', GUIDE, re.MULTILINE | re.DOTALL)

NODE = shutil.which("node") and (EXAMPLES / "node" / "node_modules").is_dir()
JARS = Path("/usr/share/java")
JAVA = all(map(shutil.which, ("javac", "protoc", "grpc_java_plugin"))) and (JARS / "netty-tcnative.jar").exists()
REASONS = {
    "node": "" if NODE or os.environ.get("CI") else "needs Node.js and `npm ci` in examples/node",
    "java": "" if JAVA or os.environ.get("CI") else "needs a JDK and Debian's packages of examples/java/build.sh",
}
MODEL = "integrated"


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Examples:
    """The programs of one language: the command line of each, up to its own arguments."""

    programs: dict[str, list[str]]

    def run(self, program: str, *words: object, server: str, **environment: str) -> Ended:
        ended = subprocess.run(
            [*self.programs[program], *map(str, words)],
            env={**os.environ, "LIMNER_SERVER": server, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module", params=["node", "java"])
def examples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    if REASONS[request.param]:
        pytest.skip(REASONS[request.param])
    if request.param == "node":
        return Examples({name: node(name) for name in ("models", "predict", "stream")})
    out = tmp_path_factory.mktemp("java")
    subprocess.run([EXAMPLES / "java" / "build.sh", out], check=True)
    classes = {"models": "ListModels", "predict": "PredictFile", "stream": "StreamFolder"}
    java = ["java", f"-Djava.library.path={out}", "-cp", f"{out}:{JARS}/*"]
    return Examples({program: [*java, f"limner.examples.{name}"] for program, name in classes.items()})


def node(program: str) -> list[str]:
    return ["node", str(EXAMPLES / "node" / f"{program}.js")]


@pytest.fixture(scope="module")
def address(server: LiveServer) -> str:
    """Of the shared server, with an untrained model."""
    publish_untrained(server.model_repository, MODEL, size=32)
    return server.address


@pytest.fixture(scope="module")
def study(phantom: Path) -> list[Path]:
    return sorted((phantom / "PH-000").glob("*.dcm"))


def probabilities(client: Client, study: list[Path]) -> list[float]:
    """What the SDK has for the first label of each slice."""
    results = client.predict(MODEL, study).results
    return [result.prediction.probabilities[0] for result in results if result.prediction]


def first_numbers(lines: list[str]) -> list[float]:
    return [float(re.search(r"[01]\.\d+", line)[0]) for line in lines]  # type: ignore[index]


def test_models_are_listed_with_their_digests(examples: Examples, address: str, client: Client) -> None:
    ended = examples.run("models", server=address)
    assert ended.code == 0, ended.err
    line = next(line for line in ended.out.splitlines() if line.startswith(f"{MODEL}:1 "))
    assert client.model(MODEL).identity.digest in line
    assert "no | yes" in line


def test_a_file_is_scored_as_by_the_sdk(examples: Examples, address: str, client: Client, study: list[Path]) -> None:
    ended = examples.run("predict", f"{MODEL}:1", study[0], server=address)
    assert ended.code == 0, ended.err
    assert first_numbers([ended.out]) == pytest.approx(probabilities(client, study[:1]), abs=1e-3)
    assert client.model(MODEL).identity.digest in ended.out


def test_a_folder_is_streamed_and_what_is_wrong_in_it_stops_nothing(
    examples: Examples, address: str, client: Client, study: list[Path], tmp_path: Path
) -> None:
    for file in study:
        shutil.copy(file, tmp_path)
    (tmp_path / "0003x.txt").write_text("not DICOM")
    (tmp_path / "folder").mkdir()
    ended = examples.run("stream", MODEL, tmp_path, server=address)
    assert ended.code == 1
    *slices, subject = ended.out.splitlines()
    assert [Path(line.split()[0]).name for line in slices] == [file.name for file in study]
    assert first_numbers(slices) == pytest.approx(probabilities(client, study), abs=1e-3)
    assert subject.startswith("subject ")
    assert f"of {len(study)} slices" in subject
    assert re.search(r"0003x\.txt failed: file is not DICOM", ended.err)
    assert re.search(r"folder not sent: ", ended.err)


@pytest.mark.parametrize(
    ("model", "file", "expected"),
    [
        (MODEL, __file__, r"test_integrate\.py failed: \[?file: is not DICOM; expected a DICOM file"),
        ("nobody", "", r"^NOT_FOUND: no model 'nobody'; .*; request: [0-9a-f]{32}$"),
        ("-", "", r"^INVALID_ARGUMENT: .*; model\.name: is -; expected .*; request: [0-9a-f]{32}$"),
    ],
    ids=["file", "model", "name"],
)
def test_what_is_wrong_is_named_with_its_field(
    examples: Examples, address: str, study: list[Path], model: str, file: str, expected: str
) -> None:
    ended = examples.run("predict", model, file or study[0], server=address)
    assert (ended.code, ended.out) == (1, "")
    assert re.search(expected, ended.err, re.MULTILINE)


def test_no_server_is_said_in_a_line(examples: Examples) -> None:
    ended = examples.run("models", server="localhost:1")
    assert (ended.code, ended.out) == (1, "")
    assert re.search("^UNAVAILABLE: .*; request: none, the call reached no server$", ended.err, re.MULTILINE)


class Busy(Inference):
    """Refuses a first call for a full queue, with pushback, and two streams: going away, and lost by a proxy."""

    PUSHBACK_S = 1.0
    STREAM_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []
        self.streams = 0

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        self.calls.append(time.monotonic())
        if len(self.calls) == 1:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(round(1000 * self.PUSHBACK_S))),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        return super().Predict(request, context)

    def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.PredictStreamResponse]:
        self.streams += 1
        if self.streams <= len(self.STREAM_CODES):
            context.abort(self.STREAM_CODES[self.streams - 1], "not now")
        return super().PredictStream(request_iterator, context)


def test_a_server_that_is_busy_is_asked_again(examples: Examples, study: list[Path]) -> None:
    with serving(add_InferenceServiceServicer_to_server, servicer := Busy()) as address:
        ended = examples.run("predict", "m", study[0], server=address)
        assert ended.code == 0, ended.err
        first, second = servicer.calls
        assert second - first >= Busy.PUSHBACK_S
        ended = examples.run("stream", "m", study[0].parent, server=address)
        assert ended.code == 0, ended.err
        assert servicer.streams == 3
        assert len(re.findall(r"\.dcm quiet ", ended.out)) == len(study)


@pytest.mark.skipif(not PROGRAM and not os.environ.get("CI"), reason="needs Debian's nginx and openssl")
def test_tls_is_spoken_through_nginx(examples: Examples, address: str, study: list[Path], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "hospital")
    other, _ = make_certificate(tmp_path, "other")
    with Nginx(tmp_path / "nginx", certificate, key, address) as nginx:
        ended = examples.run("stream", MODEL, study[0].parent, server=nginx.address, LIMNER_TLS_CA=str(certificate))
        assert ended.code == 0, ended.err
        assert len(ended.out.splitlines()) == len(study) + 1
        ended = examples.run("predict", "-", study[0], server=nginx.address, LIMNER_TLS_CA=str(certificate))
        assert re.search(r"model\.name: is -; expected", ended.err)
        ended = examples.run("models", server=nginx.address, LIMNER_TLS_CA=str(other))
        assert ended.code == 1
        assert "UNAVAILABLE" in ended.err


@pytest.mark.skipif(bool(REASONS["node"]), reason=REASONS["node"])
def test_decoded_pixels_score_as_their_file(address: str, client: Client, study: list[Path], tmp_path: Path) -> None:
    image = decode(study[0])
    (tmp_path / "slice.f32").write_bytes(image.pixels.astype("<f4").tobytes())
    examples = Examples({"pixels": node("pixels")})
    words = (*image.pixels.shape, image.row_spacing_mm)
    ended = examples.run("pixels", MODEL, tmp_path / "slice.f32", *words, server=address)
    assert ended.code == 0, ended.err
    assert first_numbers([ended.out]) == pytest.approx(probabilities(client, study[:1]), abs=1e-5)
    ended = examples.run("pixels", MODEL, tmp_path / "slice.f32", 1, *words[1:], server=address)
    assert ended.code == 1
    assert "expected" in ended.out


def test_the_calls_of_grpcurl_are_answered(address: str, client: Client, study: list[Path], tmp_path: Path) -> None:
    shutil.copy(study[0], tmp_path / "slice.dcm")
    (block,) = CALLS
    grpcurl = shutil.which("grpcurl") or f"{sys.executable} {reflect.__file__}"
    for written, meant in (("grpcurl ", f"{grpcurl} "), ("localhost:8500", address), ("cervix", MODEL)):
        assert written in block
        block = block.replace(written, meant)
    command = ["bash", "-euo", "pipefail", "-c", block]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "limner.v1.InferenceService" in ended.stdout.splitlines()
    assert '"SERVING"' in ended.stdout
    assert client.model(MODEL).identity.digest in ended.stdout
    first = re.search(r'"probabilities": \[\s*([\d.]+)', ended.stdout)
    assert first
    assert float(first[1]) == pytest.approx(probabilities(client, study[:1])[0], abs=1e-5)


@pytest.mark.parametrize(("file", "block"), SHOWN, ids=[f"{file}-{index}" for index, (file, _) in enumerate(SHOWN)])
def test_what_the_guide_shows_is_in_the_example(file: str, block: str) -> None:
    assert block in (ROOT / file).read_text()


def test_the_guide_shows_every_language_and_hides_no_untried_code() -> None:
    assert {Path(file).suffix for file, _ in SHOWN} == {".js", ".java"}
    fences = re.findall(r"^```(\w.*)$", GUIDE, re.MULTILINE)
    assert {fence.split()[0] for fence in fences if " " not in fence} == {"xml", "csharp", "json"}


def test_the_service_config_of_several_servers_is_what_the_sdk_uses() -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert json.loads(shown).items() <= json.loads(service_config(Role.NAME)).items()
