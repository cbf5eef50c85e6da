"""Databases of every earlier schema are upgraded without loss."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Connection, Engine, MetaData, create_engine

from results import Confirmation, Evaluation, StudySpec, pareto_front
from results.store.database import unchanged
from results.store.schema import REVISIONS, VERSION_TABLE
from results.store.store import Store
from spaces import PruningSchedule

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
POINTS = [(500_000 + 7919 * i % 300_000, 0.5 + (104_729 * i % 400) / 1000 + 1e-17) for i in range(1, 60)]


def at_revision(url: str, revision: str) -> Engine:
    """Create an empty database of an earlier schema."""
    from alembic import command
    from alembic.config import Config

    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "results.store:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine


def test_a_look_at_an_older_database_leaves_it_as_it_is(tmp_path: Path, make_spec: MakeSpec) -> None:
    path = tmp_path / "old.db"
    engine = at_revision(f"sqlite:///{path}", "0001")
    with engine.begin() as connection:
        insert(connection, "studies", [study_row(make_spec(), 1)])
    engine.dispose()
    before = path.read_bytes()
    with unchanged(f"sqlite:///{path}") as same, Store.open(same) as store:
        assert [study.name for study in store.studies()] == ["digits 1"]
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["old.db"]
    Store.open(f"sqlite:///{path}").close()
    with unchanged(f"sqlite:///{path}") as same:
        assert same == f"sqlite:///{path}", "of the current schema"


def insert(connection: Connection, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows by reflecting the table, without code of the project."""
    metadata = MetaData()
    metadata.reflect(connection)
    for column in metadata.tables[table].columns:
        if column.name in ("layout", "objectives", "versions", "config", "parameters", "sampler_state", "curve"):
            column.type = JSON()
    connection.execute(metadata.tables[table].insert(), rows)


def study_row(spec: StudySpec, number: int) -> dict[str, Any]:
    """A row of schema 0001; later columns are left to their migrations."""
    row = dict(vars(spec)) | {"id": number, "name": f"{spec.name} {number}", "created_at": NOW}
    row |= {"img_height": 28, "img_width": 28, "flops_limit": row["limit"], "objectives": list(spec.objectives)}
    for name in ("img_size", "limit", "least", "order", "confirm_split", "confirm_images", "confirm_digest"):
        del row[name]
    return row


def evaluation_row(study: int, number: int, flops: int, top1: float) -> dict[str, Any]:
    schedule = PruningSchedule.parse(f"{number % 11 + 1}:{(number + 1) / 1000}")
    return {
        "study_id": study,
        "number": number,
        "schedule_hash": schedule.hash,
        "schedule": schedule.text,
        "state": "done",
        "flops": flops,
        "flops_ratio": flops / 1e6,
        "top1": top1,
        "loss": 0.1,
        "agreement": 0.9,
        "images": 1000,
        "latency_ms": 3.0 - number / 60,
        "origin": "nsga2",
        "parameters": {"place": number},
        "sampler_state": {},
    }


@pytest.fixture
def first_schema(url: str, make_spec: MakeSpec) -> str:
    """Two studies of schema 0001, each with a fine-tuning and a failure; the second optimises latency."""
    engine = at_revision(url, "0001")
    with engine.begin() as connection:
        for study, objectives in ((1, ("top1", "flops")), (2, ("top1", "latency"))):
            spec = make_spec(objectives=objectives, dense_latency_ms=2.0)
            insert(connection, "studies", [study_row(spec, study)])
            rows = [evaluation_row(study, i, flops, top1) for i, (flops, top1) in enumerate(POINTS)]
            insert(connection, "evaluations", rows)
            failed = evaluation_row(study, len(POINTS), 1, 0.0) | {"state": "failed", "failure": "OOM", "top1": None}
            insert(connection, "evaluations", [failed])
            tuned = {"study_id": study, "schedule_hash": rows[3]["schedule_hash"], "top1": 0.97, "loss": 0.1}
            tuned |= {"epochs": 2, "images": 1000, "seconds": 1.5, "checkpoint": "c", "weights_digest": "c" * 64}
            tuned |= {"config": {}, "curve": [], "versions": {}, "finished_at": NOW}
            insert(connection, "finetunes", [tuned])
    engine.dispose()
    return url


