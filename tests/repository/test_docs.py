"""The documentation: its commands are the command's, its links lead somewhere, what it names is there."""

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from limner.cli.main import app
from limner.presets import PRESETS
from limner_server.networks.card import ModelCard

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text()
REPORTING = (ROOT / "docs" / "reporting.md").read_text()
AFTERNOON = (ROOT / "docs" / "gateway.md").read_text().partition("## In an afternoon\n")[2].partition("\n## ")[0]


def lines(page: str) -> list[str]:
    """The command lines of a page."""
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


COMMANDS = lines(REPRODUCE)
OF_THE_AFTERNOON = [line for line in lines(AFTERNOON) if line.startswith("limner ")]


def parse(words: list[str]) -> tuple[int, list[str]]:
    """Parse a command line as `limner` would, and run nothing: exit code, and which command it would have run."""
    command, ran = typer.main.get_command(app), list[str]()
    disarm(command.commands, ran)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        command.main(words, prog_name="limner")
    assert isinstance(ended.value.code, int)
    return ended.value.code, ran


def disarm(commands: dict[str, Any], ran: list[str]) -> None:
    for name, command in commands.items():
        if hasattr(command, "commands"):
            disarm(command.commands, ran)
        else:
            command.callback = partial(lambda name, /, **_: ran.append(name), name)


@pytest.mark.parametrize("line", [*COMMANDS, *OF_THE_AFTERNOON])
def test_every_command_of_the_walk_parses(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(line.removesuffix(" &"))
    code, ran = parse(words)
    assert (program, code, capsys.readouterr().err) == ("limner", 0, "")
    assert len(ran) == 1


def test_the_walk_goes_from_labels_to_the_report() -> None:
    ran = [name for line in COMMANDS for name in parse(shlex.split(line)[1:])[1]]
    assert list(dict.fromkeys(ran)) == ["import", "labels", "start", "simulate", "report"]


def test_the_afternoon_goes_from_a_cohort_to_the_report() -> None:
    ran = [name for line in OF_THE_AFTERNOON for name in parse(shlex.split(line.removesuffix(" &"))[1:])[1]]
    assert ran == ["phantom", "import", "start", "promote", "run", "status", "show", "pull"]


def test_a_command_that_is_none_does_not_parse() -> None:
    assert parse(["cohort", "labels", "--no-such-option"]) == (2, [])
    assert parse(["cohort", "nonsense"]) == (2, [])


def test_every_preset_is_documented() -> None:
    for preset in PRESETS:
        assert f"`{preset.name}`" in REPRODUCE


def test_card_fields_that_answer_an_item_exist() -> None:
    named = {
        field
        for answer in re.findall(r"Card: ([^;|]*)", REPORTING)
        for field in re.findall(r"`(\w+)`", answer.partition("[")[0])
    }
    assert len(named) > 10
    assert named <= set(ModelCard.model_fields)


def test_sections_that_answer_an_item_are_the_reports() -> None:
    templates = ROOT / "client_sdk" / "limner" / "report" / "templates"
    text = "".join(path.read_text() for path in templates.glob("*.jinja"))
    titles = {"Summary", *re.findall(r'section\("\w+", "([^"]+)"', text)}
    named = re.findall(r"Report: ([^|;]*)", REPORTING)
    assert len(named) > 20
    assert [answer for answer in named if not answer.startswith(tuple(titles))] == []
    assert [title for title in titles if title not in REPORTING] == []


@pytest.mark.parametrize(("title", "first", "last"), [("TRIPOD+AI", 1, 27), ("CLAIM, 2024 update", 1, 44)])
def test_every_item_of_a_checklist_has_an_answer(title: str, first: int, last: int) -> None:
    table = REPORTING.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (\d.*) \|$", table, re.MULTILINE)]
    assert all(len(row) == 3 and all(row) for row in rows)
    found = {int(number) for row in rows for number in re.findall(r"\d+", row[0])}
    assert found == set(range(first, last + 1))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif "://" not in link:
            assert (page.parent / link.partition("#")[0]).exists(), link
