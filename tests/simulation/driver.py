"""A driver of a simulated world: the real session's parts, with Tune's loop and its workers simulated."""

from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from results import Evaluation
from results.process import Process
from results.store.store import Store
from search.driver.lease import Lease
from search.driver.patience import Patience
from search.driver.progress import Snapshot
from search.driver.proposer import CandidateSource
from search.driver.records import StudyRecords
from search.driver.searcher import Reporting, ScheduleSearcher, SearchPlan
from search.driver.spool import Spool
from search.driver.study_state import StudyState
from search.driver.trials import Timeouts
from search.evaluation.protocol import Failure
from search.runtime.watchdog import TrialTimeout
from search.samplers.registry import make_sampler
from spaces import PruningSchedule
from spaces.errors import DatabaseError
from tests.search import fakes
from tests.simulation import invariants
from tests.simulation.faults import Killed

if TYPE_CHECKING:
    from tests.simulation.world import World

POLL = 10.0  # seconds until a driver that waits asks again
TICK = 1.0  # seconds between two looks for overdue trials
NO_THREAD = 1e6  # seconds: the lease's own thread never beats, the world does
LIMIT = 6.0  # seconds of a candidate's time, at the pace of 1
OPENED, SEARCHING, ENDED, DEAD = "opened", "searching", "ended", "dead"


