"""What jobs that run in this very process leave behind."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_torch() -> Iterator[None]:
    """Take back what `make_repeatable` sets for the process: hypothesis refuses to work without subnormal numbers."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
