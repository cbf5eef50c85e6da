"""What must hold, whatever goes wrong."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Evaluation, Study
from results.records import FINISHED
from results.store import claims
from results.store.store import Store
from search.driver.study_state import StudyState
from spaces import PruningSchedule
from spaces.errors import PrunefrontError
from tests.search import fakes

if TYPE_CHECKING:
    from tests.simulation.driver import SimulatedDriver
    from tests.simulation.world import World


def finished(path: Path) -> set[str]:
    """Return the schedules that have a result."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT schedule_hash FROM evaluations WHERE number >= 0"
        return {schedule_hash for (schedule_hash,) in connection.execute(query)}


def check_task(world: "World", driver: "SimulatedDriver", task: dict[str, Any]) -> None:
    """Check that a driver runs nothing that another one runs, unless that one's lease ran out."""
    if task["task"] == "confirm":
        return
    for text in task["schedules"]:
        schedule_hash = PruningSchedule.parse(text).hash
        world.runs[schedule_hash] += 1
        assert schedule_hash not in driver.hashes(), f"{driver} runs {text} twice at once"
        for other in world.drivers:
            gone = other is driver or other.over or other.doomed or world.failovers
            if gone or schedule_hash not in other.hashes():
                continue
            silent = world.database_time - other.beat_at
            assert silent > claims.LEASE_SECONDS, f"{driver} runs {text} while {other} does, heard {silent:.0f} s ago"


def check_kill(world: "World", driver: "SimulatedDriver", trial_id: str, answered: bool) -> None:
    """Check that a driver that was held up itself does not kill a worker that has answered in time."""
    begun, _ = driver.started[trial_id]
    limit = driver.searcher.trials.time_limit(trial_id)
    assert limit is not None
    if answered:
        seconds = driver.heard_at[trial_id] - begun
        assert seconds > limit - 2, f"{driver} kills the worker of {trial_id}, which answered after {seconds:.0f} s"


def check_spools(world: "World", store: Store, study: Study) -> None:
    """Check that a spool that is gone left all its results in the database."""
    for path in [path for path in world.spool_files if not path.exists()]:
        for schedule_hash in world.spool_files.pop(path):
            known = store.evaluation(study, schedule_hash)
            there = known is not None and known.state in FINISHED
            assert there or world.failovers, f"{path.name} is gone with the result of {schedule_hash}"


def check_error(driver: "SimulatedDriver") -> None:
    """Check that a driver ended with a line for its user, if with an error."""
    error = driver.error
    assert error is None or isinstance(error, PrunefrontError), f"{driver} ended with {error!r}"


def check_resumable(world: "World", known: list[Evaluation]) -> None:
    """Check what a driver finds when it starts."""
    numbers = [evaluation.number for evaluation in known]
    assert numbers == list(range(len(known))), f"the numbers are {numbers}"
    assert len(known) <= world.trials, f"{len(known)} evaluations of {world.trials}"


def check_end(world: "World") -> None:
    """Check the study when it is complete and nobody searches it."""
    with Store.open(world.url) as store:
        study = store.study("s")
        found = store.evaluations(study, done_only=False)
        # Some may be queued, if others were claimed before that.
        assert study.running == 0, f"{study.running} are still claimed"
        assert len(found) == world.trials, f"{len(found)} evaluations of {world.trials}"
        check_resumable(world, found)
        by_hash = {evaluation.hash: evaluation for evaluation in found}
        for kind, results in (("acknowledged", world.acknowledged), ("spooled", world.spooled)):
            for schedule_hash, evaluation in results.items():
                assert schedule_hash in by_hash, f"{evaluation.schedule.text} was {kind} and is lost"
        for schedule_hash, evaluation in world.acknowledged.items():
            there = by_hash[schedule_hash]
            said = (evaluation.number, evaluation.state, evaluation.top1, evaluation.attempts)
            assert said == (there.number, there.state, there.top1, there.attempts), f"{said} is now {there}"
        if not world.failovers:
            _check_runs(world, {e.hash: e for e in store.evaluations(study, done_only=False, unfinished=True)})
        dense = store.confirmation(study, PruningSchedule().hash)
        state = StudyState(fakes.OBJECTIVES, fakes.LAYOUT, found, dense)
        assert len({state.computation(evaluation.schedule) for evaluation in found}) == len(found)
        front = store.front(study)
        assert {e.hash for e in front} == {e.hash for e in state.front()}, "the stored front is not the pure one"
        unconfirmed = [evaluation.schedule.text for evaluation in front if evaluation.confirmed is None]
        if world.confirms:
            assert not unconfirmed, f"{unconfirmed} are on the front and not confirmed"
            assert dense is not None or not front
        confirmed = sum(evaluation.confirmed is not None for evaluation in found if evaluation.state == "done")
        assert study.confirmed == confirmed + (dense is not None), "a score is confirmed of nothing that stands"


def _check_runs(world: "World", found: dict[str, Evaluation]) -> None:
    """Check that every run was counted as an attempt."""
    for schedule_hash, runs in world.runs.items():
        attempts = found[schedule_hash].attempts
        assert runs <= attempts, f"{found[schedule_hash].schedule.text} ran {runs} times in {attempts} attempts"
