"""The table of all evaluations."""

from results import Evaluation
from results.intervals import wilson_interval
from results.report.evaluation_table import evaluation_columns


def test_every_evaluation_has_one_value_in_each_column(evaluations: list[Evaluation]) -> None:
    columns = evaluation_columns(evaluations, {evaluations[0].hash})
    assert {len(column) for column in columns.values()} == {13}
    assert columns["hash"] == [e.hash for e in evaluations]
    assert [columns["state"][i] for i in (0, 1, 12)] == ["front", "done", "OOM"]
    assert columns["top1"][12] is None and columns["tuned"][3] == 0.97
    low, high = wilson_interval(0.9, 1000)
    assert (columns["low"][0], columns["high"][0]) == (low, high)
