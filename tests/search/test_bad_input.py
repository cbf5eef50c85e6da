"""Bad input ends with one clear line on stderr and exit code 1 or 2, and leaves no files behind."""

import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ssm_models
from search.cli import run
from ssm_models import save_checkpoint

Check = Callable[..., str]
SEARCH = {
    "--model": "vim_nano",
    "--data": "embedded",
    "--flops-budget": "0.6",
    "--trials": "5",
    "--study": "s",
    "--images": "20",
}
EVALUATE = ["evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", ""]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRUNEFRONT_DB", raising=False)
    monkeypatch.delenv("PRUNEFRONT_DEBUG", raising=False)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Check:
    """Run a command that must fail with `code`; return its one line. No file may have appeared or changed."""

    def check(code: int, *arguments: str) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        capfd.readouterr()
        found = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("error: ")
        assert found == code, err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return err

    return check


def search(**changes: str | None) -> list[str]:
    options = SEARCH | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return ["search", *(part for name, value in options.items() if value is not None for part in (name, value))]


@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        (2, {"model": "vim_nan"}, "unknown model 'vim_nan': did you mean 'vim_nano'?"),
        (2, {"model": None}, "--model is missing"),
        (2, {"data": "cifar"}, "unknown data set 'cifar'"),
        (2, {"data": "folder:nowhere"}, "nowhere"),
        (2, {"sampler": "nsga"}, "--sampler: unknown sampler 'nsga': did you mean 'nsga2'?"),
        (2, {"space": "stage"}, "unknown space 'stage': did you mean 'stages'?"),
        (2, {"space": "stages:99"}, "stages:99"),
        (2, {"flops_budget": "0"}, "--flops-budget: FLOPs budget '0': must be above 0"),
        (2, {"flops_budget": "1.7"}, "'1.7': a share is at most 1"),
        (2, {"flops_budget": "abc"}, "'abc': expected a share"),
        (2, {"flops_budget": "0.05"}, "cheapest schedule"),
        (2, {"flops_budget": "1K"}, "cheapest schedule"),
        (2, {"trials": "0"}, "--trials 0: must be at least 1"),
        (2, {"study": "a\nb"}, "--study 'a\\nb': holds control characters"),
        (2, {"trials": "many"}, "'--trials'"),
        (2, {"objective": "speed"}, "--objective: unknown objective 'speed'"),
        (2, {"flops_budget": "0.5:0.6:0.7"}, "a range has two ends"),
        (2, {"flops_budget": "0.7:0.5"}, "begins above its end"),
        (2, {"flops_budget": "0.5:1G"}, "must both be shares or both FLOPs"),
        (2, {"group": "0"}, "--group 0: must be at least 1"),
        (2, {"brood": "0"}, "--brood 0: must be at least 1"),
        (2, {"brood": "3", "group": "3"}, "--group and --brood are the same setting; give one of them"),
        (2, {"prefix_cache": "much"}, "--prefix-cache 'much': expected memory such as 500M"),
        (2, {"race_error": "0.7"}, "--race-error 0.7: must be from 0 to 0.5"),
        (2, {"race_error": "nan"}, "--race-error nan: must be from 0 to 0.5"),
        (2, {"confirm_images": "-1"}, "--confirm-images -1: must be at least 0"),
        (2, {"confirm_split": "tset"}, "--confirm-split: unknown split 'tset': did you mean 'test'?"),
        (2, {"checkpoint": ""}, "--checkpoint '': must not be empty"),
        (2, {"db": ""}, "--db '': must not be empty"),
        (2, {"config": ""}, "'--config': must not be empty; name a file"),
        (1, {"confirm_split": "test"}, "embedded: it has no test split"),
        (2, {"confirm_split": "rest", "images": None}, "--confirm-split rest: no image of val is left"),
        (2, {"confirm_split": "rest", "images": "1000"}, "--confirm-split rest: the search runs over all 1000"),
        (2, {"time_budget": "soon"}, "--time-budget 'soon': expected a time such as 90s"),
        (2, {"config": "none.toml"}, "none.toml: cannot be read"),
        (2, {"model": "vim_tiny"}, "ships no weights"),
        (2, {"checkpoint": "none.safetensors"}, "none.safetensors: no such file"),
        (2, {"db": "mysql://host/x"}, "expected sqlite:///FILE or postgresql://"),
        (2, {"db": "sqlite:///no/such/folder/x.db"}, "no/such/folder"),
        (2, {"format": "xml"}, "'xml' is not one of"),
    ],
)
def test_a_search_that_cannot_be(refused: Check, code: int, changes: dict[str, str | None], words: str) -> None:
    assert words in refused(code, *search(**changes))


