"""The content of the report; nothing in it is fetched, and no name is executed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from results import Confirmation, Evaluation, Study
from results.intervals import wilson_interval
from results.records import FineTuned
from results.report.chart_json import chart_json
from results.report.front_chart import FrontChart, tokens_by_block
from results.report.report import Profile, Summary, write_report
from spaces import PruningSchedule, Stage, TokenLayout
from tests.results.shown import DENSE, NOW, MakeEvaluation, MakeSpec, write_evil_report


def test_the_page_is_self_contained_and_escapes_every_text(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_evil_report(tmp_path / "report.html", make_spec, evaluations)
    page = (tmp_path / "report.html").read_text()
    own = re.sub(r"<script>\s*/\*\*\s*\* plotly\.js.*?</script>", "", page, flags=re.DOTALL)
    assert len(own) < 200_000, "plotly is cut out"
    assert "window.hacked=1</script>" not in own
    assert 'onerror="' not in own
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own), "something is fetched"
    assert "49'" not in own, "a name was taken for a template"


def test_the_page_contains_the_front_and_the_provenance(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec(), 12, 1), evaluations, commands=["make it so"])
    page = (tmp_path / "report.html").read_text()
    for e in evaluations[:5]:
        assert f'id="row-{e.hash}"' in page
    assert evaluations[5].hash not in page.split('<script type="application/json"')[0], "dominated: not in the table"
    assert "make it so" in page
    assert "97.00" in page, "the fine-tuned top-1"
    assert page.count("d" * 64) >= 1, "the digest of the data"


def test_the_page_shows_confirmed_scores_and_counts_stopped_candidates(
    tmp_path: Path, confirmed: tuple[Study, list[Evaluation]]
) -> None:
    write_report(tmp_path / "report.html", *confirmed, dense_confirmed=DENSE)
    page = " ".join((tmp_path / "report.html").read_text().split('<script type="application/json"')[0].split())
    assert "The scores of the front were then confirmed on val, first 5,000." in page
    assert "2 more were stopped early" in page
    assert page.count("not confirmed</td>") == 2
    assert '<td role="cell" class="strong" data-value="0.89">89.00</td>' in page, "the reported score"
    assert "90.00</td>" in page, "the search's own"
    low, high = wilson_interval(0.89, 5000)
    assert f"{100 * low:.1f}–{100 * high:.1f}" in page
    assert "97.0<small>%</small>" in page, "the dense model's confirmed score"
    assert "e" * 64 in page


def test_fine_tuned_scores_are_compared_on_the_same_images(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]
) -> None:
    """Older fine-tunings are of the search's images, whatever the front was confirmed on; later ones say which."""
    score = Confirmation(evaluations[3].hash, 0.7, 1.0, 0.5, 5000, 1.0, 1.0, 0.8)
    evaluations[3] = replace(evaluations[3], confirmed=score)
    study = Study(1, NOW, make_spec(dense_top1=0.98), 12, 1, confirmed=1)
    write_report(tmp_path / "report.html", study, evaluations, dense_confirmed=DENSE)
    page = " ".join((tmp_path / "report.html").read_text().split('<script type="application/json"')[0].split())
    table = page.split('<table class="tuned-table')[1].split("</table>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert cells[:6] == ["93.60", "97.00", "+3.4", "−1.0", "val, first 1,000", "0.580"]
    assert "−1.0 points at" in page, "also in the headline"
    drawn = chart_json(FrontChart.of(study, evaluations, DENSE))["tuned"]
    assert [(point["y"], point["before"]) for point in drawn] == [(97.0, pytest.approx(93.6))]

    several = FineTuned(2, 0.95, 0.94, 0.96, 800, "val, 1,001–1,800", before_top1=0.9, dense_top1=0.97)
    evaluations[3] = replace(evaluations[3], finetuned=several)
    write_report(tmp_path / "report.html", study, evaluations, dense_confirmed=DENSE)
    page = " ".join((tmp_path / "report.html").read_text().split('<script type="application/json"')[0].split())
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page.split('<table class="tuned-table')[1].split("</table>")[0])
    assert cells[:5] == ["90.00", "95.00 (94.00–96.00, 2 runs)", "+5.0", "−2.0", "val, 1,001–1,800"]
    (drawn,) = chart_json(FrontChart.of(study, evaluations, DENSE))["tuned"]
    assert (drawn["y"], drawn["before"], drawn["on"], drawn["images"]) == (95.0, 90.0, "val, 1,001–1,800", 800)


def test_the_search_s_scores_pick_what_the_summary_reports(confirmed: tuple[Study, list[Evaluation]]) -> None:
    study, evaluations = confirmed
    worst = replace(evaluations[4], confirmed=Confirmation(evaluations[4].hash, 0.5, 1.0, 0.5, 5000, 1.0, 1.0, 0.8))
    summary = Summary.of(FrontChart.of(study, [*evaluations[:4], worst], DENSE))
    assert summary.best == worst, "a confirmed score picks nothing, however low"
    assert summary.images == 5000
    low, high = wilson_interval(0.97, 5000)
    assert summary.noise == pytest.approx((high - low) / 2)


def test_a_study_without_evaluations_has_a_page(tmp_path: Path, make_spec: MakeSpec) -> None:
    write_report(tmp_path / "report.html", Study(1, NOW, make_spec()), [])
    assert "No schedule has finished yet." in (tmp_path / "report.html").read_text()


def test_labels_of_bars_do_not_overlap(make_evaluation: MakeEvaluation) -> None:
    layout = TokenLayout("deep", (224, 224), (Stage(24, 14, 14),))
    schedule = PruningSchedule.of([(block, 0.9) for block in range(1, 24)])
    profile = Profile(make_evaluation(), tokens_by_block(layout, schedule))
    assert profile.labelled == set(range(1, 24, 2))
