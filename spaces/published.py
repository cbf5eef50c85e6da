"""The literature's schedules, as data, and what they come to on a model of another depth."""

from spaces.layout import TokenLayout
from spaces.schedule import PruningSchedule, PruningStep

# Model → schedules, all from the released code or logs of "Exploring Token Pruning in Vision State
# Space Models" (arXiv:2409.18962).
PUBLISHED: dict[str, tuple[str, ...]] = {
    "vim_tiny": ("10:0.8,20:0.8",),
    "vim_small": ("5:0.8,10:0.8,15:0.8", "5:0.8,15:0.8", "5:0.75,15:0.75", "5:0.7,15:0.7"),
}
_DEPTH = 24  # of both models


def published_schedules(layout: TokenLayout) -> list[PruningSchedule]:
    """Return the published schedules of a model; for another one, all of them at the same relative depths.

    Steps that fall together after scaling are left out, so that every schedule fits `layout`.
    """
    texts = PUBLISHED.get(layout.model)
    if texts is None:
        texts = tuple(dict.fromkeys(text for known in PUBLISHED.values() for text in known))
        schedules = [_scaled(PruningSchedule.parse(text), layout.depth) for text in texts]
    else:
        schedules = [PruningSchedule.parse(text) for text in texts]
    return list(dict.fromkeys(schedules))


def _scaled(schedule: PruningSchedule, depth: int) -> PruningSchedule:
    blocks: dict[int, float] = {}
    for step in schedule.steps:
        blocks.setdefault(max(1, (2 * step.after * depth + _DEPTH) // (2 * _DEPTH)), step.keep)
    return PruningSchedule(tuple(PruningStep(after, keep) for after, keep in blocks.items()), schedule.method)
