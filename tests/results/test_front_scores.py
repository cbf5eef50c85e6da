"""What is said of a confirmed front: unbiased scores, intervals that hold for all points at once."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from results import Confirmation, Evaluation, StudySpec
from results.front_scores import FrontScores
from results.pareto import pareto_front
from spaces import PruningSchedule

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
DENSE = PruningSchedule().hash


def confirmation(name: str, right: np.ndarray) -> Confirmation:
    bits = np.packbits(right).tobytes()
    return Confirmation(name, float(right.mean()), 0.1, 0.9, len(right), 1.0, 1.0, 0.8, outcomes=bits)


def test_reported_scores_were_biased_by_a_second_choice_and_are_no_more() -> None:
    """Simulated studies: 300 schedules with near ties, 500 images to search on and 1,000 others to confirm on."""
    rng, before, after, count = np.random.default_rng(0), [], [], 300
    for _ in range(120):
        cost = rng.uniform(0.4, 0.9, count)
        truth = 0.55 + 0.35 * cost - 0.03 * rng.random(count)
        searched, confirmed = rng.binomial(500, truth) / 500, rng.binomial(1000, truth) / 1000
        chosen = pareto_front(np.stack([cost, searched], 1).tolist())
        after.append(np.mean([confirmed[i] - truth[i] for i in chosen]))
        known: set[int] = set()  # as it was: confirm until nothing on the front by the best known scores is new
        while True:
            scores = [confirmed[i] if i in known else searched[i] for i in range(count)]
            front = pareto_front(np.stack([cost, scores], 1).tolist())
            if known.issuperset(front):
                break
            known.update(front)
        before.append(np.mean([confirmed[i] - truth[i] for i in front]))
    error = 100 * np.std(after) / np.sqrt(len(after))
    assert abs(100 * np.mean(after)) < 3 * error < 0.3
    assert 100 * np.mean(before) > 0.5


def test_intervals_of_the_differences_hold_for_all_points_at_once(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    rng, held, studies, images = np.random.default_rng(1), 0, 150, 400
    points = [make_evaluation(f"{i + 1}:0.5", 400_000 + 20_000 * i, 0.7 + 0.02 * i) for i in range(10)]
    loses, wins = np.linspace(0.12, 0.005, 10), np.linspace(0.03, 0.005, 10)
    spec = make_spec(images=100, confirm_split="rest", confirm_images=images)
    for _ in range(studies):
        dense, draw = rng.random(images) < 0.8, rng.random((10, images))
        right = np.where(dense, draw >= loses[:, None] / 0.8, draw < wins[:, None] / 0.2)
        front = [replace(e, confirmed=confirmation(e.hash, r)) for e, r in zip(points, right, strict=True)]
        scores = FrontScores.of(front, spec, confirmation(DENSE, dense))
        found = [scores.differences[e.hash] for e in front]
        assert found[0].value == pytest.approx(right[0].mean() - dense.mean())
        held += all(one.low <= gain - loss <= one.high for one, gain, loss in zip(found, wins, loses, strict=True))
    assert held / studies > 0.92  # a standard error is 0.018


def test_the_hypervolume_is_that_of_the_front_as_it_was_chosen_and_its_interval_covers_the_truth(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    spec = make_spec(dense_flops=1_000_000, limit=800_000, images=100, confirm_split="rest", confirm_images=400)
    points = [make_evaluation("1:0.5", 500_000, 0.7), make_evaluation("2:0.5", 600_000, 0.8)]
    truth, rng, held, values = 0.1 * 0.75 + 0.2 * 0.7, np.random.default_rng(2), 0, []
    for _ in range(300):
        right = rng.random((2, 400)) < np.array([[0.75], [0.7]])
        front = [replace(e, confirmed=confirmation(e.hash, r)) for e, r in zip(points, right, strict=True)]
        scores = FrontScores.of(front, spec, None)
        assert scores.hypervolume is not None
        held += scores.hypervolume.low <= truth <= scores.hypervolume.high
        values.append(scores.hypervolume.value)
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / 300**0.5)
    assert 0.91 < held / 300 < 0.99
    assert scores.dominated == frozenset({points[1].hash} if right[1].mean() <= right[0].mean() else set())


def test_what_was_confirmed_without_outcomes_has_no_interval(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    one = make_evaluation("1:0.5")
    old = replace(one, confirmed=replace(confirmation(one.hash, np.ones(10, np.bool_)), outcomes=None))
    scores = FrontScores.of([old], make_spec(), confirmation(DENSE, np.ones(10, np.bool_)))
    assert (scores.differences, scores.hypervolume, scores.searched) == ({}, None, True)
    assert FrontScores.of([one], make_spec(), None).images is None


def test_outcomes_that_are_agreement_are_not_taken_for_right_answers(
    make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    one, right = make_evaluation("1:0.5"), np.arange(10) < 7
    agreeing = replace(confirmation(one.hash, right), top1=0.9)
    scores = FrontScores.of([replace(one, confirmed=agreeing)], make_spec(), confirmation(DENSE, right))
    assert scores.differences == {}
