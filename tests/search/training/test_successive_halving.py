"""Successive halving: which schedules begin, which are promoted, and what is written."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import Evaluation
from results.export.schedule_json import export_schedule
from results.intervals import wilson_interval
from results.records import Confirmation
from results.store.store import Store
from search.cli import run
from search.config import SearchConfig
from search.data.dataset import open_data
from search.data.image_set import ImageSet
from search.driver.search_setup import open_setup
from search.models import open_model
from search.training.finetune import FineTuneResult, finetune_model
from search.training.finetune_job import FineTuneJob
from search.training.held_out import HeldOutScore, score_held_out
from search.training.successive_halving import HalvingPlan, Trained, halve, make_rungs, promising
from search.training.trainer import FitResult
from spaces import PruningSchedule, errors
from tests.search.conftest import fill
from tests.search.pictures import write_folder


def evaluation(keep: float, flops: int, top1: float, images: int = 1000, **more: Any) -> Evaluation:
    schedule = PruningSchedule.of([(3, keep)])
    return Evaluation(schedule, flops, flops / 1000, **({"top1": top1, "loss": 0.5, "images": images} | more))


class TestRungs:
    @given(candidates=st.integers(1, 100), epochs=st.integers(1, 300), eta=st.integers(2, 5))
    def test_fewer_candidates_train_for_longer(self, candidates: int, epochs: int, eta: int) -> None:
        rungs = make_rungs(candidates, epochs, eta)
        assert (rungs[0].candidates, rungs[-1].epochs) == (candidates, epochs)
        for one, later in pairwise(rungs):
            assert one.epochs < later.epochs
            assert later.candidates == -(-one.candidates // eta) or later.candidates <= one.candidates / eta + 1
        spent = sum(
            rung.candidates * (rung.epochs - before)
            for rung, before in zip(rungs, [0, *(r.epochs for r in rungs)], strict=False)
        )
        assert spent <= candidates * epochs

    def test_known_rungs(self) -> None:
        assert [(r.candidates, r.epochs) for r in make_rungs(8, 8, 2)] == [(8, 1), (4, 2), (2, 4), (1, 8)]
        assert [(r.candidates, r.epochs) for r in make_rungs(9, 30, 3)] == [(9, 3), (3, 10), (1, 30)]
        assert [(r.candidates, r.epochs) for r in make_rungs(1, 30, 3)] == [(1, 30)]

    @pytest.mark.parametrize(("values", "words"), [((0, 1, 2), "top=0"), ((1, 0, 2), "epochs=0"), ((1, 1, 1), "eta")])
    def test_bad_values_are_refused(self, values: tuple[int, int, int], words: str) -> None:
        with pytest.raises(errors.UsageError, match=words):
            make_rungs(*values)


class TestPromising:
    @given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
    def test_only_significantly_worse_schedules_are_left_out(self, seed: int, count: int) -> None:
        chance = random.Random(seed)
        many = [evaluation((i + 1) / 20, chance.randrange(100, 999), chance.random(), 400) for i in range(12)]
        bound = chance.randrange(300, 999)
        if not [e for e in many if e.flops <= bound]:
            return
        found = promising(many, count, bound)
        assert [e.top1 for e in found] == sorted((e.top1 for e in found), reverse=True)
        beaten = [
            e
            for e in many
            if any(o.flops <= e.flops and wilson_interval(e.top1, 400)[1] < o.top1 for o in many)  # type: ignore[arg-type, operator]
        ]
        eligible = [e for e in many if e.flops <= bound and e not in beaten]
        assert len(found) == min(count, len(eligible))
        assert all(e in eligible for e in found)

    def test_confirmed_scores_choose_nothing_and_ties_go_to_the_cheaper(self) -> None:
        lucky, honest, cheap = evaluation(0.3, 500, 0.99), evaluation(0.4, 500, 0.9), evaluation(0.5, 400, 0.9)
        score = Confirmation(lucky.hash, 0.85, 0.5, 0.9, 5000, 1.0, 1.0, 0.5)
        lucky = evaluation(0.3, 500, 0.99, confirmed=score)
        assert promising([lucky, honest, cheap], 3) == [lucky, cheap]
        assert promising([honest, cheap], 3) == [cheap, honest]

    def test_a_score_without_an_interval_excludes_nothing(self) -> None:
        many = [evaluation((i + 1) / 10, 500, 0.9 - i / 10, 400, metric="miou") for i in range(4)]
        assert promising(many, 4) == many

    def test_no_schedule_within_the_limit_is_an_error(self) -> None:
        dense = Evaluation(PruningSchedule(), 100, 1.0, top1=0.9, loss=0.5, images=10)
        stopped = evaluation(0.5, 100, 0.9, state="stopped", estimate=0.9)
        with pytest.raises(errors.UsageError, match="raise --max-flops"):
            promising([dense, stopped, evaluation(0.4, 900, 0.9)], 2, 500)


REPORTED = ImageSet("val", 800, skip=200)


def outcome(of: Evaluation, before: float, top1: float) -> Trained:
    """A schedule after a rung, with scores on the images of the report that are a tenth lower."""
    fitted = FitResult(top1 - 0.1, 0.5, 800, top1, 1, 1.0, [], {})
    result = FineTuneResult(of.schedule, (before, 1.0), (0.9, 1.0), fitted, Path("w"), "d", {})
    scores = (HeldOutScore(score, 1.0, (score, score), None) for score in (before, top1 - 0.1))
    return Trained(result, top1, *scores)


def play(tops: dict[str, list[float]], entered: list[Evaluation], eta: int, epochs: int) -> Any:
    """Halve with made-up outcomes: for each schedule its top-1 before, then by epoch."""
    trained: list[tuple[str, int]] = []
    finished: list[str] = []

    def train(e: Evaluation, until: int) -> Trained:
        trained.append((e.hash, until))
        return outcome(e, tops[e.hash][0], tops[e.hash][until])

    rungs = make_rungs(len(entered), epochs, eta)
    halving = halve(entered, rungs, REPORTED, train, lambda r: finished.append(r.schedule.hash))
    return halving, trained, finished


class TestHalve:
    def test_the_better_half_is_promoted(self) -> None:
        four = [evaluation((i + 1) / 10, 500 + i, 0.9 - i / 100) for i in range(4)]
        a, b, c, d = (e.hash for e in four)
        tops = {a: [0.5, 0.6, 0, 0, 0], b: [0.4, 0.8, 0.82, 0, 0], c: [0.3, 0.7, 0.81], d: [0.2, 0.9, 0.7, 0, 0.95]}
        tops = {name: [*row, *[0.0] * (5 - len(row))] for name, row in tops.items()}
        tops[b][4] = 0.97
        halving, trained, finished = play(tops, four, 2, 4)
        assert trained == [(a, 1), (b, 1), (c, 1), (d, 1), (d, 2), (b, 2), (b, 4)]
        assert finished == [b]
        assert [contender.evaluation.hash for contender in halving.contenders] == [b, d, c, a]
        rows = halving.rows()
        assert (rows[0]["epoch_4"], rows[0]["scored_on"]) == (0.97, "val, 201–1,000")
        assert rows[0]["top1"] == pytest.approx(0.87), "on the images of the report, not on those that chose"
        assert [(row["before_top1"], row["epoch_1"], row["epoch_2"]) for row in rows] == [
            (0.4, 0.8, 0.82), (0.2, 0.9, 0.7), (0.3, 0.7, None), (0.5, 0.6, None),
        ]  # fmt: skip
        # of the six pairs before and after one epoch, ab, ac, ad, bd and cd are discordant, bc is concordant
        assert halving.correlation is not None
        assert halving.correlation.tau == pytest.approx((1 - 5) / 6)
        assert (halving.correlation.low, halving.correlation.schedules, halving.correlation.images) == (None, 4, 800)
        assert halving.finished_correlation is None

    def test_ties_go_to_the_cheaper(self) -> None:
        two = [evaluation(0.2, 500, 0.9), evaluation(0.3, 400, 0.8)]
        halving, trained, _ = play({e.hash: [0.5, 0.7, 0.7] for e in two}, two, 2, 2)
        assert trained[-1] == (two[1].hash, 2)
        assert halving.correlation is not None and halving.correlation.tau is None  # all equal

    @given(seed=st.integers(0, 10**6), many=st.integers(1, 12), eta=st.integers(2, 4))
    def test_finishers_led_in_every_rung(self, seed: int, many: int, eta: int) -> None:
        chance = random.Random(seed)
        entered = [evaluation((i + 1) / 20, 500 + i, 0.9) for i in range(many)]
        tops = {e.hash: [chance.random() for _ in range(10)] for e in entered}
        halving, trained, finished = play(tops, entered, eta, 9)
        assert len(trained) == len(set(trained)) == sum(rung.candidates for rung in halving.rungs)
        for rung in halving.rungs:
            in_it = sorted((tops[h][rung.epochs] for h, until in trained if until == rung.epochs), reverse=True)
            last = halving.rungs[-1].candidates
            assert all(tops[h][rung.epochs] >= in_it[max(0, len(in_it) - 1)] for h in finished)
            if rung is not halving.rungs[-1] and last == 1 and len(in_it) > 1:
                following = halving.rungs[halving.rungs.index(rung) + 1].candidates
                assert tops[finished[0]][rung.epochs] >= in_it[following - 1]


class TestPlan:
    def test_schedules_are_chosen_once(self, tmp_path: Path) -> None:
        plan = HalvingPlan("s", 2, 2, None, 4)
        assert plan.schedules(tmp_path / "out", lambda: ["a", "b"]) == ["a", "b"]
        assert plan.schedules(tmp_path / "out", lambda: ["c"]) == ["a", "b"]
        with pytest.raises(errors.UsageError, match="top 2 there, 3 now; choose another folder"):
            HalvingPlan("s", 3, 2, None, 4).schedules(tmp_path / "out", lambda: ["c"])

    @pytest.mark.parametrize("name", ["last.pt", "model.safetensors"])
    def test_files_of_another_training_are_kept(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(errors.UsageError, match=f"holds the {name} of another training"):
            HalvingPlan("s", 2, 2, None, 4).schedules(tmp_path, lambda: ["a"])
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 3, "schedules": []}'])
    def test_a_broken_plan_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(errors.CheckpointError, match="remove it to start again"):
            HalvingPlan("s", 2, 2, None, 4).schedules(tmp_path, lambda: ["a"])


Printed = Callable[..., Any]


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def command(*arguments: str) -> str:
        capfd.readouterr()
        code = run(arguments)
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return captured.out + captured.err

    return command


class TestCommand:
    def test_a_study_is_halved_and_resumed(
        self,
        printed: Callable[..., str],
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        data, url = f"folder:{write_folder(tmp_path / 'images', tuple('0123456789'), each=2)}", tmp_path / "s.db"
        fill(url, open_setup(SearchConfig(model="vim_nano", study="s", data=data, flops_budget="0.9", trials=8)))
        out, db = tmp_path / "out", ("--study", "s", "--db", f"sqlite:///{url}")
        learn = ("--epochs", "2", "--out", str(out), "--batch-size", "10", "--top", "3", "--features", "0.2")
        learn += ("--max-flops", "0.85")

        calls: list[str] = []

        def interrupted(model: Any, teacher: Any, data: Any, job: FineTuneJob, *rest: Any, **more: Any) -> Any:
            """Stop at the second schedule, as Ctrl-C would."""
            calls.append(job.schedule.hash)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return finetune_model(model, teacher, data, job, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr("search.training.finetune.finetune_model", interrupted)
            assert run(["finetune", *db, *learn]) == 130
        first = json.loads((out / "plan.json").read_text())["schedules"][0]
        stamp = (out / first / "last.pt").stat().st_mtime_ns
        table = printed("finetune", *db, *learn)
        assert "3 schedules; 3 to epoch 1, 2 to epoch 2" in table
        assert "Kendall's τ" in table and "these chosen schedules only" in table
        assert "rungs are decided on val, first 10; all scores before and after are of val, 11–20" in table
        names = json.loads((out / "plan.json").read_text())["schedules"]
        assert names[0] == calls[0] == first
        with Store.open(f"sqlite:///{url}") as store:
            study = store.study("s")
            tuned = store.finetunes(study)
            limit = int(0.85 * study.spec.dense_flops)
            assert all(store.evaluation(study, name).flops <= limit for name in names)  # type: ignore[union-attr]
        stamps = {name: (out / name / "last.pt").stat().st_mtime_ns for name in names}
        done = {one.schedule_hash for one in tuned}
        assert len(tuned) == len(done) == 2
        assert (stamps[first] == stamp) == (first not in done)

        # again: nothing is trained or recorded twice
        rows = json.loads(run_json(capfd, "finetune", *db, *learn))
        assert {name: (out / name / "last.pt").stat().st_mtime_ns for name in names} == stamps
        with Store.open(f"sqlite:///{url}") as store:
            assert len(store.finetunes(store.study("s"))) == 2
        assert [row["hash"] in done for row in rows] == [True, True, False]
        best = rows[0]
        assert [one.top1 for one in tuned if one.schedule_hash == best["hash"]] == [best["top1"]]
        assert best["epoch_2"] == max(row["epoch_2"] for row in rows if row["epoch_2"] is not None)

        # the study searched all of val, so one half of it chooses and the other half is reported
        plan = json.loads((out / "plan.json").read_text())["images"]
        assert plan["chosen_on"] == {"split": "val", "images": 10, "skip": 0, "order": "shuffled"}
        assert plan["reported_on"] == {"split": "val", "images": 10, "skip": 10, "order": "shuffled"}
        assert {(one.split, one.skip, one.images) for one in tuned} == {("val", 10, 10)}
        source = open_data(data)
        found = open_model("vim_nano", best["checkpoint"], source)
        found.set_schedule(PruningSchedule.parse(best["schedule"]))
        held_out = score_held_out(found, source, ImageSet("val", 10, skip=10))
        assert held_out.top1 == best["top1"]
        written = json.loads((out / "finetune.json").read_text())
        assert (written["top1"], written["scored_on"]["skip"]) == (best["top1"], 10)
        assert (out / "model.safetensors").read_bytes() == Path(best["checkpoint"]).read_bytes()
        assert json.loads((out / "finetune.json").read_text())["schedule_hash"] == best["hash"]
        written = json.loads((out / "halving.json").read_text())["schedules"]
        assert (out / written[0]["checkpoint"]).samefile(best["checkpoint"])
        assert [row["hash"] for row in written] == [row["hash"] for row in rows]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "one of the two"),
            (("schedule.json", "--top", "2"), "one of the two"),
            (("schedule.json", "--max-flops", "0.5"), "go with --top"),
            (("--top", "2"), "name it with --study"),
            (("--top", "2", "--study", "digits", "--max-flops", "0.01"), "no schedule within the bounds"),
            (("--top", "0", "--study", "digits"), "top=0"),
            (
                ("--top", "2", "--study", "digits", "--split", "val"),
                "decided on val, first 40; name others",
            ),
            (("--top", "2", "--study", "digits", "--split", "rest", "--skip", "9"), "--split val --skip 9"),
            (("--top", "2", "--study", "digits", "--split", "all"), "unknown split 'all'"),
            (("--top", "2", "--study", "digits", "--skip", "100"), "--split val --skip 100"),
            (("--top", "2", "--eta", "1", "--study", "digits"), "eta=1"),
            (("--top", "2", "--study", "digits", "--workers", "0"), "workers=0"),
            (("--top", "2", "--study", "digits", "--amp", "int8"), "unknown precision"),
            (("--top", "2", "--study", "digits", "--distill", "0.9", "--features", "0.2"), "more than the whole"),
        ],
    )
    def test_bad_options_are_refused_before_anything_is_written(
        self,
        study_url: str,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        words: str,
    ) -> None:
        if "schedule.json" in arguments:
            with Store.open(study_url) as store:
                study = store.study("digits")
                content = export_schedule(store.front(study)[0], study, None)
            (tmp_path / "schedule.json").write_text(json.dumps(content))
            arguments = tuple(str(tmp_path / a) if a == "schedule.json" else a for a in arguments)
        capfd.readouterr()
        out = tmp_path / "out"
        assert run(["finetune", "--epochs", "2", "--out", str(out), "--db", study_url, *arguments]) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert words in lines[-1]
        assert not out.exists()


def run_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert run([*arguments, "--format", "json"]) == 0
    return capfd.readouterr().out
