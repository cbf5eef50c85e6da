"""Ray as this project starts it; searches on it are in `test_runner.py` and `test_cluster.py`."""

import os

import pytest

from search.runtime import ray_session
from search.runtime.limits import available_cpus
from spaces.errors import PrunefrontError, SearchError, UsageError


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("somewhere", UsageError, "expected HOST:PORT"),
        ("host:port", UsageError, "expected HOST:PORT"),
        ("127.0.0.1:1", SearchError, "nobody answers"),
        ("ray://127.0.0.1:1", UsageError, "run it on a node of the cluster"),
    ],
)
def test_a_cluster_that_does_not_answer_is_named_at_once(
    address: str, error: type[PrunefrontError], words: str
) -> None:
    with pytest.raises(error, match=words):
        ray_session.check_address(address)


def test_cpus_are_counted() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
