"""A search says it when it may use less memory than it needs."""

from pathlib import Path

import pytest

import ssm_models
from search.config import SearchConfig
from search.driver import memory
from search.runtime import limits


def config(**changes: object) -> SearchConfig:
    settings = {
        "model": "vim_nano",
        "study": "s",
        "data": "embedded",
        "flops_budget": "0.6",
        "trials": 1,
        "workers": 2,
    }
    return SearchConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group whose limit is 2 GiB."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(limits, "MEMORY", tmp_path / "meminfo")
    (tmp_path / "membership").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n")
    return tmp_path


def test_a_container_that_is_too_small(limited: Path) -> None:
    model = ssm_models.create_model("vim_nano")
    note = memory.memory_note(config(), model, 1000)
    assert note is not None
    assert "with 2 workers, and may use 2.0 GiB here" in note
    (limited / "memory.max").write_text(f"{8 * 2**30}\n")
    assert memory.memory_note(config(), model, 1000) is None
    assert memory.memory_note(config(workers=16), model, 1000) is not None


def test_a_machine_whose_memory_is_taken(limited: Path) -> None:
    (limited / "memory.max").write_text("max\n")
    model = ssm_models.create_model("vim_nano")
    assert memory.memory_note(config(), model, 1000) is None
    (limited / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 1000000 kB\n")
    assert memory.memory_note(config(), model, 1000) is not None
    assert memory.memory_note(config(ray_address="h:1"), model, 1000) is None, "the cluster's memory is not ours"


def test_the_cache_counts_as_far_as_it_can_be_filled() -> None:
    model = ssm_models.create_model("vim_nano")
    one, large = (memory.memory_needed(config(prefix_cache=size), model, 1000, 1) for size in ("1K", "64G"))
    assert 0 < large - one < 2**30
    assert memory.memory_needed(config(prefix_cache="100M"), model, 10**6, 1) > one + 99 * 2**20
