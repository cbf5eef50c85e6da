"""What all tests share."""

import pytest

import search  # noqa: F401  (before torch: it makes threads wait without spinning, which busy machines need)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: of several processes none is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
