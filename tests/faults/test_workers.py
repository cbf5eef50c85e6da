"""Workers that die, hang and run out of memory in one search, whose other evaluations are not affected."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.config import SearchConfig
from search.driver.search_setup import open_setup
from spaces.published import starting_schedules
from tests.faults.processes import PATIENCE, arguments, evaluations, interrupted, running, wait_until

PROGRAM = str(Path(__file__).with_name("faulty_worker.py"))
KINDS = {"dies": "KILLED", "grows": "OOM", "hangs": "TIMEOUT", "nan": "NONFINITE", "halves": None}


@pytest.mark.slow
def test_each_faulty_schedule_fails_by_its_kind_and_the_others_are_done(tmp_path: Path) -> None:
    """Then one SIGINT: what is in flight is recorded, and no process is left."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    budget = SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.9", trials=8)
    starts = [schedule.text for schedule in starting_schedules(open_setup(budget).space)]
    faulty = dict(zip(starts, KINDS, strict=False))
    command = [PROGRAM, *arguments(url, 1000, "--group", "1", "--trial-timeout", "45s")]
    with running(command, tmp_path, FAULTS=json.dumps(faulty)) as (process, err):
        wait_until(lambda: set(faulty) <= {e.schedule.text for e in evaluations(url)}, process, err)
        before = len(evaluations(url))
        assert interrupted(process, signal.SIGINT) == 130
    said = err.read_text()
    assert "what is under way will be recorded" in said
    assert "Traceback" not in said
    assert "took too long; it runs again" in said
    assert "died; it runs again" in said
    recorded = evaluations(url)
    assert len(recorded) >= before
    assert len({e.hash for e in recorded}) == len(recorded)
    expected = {text: KINDS[kind] for text, kind in faulty.items()}
    assert {e.schedule.text: e.failure for e in recorded if e.schedule.text in faulty} == expected
    assert {e.failure for e in recorded if e.schedule.text not in faulty} == {None}


LIMITED = """
import resource, sys
import search, torch
from search.config import SearchConfig
from search.driver.search_setup import open_setup
from search.evaluation.evaluator import Evaluator
from spaces import PruningSchedule
torch.set_num_threads(1)
setup = open_setup(SearchConfig(model="vim_nano", study="s", data="embedded", flops_budget="0.9", trials=1))
def evaluator(batch):
    batches = setup.data.batches(setup.model.pretrained_cfg, setup.model.img_size, images=600, batch_size=batch)
    return Evaluator(setup.model, list(batches))
schedule = PruningSchedule.parse("3:0.7")
expected = evaluator(20).evaluate(schedule)
large = evaluator(600)
sizes = []
embed = setup.model.embed
setup.model.embed = lambda images: (sizes.append(len(images)), embed(images))[1]
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 40 * 2**20, resource.RLIM_INFINITY))
found = large.evaluate(schedule)
assert found.images == 600
assert found.outcomes.tolist() == expected.outcomes.tolist()
assert max(sizes) == 600 and min(sizes) < 600, sizes
print("halved to", min(sizes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_batch_that_memory_does_not_hold_is_halved_and_gives_the_same_outcomes(tmp_path: Path) -> None:
    """The limit is a real one on the process's memory, which torch's allocator and the compiled scan both reach."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("halved to ")
