"""A seeded study with one worker finds, to the bit, the front that was recorded before the code was rearranged.

The model's cost and accuracy are the plain functions of `fakes`, so the fronts are the same on every machine.
To record anew, after a change that is meant to alter proposals: `python -m tests.search.driver.test_recorded_fronts`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from search.config import SAMPLERS
from tests.search.fakes import MemoryRecords, drive, searcher

RECORDED = Path(__file__).with_name("recorded_fronts.json")
TRIALS = 60


def found(name: str) -> dict[str, Any]:
    """Search with a sampler; return the schedules in the order in which they were evaluated, and the front."""
    records = MemoryRecords()
    driven = searcher(records, trials=TRIALS, name=name, seed=3, confirm=True)
    drive(driven)
    assert driven.error is None
    front = [[e.schedule.text, e.flops, e.top1] for e in records.study_state().front()]
    return {"evaluated": [e.schedule.text for e in records.evaluations], "front": front}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seeded_study_finds_the_recorded_front(name: str) -> None:
    assert found(name) == json.loads(RECORDED.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: found(name) for name in SAMPLERS}, indent=1) + "\n", encoding="utf-8")
