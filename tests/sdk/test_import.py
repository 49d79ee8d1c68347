"""What `import limner` costs."""

import subprocess
import sys

PROBE = """
import sys, time
before = time.perf_counter()
import limner
limner.Client, limner.AsyncClient, limner.Image, limner.Slice, limner.Grid, limner.plan_import
assert "torch" not in sys.modules
assert "limner_server" not in sys.modules
"""


def test_the_sdk_needs_neither_torch_nor_the_server() -> None:
    subprocess.run([sys.executable, "-c", PROBE], check=True)


def test_the_gateway_needs_no_torch_either() -> None:
    probe = "import limner.gateway.node, sys; assert not {'torch', 'limner_server'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_the_command_imports_the_gateway_only_where_it_is_asked_for() -> None:
    probe = "import limner.cli.main, sys; assert not {'pynetdicom', 'dicomweb_client'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_the_package_itself_imports_nothing_heavy() -> None:
    probe = "import limner, sys; print(*{'numpy', 'grpc', 'pydantic', 'pydicom', 'typer'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == ""


def test_every_public_name_is_there() -> None:
    import limner

    assert all(getattr(limner, name) is not None for name in limner.__all__)
    assert set(limner.__all__) == set(dir(limner))
