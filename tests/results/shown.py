"""Data for the tests of pages and plots."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from results import Confirmation, Evaluation, Study, StudySpec
from results.report.report import write_report
from results.report.token_pictures import TokenPicture
from spaces import PruningSchedule

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
EVIL = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">{{ 7*7 }}\'&'
DENSE = Confirmation(PruningSchedule().hash, 0.97, 0.1, 1.0, 5000, 1.0, 1.0, 0.8)


def make_picture(label: str = "seven") -> TokenPicture:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    schedule = PruningSchedule.parse("3:0.5,6:0.2")
    return TokenPicture(image, label, schedule, [list(range(25)), [0, 8, 24, 10, 11]], [(7, 7)] * 2, label, "one")


def write_evil_report(path: Path, make_spec: MakeSpec, evaluations: list[Evaluation]) -> None:
    spec = make_spec(
        name=EVIL, data=f"folder:{EVIL}", checkpoint=EVIL, space=EVIL, versions={EVIL: EVIL}, budget="0.8"
    )
    write_report(path, Study(1, NOW, spec, 12, 1), evaluations, [make_picture(EVIL)])
