"""Pages of metrics, read as Prometheus reads them."""

from collections.abc import Callable
from time import monotonic, sleep

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.live import LiveServer


class Page:
    """One page of metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, "a family stands on a page once"
            self.families[family.name] = family

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; 0 where there is none."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def scrape(server: LiveServer) -> Page:
    """The page as it is now."""
    return Page(server.metrics())


def wait_for(server: LiveServer, condition: Callable[[Page], object]) -> Page:
    """The first page that is as wished."""
    deadline = monotonic() + 60
    while not condition(page := scrape(server)):
        assert monotonic() < deadline, page.text
        sleep(0.02)
    return page
