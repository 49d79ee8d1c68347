"""Whose things are: who made them may change them, and admins may; others use them. Who did what is written down."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.models import publish_identity
from limner import Client
from limner.errors import ForbiddenError, LimnerError, NotFoundError, UnauthenticatedError
from limner.types import JobState, ModelState
from limner_server.state.audit import AuditEntry, AuditLog
from limner_server.state.database import open_database
from tests.conftest import SMALL
from tests.e2e.phantoms import import_phantom
from tests.issuer import Issuer
from tests.live import LiveServer
from tests.reading import study

Clients = dict[str, Client]


@pytest.fixture(scope="module")
def clients(plain_server: LiveServer, issuer: Issuer) -> Iterator[Clients]:
    """Two who train, and an admin."""
    roles = {"ada": "train", "bob": "train", "root": "admin"}
    found = {name: Client(plain_server.address, token=issuer.token(name, role)) for name, role in roles.items()}
    yield found
    for client in found.values():
        client.close()


@pytest.fixture(scope="module")
def cohort(clients: Clients, phantom: Path, key: bytes) -> str:
    """A cohort of ada's."""
    assert import_phantom(clients["ada"], phantom, "hers", key).added
    return "hers"


@pytest.fixture(scope="module")
def model(plain_server: LiveServer, clients: Clients, cohort: str) -> str:
    """A model of ada's: she asked for a training of it, and a version of it lies in the repository."""
    clients["ada"].cancel_training(clients["ada"].start_training(cohort, "her-model", SMALL).id)
    publish_identity(plain_server.model_repository, "her-model", 32)
    return "her-model"


def test_a_cohort_is_changed_by_its_owner_only(clients: Clients, cohort: str, phantom: Path, key: bytes) -> None:
    assert clients["bob"].cohort(cohort).name == cohort, "looking is free"
    with pytest.raises(ForbiddenError, match=r"cohort 'hers' belongs to token:ada; .* you are token:bob"):
        clients["bob"].delete_cohort(cohort)
    with pytest.raises(ForbiddenError, match="belongs to token:ada"):
        import_phantom(clients["bob"], phantom, cohort, bytes(32))
    assert import_phantom(clients["root"], phantom, cohort, key).rejected == ()
    assert clients["ada"].cohort(cohort).slices == 72


def test_a_cohort_that_an_admin_deletes_is_gone(clients: Clients, phantom: Path, key: bytes) -> None:
    import_phantom(clients["ada"], phantom, "short-lived", key)
    clients["root"].delete_cohort("short-lived")
    with pytest.raises(NotFoundError):
        clients["bob"].delete_cohort("short-lived")


def test_a_training_is_cancelled_by_its_owner_or_an_admin(clients: Clients, cohort: str) -> None:
    for owner, other, who in (("ada", "bob", "ada"), ("bob", "ada", "root")):
        training = clients[owner].start_training(cohort, f"of-{owner}", SMALL).id
        with pytest.raises(ForbiddenError, match=f"training '{training}' belongs to token:{owner}"):
            clients[other].cancel_training(training)
        assert clients[who].cancel_training(training).state is JobState.CANCELLED


def test_a_model_is_changed_by_its_owner_only(clients: Clients, plain_server: LiveServer, model: str) -> None:
    bob = clients["bob"]
    assert bob.predict(model, [np.zeros((32, 32), np.float32)]).results[0].prediction, "using is free"
    for change in (bob.unload_model, bob.promote_model, bob.delete_model):
        with pytest.raises(ForbiddenError, match=r"model 'her-model' belongs to token:ada"):
            change(f"{model}:1")
    assert clients["ada"].promote_model(f"{model}:1").aliases == ("production",)
    assert clients["root"].unload_model(f"{model}:1").state is ModelState.AVAILABLE


def test_open_inference_unloads_for_the_owner_only(
    plain_server: LiveServer, clients: Clients, model: str, issuer: Issuer
) -> None:
    with triton.InferenceServerClient(plain_server.address) as client:
        for name, refused in (("bob", True), ("ada", False)):
            headers = {"authorization": f"Bearer {issuer.token(name, 'train')}"}
            client.load_model(model, headers=headers)
            if refused:
                with pytest.raises(InferenceServerException, match="belongs to token:ada"):
                    client.unload_model(model, headers=headers)
            else:
                client.unload_model(model, headers=headers)


def test_nobody_adds_a_version_to_the_model_of_another(clients: Clients, cohort: str, model: str) -> None:
    with pytest.raises(ForbiddenError, match=r"model 'her-model' belongs to token:ada"):
        clients["bob"].start_training(cohort, model, SMALL)


def test_a_model_whose_files_were_put_there_is_for_admins(
    clients: Clients, plain_server: LiveServer, cohort: str
) -> None:
    publish_identity(plain_server.model_repository, "copied", 32)
    with pytest.raises(ForbiddenError, match="model 'copied' belongs to nobody"):
        clients["ada"].promote_model("copied:1")
    with pytest.raises(ForbiddenError, match="model 'copied' belongs to nobody"):
        clients["ada"].start_training(cohort, "copied", SMALL)
    assert clients["root"].promote_model("copied:1").aliases == ("production",)


