"""A driver that is killed again and again: what a resume finds, and what it costs.

Starts `search` on the embedded digits, kills it with SIGKILL after a random time, resumes it, and so on; then lets it
finish. After each round no recorded evaluation may be missing or doubled, and the database must be intact. In the end
there are exactly N evaluations, for which at most 1.5 N were begun.

    python benchmarks/faults.py --rounds 20 --seed 0
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

SETTINGS = ("--model", "vim_nano", "--data", "embedded", "--images", "40", "--batch-size", "10", "--workers", "2")
MOST = 1.5  # times N: evaluations that may be begun


def main() -> None:
    """Run the rounds and print a line for each; exit with 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds to the kill")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = play(Path(folder), given.rounds, given.trials, random.Random(given.seed), given.longest)
    for line in wrong:
        print(f"WRONG: {line}")
    sys.exit(bool(wrong))


def play(folder: Path, rounds: int, trials: int, chance: random.Random, longest: float) -> list[str]:
    """Return what did not hold."""
    database, log = folder / "s.db", folder / "begun"
    wrong: list[str] = []
    known: list[str] = []
    print("| round | killed | recorded | begun | lost | twice | integrity |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number in range(1, rounds + 2):
        last = number == rounds + 1
        process = start(database, log, trials, folder)
        when = "at the end" if last else wait(process, database, len(known), chance, longest)
        if last:
            process.wait()
        elif process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            when = "had ended"
        if last and process.returncode != 0:
            wrong.append(f"the last run ended with {process.returncode}: {(folder / 'stderr').read_text()[-500:]}")
        hashes, whole = read(database)
        begun = len(log.read_text().splitlines()) if log.exists() else 0
        lost = len(set(known) - set(hashes))
        twice = len(hashes) - len(set(hashes))
        if lost or twice or whole != "ok" or hashes[: len(known)] != known or len(hashes) > trials:
            wrong.append(f"round {number}: {lost} lost, {twice} twice, {len(hashes)} of {trials}, integrity {whole}")
        known = hashes
        name = "–" if last else str(number)
        print(f"| {name} | {when} | {len(hashes)} | {begun} | {lost} | {twice} | {whole} |", flush=True)
    if len(known) != trials:
        wrong.append(f"{len(known)} evaluations, not {trials}")
    if begun > MOST * trials:
        wrong.append(f"{begun} evaluations begun, more than {MOST} × {trials}")
    print(f"\n{rounds} kills, {len(known)} of {trials} recorded, {begun} begun: {begun / trials:.2f} × N")
    left = list(scratch(folder).glob("prunefront-*"))
    if left:
        wrong.append(f"folders are left: {left}")
    return wrong


def start(database: Path, log: Path, trials: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start or resume the search; its workers write into `log` what they begin."""
    arguments = ["search", *SETTINGS, "--flops-budget", "0.9", "--trials", str(trials), "--study", "s"]
    arguments += ["--db", f"sqlite:///{database}", "--confirm-images", "0", "--format", "json"]
    with (folder / "stderr").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, __file__, "--drive", *arguments],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=err,
            env=os.environ | {"BEGUN": str(log), "TMPDIR": str(scratch(folder)), "RAY_worker_niceness": "0"},
        )  # fmt: skip


def scratch(folder: Path) -> Path:
    """Return where the drivers make their temporary folders: one of the benchmark's own."""
    made = folder / "tmp"
    made.mkdir(exist_ok=True)
    return made


def wait(
    process: "subprocess.Popen[bytes]", database: Path, known: int, chance: random.Random, longest: float
) -> str:
    """Wait for a random time: one round in five within the start, else after the first new evaluation."""
    began = time.monotonic()
    early = chance.random() < 0.2
    seconds = chance.uniform(0.0, longest)
    while not early and process.poll() is None and len(read(database)[0]) <= known:
        time.sleep(0.05)
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return f"{'in its start, ' if early else ''}after {time.monotonic() - began:.1f} s"


def read(database: Path) -> tuple[list[str], str]:
    """Return the hashes of what is recorded, in order, and what SQLite says of the file."""
    if not database.exists():
        return [], "ok"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=60)) as connection:
        states = "('done', 'failed', 'stopped')"
        rows = connection.execute(f"SELECT schedule_hash FROM evaluations WHERE state IN {states} ORDER BY number")
        return [row[0] for row in rows], connection.execute("PRAGMA integrity_check").fetchone()[0]


def drive(arguments: list[str]) -> int:
    """Run the command line with workers that write down what they begin."""
    from search import cli
    from search.driver import tune_run
    from search.evaluation import worker

    log = os.environ["BEGUN"]

    class Counted(worker.EvaluationTrainable):
        def step(self) -> dict[str, Any]:
            with Path(log).open("a") as file:
                file.write("".join(f"{json.dumps(text)}\n" for text in self.task["schedules"]))
            return super().step()

    vars(tune_run)["EvaluationTrainable"] = Counted
    return cli.run(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        sys.exit(drive(sys.argv[2:]))
    main()