def test_an_upgrade_keeps_the_front_bit_for_bit(first_schema: str, tmp_path: Path) -> None:
    with Store.open(first_schema) as store:
        study, _ = store.studies()
        front = store.front(study)
        expected = [(i, *POINTS[i]) for i in pareto_front(POINTS)]
        assert [(e.number, e.flops, e.top1) for e in front] == expected
        assert all(e.reported is e and e.confirmed is e.outcomes is e.latency_ratio is None for e in front)
        assert (study.done, study.failed, study.stopped) == (len(POINTS), 1, 0)
        assert len(store.evaluations(study, done_only=False)) == len(POINTS) + 1
        assert [e.finetuned_top1 for e in store.evaluations(study)].count(0.97) == len(store.finetunes(study)) == 1
    with create_engine(first_schema).connect() as connection:
        assert connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar() == REVISIONS[-1]
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def test_an_upgrade_fills_in_what_held_for_older_studies(first_schema: str, make_spec: MakeSpec) -> None:
    with Store.open(first_schema) as store:
        spec = store.studies()[0].spec
    old = make_spec(dense_latency_ms=2.0, name=spec.name)
    expected = replace(
        old,
        least=old.limit // 3,
        order="stratified",
        confirm_split="val",
        confirm_images=old.images,
        confirm_digest=old.data_digest,
    )
    assert replace(spec, layout=old.layout) == expected


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_older_studies_keep_the_order_of_images_that_they_were_begun_with(
    url: str, make_spec: MakeSpec, revision: str
) -> None:
    spec = make_spec()
    row = study_row(spec, 1)
    if revision != "0001":
        row |= {"flops_least": spec.least, "confirm_split": "val", "confirm_images": 9, "confirm_digest": "e" * 64}
    engine = at_revision(url, revision)
    with engine.begin() as connection:
        insert(connection, "studies", [row])
    engine.dispose()
    with Store.open(url) as store:
        assert store.studies()[0].spec.order == "stratified"
        assert store.create_study(make_spec(name="new")).spec.order == "shuffled"


def test_an_upgrade_keeps_the_front_of_a_latency_study(first_schema: str) -> None:
    with Store.open(first_schema) as store:
        study = store.studies()[1]
        front = store.front(study)
        assert all(e.latency_ratio == e.latency_ms / 2.0 for e in store.evaluations(study) if e.latency_ms)
    milliseconds = [(3.0 - i / 60, top1) for i, (_, top1) in enumerate(POINTS)]
    assert {e.number for e in front} == set(pareto_front(milliseconds))


def test_an_upgraded_database_takes_new_records(first_schema: str, make_evaluation: MakeEvaluation) -> None:
    with Store.open(first_schema) as store:
        study = store.studies()[0]
        best = store.front(study)[-1]
        store.confirm(study, Confirmation(best.hash, 0.2, 1.0, 0.5, 5000, 1.0, 1.0, 0.8))
        assert best.hash in {e.hash for e in store.front(study)}, "a confirmed score leaves the front as it is"
        assert store.record(
            study, make_evaluation("1:0.9", state="stopped", images=8, outcomes=b"\xff", estimate=0.5)
        )
        assert store.study(study.name).stopped == store.study(study.name).confirmed == 1


def test_an_upgrade_chooses_the_front_by_the_searchs_scores_again(
    url: str, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    """Until 0005 a confirmed score replaced the search's: it dropped points and uncovered others."""
    spec, points = make_spec(), [(400, 0.90), (500, 0.95), (600, 0.94)]
    row = study_row(spec, 1) | {"flops_least": 1, "confirm_split": "rest", "confirm_images": 5000}
    rows = [evaluation_row(1, i, *point) for i, point in enumerate(points)]
    marks = [True, False, True]  # the second fell to 0.8 when it was confirmed
    engine = at_revision(url, "0005")
    with engine.begin() as connection:
        insert(connection, "studies", [row | {"confirm_digest": "e" * 64}])
        insert(connection, "evaluations", [r | {"on_front": mark} for r, mark in zip(rows, marks, strict=True)])
        score = {"study_id": 1, "top1": 0.8, "loss": 0.4, "agreement": 0.9, "images": 5000, "seconds": 1.0}
        score |= {"latency_ms": 1.0, "latency_ratio": 0.8, "finished_at": NOW}
        insert(connection, "confirmations", [score | {"schedule_hash": rows[1]["schedule_hash"]}])
    engine.dispose()
    with Store.open(url) as store:
        front = store.front(store.studies()[0])
        assert [(e.number, e.top1, e.reported.top1) for e in front] == [(0, 0.90, 0.90), (1, 0.95, 0.8)]
        assert front[1].confirmed is not None
        assert front[1].confirmed.outcomes is None
