"""A search from its settings to its outcome: Ray Tune runs the candidates, the driver records them.

The store is the truth. Files of Ray and Tune are temporary, so a resume reads nothing but the store and the spool.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

from results import Evaluation
from search.config import SearchConfig
from search.driver.lease import Lease
from search.driver.memory import memory_note
from search.driver.outcome import SearchOutcome
from search.driver.patience import Patience
from search.driver.progress import SearchProgress, Snapshot
from search.driver.proposer import CandidateSource
from search.driver.records import StudyRecords
from search.driver.search_setup import check_dense, open_setup
from search.driver.searcher import Reporting, ScheduleSearcher, SearchPlan
from search.driver.spool import Spool
from search.driver.study_identity import begun_study, open_study, order_note
from search.driver.study_state import StudyState
from search.driver.tracking import Tracker, Tracking
from search.driver.trials import Timeouts
from search.driver.tune_run import run_trials
from search.runtime.ray_session import check_address
from search.runtime.scratch import scratch_folder
from search.runtime.signals import Interruption
from search.samplers.registry import make_sampler
from spaces import PruningSchedule
from spaces.errors import DatabaseError, SearchError
from spaces.published import starting_schedules
from ssm_models import model_info


def run_search(
    config: SearchConfig, url: str, progress: SearchProgress, trackers: Sequence[Tracker] = ()
) -> SearchOutcome:
    """Run or resume a study until it has `config.trials` evaluations, the time is up, or a signal comes.

    To search from Python::

        config = SearchConfig(
            model="vim_nano", data="embedded", flops_budget="0.4:0.8", trials=60, study="digits"
        )
        with SearchProgress(config.study) as progress:
            outcome = run_search(config, "sqlite:///prunefront.db", progress)

    Args:
        config: the settings.
        url: the database.
        progress: told after each trial.
        trackers: told of the start, each evaluation, and the end.

    Raises:
        UsageError, CheckpointError, DataError, StoreError: something that the settings name is wrong; nothing has
            been recorded then, but a PostgreSQL database of an earlier schema may have been upgraded.
        SearchError: too many evaluations failed in a row, or all did, or Ray failed.
    """
    if config.ray_address is not None:
        check_address(config.ray_address)  # before anything is opened or written
    with SearchSession(config, url, progress, trackers) as session:
        outcome = session.run()
    study = outcome.study
    if study.failed and not study.done and not outcome.exit_code:
        raise SearchError(
            f"study {study.name!r}: all {study.failed} evaluations failed; see `prunefront front --all`"
        )
    return outcome


class SearchSession:
    """One run of a search; a context manager.

    On entry it opens model, images and study, registers as a driver, takes in what an earlier run spooled, and tells
    the trackers. On exit it closes all of it in reverse order. Arguments and errors are those of `run_search`.
    """

    def __init__(
        self, config: SearchConfig, url: str, progress: SearchProgress, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._config, self._url, self._progress, self._trackers = config, url, progress, trackers
        self._began = time.monotonic()
        self._searcher: ScheduleSearcher | None = None  # told of signals and of a lost database

    def __enter__(self) -> Self:
        """Open everything; what was opened before an error is closed again."""
        with ExitStack() as stack:
            self._scratch = stack.enter_context(scratch_folder())
            self._interruption = stack.enter_context(Interruption(self._stop, self._remove_scratch))
            model_info(self._config.model)  # refuses a wrong name before anything is read
            begun = begun_study(self._url, self._config.study)
            setup = open_setup(self._config, begun)
            store, study, self._dense = open_study(setup, self._url)
            self._store = stack.enter_context(store)
            self._setup = setup.in_order(study.spec.order)
            if note := order_note(study, setup.order):
                self._progress.note(note)
            self._spool = stack.enter_context(closing(Spool(study, self._url)))
            self._driver = stack.enter_context(Lease(store, study)).driver
            for warning in (check_dense(self._dense, self._setup), self._memory_note()):
                if warning is not None:
                    self._progress.note(warning)
            self._spool.take_in(store, self._progress.note)
            self._study = store.study(study.name)
            self._known = store.evaluations(self._study, done_only=False)
            self._tracking = stack.enter_context(Tracking(self._trackers, self._study, self._progress.note))
            self._opened = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        self._opened.__exit__(kind, error, trace)

    def run(self) -> SearchOutcome:
        """Search, and confirm the front; what is complete already runs nothing."""
        records = self._new_records()
        self._searcher = searcher = self._new_searcher(records)
        ending, seconds = f"{len(self._known)} evaluations are recorded", 0.0
        if not searcher.complete and self._interruption.signal is None:
            seconds = run_trials(searcher, self._config, self._setup.worker_setup(self._dense), self._scratch)
            ending = searcher.ending
        try:
            study = records.study()
        except DatabaseError:
            raise records.given_up() from None
        if searcher.error is not None:
            raise searcher.error
        outcome = SearchOutcome(
            study,
            ending,
            exit_code=self._interruption.exit_code,
            evaluated=searcher.evaluated,
            overheads=searcher.trials.overheads,
            forwards=searcher.trials.forwards,
            seconds=seconds,
        )
        self._tracking.end(outcome)
        return outcome

    def _memory_note(self) -> str | None:
        return memory_note(self._config, self._setup.model, self._setup.images.images)

    def _new_records(self) -> StudyRecords:
        patience = Patience(
            self._config.db_patience,
            lost=lambda: self._halt("the database is gone"),
            hurry=lambda: self._interruption.signal is not None,
            note=self._progress.note,
        )
        last = self._known[-1] if self._known else None
        return StudyRecords(self._store, self._study, self._driver, self._spool, patience, last)

    def _new_searcher(self, records: StudyRecords) -> ScheduleSearcher:
        config, setup = self._config, self._setup
        seed = config.seed + self._driver.others  # drivers that search at the same time propose different schedules
        sampler = make_sampler(
            config.sampler,
            setup.space,
            setup.objectives,
            seed=seed,
            trials=config.trials,
            recorded=len(self._known),
        )
        sampler.restore(self._known)
        dense_score = self._store.confirmation(self._study, PruningSchedule().hash)
        race = setup.raced is not None
        return ScheduleSearcher(
            CandidateSource(setup.space, sampler, starting_schedules(setup.space), seed),
            StudyState(setup.objectives, setup.model.layout, self._known, dense_score, race=race),
            records,
            self._plan(),
            Reporting(self._observe, self._progress.note),
        )

    def _plan(self) -> SearchPlan:
        config, setup = self._config, self._setup
        timeout = config.timeout(self._dense.metrics.seconds)
        # A worker's first confirmation runs the dense model as well.
        confirmation = 2 * timeout * max(1.0, setup.confirm.images / setup.images.images)
        return SearchPlan(
            trials=config.trials,
            group=config.group,
            confirm=setup.confirm.images > 0,
            timeouts=Timeouts(timeout, confirmation),
            time_is_up=self._time_is_up,
        )

    def _time_is_up(self) -> bool:
        return self._config.seconds is not None and time.monotonic() - self._began > self._config.seconds

    def _observe(self, snapshot: Snapshot, recorded: Sequence[Evaluation]) -> None:
        self._progress.update(snapshot)
        self._tracking.observe(snapshot, recorded)

    def _halt(self, reason: str) -> None:
        if self._searcher is not None:
            self._searcher.halt(reason)

    def _stop(self) -> None:
        self._halt("a signal")
        self._progress.note("stopping: what is under way will be recorded; once more to stop at once")

    def _remove_scratch(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
