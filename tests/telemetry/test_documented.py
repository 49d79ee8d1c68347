"""docs/metrics.md says what the server tells; rules and dashboard ask for nothing else."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from limner_server.telemetry.workers import WorkerPages
from tests.telemetry.conftest import Metered
from tests.telemetry.scraped import Page, scrape

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "limner.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "limner.rules.yml").read_text())[
    "groups"
][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
UNITS = {
    "seconds": "s",
    "bytes": "bytes",
    "watts": "W",
    "power_usage": "W",
    "us": "µs",
    "images": "images",
    "ratio": "0 to 1",
    "gpu_utilization": "0 to 1",
    "images_per_second": "images/s",
}


@pytest.fixture(scope="module")
def families(metered: Metered) -> list[Metric]:
    """Every family of a server, that of a service with several workers, with all samples that were seen."""
    now = scrape(metered.server)
    found = {family.name: family for family in WorkerPages().collect()}
    for name, family in now.families.items():
        family.samples.extend(metered.page.families[name].samples if name in metered.page.families else ())
        found[name] = family
    return list(found.values())


def row(family: Metric) -> str:
    """A row of the table."""
    name = family.name + "_total" * (family.type == "counter" and not family.name.startswith("nv_"))
    name += "_info" * (family.type == "info")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    unit = next((unit for suffix, unit in UNITS.items() if re.search(rf"_{suffix}(_total)?$", name)), "")
    told = ", ".join(f"`{label}`" for label in labels)
    return f"| `{name}` | {family.type} | {told} | {unit} | {family.documentation} |"


def test_the_table_is_what_the_server_tells(families: list[Metric]) -> None:
    told = sorted(row(family) for family in families)
    written = sorted(re.findall(r"^\| `[a-z_]+` \| (?:gauge|counter|histogram|info) \|.*\|$", GUIDE, re.MULTILINE))
    assert written == told


def test_every_alert_has_its_section_and_its_runbook(families: list[Metric]) -> None:
    sections = re.findall(r"^### (Limner\w+)$", GUIDE, re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/metrics.md#{rule['alert'].lower()}"
        text = GUIDE.split(f"### {rule['alert']}\n")[1].split("\n#")[0]
        assert "**Cure.**" in text


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_metrics_that_there_are(rule: dict[str, Any], families: list[Metric]) -> None:
    assert asked(rule["expr"]) <= names(families)


def test_the_dashboard_asks_for_metrics_that_there_are(families: list[Metric]) -> None:
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    variables = [str(each["query"]) for each in DASHBOARD["templating"]["list"]]
    for expression in (*expressions, *variables):
        assert asked(expression) <= names(families), expression
    shown = {name for expression in expressions for name in asked(expression)}
    assert {name for name in names(families) if name.startswith("limner_gpu_")} <= shown


def test_panels_lie_side_by_side_and_say_what_they_show() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        here = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not here & cells
        assert max(x for x, _ in here) < 24
        cells |= here
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    numbers = sorted(panel["id"] for panel in DASHBOARD["panels"])
    assert all(one < other for one, other in pairwise(numbers))


def names(families: list[Metric]) -> set[str]:
    """Names of samples that there are or, of a family without one now, would be."""
    found = {"up"} | {sample.name for family in families for sample in family.samples}
    return found | {family.name for family in families if family.type == "gauge"}


def asked(expression: str) -> set[str]:
    """Names of metrics in an expression of PromQL."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    return set(re.findall(r"\b(?:limner|process|nv|python)_\w+|\bup\b", bare))


def test_what_is_asked_for_is_found() -> None:
    assert asked('rate(limner_a_total{x="limner_b"}[5m]) / up > process_c') == {"limner_a_total", "up", "process_c"}


def test_a_page_is_read_whole() -> None:
    page = Page('# TYPE a counter\na_total{x="1"} 2\n')
    assert (page("a_total"), page("a_total", x="1"), page("a_total", x="2")) == (2, 2, 0)
