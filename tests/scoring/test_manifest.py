"""Manifests: what is written is read again, and anything else is a manifest or an error that names the line."""

from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import InvalidInputError
from limner.scoring.manifest import Row, read_manifest, write_manifest

# Whatever a file name of Linux may hold, and text that a table keeps.
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
texts = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)
rows = st.builds(Row, names, st.none() | st.integers(0, 10**9 - 1), texts, texts, texts)


@given(st.lists(rows))
def test_rows_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "items.csv"
    write_manifest(path, rows)
    assert list(read_manifest(path)) == rows


@given(st.binary() | st.text().map(str.encode) | st.text().map(lambda text: f"path,frame,id\n{text}".encode()))
def test_any_file_is_a_manifest_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for suffix in (".csv", ".parquet"):
        path = tmp_path_factory.mktemp("manifest") / f"any{suffix}"
        path.write_bytes(content)
        with suppress(InvalidInputError):
            assert all(row.path.strip() for row in read_manifest(path))


def test_a_name_that_is_no_utf8_is_kept(tmp_path: Path) -> None:
    write_manifest(tmp_path / "items.csv", [Row("caf\udce9.dcm", 0)])
    assert [row.path for row in read_manifest(tmp_path / "items.csv")] == ["caf\udce9.dcm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns of .* are none; expected path"),
        ("file,label\na.dcm,x\n", "columns of .* are file, label; expected path"),
        ("path,id,path\n", "column path stands twice in .*; expected one column of each name"),
        ("path,frame\na.dcm,0\nb.dcm\n", "line 3 of .* has 1 fields; expected 2, as the first"),
        ("path,frame\na.dcm,first\n", "frame in line 2 of .* is 'first'; expected a whole number from 0"),
        ("path,frame\na.dcm,-1\n", "frame in line 2 of .* is '-1'; expected a whole number from 0"),
        ('path\n" "\n', "path in line 2 of .* is ' '; expected a file"),
        ('path\n"a.dcm\n', "cannot be read: unexpected end of data; expected a CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        list(read_manifest(tmp_path / "manifest.csv"))


def test_another_encoding_is_refused_where_it_would_be_misread(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("path,label\na.dcm,r\xe9cidive\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"label in line 2 of .*; expected text in UTF-8"):
        list(read_manifest(tmp_path / "latin.csv"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none.csv cannot be read: .*No such file"):
        list(read_manifest(tmp_path / "none.csv"))


def test_what_excel_and_pandas_make_of_it(tmp_path: Path) -> None:
    (tmp_path / "excel.csv").write_text("\ufeffpath, frame ,other\r\na.dcm,,x\r\n\r\nb.dcm,3.0,y\r\n", newline="")
    assert list(read_manifest(tmp_path / "excel.csv")) == [Row("a.dcm"), Row("b.dcm", 3)]


def test_parquet_says_the_same(tmp_path: Path) -> None:
    columns = {
        "path": ["a.dcm", "b.nii"],
        "frame": [None, 3.0],
        "subject": [7, 8],
        "label": ["x", None],
        "other": [b"", b""],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    assert list(read_manifest(tmp_path / "manifest.parquet")) == [
        Row("a.dcm", None, "7", "", "x"),
        Row("b.nii", 3, "8", "", ""),
    ]
