"""Plots of the front as files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results import Evaluation, Study
from results.report.plot import plot_front
from results.report.report import write_report
from spaces.errors import PrunefrontError, UsageError
from tests.results.shown import NOW, MakeSpec


def test_the_ending_selects_the_format(tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]) -> None:
    study = Study(1, NOW, make_spec(name="costs $5 and $6_x$"), 12, 1)
    plot_front(tmp_path / "front.PNG", study, evaluations)
    with Image.open(tmp_path / "front.PNG") as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50, "something is drawn"
    plot_front(tmp_path / "front.html", study, evaluations)
    assert "Plotly.react" in (tmp_path / "front.html").read_text()
    for name, message in (("front.pdf", "ends in '.pdf'; use .html or .png"), ("front", "ends in 'nothing'")):
        with pytest.raises(UsageError, match=message):
            plot_front(tmp_path / name, study, evaluations)
    with pytest.raises(PrunefrontError, match="cannot be written"):
        plot_front(tmp_path / "nowhere" / "front.png", study, evaluations)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.PNG", "front.html"]


@pytest.mark.parametrize(
    "objectives", [("latency", "top1"), ("loss", "flops"), ("agreement", "flops", "latency"), ("top1",)]
)
def test_plots_of_other_objectives(
    tmp_path: Path, make_spec: MakeSpec, evaluations: list[Evaluation], objectives: tuple[str, ...]
) -> None:
    study = Study(1, NOW, make_spec(objectives=objectives), 12, 1)
    timed = [replace(e, latency_ratio=e.flops_ratio) for e in evaluations]
    for name in ("front.png", "front.html"):
        plot_front(tmp_path / name, study, timed)
        assert (tmp_path / name).stat().st_size > 10_000
    write_report(tmp_path / "report.html", study, timed)
    write_report(tmp_path / "report.html", study, evaluations)
