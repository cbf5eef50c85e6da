"""What all tests share."""

import os

import pytest
from hypothesis import HealthCheck, settings

import search  # noqa: F401  (before torch: it makes threads wait without spinning, which busy machines need)

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Ray starts its workers with a niceness of 15: on a machine that is busy with other tests they would get nowhere.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: of several processes none is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
