"""Starting schedules come first, then the sampler's; nothing that is known is proposed again."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from results import Evaluation
from search.driver.proposer import MOST_KNOWN, START, Candidate, CandidateSource, Known, Proposer
from spaces import PruningSchedule
from spaces.errors import SearchError
from spaces.parameters import Value
from spaces.published import starting_schedules
from spaces.space import SearchSpace
from tests.search import fakes
from tests.search.fakes import ListeningSampler

LookUp = Callable[[PruningSchedule], Known | None]


def proposer(
    look_up: LookUp = lambda schedule: None,
    starts: Sequence[PruningSchedule] = (),
    over: SearchSpace | None = None,
    name: str = "random",
    seed: int = 0,
) -> tuple[Proposer, ListeningSampler]:
    chosen = over or fakes.space()
    sampler = ListeningSampler(fakes.sampler(name, chosen))
    return Proposer(CandidateSource(chosen, sampler, starts, seed), look_up), sampler


def some(subject: Proposer, count: int) -> list[Candidate]:
    found = [subject.next() for _ in range(count)]
    return [candidate for candidate in found if candidate is not None]


def evaluated(schedule: PruningSchedule, **changes: Any) -> Evaluation:
    figures: dict[str, Any] = {"flops": fakes.flops(schedule), "flops_ratio": 0.5, "top1": 0.5, "loss": 1.0}
    return Evaluation(schedule, **(figures | changes))


def test_starting_schedules_come_first_and_the_sampler_learns_from_them() -> None:
    over = fakes.space()
    starts = starting_schedules(over)
    subject, _ = proposer(starts=starts, over=over)
    first = some(subject, len(starts) + 3)
    assert [candidate.schedule for candidate in first[:-3]] == starts
    assert [candidate.origin for candidate in first] == [START] * len(starts) + ["random"] * 3
    assert all(candidate.draw is not None for candidate in first)
    assert all(candidate.flops == fakes.flops(candidate.schedule) for candidate in first)


def test_starts_that_cost_too_much_or_are_known_are_passed_over() -> None:
    over = fakes.space(budget="0.6")
    dear, known, unspeakable = map(PruningSchedule.parse, ("11:0.9", "1:0.3", "1:0.3;importance=l2"))
    assert fakes.flops(dear) > over.limit
    subject, sampler = proposer(
        lambda schedule: Known(evaluated(known)) if schedule == known else None, [dear, known, unspeakable], over
    )
    first = subject.next()
    assert first is not None
    assert (first.schedule, first.origin, first.draw) == (unspeakable, START, None)  # the space has no such choice
    assert (subject.reused, sampler.told) == (0, [])


def test_what_is_known_is_told_and_counted_and_what_is_under_way_is_only_told() -> None:
    twelve = [PruningSchedule.of([(block, 0.5)]) for block in range(1, 13)]
    known = {schedule: evaluated(schedule) for schedule in twelve[:6]}
    under_way = set(twelve[6:11])

    def look_up(schedule: PruningSchedule) -> Known | None:
        return Known(None) if schedule in under_way else Known(known[schedule]) if schedule in known else None

    subject, sampler = proposer(look_up, over=fakes.small_space())
    found = subject.next()
    assert found is not None
    assert found.schedule == twelve[11]
    assert subject.reused == sum(evaluation is not None for evaluation in sampler.told) > 0
    assert {e.schedule for e in sampler.told if e is not None} <= set(known)
    assert len(sampler.told) <= MOST_KNOWN


def test_a_space_of_which_all_is_known_has_no_candidate() -> None:
    seen: set[PruningSchedule] = set()
    subject, _ = proposer(lambda schedule: Known(None) if schedule in seen else None, over=fakes.small_space())
    for _ in range(12):
        candidate = subject.next()
        assert candidate is not None
        seen.add(candidate.schedule)
    assert len(seen) == 12
    assert subject.next() is None


def test_points_at_random_follow_when_a_sampler_only_repeats_itself() -> None:
    values: dict[str, Value] = {"after_1": 4, "after_2": 8, "after_3": 8, "context": "drop", "target": 0.5}
    values |= {"weight_1": 1.0, "weight_2": 1.0, "weight_3": 0.0}

    def run(seed: int) -> list[str]:
        over = fakes.space()
        stuck = over.schedule(values)
        subject, sampler = proposer(lambda schedule: Known(None) if schedule == stuck else None, over=over, seed=seed)
        sampler.stuck = values
        found = some(subject, 5)
        assert all(candidate.draw and candidate.draw.values != values for candidate in found)
        return [candidate.schedule.text for candidate in found]

    one = run(1)
    assert len(set(one)) == 5
    assert one == run(1) != run(2)


def test_a_candidate_above_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    over = fakes.space()
    monkeypatch.setattr(over, "schedule", lambda values: PruningSchedule())
    subject, _ = proposer(over=over)
    with pytest.raises(SearchError, match=r"costs 588,000 FLOPs, above the limit of 470,400: space 'stages:3;"):
        subject.next()
