"""Generate the Python stubs of `protos/` into a folder: `python tools/stubs.py [FOLDER]`, by default the SDK's own."""

import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Write `limner/v1/*_pb2.py`, `*_pb2_grpc.py` and their `.pyi` below `out`.

    Raises
    ------
    RuntimeError
        Where protoc refuses a file; it has printed why.
    """
    contract = (ROOT / "protos" / "limner").rglob("*.proto")
    protos = sorted(path.relative_to(ROOT / "protos").as_posix() for path in contract)
    # mypy-protobuf's plugins lie beside this interpreter, whether or not its environment is activated.
    scripts = Path(sysconfig.get_path("scripts"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT / 'protos'}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "client_sdk")
