"""Some hundred histories, their determinism, and mended races that the simulation finds when they are put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from results.store import claims
from search.driver.records import StudyRecords
from search.driver.spool import Spool
from tests.results.engines import postgresql
from tests.simulation.__main__ import memory
from tests.simulation.world import play, spec

SEEDS = 500
PARTS = 5


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_goes_wrong_the_study_is_whole_in_the_end(folder: Path, part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        play(seed, folder)


def test_a_seed_replays_exactly(folder: Path) -> None:
    seeds = (3, 14, 199)
    assert [play(seed, folder).trace for seed in seeds] == [play(seed, folder).trace for seed in seeds]
