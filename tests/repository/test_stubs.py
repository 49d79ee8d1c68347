"""The contract: its stubs are those of the protos, and everything in it says what it is."""

import sysconfig
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos" / "limner").rglob("*.proto"))
# Field numbers of descriptor.proto, of which the places of comments are made.
MESSAGES, ENUMS, SERVICES, MEMBERS, NESTED, NESTED_ENUMS = 4, 5, 6, 2, 3, 4


def test_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    _generate(tmp_path)
    generated, committed = _stubs(tmp_path), _stubs(ROOT / "client_sdk")
    assert generated.keys() == committed.keys()
    stale = [name for name, content in generated.items() if content != committed[name]]
    assert not stale, "run `make stubs`"


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_everything_in_the_contract_has_a_comment(proto: Path, tmp_path: Path) -> None:
    file = _describe(proto, tmp_path / "descriptors")
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    places = list(_places(file))
    assert places
    assert [name for name, place in places if not comments.get(place)] == []


@pytest.mark.parametrize("name", ["status.proto", "error_details.proto"])
def test_googles_files_beside_the_contract_are_those_that_the_stubs_import(name: str) -> None:
    ours = ROOT / "protos" / "google" / "rpc" / name
    assert ours.read_text() == (Path(sysconfig.get_path("purelib")) / "google" / "rpc" / name).read_text()


def _generate(out: Path) -> None:
    spec = spec_from_file_location("stubs", ROOT / "tools" / "stubs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(out)


def _stubs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "limner" / "v1").glob("*_pb2*.py*")}


def _describe(proto: Path, out: Path) -> FileDescriptorProto:
    folders = (ROOT / "protos", files("grpc_tools") / "_proto")
    arguments = [
        *(f"--proto_path={folder}" for folder in folders),
        "--include_source_info",
        f"--descriptor_set_out={out}",
    ]
    assert protoc.main(["protoc", *arguments, str(proto)]) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return file


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give name and place of every message, field, enum, service and call."""
    messages = [(message, (MESSAGES, index)) for index, message in enumerate(file.message_type)]
    enums = [(enum, (ENUMS, index)) for index, enum in enumerate(file.enum_type)]
    for message, place in messages:
        yield message.name, place
        # protoc makes the entries of a map itself.
        messages += [
            (nested, (*place, NESTED, index))
            for index, nested in enumerate(message.nested_type)
            if not nested.options.map_entry
        ]
        enums += [(enum, (*place, NESTED_ENUMS, index)) for index, enum in enumerate(message.enum_type)]
        for index, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (*place, MEMBERS, index)
    for enum, place in enums:
        yield enum.name, place
    for number, service in enumerate(file.service):
        yield service.name, (SERVICES, number)
        for index, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (SERVICES, number, MEMBERS, index)
