"""Shared memory regions: what is in a client's segment, within its bounds, as long as anyone looks at it."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner_server.errors import InvalidInputError, NotFoundError, WrongStateError
from limner_server.rpc.open_inference.shared_memory import SharedMemory

SIZE = 10_000
OFFSET = 5_000


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/limner-test-{uuid.uuid4().hex}")  # noqa: S108
    path.write_bytes(bytes(SIZE))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def memory(segment: Path) -> SharedMemory:
    memory = SharedMemory()
    memory.register("region", f"/{segment.name}", OFFSET, SIZE - OFFSET)
    return memory


def test_both_sides_see_what_the_other_writes(memory: SharedMemory, segment: Path) -> None:
    view = memory.get("region").view(10, 3)
    with segment.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"abc", OFFSET + 10)
        assert view == b"abc"
        view[:] = b"xyz"
        assert os.pread(file.fileno(), 5, OFFSET + 9) == b"\0xyz\0"


@pytest.mark.parametrize(("offset", "size"), [(0, SIZE - OFFSET + 1), (SIZE - OFFSET, 1), (2**63, 1), (1, 2**64)])
def test_a_tensor_that_does_not_fit_is_refused(memory: SharedMemory, offset: int, size: int) -> None:
    with pytest.raises(InvalidInputError, match=f"{size} at offset {offset}.*the 5000 bytes of region 'region'"):
        memory.get("region").view(offset, size)


def test_the_whole_region_fits(memory: SharedMemory) -> None:
    assert len(memory.get("region").view(0, SIZE - OFFSET)) == SIZE - OFFSET


@pytest.mark.parametrize(("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (2**63, 2**63), (0, 0)])
def test_a_region_lies_within_its_segment(segment: Path, offset: int, size: int) -> None:
    with pytest.raises(InvalidInputError, match="byte_size"):
        SharedMemory().register("region", segment.name, offset, size)


@pytest.mark.parametrize("key", ["", "/", ".", "..", "/..", "../etc/passwd", "//x", "/a/b", "a\0b"])
def test_a_key_stays_below_dev_shm(key: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^key is .*no '/' but the first"):
        SharedMemory().register("region", key, 0, 1)


def test_a_link_is_not_followed(segment: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8))
    segment.unlink()
    segment.symlink_to(secret)
    with pytest.raises(InvalidInputError, match=r"^key is"):
        SharedMemory().register("region", segment.name, 0, 8)


def test_only_segments_are_mapped(segment: Path) -> None:
    segment.unlink()
    os.mkfifo(segment)
    with pytest.raises(InvalidInputError, match="not a file of another kind"):
        SharedMemory().register("region", segment.name, 0, 1)
    segment.unlink()
    with pytest.raises(InvalidInputError, match="No such file"):
        SharedMemory().register("region", segment.name, 0, 1)


def test_a_name_is_taken_once(memory: SharedMemory, segment: Path) -> None:
    with pytest.raises(WrongStateError, match="'region' is registered already"):
        memory.register("region", segment.name, 0, 1)
    with pytest.raises(InvalidInputError, match="a name"):
        memory.register("", segment.name, 0, 1)


def test_what_is_unregistered_is_gone_for_new_requests_and_safe_for_old_ones(
    memory: SharedMemory, segment: Path
) -> None:
    memory.register("other", segment.name, 0, 10)
    view = memory.get("region").view(0, 4)
    memory.unregister("region")
    memory.unregister("region")
    view[:] = b"late"
    assert segment.read_bytes()[OFFSET : OFFSET + 4] == b"late"
    with pytest.raises(NotFoundError, match="shared memory region 'region'; there is: other"):
        memory.get("region")
    assert [region.name for region in memory.regions("")] == ["other"]
    memory.unregister("")
    assert memory.regions("") == []


def test_nothing_stays_open_after_the_last_use(memory: SharedMemory, segment: Path) -> None:
    view = memory.get("region").view(0, 4)
    memory.unregister("")
    assert segment.name in Path("/proc/self/maps").read_text()
    del view
    assert segment.name not in Path("/proc/self/maps").read_text()


def test_a_segment_that_shrank_is_an_error_and_no_end_of_the_process(memory: SharedMemory, segment: Path) -> None:
    os.truncate(segment, OFFSET)
    with pytest.raises(WrongStateError, match="has shrunk to 5000 bytes; expected 10000"):
        memory.get("region").view(0, 4)
