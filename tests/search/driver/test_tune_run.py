"""How many evaluations run at a time on what Ray has."""

import pytest

from search.config import SearchConfig
from search.driver import tune_run
from spaces.errors import UsageError


@pytest.mark.parametrize(
    ("found", "workers", "expected"),
    [
        ({"CPU": 8.0}, None, 4),
        ({"CPU": 8.0}, 3, 3),
        ({"CPU": 8.0}, 9, 4),
        ({"CPU": 8.0, "GPU": 1.0}, None, 4),
    ],
)
def test_workers_are_as_many_as_fit(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, float], workers: int | None, expected: int
) -> None:
    monkeypatch.setattr(tune_run.ray, "cluster_resources", lambda: found)
    assert tune_run.count_workers(config(workers=workers, cpus_per_trial=2)) == expected


def test_shares_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_run.ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 2.0})
    assert tune_run.count_workers(config(gpus_per_trial=0.2)) == 10


def test_an_evaluation_that_nothing_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_run.ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UsageError, match="asks for 1 CPUs and 1 GPUs, but Ray has 4 and 0"):
        tune_run.count_workers(config(gpus_per_trial=1.0))
    with pytest.raises(UsageError, match="asks for 8 CPUs"):
        tune_run.count_workers(config(cpus_per_trial=8))


def config(**changes: object) -> SearchConfig:
    given = {"model": "vim_nano", "study": "s", "data": "embedded", "flops_budget": "0.8", "trials": 5}
    return SearchConfig(**(given | changes))  # type: ignore[arg-type]
