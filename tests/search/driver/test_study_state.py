"""What candidates race against, which points are on the front, and which of them are still to be confirmed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results import Evaluation, Study
from results.records import Confirmation
from results.store.store import Store
from search.driver.search_setup import SearchSetup
from search.driver.study_state import Confirmer, StudyState
from search.evaluation.protocol import pack
from spaces import PruningSchedule, Stage, TokenLayout
from tests.search.conftest import fill
from tests.search.fakes import LAYOUT

OBJECTIVES = ("top1", "flops")
DENSE = PruningSchedule().hash
Point = tuple[int, float, str, float | None]  # FLOPs, top-1, state, confirmed top-1


def schedule(number: int) -> PruningSchedule:
    """A computation of its own for each number."""
    return PruningSchedule.of([(1 + number % 12, 0.9), (1 + (number + 5) % 12, (1 + number // 12) / 50)])


def confirmation(schedule_hash: str, top1: float) -> Confirmation:
    return Confirmation(
        schedule_hash,
        top1=top1,
        loss=1 - top1,
        agreement=top1,
        images=500,
        seconds=1.0,
        latency_ms=1.0,
        latency_ratio=0.8,
    )


def evaluation(number: int, flops: int = 100, top1: float = 0.5, state: str = "done", images: int = 20) -> Evaluation:
    """An evaluation on `images` images, of which the first are right."""
    right = np.arange(images) < round(top1 * images)
    failed = state == "failed"
    return Evaluation(
        schedule(number),
        flops=flops,
        flops_ratio=flops / 1000,
        state=state,
        top1=None if failed else top1,
        loss=None if failed else 1 - top1,
        agreement=None if failed else top1,
        images=0 if failed else images,
        outcomes=None if failed else pack(right),
        failure="OOM" if failed else None,
    )


shares = st.integers(0, 20).map(lambda right: right / 20)
points = st.lists(
    st.tuples(
        st.integers(1, 12).map(lambda flops: 100 * flops),
        shares,
        st.sampled_from(["done", "done", "done", "stopped", "failed"]),
        st.none() | shares,
    ),
    max_size=25,
)


def evaluations(given_points: Sequence[Point]) -> list[Evaluation]:
    """The points as evaluations; only done ones can be confirmed."""
    found = []
    for number, (flops, top1, state, confirmed) in enumerate(given_points):
        one = evaluation(number, flops, top1, state)
        if confirmed is not None and state == "done":
            one = replace(one, confirmed=confirmation(one.hash, confirmed))
        found.append(one)
    return found


@pytest.fixture(scope="module")
def filled(search_setup: SearchSetup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Study]]:
    """A store, and a study whose settings others may borrow."""
    path = tmp_path_factory.mktemp("studies") / "studies.db"
    study = fill(path, search_setup)
    with Store.open(f"sqlite:///{path}") as store:
        yield store, study


class TestBars:
    @given(points, st.integers(0, 1300))
    def test_the_bar_is_right_as_often_as_the_best_that_costs_no_more(
        self, given_points: list[Point], flops: int
    ) -> None:
        recorded = evaluations(given_points)
        state = StudyState(OBJECTIVES, LAYOUT, recorded)
        best = max((e.top1 for e in recorded if e.state == "done" and e.flops <= flops), default=None)  # type: ignore[type-var]
        bar = state.bar(flops)
        assert (bar is None) == (best is None)
        if bar is not None:
            assert (bar.dtype, bar.shape) == (np.bool_, (20,))
            assert bar.mean() == pytest.approx(best)

    @given(st.permutations(range(8)))
    def test_they_do_not_depend_on_the_order(self, order: list[int]) -> None:
        recorded = [evaluation(i, 100 * (1 + i % 4), [0.5, 0.6, 0.55, 0.9, 0.7, 0.4, 0.55, 0.1][i]) for i in range(8)]
        state = StudyState(OBJECTIVES, LAYOUT, [recorded[i] for i in order])
        bars = [state.bar(flops) for flops in (50, 100, 200, 300, 400)]
        assert [None if bar is None else bar.mean() for bar in bars] == [None, 0.7, 0.7, 0.7, 0.9]

    def test_outcomes_stand_in_the_order_of_the_images(self) -> None:
        right = np.random.default_rng(0).random(21) < 0.5
        one = replace(evaluation(0), outcomes=pack(right), images=21, top1=float(right.mean()))
        bar = StudyState(OBJECTIVES, LAYOUT, [one]).bar(100)
        assert bar is not None
        assert bar.tolist() == right.tolist()

    def test_without_outcomes_there_is_no_bar(self) -> None:
        """As in a study of an older version."""
        assert StudyState(OBJECTIVES, LAYOUT, [replace(evaluation(0), outcomes=None)]).bar(1000) is None

    def test_without_a_race_there_is_no_bar(self) -> None:
        state = StudyState(("loss", "flops"), LAYOUT, [evaluation(0)], race=False)
        assert not state.race
        assert state.bar(1000) is None


class TestFront:
    @given(points)
    def test_no_point_that_is_done_beats_one_on_it_by_the_search_s_scores(self, given_points: list[Point]) -> None:
        recorded = evaluations(given_points)
        front = StudyState(OBJECTIVES, LAYOUT, recorded).front()
        done = {(e.flops, e.top1 or 0.0) for e in recorded if e.state == "done"}
        best = {(f, t) for f, t in done if not any((g <= f and u >= t) and (g, u) != (f, t) for g, u in done)}
        assert [(e.flops, e.top1) for e in front] == sorted(best, key=lambda point: (-point[1], point[0]))

    @given(points, st.data())
    def test_it_moves_as_it_would_be_computed_anew(self, given_points: list[Point], data: st.DataObject) -> None:
        """Evaluations and confirmed scores come in any order."""
        recorded = evaluations(given_points)
        state = StudyState(OBJECTIVES, LAYOUT, [])
        known: dict[str, Evaluation] = {}
        for one in recorded:
            known[one.hash] = replace(one, confirmed=None)
            state.add(known[one.hash])
            if data.draw(st.booleans()):
                state.front()
            for other in [e for e in recorded if e.confirmed and e.hash in known and not known[e.hash].confirmed]:
                if data.draw(st.booleans()):
                    known[other.hash] = other
                    state.confirm(other.confirmed)  # type: ignore[arg-type]
        anew = StudyState(OBJECTIVES, LAYOUT, known.values())
        assert state.front() == anew.front()
        assert state.counts == anew.counts
        assert len(state) == len(recorded)

    @given(points.filter(len))
    @settings(max_examples=25)
    def test_it_is_the_stores(self, filled: tuple[Store, Study], given_points: list[Point]) -> None:
        store, template = filled
        spec = replace(template.spec, name=f"study {len(store.studies())}", objectives=OBJECTIVES)
        study = store.create_study(spec)
        for one in evaluations(given_points):
            store.record(study, one)
            if one.confirmed is not None:
                store.confirm(study, one.confirmed)
        state = StudyState(OBJECTIVES, LAYOUT, store.evaluations(study, done_only=False))
        assert {e.hash for e in state.front()} == {e.hash for e in store.front(study)}

    def test_a_confirmed_score_is_reported_and_chooses_nothing(self) -> None:
        behind, flattered = evaluation(0, 100, 0.8), evaluation(1, 90, 0.9)
        state = StudyState(OBJECTIVES, LAYOUT, [behind, flattered])
        assert [e.hash for e in state.front()] == [flattered.hash]
        state.confirm(confirmation(flattered.hash, 0.7))
        assert [(e.hash, e.reported.top1) for e in state.front()] == [(flattered.hash, 0.7)]


class TestComputation:
    state = StudyState(OBJECTIVES, LAYOUT, [])  # 49 tokens

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("4:0.5", "4:0.51", True),  # both leave 25
            ("4:0.5", "4:0.53", False),
            ("4:0.5,8:0.5", "4:0.51,8:0.51", True),
            ("4:0.5", "5:0.5", False),
            ("4:0.5", "4:0.51;context=conv", False),
            ("4:0.5;importance=l2;context=conv", "4:0.51;importance=l2;context=conv", True),
            ("4:0.5", "", False),
            ("4:0.8,8:0.5", "4:0.5,8:0.8", False),
        ],
    )
    def test_two_schedules_are_one_if_they_leave_the_same_tokens_by_the_same_method(
        self, one: str, other: str, same: bool
    ) -> None:
        first, second = map(PruningSchedule.parse, (one, other))
        assert (self.state.computation(first) == self.state.computation(second)) is same
        state = StudyState(OBJECTIVES, LAYOUT, [replace(evaluation(0), schedule=first)])
        found = state.find(second)
        assert (found is not None) is same
        assert found is None or found.schedule == first

    def test_counts_in_later_stages_start_from_their_own_grid(self) -> None:
        layout = TokenLayout("staged", (56, 56), (Stage(2, 14, 14), Stage(2, 7, 7)))
        state = StudyState(OBJECTIVES, layout, [])
        same = [PruningSchedule.parse(f"1:0.5,3:{keep}") for keep in (0.5, 0.51)]
        assert state.computation(same[0]) == state.computation(same[1])


class TestConfirmer:
    def confirm_all(self, state: StudyState, top1: dict[str, float]) -> list[PruningSchedule]:
        confirmer = Confirmer(state)
        asked = []
        while (chosen := confirmer.next()) is not None:
            state.confirm(confirmation(chosen.hash, top1.get(chosen.hash, 0.5)))
            asked.append(chosen)
        assert confirmer.left == 0
        return asked

    @given(
        points.map(lambda found: [(f, t, s, None) for f, t, s, _ in found]),
        st.lists(shares, min_size=25, max_size=25),
    )
    def test_in_the_end_the_whole_front_is_confirmed(self, given_points: list[Point], scores: list[float]) -> None:
        recorded = evaluations(given_points)
        state = StudyState(OBJECTIVES, LAYOUT, recorded)
        asked = self.confirm_all(state, {e.hash: t for e, t in zip(recorded, scores, strict=False)})
        assert len(asked) == len(set(asked))
        assert all(e.confirmed for e in state.front())
        assert bool(asked) == bool(state.front())
        assert not asked or asked[0].dense
        done = {e.hash for e in recorded if e.state == "done"}
        assert {s.hash for s in asked} <= done | {DENSE}

    def test_the_front_of_the_search_is_confirmed_whatever_the_scores(self) -> None:
        cheap, best, behind = evaluation(0, 100, 0.7), evaluation(1, 110, 0.9), evaluation(2, 120, 0.8)
        state = StudyState(OBJECTIVES, LAYOUT, [cheap, best, behind])
        asked = self.confirm_all(state, {best.hash: 0.5, cheap.hash: 0.6, DENSE: 0.97})
        assert asked == [PruningSchedule(), best.schedule, cheap.schedule]

    def test_what_is_confirmed_already_is_not_asked_for(self) -> None:
        one, other = evaluation(0, 100, 0.5), evaluation(1, 200, 0.9)
        known = replace(one, confirmed=confirmation(one.hash, 0.4))
        state = StudyState(OBJECTIVES, LAYOUT, [known, other], confirmation(DENSE, 0.97))
        assert self.confirm_all(state, {}) == [other.schedule]

    def test_what_is_under_way_or_failed_is_not_asked_for_again(self) -> None:
        confirmer = Confirmer(StudyState(OBJECTIVES, LAYOUT, [evaluation(0)]))
        assert confirmer.left == 2
        assert [confirmer.next(), confirmer.next(), confirmer.next()] == [PruningSchedule(), schedule(0), None]
        assert confirmer.left == 0

    def test_a_dense_candidate_is_confirmed_once(self) -> None:
        dense = replace(evaluation(0), schedule=PruningSchedule())
        confirmer = Confirmer(StudyState(OBJECTIVES, LAYOUT, [dense]))
        assert confirmer.left == 1
        assert confirmer.next() == PruningSchedule()
        assert confirmer.next() is None

    def test_without_evaluations_there_is_nothing_to_confirm(self) -> None:
        assert Confirmer(StudyState(OBJECTIVES, LAYOUT, [evaluation(0, state="failed")])).next() is None
