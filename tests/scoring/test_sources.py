"""What sources name: which images, in what order, under what names; what is left out; whether it is the same again."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from limner import Image
from limner.cohort_import import survey_folder
from limner.errors import InvalidInputError
from limner.imaging.rule_files import default_rules
from limner.imaging.rules import SelectionRules
from limner.scoring.manifest import Row
from limner.scoring.plan import list_images
from limner.scoring.run import ITEMS, LEFT_OUT
from limner.scoring.sources import Census, clean, expanded, fingerprint, given, listed, named
from limner.types import ScoreOptions


def rows_of(sources: Sequence[str | Path], rules: SelectionRules | None = None) -> tuple[list[Row], dict[str, str]]:
    """Rows of sources, and the reason for each file that is left out, by its name."""
    left_out: dict[str, str] = {}
    found = expanded(
        list(map(str, sources)), rules, lambda path, why: left_out.setdefault(path.name, why), lambda: None
    )
    return list(found), left_out


def test_a_folder_gives_its_t2_series_as_an_import_does(mixed: Path) -> None:
    rows, left_out = rows_of([mixed], default_rules())
    series = [decision.series for decision in survey_folder(mixed).decisions if decision.accepted]
    assert [(row.path, row.subject) for row in rows] == [
        (str(one.path), each.patient_id) for each in series for one in each.slices
    ]
    assert {row.path for row in rows} == set(map(str, mixed.glob("PH-*/*.dcm"))), "the torn one has a header"
    assert left_out["notes.txt"] == "not DICOM"
    assert "number of slices is 3; expected at least 5" in left_out["07.dcm"]
    assert set(left_out) | {Path(row.path).name for row in rows} == {path.name for path in mixed.rglob("*.*")}


def test_every_slice_of_a_folder_if_asked(mixed: Path) -> None:
    rows, left_out = rows_of([mixed])
    files = sorted(path for path in mixed.rglob("*.dcm"))
    assert sorted(row.path for row in rows) == list(map(str, files)), "the broken one too, for its failure to be told"
    assert left_out == {"notes.txt": "not DICOM"}


def test_patterns_files_and_folders_in_their_order(mixed: Path) -> None:
    one = mixed / "PH-001" / "0003.dcm"
    rows, _ = rows_of([one, mixed / "PH-000" / "000[12].dcm", mixed / "**" / "10.dcm"])
    px = sorted(str(path) for path in mixed.rglob("10.dcm"))
    assert [row.path for row in rows] == [str(one), *(str(mixed / "PH-000" / f"000{n}.dcm") for n in (1, 2)), *px]


def test_what_is_not_there_is_named(mixed: Path) -> None:
    for source in (mixed / "none", mixed / "*.nothing"):
        with pytest.raises(
            InvalidInputError, match=r"source is '.*no.*'; expected an existing folder, file or pattern"
        ):
            rows_of([source])


def test_frames_of_one_file_are_images_of_their_own(phantom: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(phantom / "PH-000" / "0001.dcm")
    dataset.NumberOfFrames = 3
    dataset.PixelData = dataset.PixelData * 3
    dataset.save_as(tmp_path / "three.dcm")
    rows, _ = rows_of([tmp_path])
    assert [(row.frame, row.id) for row in rows] == [(n, f"{tmp_path / 'three.dcm'}#{n}") for n in range(3)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,frame\nthree.dcm,2\nthree.dcm,\n")
    rows, _ = rows_of([manifest])
    assert [(row.frame, row.id) for row in rows] == [(2, "three.dcm#2"), (None, "three.dcm")]


def test_volumes_are_taken_by_slice(tmp_path: Path) -> None:
    volume = nibabel.Nifti1Image(np.zeros((8, 9, 3), np.int16), np.eye(4))
    nibabel.save(volume, tmp_path / "v.nii.gz")
    (tmp_path / "m.csv").write_text("path,subject,id,label\nv.nii.gz,s,mine,yes\n")
    assert [row.id for row in rows_of([tmp_path / "v.nii.gz"])[0]] == [f"{tmp_path / 'v.nii.gz'}#{n}" for n in range(3)]
    assert [row.id for row in rows_of([tmp_path])[0]] == [f"{tmp_path / 'v.nii.gz'}#{n}" for n in range(3)]
    assert rows_of([tmp_path / "m.csv"])[0] == [
        Row(str(tmp_path / "v.nii.gz"), n, "s", f"mine#{n}", "yes") for n in range(3)
    ]
    assert "tells no series" in rows_of([tmp_path], default_rules())[1]["v.nii.gz"]


def test_paths_of_a_manifest_start_at_its_folder(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(phantom / "PH-000" / "0001.dcm", tmp_path / "a.dcm")
    (tmp_path / "m.csv").write_text(f"path,id\na.dcm,\n{phantom / 'PH-000' / '0002.dcm'},second\n")
    monkeypatch.chdir(tmp_path.parent)
    rows, _ = rows_of([Path(tmp_path.name) / "m.csv"])
    assert [(row.path, row.id) for row in rows] == [
        (str(tmp_path / "a.dcm"), "a.dcm"),
        (str(phantom / "PH-000" / "0002.dcm"), "second"),
    ]


def test_the_list_of_a_run_is_a_manifest_of_it(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    options = ScoreOptions(every_slice=True)
    census, left_out = list_images([str(mixed)], tmp_path / "run", options, lambda *_: None)
    assert (census.total, left_out) == (len(list(mixed.rglob("*.dcm"))), 1)
    assert (tmp_path / "run" / LEFT_OUT).read_text() == f"path,reason\n{mixed / 'notes.txt'},not DICOM\n"
    again = [item.image for item in listed(tmp_path / "run" / ITEMS)]
    assert [(one.content, one.id, one.subject, one.frame) for one in again] == [
        (row.path, row.id, row.subject, row.frame) for row in rows_of([tmp_path / "run" / ITEMS])[0]
    ]


def test_an_image_that_is_named_twice_is_refused(mixed: Path, tmp_path: Path) -> None:
    sources = [str(mixed), str(mixed / "PH-000" / "0007.dcm")]
    with pytest.raises(InvalidInputError, match=r"0007.dcm' is the id of two images; expected each image once"):
        list_images(sources, tmp_path, ScoreOptions(every_slice=True), lambda *_: None)
    assert not (tmp_path / ITEMS).exists()


def test_a_source_without_images_says_why(mixed: Path, tmp_path: Path) -> None:
    for path in mixed.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(InvalidInputError, match=r"no image to score; .*notes.txt for example is left out: not DICOM"):
        list_images([str(mixed)], tmp_path, ScoreOptions(), lambda *_: None)


def test_a_fingerprint_tells_added_and_changed_files_and_not_those_of_runs(mixed: Path) -> None:
    before = fingerprint([str(mixed)])
    (mixed / "scores").mkdir()
    (mixed / "scores" / "rows.jsonl").write_text("rows")
    (mixed / "scores" / "images.csv").write_text("images")
    assert fingerprint([str(mixed)]) == before
    (mixed / "notes.txt").write_text("more notes")
    changed = fingerprint([str(mixed)])
    (mixed / "added.txt").write_text("")
    assert len({before, changed, fingerprint([str(mixed)])}) == 3


def test_a_fingerprint_reads_manifests(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path\na.dcm\n")
    before = fingerprint([str(manifest)])
    manifest.write_text("path\nb.dcm\n")
    assert fingerprint([str(manifest)]) != before


def test_images_of_the_caller_keep_their_names() -> None:
    array = np.zeros((4, 4), np.uint8)
    items = list(given([array, Image(array, id="mine", subject=" s\n1 ")]))
    assert [(item.position, item.image.id, item.image.subject, item.path) for item in items] == [
        (0, "0", "", ""),
        (1, "mine", r"s\n1", ""),
    ]


def test_paths_name_sources_and_anything_else_is_images(tmp_path: Path) -> None:
    assert named(tmp_path) == (str(tmp_path),)
    assert named(["a/", tmp_path]) == ("a", str(tmp_path))
    assert named(iter(["a"])) is None  # type: ignore[arg-type]
    assert named([np.zeros((4, 4))]) is None
    assert named([]) is None


def test_names_that_no_table_holds_are_escaped() -> None:
    assert clean("caf\udce9\r\n") == r"caf\udce9\r\n"
    assert clean("ß 骨盤\u3000") == "ß 骨盤\u3000"


def test_a_census_finds_an_id_that_is_given_twice() -> None:
    census = Census()
    for name in ("a", "b", "c", "b"):
        census.add(name, "", "")
    assert census.twice() == (1, 3)
    assert Census().twice() is None
