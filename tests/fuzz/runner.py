"""Runs inputs through a reader and keeps those that it neither reads nor refuses.

Input `i` of a target depends on the seed, the target and `i` alone, so that it can be made again.
"""

import faulthandler
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from spaces.errors import PrunefrontError
from tests.fuzz.targets import TARGETS, Target, check_message

MOST_SECONDS = 5.0  # of CPU, for one input
MOST_MEMORY = 2**30  # bytes by which one input may raise the process's peak
_STUCK = 120.0  # seconds after which code that holds the interpreter's lock ends the process
_ROOM = 12 * 2**30  # bytes of address space, so that no input harms the machine


class _TooSlowError(BaseException):
    """No reader catches it."""


@dataclass(frozen=True)
class Finding:
    """An input that a reader neither read nor refused.

    Attributes:
        target: its name.
        number: of the input.
        content: the input.
        problem: the traceback, or what went wrong.
    """

    target: str
    number: int
    content: bytes
    problem: str

    @property
    def place(self) -> str:
        """The last two lines, by which findings of one cause are alike."""
        return "\n".join(self.problem.strip().splitlines()[-3:])


def make_input(target: Target, seed: int, number: int) -> bytes:
    """Return an input; the first ones are the specimens themselves."""
    specimens = target.specimens()
    if number < len(specimens):
        return specimens[number]
    random = Random(f"{seed} {target.name} {number}")
    content = random.choice(specimens)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = target.mutation(random, content)
    return content


def run(target: Target, seed: int, numbers: Sequence[int]) -> Iterator[Finding]:
    """Read inputs in the current folder; yield those that fail. See `bounded` and `watched`, which callers use."""
    for number in numbers:
        content = make_input(target, seed, number)
        if problem := problem_with(target, content):
            yield Finding(target.name, number, content, problem)


def problem_with(target: Target, content: bytes) -> str | None:
    """Return what is wrong with how a reader takes an input; None if nothing is.

    An input that takes too long is read again: what a process does once, such as imports, does not count.
    """
    problem = _problem(target, content)
    return _problem(target, content) if problem and _TooSlowError.__name__ in problem else problem


def _problem(target: Target, content: bytes) -> str | None:
    peak = _peak()
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    faulthandler.dump_traceback_later(_STUCK, exit=True)
    began = time.process_time()
    try:
        target.read(content)
    except PrunefrontError as error:
        try:
            check_message(error)
        except AssertionError:
            return _trace()
    except _TooSlowError:
        return _trace()
    except Exception:
        return _trace()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        faulthandler.cancel_dump_traceback_later()
    if (seconds := time.process_time() - began) > MOST_SECONDS:
        return f"took {seconds:.1f} s"
    if (grown := _peak() - peak) > MOST_MEMORY:
        return f"needed {grown / 2**20:.0f} MiB"
    return None


def _trace() -> str:
    return "\n".join(line[:300] for line in traceback.format_exc().splitlines()[-25:])


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the process's memory, and end readers that are slow. For a process of its own."""

    def slow(number: int, frame: FrameType | None) -> None:
        raise _TooSlowError(f"more than {MOST_SECONDS:g} s")

    signal.signal(signal.SIGVTALRM, slow)
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Work in `folder`/inside; raise an AssertionError if anything beside it is changed."""
    inside = folder / "inside"
    inside.mkdir(parents=True, exist_ok=True)
    (folder / "outside").write_text("must not change")
    (folder / "outside.safetensors").write_text("must not change")
    before = _state(folder)
    os.chdir(inside)
    yield
    assert _state(folder) == before, "a file outside was changed"


def _state(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((path.name, path.read_bytes()) for path in folder.iterdir() if path.is_file())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def shares(inputs: int, names: Sequence[str]) -> dict[str, int]:
    """Return how many of all inputs each target gets."""
    total = sum(TARGETS[name].share for name in names)
    return {name: max(1, inputs * TARGETS[name].share // total) for name in names}