class SimulatedDriver:
    """One process that searches the study.

    Attributes:
        process: its identity.
        state: `OPENED`, `SEARCHING`, `ENDED` or `DEAD`.
        busy, beating: whether its main thread, or that of its heartbeat, is in a call.
        doomed: whether it is killed as soon as it acts again.
        suspended_until: it does nothing before that time.
        beat_at: when its heartbeat was last written, by the database's clock.
        complete: whether its study was complete when it ended.
        error: what it ended with.
    """

    def __init__(self, world: "World", name: str, host: str, workers: int) -> None:
        self.world, self.name, self._workers = world, name, workers
        self.process = Process(host, 1 + len(world.drivers), "0")
        self.state = OPENED
        self.busy = self.beating = self.doomed = self.signalled = False
        self.suspended_until = self.beat_at = 0.0
        self.complete = False
        self.error: Exception | None = None
        self.tasks: dict[str, dict[str, Any]] = {}  # in flight
        self.connections: dict[int, Any] = {}  # to the database, that it has used
        self.started: dict[str, tuple[float, str]] = {}  # when each task was given out, and its kind
        self.heard_at: dict[str, float] = {}  # when the first word of each came
        self._inbox: list[tuple[str, dict[str, Any] | None]] = []
        self._finished, self._changed, self._asked_at, self._count = False, True, 0.0, 0

    def __repr__(self) -> str:
        return self.name

    @property
    def over(self) -> bool:
        """Whether it is dead or has ended."""
        return self.state in (ENDED, DEAD)

    def hashes(self) -> list[str]:
        """Return the schedules that its workers are evaluating."""
        return [
            PruningSchedule.parse(text).hash
            for task in self.tasks.values()
            if task["task"] != "confirm"
            for text in task["schedules"]
        ]

    # --- the session ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Do what `SearchSession` does on entry."""
        world = self.world
        self.store = Store.open(world.url)
        study = self.store.study("s")
        self.spool = Spool(study, world.url)
        self.lease = Lease(self.store, study, every=NO_THREAD).__enter__()
        self.beat_at = world.database_time
        self.spool.take_in(self.store, self._note)
        invariants.check_spools(world, self.store, study)
        self.study = self.store.study("s")
        known = self.store.evaluations(self.study, done_only=False)
        invariants.check_resumable(world, known)
        patience = Patience(
            world.patience,
            lost=lambda: self.searcher.halt("the database is gone"),
            hurry=lambda: self.signalled,
            note=self._note,
            sleep=world.sleep,
            clock=lambda: world.now,
            chance=world.chance,
        )
        last = known[-1] if known else None
        self.records = StudyRecords(self.store, self.study, self.lease.driver, self.spool, patience, last)
        self.searcher = self._searcher(known)
        self.watchdog = TrialTimeout(self.searcher.trials, clock=lambda: world.now, kill=self._kill_worker)
        self.state = SEARCHING
        if self.searcher.complete:
            self._finished = True

    def _searcher(self, known: list[Evaluation]) -> ScheduleSearcher:
        world = self.world
        seed, limit = world.seed + self.lease.driver.others, LIMIT * world.pace
        sampler = make_sampler(
            world.sampler, world.space, fakes.OBJECTIVES, seed=seed, trials=world.trials, recorded=len(known)
        )
        sampler.restore(known)
        dense = self.store.confirmation(self.study, PruningSchedule().hash)
        return ScheduleSearcher(
            CandidateSource(world.space, sampler, world.starts, seed),
            StudyState(fakes.OBJECTIVES, fakes.LAYOUT, known, dense),
            self.records,
            SearchPlan(world.trials, world.group, world.confirms, Timeouts(limit, 2 * limit)),
            Reporting(self._observe, self._note),
        )

    def stop(self) -> None:
        """Take a signal."""
        self.signalled = True
        if self.state == SEARCHING:
            self.searcher.halt("a signal")

    def step(self) -> float | None:
        """Take a step of Tune's loop; return when the next one is due, in seconds, or None at the end."""
        searcher = self.searcher
        self.watchdog.on_step_begin(0, [])  # before it hears of anything, as Tune does
        inbox, self._inbox = self._inbox, []
        for trial_id, result in inbox:
            self.world.log(f"{self} hears of {trial_id}: {'death' if result is None else 'results'}")
            self.tasks.pop(trial_id, None)
            trial: Any = SimpleNamespace(trial_id=trial_id)
            (self.watchdog.on_trial_error if result is None else self.watchdog.on_trial_complete)(0, [], trial)
            searcher.on_trial_complete(trial_id, result, error=result is None)
            self._changed = True
        if self._changed or self.world.now - self._asked_at >= POLL:
            self._ask()
        if self._finished and not self.tasks:
            self._end()
            return None
        return TICK

    def _ask(self) -> None:
        self._changed, self._asked_at = False, self.world.now
        while not self._finished and len(self.tasks) < self._workers:
            self._count += 1
            trial_id = f"{self.name}.{self._count}"
            task = self.searcher.suggest(trial_id)
            if not isinstance(task, dict):
                self._finished = task is not None
                return
            self.world.handed_out(self, trial_id, task)
            self.tasks[trial_id] = task
            self.started[trial_id] = (self.world.now, task["task"])
            trial: Any = SimpleNamespace(trial_id=trial_id, temporary_state=SimpleNamespace(ray_actor=trial_id))
            self.watchdog.on_trial_start(0, [], trial)
            self.world.work(self, trial_id, task)

    def hear(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Take what a worker reports; None if it died."""
        self._inbox.append((trial_id, result))
        self.heard_at.setdefault(trial_id, self.world.now)

    def _kill_worker(self, trial_id: Any) -> None:
        self.world.log(f"{self} kills the worker of {trial_id}")
        if self.started[trial_id][1] == "search":
            answered = any(heard == trial_id and result is not None for heard, result in self._inbox)
            invariants.check_kill(self.world, self, trial_id, answered)
        self.world.at(self.world.chance.uniform(0, 2), lambda: self.hear(trial_id, None))

    def beat(self) -> None:
        """Send a heartbeat, as the lease's thread does."""
        self.lease.beat()

    def _end(self) -> None:
        """Do what `SearchSession` does in the end."""
        try:
            self.records.study()
        except DatabaseError:
            self.error = self.records.given_up()
        self.error = self.error or self.searcher.error
        self.complete = self.error is None and self.searcher.complete
        self.close()
        self.state = ENDED

    def close(self) -> None:
        """Do what `SearchSession` does on exit."""
        if hasattr(self, "spool"):
            self.spool.close()
        try:
            if hasattr(self, "lease"):
                self.lease.__exit__(None, None, None)
        finally:
            if hasattr(self, "store"):
                self.store.close()

    def die(self) -> None:
        """Leave behind what a process leaves that is killed: its files are closed, and nothing is told to anybody."""
        self.state = DEAD
        self.tasks.clear()
        with suppress(Killed):
            self.close()
        self.disconnect()

    def disconnect(self) -> None:
        """End the transactions that are under way, as a database does when a process is gone."""
        for connection in self.connections.values():
            with suppress(Exception):  # it is closed
                connection.rollback()

    def fail(self, error: Exception) -> None:
        """End with an error of the session's start."""
        self.error, self.state = error, ENDED
        try:
            self.close()
        except Killed:
            self.die()

    def _observe(self, snapshot: Snapshot, recorded: Any) -> None:
        for evaluation in recorded:
            if evaluation.number >= 0:
                self.world.acknowledged[evaluation.hash] = evaluation
            elif not self.spool.lost:
                self.world.spooled[evaluation.hash] = evaluation
                assert self.spool.path is not None
                self.world.spool_files.setdefault(self.spool.path, set()).add(evaluation.hash)

    def _note(self, text: str) -> None:
        self.world.log(f"{self}: {text}")


def spoilt(results: dict[str, Any], index: int) -> dict[str, Any]:
    """Return results of which one is a failure."""
    found = list(results["results"])
    found[index % len(found)] = Failure("OOM", "OutOfMemoryError: full", 0.1)
    return {"results": found}
