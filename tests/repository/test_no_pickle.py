"""Nothing of ours unpickles: what can run code as it is read is not read, but for TorchScript behind its digest."""

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from limner.imaging import rule_files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("client_sdk", "server", "examples", "benchmarks", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if "node_modules" not in path.parts
)
UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
TORCHSCRIPT = {"networks/artifact.py", "networks/triton_model.py"}
"""The modules that load TorchScript, both only what has the sha256 of its card."""


def calls(path: Path) -> Iterator[tuple[str, dict[str | None, object]]]:
    """Calls by their dotted names, and their keyword arguments where these are constants."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            yield ast.unparse(node.func), dict(keywords)


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_nothing_imports_what_unpickles() -> None:
    assert len(SOURCES) > 200
    assert {path: found for path in SOURCES if (found := imports(path) & UNPICKLING)} == {}


def test_torch_and_numpy_load_data_only() -> None:
    loads = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    seen = set()
    for path in SOURCES:
        for name, keywords in calls(path):
            if name in loads:
                keyword, value = loads[name]
                assert keywords.get(keyword) is value, f"{path}: {name} without {keyword}={value}"
                seen.add(name)
            assert not name.endswith(("read_pickle", "unsafe_load", "full_load")), f"{path}: {name}"
    assert seen == set(loads)


def test_yaml_is_read_by_safe_loaders() -> None:
    assert issubclass(rule_files._Loader, yaml.SafeLoader)
    safe = {"yaml.load(text, _Loader)"}
    for path in SOURCES:
        found = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_bytes())) if is_yaml_load(node)}
        assert found <= safe, path


def is_yaml_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("yaml.load", "yaml.load_all")


def test_torchscript_is_loaded_in_two_places() -> None:
    places = {path for path in SOURCES for name, _ in calls(path) if name == "torch.jit.load"}
    server = ROOT / "server" / "limner_server"
    assert {path.relative_to(server).as_posix() for path in places if path.is_relative_to(server)} == TORCHSCRIPT
    assert {path for path in places if path.is_relative_to(ROOT / "client_sdk")} == set()
