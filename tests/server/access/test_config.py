"""The access file: what is wrong with one is told by line and field; the example is right."""

from pathlib import Path

import pytest

from limner_server.access.config import AccessFileError, Limits, load_access_file

ROOT = Path(__file__).resolve().parents[3]
TOKENS = "tokens: {issuer: https://login.test/, audience: limner, jwks: https://login.test/keys}\n"


def test_the_example_is_read() -> None:
    file = load_access_file(ROOT / "deploy" / "access.example.yaml")
    assert file.tokens is not None
    assert file.tokens.roles_claim
    assert {name.partition(":")[0] for name in file.principals} == {"token", "certificate"}
    assert {role for entry in file.principals.values() for role in entry.roles or ()} >= {"score", "admin"}
    assert any(entry.limits for entry in file.principals.values())


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "access.yaml").write_text("# nothing yet\n")
    file = load_access_file(tmp_path / "access.yaml")
    assert (file.tokens, file.principals, file.limits) == (None, {}, Limits())


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: [", 1, "expected the node content"),
        ("tokens:\n  issuer: x\n  audience: y\n", 1, "tokens.jwks: Field required"),
        ("tokens:\n  issuer: x\n  secret: y\n", 3, "tokens.secret: Extra inputs are not permitted"),
        (TOKENS.replace("https://login.test/keys", "http://login.test/keys"), 1, "tokens.jwks: Input should be a file"),
        (TOKENS.replace("https://login.test/keys", "ftp://login.test/keys"), 1, "tokens.jwks: Input should be a file"),
        (TOKENS + "limits:\n  calls_per_s: 0\n", 3, "limits.calls_per_s: Input should be greater than 0"),
        (TOKENS + "limits:\n  calls_per_s: .inf\n", 3, "limits.calls_per_s: Input should be a finite number"),
        (
            "principals:\n  ada: {roles: [read]}\n",
            2,
            "principals.ada: Input should be 'token:SUBJECT' or 'certificate:",
        ),
        ("principals:\n  token:ada:\n    roles: [read, raed]\n", 3, "principals.token:ada.roles.1: Input should be"),
        (
            "principals:\n  token:ada: {}\n  token:bob: {}\n  token:ada: {roles: [admin]}\n",
            4,
            "'token:ada' is there twice",
        ),
        ("- tokens\n", 1, "the file: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_field(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = tmp_path / "access.yaml"
    path.write_text(text)
    with pytest.raises(AccessFileError) as caught:
        load_access_file(path)
    assert str(caught.value).startswith(str(path))
    assert f"line {line}" in str(caught.value) or line == 1
    assert told in str(caught.value)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    path.write_text("limits: {calls_per_s: -1}\nprincipals:\n  bob: {}\n")
    with pytest.raises(AccessFileError, match=r"line 1: limits.calls_per_s.*line 3: principals.bob"):
        load_access_file(path)
