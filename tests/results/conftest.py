"""Studies and evaluations for the tests of `results`."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from results.records import Confirmation, Evaluation, FineTuned, Study, StudySpec
from results.store.database import open_database
from results.store.store import Store
from spaces import PruningSchedule, Stage, TokenLayout
from tests.results.engines import postgresql
from tests.results.shown import EVIL, NOW, MakeEvaluation, MakeSpec

DENSE = 1_000_000


@pytest.fixture(scope="session")
def new_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Creates databases on one server: with the current tables, or empty with the template `template0`."""
    with postgresql(tmp_path_factory.mktemp("postgresql")) as new:
        yield new


@pytest.fixture
def engine() -> str:
    """The kind of database at `url`; tests marked `both_engines` run on each kind."""
    return "sqlite"


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    new: Callable[..., str] = request.getfixturevalue("new_postgresql")
    return new()


@pytest.fixture
def database(url: str) -> Iterator[Engine]:
    """The engine that `store` works on."""
    opened, _ = open_database(url, create=True)
    yield opened
    opened.dispose()


@pytest.fixture
def store(database: Engine) -> Iterator[Store]:
    with Store(database, "the test's database") as opened:
        yield opened


@pytest.fixture
def make_spec() -> Callable[..., StudySpec]:
    def make(**changes: Any) -> StudySpec:
        layout = TokenLayout("vim_nano", (28, 28), (Stage(12, 7, 7),), protected=1)
        values: dict[str, Any] = {
            "name": "digits",
            "model": "vim_nano",
            "img_size": (28, 28),
            "num_classes": 10,
            "layout": asdict(layout),
            "data": "embedded",
            "data_digest": "d" * 64,
            "images": 1000,
            "order": "shuffled",
            "confirm_split": "val",
            "confirm_images": 5000,
            "confirm_digest": "e" * 64,
            "weights_digest": "b" * 64,
            "checkpoint": None,
            "budget": "0.8",
            "limit": 800_000,
            "least": 400_000,
            "dense_flops": DENSE,
            "dense_top1": 0.98,
            "dense_loss": 0.07,
            "dense_latency_ms": None,
            "space": "stages:3",
            "sampler": "nsga2",
            "objectives": ("top1", "flops"),
            "seed": 7,
            "versions": {"prunefront": "0.1.0"},
            "config": {"trials": 40},
        }
        return StudySpec(**(values | changes))

    return make


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    def make(text: str = "3:0.8", flops: int = 700_000, top1: float | None = 0.9, **changes: Any) -> Evaluation:
        values: dict[str, Any] = {
            "schedule": PruningSchedule.parse(text),
            "flops": flops,
            "flops_ratio": flops / DENSE,
            "top1": top1,
            "loss": None if top1 is None else 0.3,
            "agreement": None if top1 is None else 0.95,
            "images": 1000,
            "seconds": 0.5,
            "origin": "nsga2",
        }
        return Evaluation(**(values | changes))

    return make


@pytest.fixture
def evaluations(make_evaluation: MakeEvaluation) -> list[Evaluation]:
    """Twelve that are done (five on the front, one fine-tuned, one far below the rest) and one that failed."""
    front = [
        make_evaluation(f"{i + 1}:0.5,9:0.7;context=freeze", 400_000 + 60_000 * i, 0.9 + 0.012 * i, number=i)
        for i in range(5)
    ]
    front[3] = make_evaluation(
        "4:0.5,9:0.7;context=freeze",
        580_000,
        0.936,
        number=3,
        finetuned=FineTuned(1, 0.97, 0.97, 0.97, 1000, "val, first 1,000"),
    )
    rest = [make_evaluation(f"{i + 1}:0.4", 500_000 + 30_000 * i, 0.85 - 0.01 * i, number=5 + i) for i in range(6)]
    hopeless = make_evaluation("1:0.1", 450_000, 0.1, number=11)
    failed = make_evaluation("2:0.1", top1=None, state="failed", failure="OOM", error=EVIL, number=12)
    return [*front, *rest, hopeless, failed]


@pytest.fixture
def confirmed(make_spec: MakeSpec, evaluations: list[Evaluation]) -> tuple[Study, list[Evaluation]]:
    """A study with three confirmed points on its front and two stopped evaluations."""
    scores = {
        e.hash: Confirmation(e.hash, (e.top1 or 0.0) - 0.01, 0.3, 0.9, 5000, 1.0, 1.0, 0.8) for e in evaluations[:3]
    }
    stopped = [replace(evaluations[-2], schedule=PruningSchedule.parse(f"{i}:0.2"), state="stopped") for i in (1, 2)]
    found = [replace(e, confirmed=scores.get(e.hash)) for e in evaluations]
    return Study(1, NOW, make_spec(), 12, 1, 2, confirmed=4), [*found, *stopped]
