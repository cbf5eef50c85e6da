"""Claims, takeovers and fencing: which driver may run and record a schedule, on both databases."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from results import Evaluation, Study, StudySpec
from results.process import has_ended
from results.records import Claim, Driver
from results.store.claims import LEASE_SECONDS
from results.store.schema import DriverRow
from results.store.store import Store
from spaces import PruningSchedule
from spaces.errors import UsageError
from tests.patience import PATIENCE
from tests.results.engines import both_engines

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]

pytestmark = both_engines
VERSIONS = {"prunefront": "1"}


def planned(*texts: str) -> list[Evaluation]:
    """Return evaluations as they are known before they run."""
    return [
        Evaluation(
            PruningSchedule.parse(text), 700_000, 0.7, "running", parameters={"place": 3}, origin="nsga2",
            sampler_state={"generation": 2},
        )
        for text in texts
    ]  # fmt: skip


def age_heartbeat(database: Engine, driver: Driver, seconds: float) -> None:
    """Move a driver to another host, and its last heartbeat `seconds` into the past."""
    with database.begin() as connection:
        values = {"host": "elsewhere", "beat_at": driver.beat_at - timedelta(seconds=seconds)}
        connection.execute(update(DriverRow).where(DriverRow.id == driver.id).values(values))


def new_study(store: Store, make_spec: MakeSpec) -> tuple[Study, Driver, Driver]:
    study = store.create_study(make_spec())
    return study, store.enter(study, VERSIONS), store.enter(study, VERSIONS)


def test_only_one_driver_can_claim_a_schedule(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, first, second = new_study(store, make_spec)
    assert (first.others, second.others) == (0, 1)
    plan = planned("1:0.5", "2:0.5")
    mine = store.claim(study, first, plan, 40)
    assert mine == {e.hash: Claim(first.id, 1) for e in plan}
    assert store.claim(study, first, plan, 40) == mine, "claiming again returns the same claims"
    assert store.claim(study, second, [*plan, *planned("3:0.5")], 40).keys() == {planned("3:0.5")[0].hash}
    found = store.evaluations(study, done_only=False, unfinished=True)
    assert [(e.schedule.text, e.state) for e in found] == [
        ("1:0.5", "running"),
        ("2:0.5", "running"),
        ("3:0.5", "running"),
    ]
    assert store.evaluations(study, done_only=False) == store.front(study) == []
    assert (store.study(study.name).running, store.study(study.name).done) == (3, 0)
    done = make_evaluation("1:0.5")
    assert store.record(study, done, mine[done.hash])
    assert store.record(study, done, mine[done.hash]), "recording again under the same claim is fine"
    assert not store.record(study, replace(done, top1=0.1), Claim(second.id, 1))
    assert not store.record(study, make_evaluation("2:0.5")), "another driver is running it"
    assert store.claim(study, second, plan, 40) == {}
    (kept,) = store.evaluations(study)
    assert (kept.number, kept.top1, kept.attempts) == (0, 0.9, 1)


def test_the_total_is_never_exceeded(store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    study, first, second = new_study(store, make_spec)
    store.record(study, make_evaluation("9:0.5"))
    mine = store.claim(study, first, planned("1:0.5", "2:0.5"), 4)
    theirs = store.claim(study, second, planned("3:0.5", "4:0.5", "5:0.5"), 4)
    assert list(theirs) == [planned("3:0.5")[0].hash], "the first ones, as far as there is room"
    store.leave(study, first)
    assert len(mine) == len(store.take_over(study, second, 9, 4, theirs)) == 2
    assert store.claim(study, second, planned("6:0.5"), 4) == {}


def test_released_schedules_are_queued_unchanged(store: Store, make_spec: MakeSpec) -> None:
    study, first, second = new_study(store, make_spec)
    (plan,) = planned("1:0.5")
    store.claim(study, first, [plan], 40)
    assert store.take_over(study, second, 9, 40) == {}, "its driver is alive"
    news = store.news(study, second, -1)
    assert (news.finished, news.elsewhere, news.waiting) == ([], 1, 0)
    store.leave(study, first)
    news = store.news(study, second, -1)
    assert (news.elsewhere, news.waiting, store.study(study.name).queued) == (0, 1, 1)
    ((taken, claim),) = store.take_over(study, second, 9, 40).values()
    assert claim == Claim(second.id, 2)
    assert taken == replace(plan, state="queued", number=-1)
    assert [driver.left_at is None for driver in store.drivers(study)] == [False, True]


def test_a_driver_whose_lease_ran_out_can_keep_its_schedules(
    store: Store, database: Engine, make_spec: MakeSpec
) -> None:
    study, silent, _ = new_study(store, make_spec)
    held = store.claim(study, silent, planned("1:0.5", "2:0.5"), 40)
    age_heartbeat(database, silent, LEASE_SECONDS + 10)
    assert store.take_over(study, silent, 9, 40, held) == {}
    assert list(store.claim(study, silent, planned("3:0.5"), 40).values()) == [Claim(silent.id, 1)]
    assert [e.state for e in store.evaluations(study, done_only=False, unfinished=True)] == ["running"] * 3


def test_a_late_record_cannot_overwrite_the_new_owner(
    store: Store, database: Engine, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, old, new = new_study(store, make_spec)
    plan = planned("1:0.5", "2:0.5")
    held = store.claim(study, old, plan, 40)
    age_heartbeat(database, old, LEASE_SECONDS - 10)
    assert store.take_over(study, new, 9, 40) == {}, "its lease has not run out"
    age_heartbeat(database, old, LEASE_SECONDS + 10)
    taken = store.take_over(study, new, 1, 40)
    first, second = (make_evaluation(e.schedule.text, top1=0.1) for e in plan)
    assert list(taken) == [first.hash], "the earliest claim first"
    assert not store.record(study, first, held[first.hash]), "another driver runs it"
    assert not store.record(study, second, held[second.hash]), "it is queued"
    assert store.retry(study, first.hash, held[first.hash]) is None
    better = replace(first, top1=0.8)
    assert store.record(study, better, taken[first.hash][1])
    assert not store.record(study, first, held[first.hash]), "it is done"
    assert [(e.top1, e.attempts) for e in store.evaluations(study)] == [(0.8, 2)]
    store.beat(old)
    assert store.claim(study, old, plan, 40).keys() == {second.hash}, "the driver may continue with other schedules"


def test_schedules_of_an_ended_process_are_available_at_once(store: Store, make_spec: MakeSpec, url: str) -> None:
    study = store.create_study(make_spec())
    code = (
        "import os, signal, sys\n"
        "from results import Evaluation\n"
        "from results.store import Store\n"
        "from spaces import PruningSchedule\n"
        "store = Store.open(sys.argv[1])\n"
        "study = store.study('digits')\n"
        "driver = store.enter(study, {})\n"
        "store.claim(study, driver, [Evaluation(PruningSchedule.parse('1:0.5'), 1, 0.1, 'running')], 40)\n"
        "print(driver.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert killed.stdout.readline().strip() == str(killed.pid)
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # wait for its end, but do not reap it
    driver = store.enter(study, VERSIONS)
    taken = store.take_over(study, driver, 9, 40)
    assert [e.schedule.text for e, _ in taken.values()] == ["1:0.5"]
    killed.wait()
    assert has_ended(store.drivers(study)[0].process)


def test_a_lost_worker_starts_another_attempt(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, driver, _ = new_study(store, make_spec)
    done = make_evaluation("1:0.5")
    held = store.claim(study, driver, planned("1:0.5"), 40)[done.hash]
    again = store.retry(study, done.hash, held)
    assert again == Claim(driver.id, 2)
    assert not store.record(study, done, held)
    assert store.record(study, done, again)
    assert store.evaluations(study)[0].attempts == 2


def test_a_claim_that_its_driver_does_not_know_is_found_again(store: Store, make_spec: MakeSpec) -> None:
    study, driver, _ = new_study(store, make_spec)
    (plan,) = planned("1:0.5")
    held = store.claim(study, driver, [plan], 1)
    assert store.news(study, driver, -1, held).waiting == 0
    assert store.news(study, driver, -1).waiting == 1
    assert store.take_over(study, driver, 9, 1, held) == {}
    assert {h: claim for h, (_, claim) in store.take_over(study, driver, 9, 1).items()} == held


def test_recording_without_a_claim_needs_an_unclaimed_schedule(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, driver, _ = new_study(store, make_spec)
    store.claim(study, driver, planned("1:0.5", "2:0.5"), 40)
    assert not store.record(study, make_evaluation("1:0.5"))
    store.leave(study, driver)
    assert store.record(study, make_evaluation("1:0.5"))
    assert [e.state for e in store.evaluations(study, unfinished=True)] == ["done", "queued"]


def test_a_running_evaluation_cannot_be_finetuned_or_confirmed(store: Store, make_spec: MakeSpec) -> None:
    from tests.results.store.test_store import make_confirmation, make_finetune

    study, driver, _ = new_study(store, make_spec)
    (plan,) = planned("1:0.5")
    store.claim(study, driver, [plan], 40)
    with pytest.raises(UsageError, match="no evaluation of it"):
        store.record_finetune(study, make_finetune(plan.hash))
    with pytest.raises(UsageError, match="no finished evaluation of it"):
        store.confirm(study, make_confirmation(plan.hash))


def test_news_contains_what_finished_since(
    store: Store, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    study, first, second = new_study(store, make_spec)
    held = store.claim(study, first, planned("1:0.5", "2:0.5", "3:0.5"), 40)
    ends = [make_evaluation("2:0.5"), make_evaluation("1:0.5", top1=None, state="failed", failure="OOM")]
    for end in ends:
        store.record(study, end, held[end.hash])
    news = store.news(study, second, -1)
    assert [(e.schedule.text, e.state, e.number) for e in news.finished] == [
        ("2:0.5", "done", 0),
        ("1:0.5", "failed", 1),
    ]
    assert (news.elsewhere, store.news(study, second, 0).finished) == (1, news.finished[1:])
    assert store.news(study, second, 1).finished == []


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)), max_size=25))
def test_no_evaluation_is_duplicated_lost_or_beyond_the_total(
    store: Store,
    database: Engine,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    steps: list[tuple[int, int, int]],
) -> None:
    trials = 5
    study = store.create_study(make_spec(name=f"study {len(store.studies())}"))
    drivers = [store.enter(study, VERSIONS) for _ in range(3)]
    held: list[dict[str, Claim]] = [{} for _ in drivers]
    texts = {PruningSchedule.parse(f"{i + 1}:0.5").hash: f"{i + 1}:0.5" for i in range(6)}
    written: dict[str, float] = {}
    for number, (who, which, action) in enumerate(steps):
        driver, mine = drivers[who], held[who]
        if action == 0:
            mine |= store.claim(study, driver, planned(list(texts.values())[which]), trials)
        elif action == 1:
            mine |= {h: claim for h, (_, claim) in store.take_over(study, driver, 2, trials, mine).items()}
        elif action == 2:
            age_heartbeat(database, driver, LEASE_SECONDS + 10)
        for schedule_hash in list(mine) if action == 3 else ():
            end = make_evaluation(texts[schedule_hash], top1=number / 100)
            if store.record(study, end, mine.pop(schedule_hash)):
                assert schedule_hash not in written, "it was written twice"
                written[schedule_hash] = number / 100
        found = store.evaluations(study, done_only=False, unfinished=True)
        assert len({e.hash for e in found}) == len(found)
        assert sum(e.state != "queued" for e in found) <= trials
    assert {e.hash: e.top1 for e in store.evaluations(study)} == written
    assert [e.number for e in store.evaluations(study)] == list(range(len(written)))


def _drive(url: str, seed: int, trials: int, start: Any, answers: Any) -> None:
    """Search like a driver, with made-up results, and report which schedules were run."""
    try:
        ran: list[str] = []
        chance = random.Random(seed)
        with Store.open(url) as store:
            study = store.study("digits")
            driver = store.enter(study, {})
            start.wait()
            while store.news(study, driver, -1).finished[trials - 1 :] == []:
                texts = [f"{chance.randint(1, 11)}:{chance.randint(1, 9) / 10}" for _ in range(4)]
                claims = store.claim(study, driver, planned(*texts), trials)
                if not ran:
                    start.wait()  # both have claimed something before either goes on
                for schedule_hash, claim in claims.items():
                    text = next(t for t in texts if PruningSchedule.parse(t).hash == schedule_hash)
                    ran.append(text)
                    end = Evaluation(PruningSchedule.parse(text), chance.randint(1, 9), 0.5, top1=0.5, loss=1.0)
                    assert store.record(study, end, claim)
            store.leave(study, driver)
        answers.put(json.dumps(ran))
    except Exception as error:
        answers.put(json.dumps(repr(error)))


def test_concurrent_drivers_reach_the_total_and_run_nothing_twice(
    store: Store, make_spec: MakeSpec, url: str
) -> None:
    study, trials = store.create_study(make_spec()), 30
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2, timeout=PATIENCE), context.Queue()
    drivers = [context.Process(target=_drive, args=(url, seed, trials, start, answers)) for seed in (1, 2)]
    for driver in drivers:
        driver.start()
    ran = [json.loads(answers.get(timeout=PATIENCE)) for _ in drivers]
    for driver in drivers:
        driver.join(timeout=PATIENCE)
    assert all(isinstance(texts, list) and texts for texts in ran), ran
    assert len(ran[0]) + len(ran[1]) == len({*ran[0], *ran[1]}) == trials
    assert [e.number for e in store.evaluations(study)] == list(range(trials))
