"""Some hundred histories, a handful on PostgreSQL, and that a seed replays."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from results.store.store import Store
from tests.results.engines import postgresql
from tests.simulation.__main__ import memory
from tests.simulation.world import play, spec

SEEDS = 500
PARTS = 5  # of which each is a test


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_goes_wrong_a_study_is_whole_in_the_end(folder: Path, part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        play(seed, folder)


def test_a_seed_replays(folder: Path) -> None:
    seeds = (3, 14, 199)
    assert [play(seed, folder).trace for seed in seeds] == [play(seed, folder).trace for seed in seeds]


@pytest.fixture(scope="module")
def new_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as new:
        yield new


@pytest.mark.slow
def test_whatever_goes_wrong_on_postgresql_too(folder: Path, new_postgresql: Callable[..., str]) -> None:
    for seed in range(12):
        url = new_postgresql()
        url += f"{'&' if '?' in url else '?'}options=-clock_timeout%3D100"  # ms
        with Store.open(url) as store:
            store.create_study(spec())
        play(seed, folder, url)
