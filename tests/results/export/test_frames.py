"""Evaluations as a DataFrame: a row for each evaluation, a fixed type for each column."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas
import pytest

from results import Evaluation
from results.export.frames import TYPES, full_row, to_frame, to_parquet
from results.store.store import Store
from spaces.errors import PrunefrontError

MakeEvaluation = Callable[..., Evaluation]


@pytest.fixture
def evaluations(store: Store, make_spec: Callable[..., object], make_evaluation: MakeEvaluation) -> list[Evaluation]:
    study = store.create_study(make_spec())  # type: ignore[arg-type]
    store.record(study, make_evaluation())
    failed = make_evaluation("2:0.5", 500_000, None, state="failed", failure="OOM", error="too large", images=0)
    store.record(study, failed)
    return store.evaluations(study, done_only=False)


def test_a_frame_has_a_row_for_each_evaluation(evaluations: list[Evaluation]) -> None:
    frame = to_frame(evaluations)
    assert list(frame.columns) == list(full_row(evaluations[0]))
    for (_, found), evaluation in zip(frame.iterrows(), evaluations, strict=True):
        for name, value in full_row(evaluation).items():
            if name == "finished_at":
                assert found[name] == evaluation.finished_at
            elif value is None:
                assert pandas.isna(found[name])
            else:
                assert found[name] == value


def test_times_may_have_fractions_of_a_second(evaluations: list[Evaluation]) -> None:
    whole = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    times = [whole, whole.replace(microsecond=5)]
    for order in (times, times[::-1]):
        rows = [replace(e, finished_at=time) for e, time in zip(evaluations, order, strict=True)]
        assert list(to_frame(rows)["finished_at"]) == order


def test_types_do_not_depend_on_the_values(evaluations: list[Evaluation]) -> None:
    expected = dict(to_frame(evaluations).dtypes)
    for some in ([], evaluations[:1], evaluations[1:]):
        frame = to_frame(some)
        assert {n: k for n, k in frame.dtypes.items() if n in TYPES} == {n: expected[n] for n in TYPES}
        assert isinstance(frame["finished_at"].dtype, pandas.DatetimeTZDtype)
    assert set(TYPES) == set(expected) - {"finished_at"}


def test_parquet_round_trips(evaluations: list[Evaluation]) -> None:
    back = pandas.read_parquet(io.BytesIO(to_parquet(evaluations)))
    pandas.testing.assert_frame_equal(back, to_frame(evaluations), check_dtype=False)
    assert math.isclose(back["top1"].sum(), 0.9)


def test_a_missing_library_is_an_error_of_one_line(
    evaluations: list[Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(PrunefrontError, match="tables need pandas: run `pip install pandas`"):
        to_frame(evaluations)


def test_importing_results_does_not_import_pandas() -> None:
    import subprocess
    import sys

    program = (
        "import sys, results.export.frames, results.export.optuna_mirror\n"
        "print({'pandas', 'pyarrow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout == "set()\n"
