"""The literature's schedules, as data, what they come to on a model of another depth, and where a search begins."""

from collections.abc import Iterator

from spaces.layout import TokenLayout
from spaces.ratios import canonical
from spaces.schedule import PruningMethod, PruningSchedule, PruningStep
from spaces.space import SearchSpace
from spaces.strength import Place

# Model → schedules, all from the released code or logs of "Exploring Token Pruning in Vision State
# Space Models" (arXiv:2409.18962).
PUBLISHED: dict[str, tuple[str, ...]] = {
    "vim_tiny": ("10:0.8,20:0.8",),
    "vim_small": ("5:0.8,10:0.8,15:0.8", "5:0.8,15:0.8", "5:0.75,15:0.75", "5:0.7,15:0.7"),
}
_DEPTH = 24  # of both models
# Shares of the way from a space's least FLOPs to its limit, in an order in which they lie far apart at once.
_TARGETS = (1.0, 0.1, 0.7, 0.4)


def published_schedules(layout: TokenLayout) -> list[PruningSchedule]:
    """Return the published schedules of a model; for another one, all of them at the same relative depths.

    Steps that fall together after scaling are left out, so that every schedule fits `layout`.
    """
    texts = PUBLISHED.get(layout.model)
    if texts is None:
        texts = tuple(dict.fromkeys(text for known in PUBLISHED.values() for text in known))
        schedules = [_scaled(PruningSchedule.parse(text), layout) for text in texts]
    else:
        schedules = [PruningSchedule.parse(text) for text in texts]
    return list(dict.fromkeys(schedules))


def starting_schedules(space: SearchSpace) -> list[PruningSchedule]:
    """Return what a search tries before anything is proposed, most promising first; none costs more than the limit.

    First the published schedules, then their places with one keep ratio: for some targets over the budget, by each
    open context and reduction, so that every few of them lie far apart in FLOPs and differ in method. All are in
    canonical ratios, and none stands twice.
    """
    published = [canonical(schedule, space.layout) for schedule in published_schedules(space.layout)]
    within = [schedule for schedule in published if space.flops(schedule) <= space.limit]
    return list(dict.fromkeys([*within, *_patterns(space)]))


def _patterns(space: SearchSpace) -> Iterator[PruningSchedule]:
    """Solve the places of the longest published schedule that the space has room for, for each target and method."""
    methods = _open_methods(space)
    for turn in range(len(methods)):
        for i, share in enumerate(_TARGETS):
            method = methods[(turn + i) % len(methods)]
            least = space.least_of(method)
            target = least + share * (space.limit - least)
            for places in _places(space.layout):
                found = space.weakest([Place(after) for after in places], target, method)
                if space.values(found) is not None:
                    yield found
                    break


def _places(layout: TokenLayout) -> list[tuple[int, ...]]:
    """Return the blocks after which published schedules prune, those with most steps first."""
    schedules = published_schedules(layout)
    found = dict.fromkeys(
        tuple(s.after for s in schedule.steps if s.after in layout.places) for schedule in schedules
    )
    return sorted((places for places in found if places), key=len, reverse=True)


def _open_methods(space: SearchSpace) -> list[PruningMethod]:
    """Return a method for each open context and reduction that fits the budget; other choices as they stand first."""
    first = {name: choices[0] for name, choices in space.choices.items()}
    methods = [
        PruningMethod(**{**first, "reduction": reduction, "context": context})
        for reduction in space.choices["reduction"]
        for context in space.choices["context"]
    ]
    return [method for method in dict.fromkeys(methods) if space.least_of(method) <= space.limit]


def _scaled(schedule: PruningSchedule, layout: TokenLayout) -> PruningSchedule:
    blocks: dict[int, float] = {}
    for step in schedule.steps:
        block = max(1, (2 * step.after * layout.depth + _DEPTH) // (2 * _DEPTH))
        blocks.setdefault(block if layout.prunes(block) else block - 1, step.keep)  # not at the end of a stage
    steps = tuple(PruningStep(after, keep) for after, keep in blocks.items() if after)
    return PruningSchedule(steps, schedule.method)
