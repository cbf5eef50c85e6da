"""The first signal asks for an orderly end, the second one ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.runtime.signals import Interruption
from tests.patience import PATIENCE, wait_for

GRANDCHILD = "import subprocess as s; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
PROGRAM = f"""
import subprocess, sys, time
from search.runtime.signals import Interruption
child = subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}])
with Interruption(lambda: print("first", flush=True), lambda: print("second", flush=True)):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number: signal.Signals) -> None:
    before, asked = signal.getsignal(number), []
    with Interruption(lambda: asked.append(1)) as interruption:
        assert interruption.exit_code == 0
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    assert asked == [1]
    assert (interruption.signal, interruption.exit_code) == (number, 128 + number)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_ends_the_process_and_its_descendants(first: signal.Signals, second: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(2)]
    grandchild = int(next(line for line in lines if line != "ready"))
    process.send_signal(first)
    assert process.stdout.readline() == "first\n"
    process.send_signal(second)
    assert process.wait(PATIENCE) == 128 + second
    assert process.stdout.readline() == "second\n"

    def ended() -> bool:
        try:
            stat = Path(f"/proc/{grandchild}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    wait_for(ended, "a descendant is still there")
