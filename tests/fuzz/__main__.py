"""`python -m tests.fuzz`: run many inputs, or one again.

    python -m tests.fuzz --inputs 1000000                      what `make fuzz` runs
    python -m tests.fuzz --target image --seed 3 --number 17   one input again
    python -m tests.fuzz --target image --guided               by coverage, if atheris is installed

The exit code is 1 if a reader neither read nor refused an input.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import search  # noqa: F401  (before torch)
from tests.fuzz.guided import guide
from tests.fuzz.runner import Finding, bounded, make_input, problem_with, run, shares, watched
from tests.fuzz.targets import TARGETS

_SHOWN = 3  # findings of one cause


def main() -> int:
    """Parse the options, run the inputs, print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many, over all targets")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="run this input of one target alone")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--save", type=Path, help="folder for inputs that fail")
    parser.add_argument("--guided", action="store_true", help="let atheris guide the mutations of one target")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    save = options.save.absolute() if options.save else None
    with tempfile.TemporaryDirectory() as folder, bounded(), watched(Path(folder)):
        if options.guided:
            return guide(TARGETS[names[0]], options.inputs)
        if options.number is not None:
            content = make_input(TARGETS[names[0]], options.seed, options.number)
            problem = problem_with(TARGETS[names[0]], content)
            print(f"{content[:2000]!r}\n{problem or 'read or refused'}")
            return int(problem is not None)
        found, ran = _run_all(options, names)
    for finding in found if save else ():
        assert save is not None
        save.mkdir(parents=True, exist_ok=True)
        (save / f"{finding.target}.{options.seed}.{finding.number}").write_bytes(finding.content)
    print(json.dumps({"seed": options.seed, "inputs": sum(ran.values()), "found": len(found), "by_target": ran}))
    return int(bool(found))


def _run_all(options: argparse.Namespace, names: list[str]) -> tuple[list[Finding], dict[str, int]]:
    """Run each target's share; print each cause a few times. Return what was found, and how many ran."""
    found: list[Finding] = []
    causes: Counter[str] = Counter()
    ran: dict[str, int] = {}
    began = time.monotonic()
    for name, count in shares(options.inputs, names).items():
        target, start, size = TARGETS[name], time.process_time(), 0
        for first in range(0, count, 200):
            if options.seconds and time.monotonic() - began > options.seconds:
                break
            numbers = range(first, min(count, first + 200))
            try:
                findings = list(run(target, options.seed, numbers))
            except Exception:  # of a mutation or a specimen: a fault of the tests
                traceback.print_exc()
                raise SystemExit(f"{name}: inputs {numbers} could not be made") from None
            size += len(numbers)
            for finding in findings:
                found.append(finding)
                causes[finding.place] += 1
                if causes[finding.place] <= _SHOWN:
                    print(f"== {name} --seed {options.seed} --number {finding.number}\n{finding.problem}", flush=True)
        ran[name] = size
        seconds = time.process_time() - start
        print(f"{name}: {size} inputs, {seconds:.1f} s, {1000 * seconds / max(1, size):.2f} ms each", file=sys.stderr)
    return found, ran


sys.exit(main())