def test_a_setting_that_does_not_exist(refused: Check, tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text('modle = "vim_nano"')
    assert "did you mean 'model'?" in refused(2, *search(config="search.toml"))


def test_a_wrong_setting_of_a_file_is_named_by_its_key(refused: Check, tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text("race-error = 0.7")
    assert "config search.toml: race-error=0.7: must be from 0 to 0.5" in refused(2, *search(config="search.toml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frnt"], "frnt"),
        (["front"], "--study"),
        (["front", "--study", "s", "--colour"], "--colour"),
        (["front", "--study", "s", "--min-top1", "95"], "--min-top1 95: expected a share"),
        (["front", "--study", "s", "--min-top1", "nan"], "--min-top1 nan: expected a share"),
        (["front", "--study", "s", "--plot", "front.pdf"], "'.pdf'; use .html or .png"),
        (["front", "--study", "s", "--format", "parquet"], "--format parquet is binary: name a file with --out"),
        (["front", "--study", "s", "--out", "x.csv"], "--out takes --format csv, json or parquet"),
        (["search", *search()[1:], "--track", "mlflw"], "unknown tracker 'mlflw': did you mean 'mlflow'?"),
        (["search", *search()[1:], "--mirror", "optuna.db"], "expected sqlite:///FILE"),
        (["search", *search()[1:], "--ray-address", "ray://h:1"], "run it on a node of the cluster"),
        (["flops", "--model", "vim_nano", "--convention", "half"], "unknown FLOPs convention 'half'"),
        (["flops", "--model", "vim_nano", "--img-size", "0"], "--img-size 0"),
        (["flops", "--model", "vim_nano", "--img-size", "99999"], "at most 4,096 a side"),
        (["flops", "--model", "resnet50"], "unknown model 'resnet50'"),
        (["flops", "--model", ""], "--model '': must not be empty"),
        (["studies", "--db", ""], "--db '': must not be empty"),
        (["front", "--study", "s", "--plot", ""], "'--plot': must not be empty; name a file"),
        (["front", "--study", "s", "--format", "csv", "--out", ""], "'--out': must not be empty; name a file"),
        (["front", "--study", "s", "--format", "csv", "--out", "-"], "'--out': '-' "),
        (["report", "--study", "s", "--out", ""], "'--out': must not be empty; name a file"),
        (["report", "--study", "s", "--out", "-"], "'--out': '-' "),
        (["export", "--study", "s", "--out", ""], "'--out': must not be empty; name a file"),
        (["export", "--study", "s", "--out", "-"], "'--out': '-' "),
        (["export", "--study", "s", "--bundle", ""], "'--bundle': must not be empty; name a folder"),
        ([*EVALUATE, "--images", "0"], "--images 0: must be at least 1"),
        ([*EVALUATE, "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        ([*EVALUATE, "--checkpoint", ""], "--checkpoint '': must not be empty"),
        (["train", "--model", "vim_nano", "--data", "embedded", "--epochs", "0", "--out", "o"], "epochs=0"),
        (["train", "--model", "vim", "--data", "embedded", "--epochs", "1", "--out", "o"], "unknown model 'vim'"),
    ],
)
def test_wrong_usage(refused: Check, arguments: list[str], words: str) -> None:
    assert words in refused(2, *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3:1.5", "keep ratio 1.5 is not in (0, 1]"),
        ("3:0", "keep ratio 0.0 is not in (0, 1]"),
        ("3:nan", "BLOCK:RATIO"),
        ("99:0.5", "vim_nano has 12 blocks"),
        ("0:0.5", "after=0"),
        ("3-0.5", "BLOCK:RATIO"),
        ("3:0.5;context=warm", "context='warm'"),
        ("3:0.5:warm", "block 3: context='warm'"),
        ("3:0.5:zeros,5:0.5", "zeros does not go together with others"),
        ("nowhere.json", "nowhere.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "flops"])
def test_a_bad_schedule(refused: Check, command: str, text: str, words: str) -> None:
    data = ["--data", "embedded"] if command == "evaluate" else []
    assert words in refused(2, command, "--model", "vim_nano", *data, "--schedule", text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2 is newer than 1"),
        ({"version": "1"}, "version is '1'"),
        ({"format": "other"}, "format is 'other'"),
        ({"steps": [{"after": 3, "keep": 1.5}]}, "steps[0]: step after block 3: keep ratio 1.5"),
        ({"steps": [{"after": 30, "keep": 0.5}]}, "vim_nano has 12 blocks"),
        ({"steps": "3:0.5"}, "steps must be a list"),
        ({"model": "vim_tiny"}, "model is 'vim_tiny'"),
        ({"model": 3}, "model is 3"),
        ({"img_size": 224}, "img_size is 224"),
        ({"img_size": "big"}, "img_size is 'big'"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "flops", "finetune"])
def test_a_bad_schedule_file(
    refused: Check, tmp_path: Path, command: str, change: dict[str, Any], words: str
) -> None:
    good = {
        "format": "prunefront.schedule",
        "version": 1,
        "model": "vim_nano",
        "img_size": 28,
        "steps": [],
        "method": {},
    }
    (tmp_path / "schedule.json").write_text(json.dumps(good | change))
    arguments = {
        "evaluate": ["--model", "vim_nano", "--data", "embedded", "--schedule", "schedule.json"],
        "flops": ["--model", "vim_nano", "--schedule", "schedule.json"],
        "finetune": ["schedule.json", "--data", "embedded", "--epochs", "1", "--out", "out"],
    }[command]
    if command == "flops" and change == {"img_size": 224}:
        pytest.skip("flops counts at the schedule's own image size")
    if command == "finetune" and change == {"model": "vim_tiny"}:
        words = "ships no weights"  # the file names the model here
    line = refused(2, command, *arguments)
    assert words in line
    if words.startswith(("model is", "img_size is", "version", "format")):
        assert "schedule.json" in line


def test_a_schedule_file_that_holds_a_key_twice(refused: Check, tmp_path: Path) -> None:
    (tmp_path / "twice.json").write_text('{"format": "prunefront.schedule", "steps": [], "version": 1, "steps": []}')
    line = refused(2, "flops", "--model", "vim_nano", "--schedule", "twice.json")
    assert "twice.json: not valid JSON: 'steps' appears twice in one object" in line


def test_a_schedule_file_may_begin_with_a_byte_order_mark(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schedule = {"format": "prunefront.schedule", "version": 1, "steps": [{"after": 3, "keep": 0.5}]}
    (tmp_path / "marked.json").write_text(json.dumps(schedule), encoding="utf-8-sig")
    assert run(["flops", "--model", "vim_nano", "--schedule", "marked.json", "--format", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["schedule"] == "3:0.5"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def truncated(path: Path) -> None:
    save_checkpoint(ssm_models.create_model("vim_nano"), path, {})
    path.write_bytes(path.read_bytes()[:50_000])


def other_model(path: Path) -> None:
    save_checkpoint(ssm_models.create_model("vim_tiny", num_classes=10), path, {"model": "vim_tiny"})


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        (
            "evil.pth",
            lambda path: path.write_bytes(pickle.dumps({"model": Evil()})),
            "refused: it holds more than weights",
        ),
        ("cut.safetensors", truncated, "not a whole safetensors file"),
        ("cut.pth", lambda path: path.write_bytes(b"PK\x03\x04 half"), "not a checkpoint"),
        ("other.safetensors", other_model, "vim_tiny"),
        ("other.safetensors#ema", lambda path: other_model(path.with_name("other.safetensors")), "leave #ema out"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_a_bad_checkpoint(
    refused: Check, tmp_path: Path, command: str, name: str, write: Callable[[Path], Any], words: str
) -> None:
    write(tmp_path / name)
    evaluate = ["evaluate", "--model", "vim_nano", "--data", "embedded", "--schedule", "", "--checkpoint", name]
    line = refused(1, *(evaluate if command == "evaluate" else search(checkpoint=name)))
    assert words in line
    assert name.partition("#")[0] in line
    assert not (tmp_path / "executed").exists()


def foreign(path: Path) -> None:
    path.write_text("dear diary, " * 100)


def foreign_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table diary (entry text)")
    connection.close()


def cut(path: Path, study_url: str) -> None:
    path.write_bytes(Path(study_url.removeprefix("sqlite:///")).read_bytes()[:5000])


@pytest.mark.parametrize("command", ["front", "search", "studies", "report", "export"])
@pytest.mark.parametrize("kind", ["text", "sqlite", "cut"])
def test_an_unreadable_database(refused: Check, tmp_path: Path, study_url: str, command: str, kind: str) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    path = folder / "broken.db"
    if kind == "cut":
        cut(path, study_url)
    else:
        {"text": foreign, "sqlite": foreign_sqlite}[kind](path)
    arguments = {
        "front": ["front", "--study", "digits"],
        "search": search(study="digits"),
        "studies": ["studies"],
        "report": ["report", "--study", "digits", "--out", "r.html"],
        "export": ["export", "--study", "digits", "--out", "e.json"],
    }[command]
    assert "broken.db" in refused(1, *arguments, "--db", f"sqlite:///{path}")


def test_a_database_that_is_not_there(refused: Check) -> None:
    assert "prunefront.db" in refused(2, "studies")


def test_an_unknown_study(refused: Check, study_url: str) -> None:
    for command in (["front"], ["report", "--out", "r.html"], ["export", "--out", "e.json"]):
        line = refused(2, *command, "--study", "digit", "--db", study_url)
        assert "unknown study 'digit': did you mean 'digits'?" in line


def test_bounds_that_nothing_meets(refused: Check, study_url: str) -> None:
    arguments = ("export", "--study", "digits", "--db", study_url, "--out", "e.json")
    assert "no schedule costs at most" in refused(2, *arguments, "--max-flops", "0.1")
    assert "no schedule has a top-1 of at least 0.99" in refused(2, *arguments, "--min-top1", "0.99")
    assert "'1.7'" in refused(2, *arguments, "--max-flops", "1.7")
    assert "'0.5:0.7': expected one bound, such as 0.7" in refused(2, *arguments, "--max-flops", "0.5:0.7")


@pytest.mark.parametrize("command", [["front", "--format", "csv"], ["export"], ["report", "--pictures", "0"]])
def test_no_database_is_written_over(refused: Check, study_url: str, tmp_path: Path, command: list[str]) -> None:
    shutil.copy(study_url.removeprefix("sqlite:///"), tmp_path / "s.db")
    arguments = ("--study", "digits", "--db", f"sqlite:///{tmp_path / 's.db'}", "--out", "s.db")
    assert "s.db: is a database; name another file" in refused(2, *command, *arguments)


def test_where_one_of_two_cannot_be_written_neither_is(refused: Check, study_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ("export", "--study", "digits", "--db", study_url, "--out", "e.json", "--bundle", "file")
    assert "is a file; name a folder" in refused(1, *arguments)


def test_a_study_of_other_settings(refused: Check, study_url: str) -> None:
    line = refused(2, *search(study="digits", images="40", flops_budget="0.7", db=study_url))
    assert "study 'digits' was begun with other settings: --flops-budget" in line


@pytest.mark.parametrize("kind", ["empty", "no-split", "broken"])
def test_a_folder_of_images_that_will_not_do(refused: Check, tmp_path: Path, kind: str) -> None:
    val = tmp_path / "images" / ("val" if kind != "no-split" else "test")
    for label in range(10):
        (val / str(label)).mkdir(parents=True)
        if kind != "empty":
            Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(val / str(label) / "a.png")
    if kind == "broken":
        (val / "3" / "b.png").write_bytes((val / "3" / "a.png").read_bytes()[:30])
    for arguments in (
        search(data="folder:images", images=None),
        ["evaluate", "--model", "vim_nano", "--data", "folder:images", "--schedule", "3:0.5"],
    ):
        line = refused(1, *arguments)
        assert "images" in line
        if kind == "broken":
            assert "b.png" in line


def test_images_of_another_number_of_classes(refused: Check, tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / "images" / "val" / str(label)).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / "images" / "val" / str(label) / "a.png")
    assert "3 classes but vim_nano answers with 10" in refused(1, *search(data="folder:images", images=None))


def test_fine_tuning_for_a_study_that_cannot_take_it(refused: Check, tmp_path: Path, study_url: str) -> None:
    schedule = {
        "format": "prunefront.schedule",
        "version": 1,
        "model": "vim_nano",
        "steps": [{"after": 3, "keep": 0.9}],
    }
    (tmp_path / "schedule.json").write_text(json.dumps(schedule))
    arguments = (
        "finetune",
        "schedule.json",
        "--data",
        "embedded",
        "--epochs",
        "1",
        "--out",
        "out",
        "--db",
        study_url,
    )
    assert "has no evaluation of '3:0.9'" in refused(2, *arguments, "--study", "digits")
    assert "unknown study 'other'" in refused(2, *arguments, "--study", "other")
    assert "other weights" in refused(2, *_known(tmp_path, arguments), "--study", "digits", "--checkpoint", "random")


def _known(tmp_path: Path, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The same for a schedule that the study has."""
    steps = [{"after": 3, "keep": 0.8}, {"after": 5, "keep": 0.8}, {"after": 8, "keep": 0.8}]
    schedule = {"format": "prunefront.schedule", "version": 1, "model": "vim_nano", "steps": steps}
    (tmp_path / "known.json").write_text(json.dumps(schedule))
    return ("finetune", "known.json", *arguments[2:])


def test_debugging_shows_the_traceback(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEFRONT_DEBUG", "1")
    assert run(["flops", "--model", "none"]) == 2
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unknown model")


def test_a_scan_backend_that_is_not_there(refused: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("quantum", "unknown scan backend 'quantum'"), ("mamba_ssm", "available")):
        monkeypatch.setenv("PRUNEFRONT_SCAN_BACKEND", name)
        said = refused(2, "flops", "--model", "vim_nano")
        assert "PRUNEFRONT_SCAN_BACKEND" in said and words in said
