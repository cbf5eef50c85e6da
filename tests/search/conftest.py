"""A study on the shipped model and the embedded images, made without a search."""

from pathlib import Path

import pytest

from results import Evaluation, Study, StudySpec
from results.store.store import Store
from search.config import SearchConfig
from search.driver.search_setup import SearchSetup, open_setup
from spaces import PruningSchedule
from spaces.published import published_schedules

OTHERS = ("3:0.3,6:0.5;context=freeze", "2:0.5,4:0.6;context=freeze", "5:0.2,9:0.5;context=freeze")


@pytest.fixture(scope="session")
def search_setup() -> SearchSetup:
    """The shipped model on 40 of the embedded images, with a budget of 0.9."""
    return open_setup(
        SearchConfig(
            model="vim_nano", study="digits", data="embedded", flops_budget="0.9", trials=8, images=40, batch_size=20
        )
    )


@pytest.fixture(scope="session")
def _filled(search_setup: SearchSetup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "studies.db"
    fill(path, search_setup)
    return path


@pytest.fixture
def study_url(_filled: Path, tmp_path: Path) -> str:
    """A database of one's own with the study `digits`: seven evaluations, and one that failed."""
    copy = tmp_path / "studies.db"
    copy.write_bytes(_filled.read_bytes())
    return f"sqlite:///{copy}"


def fill(path: Path, search_setup: SearchSetup) -> Study:
    """Write the study with made-up figures; its FLOPs, digests and layout are real."""
    with Store.open(f"sqlite:///{path}", create=True) as store:
        spec = StudySpec(**search_setup.spec(), dense_top1=0.975, dense_loss=0.1, dense_latency_ms=1.0)
        study = store.create_study(spec)
        schedules = [*published_schedules(search_setup.model.layout), *map(PruningSchedule.parse, OTHERS)]
        for index, schedule in enumerate(schedules):
            flops = search_setup.table.flops(schedule)
            ratio = flops / search_setup.table.dense
            if index == 1:
                failed = Evaluation(
                    schedule, flops, ratio, "failed", failure="NONFINITE", error="logits are NaN", origin="published"
                )
                store.record(study, failed)
                continue
            done = Evaluation(
                schedule,
                flops,
                ratio,
                top1=round(0.5 + 0.4 * ratio + 0.01 * index, 4),
                loss=0.5,
                agreement=0.9,
                images=40,
                latency_ms=1.5,
                seconds=0.1,
                origin="published" if index < 5 else "nsga2",
            )
            store.record(study, done)
        return store.study(study.name)