def test_a_reading_is_led_by_its_owner_or_an_admin(clients: Clients, plain_server: LiveServer) -> None:
    study.publish(plain_server.folder)
    study.import_cohort(clients["ada"])
    led = {who: study.create(clients["ada"], simulations=[]).reading.id for who in ("ada", "root")}
    for who, reading in led.items():
        ours, theirs = clients[who].readings, clients["bob"].readings
        assert theirs.get(reading).id == reading, "looking is free"
        with pytest.raises(ForbiddenError, match=rf"reading '{reading}' belongs to token:ada; .* you are token:bob"):
            theirs.issue_token(reading, "ann")
        with pytest.raises(ForbiddenError, match="belongs to token:ada"):
            theirs.close(reading)
        assert ours.issue_token(reading, "ann").reader == "ann"
        assert ours.close(reading).closed
        with pytest.raises(ForbiddenError, match="belongs to token:ada"):
            theirs.export(reading)
        assert len(ours.export(reading).items) == 6


def test_the_audit_log_says_who_did_what(plain_server: LiveServer, clients: Clients, cohort: str) -> None:
    with pytest.raises(ForbiddenError):
        clients["bob"].delete_cohort(cohort)
    with Client(plain_server.address) as nobody, pytest.raises(UnauthenticatedError):
        nobody.delete_cohort(cohort)
    assert "limner.v1.CohortService/DeleteCohort refused to ipv4:127.0.0.1:" in plain_server.log()
    rows = [json.loads(line) for line in audit(plain_server, "--json").splitlines()]
    told = [(row["principal"], row["method"], row["target"], row["status"]) for row in rows]
    assert ("token:ada", "CohortService/ImportCohort", cohort, "OK") in told
    assert told[-1] == ("token:bob", "CohortService/DeleteCohort", cohort, "PERMISSION_DENIED")
    assert None not in {row["principal"] for row in rows}, "what nobody known asks for fills no disk"
    table = audit(plain_server, "--limit=1", "--principal=token:ada", f"--target={cohort}")
    assert table.split()[:4] == ["time", "principal", "method", "target"]
    assert (table.count("\n"), table.count("token:ada"), table.count(f" {cohort} ")) == (2, 1, 1)


def test_a_call_has_a_row_of_each_thing_that_it_names(plain_server: LiveServer, clients: Clients, model: str) -> None:
    clients["ada"].promote_model(f"{model}:1", "trial")
    with pytest.raises(LimnerError):
        clients["ada"].delete_cohort("x" * 5000)
    rows = [json.loads(line) for line in audit(plain_server, "--json", "--principal=token:ada").splitlines()]
    told = [(row["method"].partition("/")[2], row["target"]) for row in rows]
    assert {("StartTraining", "hers"), ("StartTraining", model)} <= set(told)
    promoted = [("PromoteModel", f"{model}:1"), ("PromoteModel", f"{model}:trial")]
    assert told[-3:] == [*promoted, ("DeleteCohort", "x" * 200)], "no name that is taken is as long"
    of_the_alias = audit(plain_server, "--json", f"--target={model}:trial").splitlines()
    assert [json.loads(line)["principal"] for line in of_the_alias] == ["token:ada"]


def audit(server: LiveServer, *flags: str) -> str:
    command = [sys.executable, "-m", "limner_server", "audit", f"--data-dir={server.data_dir}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_audit_shows_what_callers_wrote_as_text(tmp_path: Path) -> None:
    log = AuditLog(open_database(f"sqlite:///{tmp_path / 'limner.sqlite'}"))
    for target in ("[/]", "[red]blood", "\x1b[2Jgone\nnext"):
        log.add(AuditEntry("ipv4:127.0.0.1:1", "CohortService/DeleteCohort", target, "NOT_FOUND", "1", None))
    ended = audit_by_hand(f"--data-dir={tmp_path}")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = [line.split()[3] for line in ended.stdout.splitlines()[1:]]
    assert told == ["[/]", "[red]blood", "\ufffd[2Jgone\ufffdnext"]


def test_the_audit_is_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    entry = AuditEntry(
        "ipv6:[::1]:50000", "ModelService/PromoteModel", "cervix:production", "OK", "0" * 32, "token:ada"
    )
    AuditLog(open_database(f"sqlite:///{tmp_path / 'limner.sqlite'}")).add(entry)
    ended = audit_by_hand(f"--data-dir={tmp_path}")
    (row,) = ended.stdout.splitlines()[1:]
    shown = [entry.principal, entry.method, entry.target, entry.status, entry.peer, entry.request_id]
    assert row.split()[1:] == shown


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "database_url is 'nonsense:…'; expected a SQLAlchemy URL"),
        ("postgresql://nobody@127.0.0.1:1/limner", "the database cannot be read: .*127.0.0.1.*port 1"),
    ],
)
def test_the_audit_of_a_database_that_cannot_be_read_says_so_in_a_line(url: str, reason: str) -> None:
    ended = audit_by_hand(f"--database-url={url}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(f"limner-server: .*{reason}.*\n", ended.stderr), ended.stderr


def audit_by_hand(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limner_server", "audit", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_audit_of_no_server_says_so(tmp_path: Path) -> None:
    ended = audit_by_hand(f"--data-dir={tmp_path}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{tmp_path / 'limner.sqlite'}: no such file" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_errors_of_access_are_of_the_family() -> None:
    assert issubclass(ForbiddenError, LimnerError)
    assert issubclass(ForbiddenError, PermissionError)
