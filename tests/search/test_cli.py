"""What the commands print, and where: data on stdout, all else on stderr."""

import csv
import html
import io
import json
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas
import pytest

import ssm_models
from results import Confirmation, Evaluation
from results.intervals import wilson_interval
from results.store.store import Store
from search.cli import run
from search.commands.inspecting import cheapest_good_point
from search.config import SearchConfig
from search.data.image_order import SHUFFLED
from search.driver.search_setup import open_setup
from spaces import PruningSchedule
from tests.patience import PATIENCE
from tests.search.conftest import fill
from tests.search.pictures import write_folder

FRONT_KEYS = [
    "schedule", "hash", "top1", "loss", "flops", "flops_ratio", "images", "latency_ms", "finetuned_top1",
    "top1_low", "top1_high", "confirmed", "search_top1", "search_images", "latency_ratio", "metric",
    "finetuned_min", "finetuned_max", "finetuned_runs", "finetuned_images", "finetuned_on",
]  # fmt: skip
CONFIRMED_KEYS = [
    "confirmed_on", "confirmed_on_searched", "dominated",
    "dense_difference", "dense_difference_low", "dense_difference_high",
]  # fmt: skip


@pytest.fixture(autouse=True)
def database(study_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFRONT_DB", study_url)


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end well and return its stdout."""
    capfd.readouterr()
    code = run(arguments)
    captured = capfd.readouterr()
    assert code == 0, captured.err
    return captured.out


def as_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(printed(capfd, *arguments, "--format", "json"))


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from search.cli import run; run(['search', '--help']); "
        "heavy = {'torch', 'ray', 'sqlalchemy', 'optuna', 'numpy', 'rich'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--flops-budget" in done.stdout


def test_version_and_module() -> None:
    done = subprocess.run([sys.executable, "-m", "search", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("prunefront ")
    assert done.stderr == ""


def test_without_a_command_it_says_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-m", "search"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: prunefront")
    assert "\n  finetune " in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_stdout_that_takes_nothing_is_named() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "search", "models"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


def test_a_stdout_that_is_closed_is_not_missed() -> None:
    command = shlex.join([sys.executable, "-m", "search", "models"]) + " >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_termination_is_told_from_a_failure() -> None:
    program = (
        "import time; from search import cli; "
        "cli.app.command('wait')(lambda: (print('ready', flush=True), time.sleep(600))); cli.main(['wait'])"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (143, "stopped\n")


def test_front_as_json_is_the_contracts(capfd: pytest.CaptureFixture[str]) -> None:
    front = as_json(capfd, "front", "--study", "digits")
    assert len(front) >= 2
    assert all(list(row) == [*FRONT_KEYS, *CONFIRMED_KEYS] for row in front)
    assert [row["flops"] for row in front] == sorted(row["flops"] for row in front)
    assert [row["search_top1"] for row in front] == sorted(row["search_top1"] for row in front)
    assert all(isinstance(row["flops"], int) and 0 < row["flops_ratio"] < 1 for row in front)
    assert PruningSchedule.parse(front[0]["schedule"]).hash == front[0]["hash"]


def test_front_as_csv_and_table_say_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    front = as_json(capfd, "front", "--study", "digits")
    rows = list(csv.DictReader(io.StringIO(printed(capfd, "front", "--study", "digits", "--format", "csv"))))
    assert [row["schedule"] for row in rows] == [row["schedule"] for row in front]
    assert list(rows[0]) == [*FRONT_KEYS, *CONFIRMED_KEYS]
    table = printed(capfd, "front", "--study", "digits")
    assert all(row["schedule"] in table and row["hash"] in table for row in front)
    assert "\x1b" not in table


@pytest.mark.parametrize("every", [(), ("--all",)])
def test_a_front_in_a_file_is_the_printed_one(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, every: tuple[str, ...]
) -> None:
    for form in ("csv", "json"):
        text = printed(capfd, "front", "--study", "digits", "--format", form, *every)
        out = tmp_path / f"front.{form}"
        assert printed(capfd, "front", "--study", "digits", "--format", form, "--out", str(out), *every) == ""
        assert out.read_text() == text
    out = tmp_path / "front.parquet"
    assert printed(capfd, "front", "--study", "digits", "--format", "parquet", "--out", str(out), *every) == ""
    rows = as_json(capfd, "front", "--study", "digits", *every)
    assert pandas.read_parquet(out)["hash"].tolist() == [row["hash"] for row in rows]


def test_a_mirror_is_brought_up_to_date(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path / 'optuna.db'}"
    for added in (8, 0):
        assert run(["mirror", "--study", "digits", "--to", target]) == 0
        assert f"digits: {added} trials added to {target}\n" in capfd.readouterr().err


def test_bounds(capfd: pytest.CaptureFixture[str]) -> None:
    front = as_json(capfd, "front", "--study", "digits")
    middle = front[len(front) // 2]
    share = as_json(capfd, "front", "--study", "digits", "--max-flops", f"{middle['flops_ratio'] + 1e-6:.6f}")
    assert share == [row for row in front if row["flops"] <= middle["flops"]]
    absolute = as_json(capfd, "front", "--study", "digits", "--max-flops", f"{middle['flops'] / 1e6:.6f}M")
    assert absolute == share
    accurate = as_json(capfd, "front", "--study", "digits", "--min-top1", str(middle["top1"]))
    assert accurate == [row for row in front if row["top1"] >= middle["top1"]]
    assert as_json(capfd, "front", "--study", "digits", "--max-flops", "0.01") == []


def test_all_has_failed_ones_too(capfd: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capfd, "front", "--study", "digits", "--all")
    assert len(rows) == 8
    assert [(row["failure"], row["top1"]) for row in rows if row["state"] == "failed"] == [("NONFINITE", None)]
    assert "logits are NaN" in printed(capfd, "front", "--study", "digits", "--all")


@pytest.fixture
def raced(study_url: str) -> Evaluation:
    """The best of `digits`, which was then confirmed with a lower score, as was the dense model; one was stopped."""
    with Store.open(study_url) as store:
        study = store.study("digits")
        best = store.front(study)[-1]
        for schedule_hash, top1 in ((best.hash, (best.top1 or 0.0) - 0.003), (PruningSchedule().hash, 0.96)):
            store.confirm(study, Confirmation(schedule_hash, top1, 0.2, 0.9, 4000, 1.0, 1.0, 0.8))
        stopped = PruningSchedule.parse("1:0.1")
        store.record(
            study,
            Evaluation(stopped, 1000, 0.1, "stopped", top1=1.0, loss=0.1, images=10, estimate=0.3, origin="nsga2"),
        )
        return best


def test_intervals_stand_in_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    best = as_json(capfd, "front", "--study", "digits")[-1]
    assert (best["top1_low"], best["top1_high"]) == wilson_interval(best["top1"], 40)
    table = printed(capfd, "front", "--study", "digits")
    assert "95 % interval" in table
    assert f"{best['top1_low']:.4f}–{best['top1_high']:.4f}" in table
    assert "confirmed" not in table, "a study that confirms nothing marks nothing"


def test_a_confirmed_score_is_told_from_one_that_is_not(capfd: pytest.CaptureFixture[str], raced: Evaluation) -> None:
    front = as_json(capfd, "front", "--study", "digits")
    best = next(row for row in front if row["hash"] == raced.hash)
    assert best["top1"] == pytest.approx((raced.top1 or 0.0) - 0.003)
    assert (best["confirmed"], best["images"], best["search_images"]) == (True, 4000, 40)
    assert best["search_top1"] == raced.top1
    assert [row["confirmed"] for row in front].count(False) == len(front) - 1 >= 1
    lines = printed(capfd, "front", "--study", "digits").splitlines()
    assert [" yes " in line for line in lines if raced.hash in line] == [True]
    assert sum(" no " in line for line in lines) == len(front) - 1


def test_stopped_ones_show_how_far_they_got(capfd: pytest.CaptureFixture[str], raced: Evaluation) -> None:
    assert "1:0.1" not in {row["schedule"] for row in as_json(capfd, "front", "--study", "digits")}
    (row,) = (r for r in as_json(capfd, "front", "--study", "digits", "--all") if r["state"] == "stopped")
    assert (row["schedule"], row["images"], row["estimate"]) == ("1:0.1", 10, 0.3)
    assert [row[name] for name in ("top1", "top1_low", "loss", "search_top1", "agreement")] == [None] * 5
    (line,) = (x for x in printed(capfd, "front", "--study", "digits", "--all").splitlines() if "stopped" in x)
    assert "1.0000" not in line
    assert as_json(capfd, "front", "--study", "digits", "--all", "--min-top1", "0.99") == []
    (study,) = as_json(capfd, "studies")
    assert (study["done"], study["failed"], study["stopped"], study["confirmed"]) == (7, 1, 1, 2)
    assert "stopped" in printed(capfd, "studies").splitlines()[0]


def test_export_and_report_of_confirmed_scores(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, raced: Evaluation
) -> None:
    path = tmp_path / "schedule.json"
    bound = f"{raced.flops / 1e6:.6f}M"
    assert run(["export", "--study", "digits", "--max-flops", bound, "--out", str(path)]) == 0
    assert " on val, first 1,000, which also chose it, " in capfd.readouterr().err
    metrics = json.loads(path.read_text())["metrics"]
    assert (metrics["confirmed"], metrics["search_top1"], metrics["images"]) == (True, raced.top1, 4000)
    assert metrics["top1_low"] < metrics["top1"] < metrics["top1_high"]
    assert metrics["dense_top1"] == 0.96
    page = tmp_path / "report.html"
    printed(capfd, "report", "--study", "digits", "--out", str(page), "--pictures", "0")
    assert "96.0<small>%</small>" in page.read_text()
    assert "1 more was stopped early" in page.read_text()


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_front_plots(capfd: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"front.{suffix}"
    front = as_json(capfd, "front", "--study", "digits", "--plot", str(path))
    assert front
    assert path.stat().st_size > 10_000


def test_export_then_evaluate_and_flops(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schedule.json"
    assert printed(capfd, "export", "--study", "digits", "--max-flops", "0.8", "--out", str(path)) == ""
    exported = json.loads(path.read_text())
    assert (exported["format"], exported["version"], exported["model"]) == ("prunefront.schedule", 1, "vim_nano")
    counted = as_json(capfd, "flops", "--model", "vim_nano", "--schedule", str(path))
    assert list(counted) == ["model", "schedule", "convention", "dense_flops", "flops", "ratio", "tokens"]
    assert counted["flops"] == exported["metrics"]["flops"] <= 0.8 * counted["dense_flops"]
    assert len(counted["tokens"]) == 12
    monkeypatch.chdir(tmp_path)
    bare = path.rename(tmp_path / "best").name  # a file by any name is one
    assert as_json(capfd, "flops", "--model", "vim_nano", "--schedule", bare)["flops"] == counted["flops"]
    found = as_json(
        capfd, "evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", bare, "--images", "40"
    )
    assert list(found) == [*FRONT_KEYS, "images_of", "agreement"]
    assert found["flops"] == counted["flops"]
    assert found["images"] == 40
    assert found["latency_ms"] > 0


def test_a_file_is_evaluated_in_the_order_of_its_study(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    printed(capfd, "export", "--study", "digits", "--out", str(path))
    exported = json.loads(path.read_text())
    command = ("evaluate", "--model", "vim_nano", "--data", "embedded", "--images", "40", "--schedule")
    found = as_json(capfd, *command, str(path))
    assert found["loss"] == as_json(capfd, *command, exported["provenance"]["schedule"])["loss"]

    assert exported["provenance"].pop("order") == SHUFFLED  # older files name none
    path.write_text(json.dumps(exported))
    assert run([*command, str(path), "--format", "json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["loss"] != found["loss"]
    assert "the images are val, first 40 in the order of the schedule's study, stratified" in err

    exported["provenance"]["order"] = "by name"
    path.write_text(json.dumps(exported))
    assert run([*command, str(path)]) == 2
    assert "order is 'by name', expected one of shuffled, stratified" in capfd.readouterr().err


def test_the_empty_text_is_dense(capfd: pytest.CaptureFixture[str]) -> None:
    counted = as_json(capfd, "flops", "--model", "vim_nano", "--schedule", "")
    assert counted["flops"] == counted["dense_flops"] == ssm_models.count_flops(ssm_models.create_model("vim_nano"))
    assert counted["ratio"] == 1.0
    assert counted["tokens"] == [49] * 12
    found = as_json(
        capfd, "evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", "", "--images", "60"
    )
    assert (found["agreement"], found["flops_ratio"], found["schedule"]) == (1.0, 1.0, "")
    assert found["top1"] > 0.9


@pytest.mark.parametrize("schedule", ["", "3:0.5,7:0.5", "3:0.5;context=freeze;importance=random"])
def test_the_parts_add_up(capfd: pytest.CaptureFixture[str], schedule: str) -> None:
    found = as_json(capfd, "flops", "--model", "vim_nano", "--schedule", schedule, "--by-block")
    assert sum(part["flops"] for part in found["parts"]) == found["flops"]
    assert [part["part"] for part in found["parts"]] == ["embedding", *(f"block {i}" for i in range(1, 13)), "head"]
    rows = list(
        csv.DictReader(
            io.StringIO(
                printed(
                    capfd, "flops", "--model", "vim_nano", "--schedule", schedule, "--by-block", "--format", "csv"
                )
            )
        )
    )
    assert sum(int(row["flops"]) for row in rows) == found["flops"]


def test_an_image_size_and_a_convention_change_the_count(capfd: pytest.CaptureFixture[str]) -> None:
    plain = as_json(capfd, "flops", "--model", "vim_nano")
    assert as_json(capfd, "flops", "--model", "vim_nano", "--img-size", "56")["tokens"] == [196] * 12
    assert as_json(capfd, "flops", "--model", "vim_nano", "--convention", "published")["flops"] < plain["flops"]


def test_studies_and_models(capfd: pytest.CaptureFixture[str]) -> None:
    (study,) = as_json(capfd, "studies")
    assert (study["study"], study["model"]) == ("digits", "vim_nano")
    assert (study["done"], study["failed"], study["stopped"]) == (7, 1, 0)
    models = {row["name"]: row for row in as_json(capfd, "models")}
    assert models["vim_nano"]["weights"] is True
    assert models["vim_small"]["weights"] is False
    assert "digits" in printed(capfd, "studies")
    assert "vim_nano" in printed(capfd, "models")


def test_report_shows_which_tokens_went(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    code = run(["report", "--study", "digits", "--out", str(path), "--pictures", "3"])
    assert (code, capfd.readouterr().out) == (0, "")
    page = path.read_text()
    best = as_json(capfd, "front", "--study", "digits")[-1]
    assert best["hash"] in page or best["schedule"] in page
    assert page.count("data:image/png;base64,") >= 3


@pytest.mark.parametrize("name", ["group", "brood"])
def test_report_shows_the_command_by_the_current_names_of_its_settings(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, study_url: str, name: str
) -> None:
    """Earlier versions stored the size of a group as `brood`."""
    with sqlite3.connect(study_url.removeprefix("sqlite:///")) as database:
        config = json.loads(database.execute("select config from studies").fetchone()[0])
        database.execute("update studies set config = ?", (json.dumps({**config, name: config.pop("group")}),))
    database.close()
    printed(capfd, "report", "--study", "digits", "--out", str(tmp_path / "r.html"), "--pictures", "0")
    page = html.unescape(re.sub("<[^>]+>", "", (tmp_path / "r.html").read_text()))
    assert "--batch-size 20 --group 4 --race-error 0.05 --confirm-split val" in page
    assert "--brood" not in page
    assert "--db-patience" not in page


def test_the_pictured_schedule_is_the_cheapest_good_one() -> None:
    front = [
        Evaluation(PruningSchedule(), flops=f, flops_ratio=f / 10, top1=t)
        for f, t in ((1, 0.5), (2, 0.95), (3, 0.96))
    ]
    assert cheapest_good_point(front).flops == 2


def test_output_that_nobody_reads_to_the_end_is_no_error(study_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "search", "front", "--study", "digits", "--all", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr.read() == b""


def test_finetune_records_its_outcome(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, url = f"folder:{tmp_path / 'images'}", f"sqlite:///{tmp_path / 'small.db'}"
    write_folder(tmp_path / "images", tuple("0123456789"), each=2)
    settings = SearchConfig(model="vim_nano", study="small", data=data, flops_budget="0.9", trials=8)
    fill(tmp_path / "small.db", open_setup(settings))
    exported, out, study = tmp_path / "schedule.json", tmp_path / "tuned", ["--study", "small", "--db", url]
    printed(capfd, "export", *study, "--max-flops", "0.75", "--out", str(exported))
    found = as_json(
        capfd,
        "finetune",
        str(exported),
        "--data",
        data,
        "--epochs",
        "1",
        "--out",
        str(out),
        "--batch-size",
        "20",
        *study,
    )
    assert Path(found["checkpoint"]) == out / "model.safetensors"
    row = next(r for r in as_json(capfd, "front", *study, "--all") if r["hash"] == found["hash"])
    assert row["finetuned_top1"] == found["top1"]
    arguments = ("--model", "vim_nano", "--data", data, "--schedule", str(exported))
    tuned = as_json(capfd, "evaluate", *arguments, "--checkpoint", str(out / "model.safetensors"))
    assert tuned["top1"] == pytest.approx(found["top1"])


def test_train_makes_something_to_prune(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = f"folder:{write_folder(tmp_path / 'images')}"
    out = tmp_path / "run"
    found = as_json(
        capfd, "train", "--model", "vim_nano", "--data", data, "--epochs", "1", "--out", str(out), "--batch-size", "4"
    )
    arguments = ("--model", "vim_nano", "--data", data, "--schedule", "3:0.5", "--checkpoint", found["checkpoint"])
    assert as_json(capfd, "evaluate", *arguments)["images"] == found["images"] == 12


@pytest.mark.slow
def test_doctor(capfd: pytest.CaptureFixture[str]) -> None:
    found = as_json(capfd, "doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is True
    assert checks["ray session"]["value"] == "starts"
    assert "1 studies" in checks["database"]["value"]
    assert "scan backend cpu" in checks["cpu"]["value"]
    assert checks["scan reference"]["value"] == "can run here"
    assert {"scan cpu", "scan triton", "scan mamba_ssm"} <= set(checks)
    assert {"memory", "temporary files", "shared memory", "home", "scan cache"} <= set(checks)


def test_doctor_tells_what_the_surroundings_forbid(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    checks = {check["name"]: check for check in as_json(capfd, "doctor")["checks"]}
    assert "Ray's sockets need a shorter path" in checks["temporary files"]["value"]
    assert checks["home"]["value"].startswith("/proc/none: cannot be written")
    assert checks["RAY_ADDRESS"]["value"].startswith("192.0.2.1:6379: only used with --ray-address")
    assert checks["ray session"]["value"] == "starts"
