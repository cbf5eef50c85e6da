"""Published schedules as data, scaled to models of other depths, and the schedules that a search tries first."""

from collections.abc import Iterator

from spaces.layout import TokenLayout
from spaces.ratios import canonical
from spaces.schedule import PruningMethod, PruningSchedule, PruningStep
from spaces.solver import Place
from spaces.space import SearchSpace

# Model → schedules, all from the released code or logs of "Exploring Token Pruning in Vision State
# Space Models" (arXiv:2409.18962).
PUBLISHED: dict[str, tuple[str, ...]] = {
    "vim_tiny": ("10:0.8,20:0.8",),
    "vim_small": ("5:0.8,10:0.8,15:0.8", "5:0.8,15:0.8", "5:0.75,15:0.75", "5:0.7,15:0.7"),
}
_PUBLISHED_DEPTH = 24  # blocks of both models
# Shares of the way from a space's lowest target to its limit, ordered so that the first few lie far apart.
_TARGETS = (1.0, 0.1, 0.7, 0.4)


def published_schedules(layout: TokenLayout) -> list[PruningSchedule]:
    """Return the published schedules of a model; for any other model, all of them at the same relative depths.

    Where steps meet after the same block once scaled, the first one is kept, so every schedule fits `layout`.

    >>> from spaces import Stage
    >>> vim_tiny = TokenLayout("vim_tiny", (224, 224), (Stage(24, 14, 14),), protected=1)
    >>> [schedule.text for schedule in published_schedules(vim_tiny)]
    ['10:0.8,20:0.8']
    >>> shallow = TokenLayout("shallow", (28, 28), (Stage(12, 7, 7),))
    >>> [schedule.text for schedule in published_schedules(shallow)][:2]
    ['5:0.8,10:0.8', '3:0.8,5:0.8,8:0.8']
    """
    texts = PUBLISHED.get(layout.model)
    if texts is None:
        texts = tuple(dict.fromkeys(text for known in PUBLISHED.values() for text in known))
        schedules = [_scaled(PruningSchedule.parse(text), layout) for text in texts]
    else:
        schedules = [PruningSchedule.parse(text) for text in texts]
    return list(dict.fromkeys(schedules))


def starting_schedules(space: SearchSpace) -> list[PruningSchedule]:
    """Return the schedules that a search tries before its sampler proposes any, the most promising first.

    The published schedules come first. Then their places are solved with equal keep ratios: for several targets over
    the budget, by each open context and reduction in turn, so that any few in a row differ widely in FLOPs and in
    method. All have canonical keep ratios, no two are equal, and none costs more than the limit.

    >>> from spaces import FlopsBudget, Stage
    >>> from spaces.space import make_space
    >>> layout = TokenLayout("tiny", (28, 28), (Stage(12, 7, 7),))
    >>> flops = lambda schedule: 1000 * sum(layout.worked_on(schedule))
    >>> space = make_space("stages;context=drop", layout, flops, FlopsBudget.parse("0.5:0.8"))
    >>> [schedule.text for schedule in starting_schedules(space)][:2]
    ['3:0.8,5:0.8,8:0.8', '3:0.8,8:0.8']
    """
    published = [canonical(schedule, space.layout) for schedule in published_schedules(space.layout)]
    within = [schedule for schedule in published if space.flops(schedule) <= space.limit]
    return list(dict.fromkeys([*within, *_solved(space)]))


def _solved(space: SearchSpace) -> Iterator[PruningSchedule]:
    """Solve the places of the longest published schedule that the space has room for, for each target and method."""
    methods = _open_methods(space)
    for turn in range(len(methods)):
        for i, share in enumerate(_TARGETS):
            method = methods[(turn + i) % len(methods)]
            target = space.solver.target(share, method)
            for blocks in _published_blocks(space.layout):
                found = space.weakest([Place(block) for block in blocks], target, method)
                if space.values(found) is not None:
                    yield found
                    break


def _published_blocks(layout: TokenLayout) -> list[tuple[int, ...]]:
    """Return the blocks after which each published schedule prunes, those with most steps first."""
    schedules = published_schedules(layout)
    found = dict.fromkeys(
        tuple(step.after for step in schedule.steps if step.after in layout.places) for schedule in schedules
    )
    return sorted((blocks for blocks in found if blocks), key=len, reverse=True)


def _open_methods(space: SearchSpace) -> list[PruningMethod]:
    """Return a method for each open context and reduction that fits the budget; other choices are the first ones."""
    first = {name: choices[0] for name, choices in space.choices.items()}
    methods = [
        PruningMethod(**{**first, "reduction": reduction, "context": context})
        for reduction in space.choices["reduction"]
        for context in space.choices["context"]
    ]
    return [method for method in dict.fromkeys(methods) if space.solver.least_of(method) <= space.limit]


def _scaled(schedule: PruningSchedule, layout: TokenLayout) -> PruningSchedule:
    """Return the schedule at the same relative depths of another model."""
    blocks: dict[int, float] = {}
    for step in schedule.steps:
        block = max(1, (2 * step.after * layout.depth + _PUBLISHED_DEPTH) // (2 * _PUBLISHED_DEPTH))
        blocks.setdefault(block if layout.prunes(block) else block - 1, step.keep)  # not at the end of a stage
    steps = tuple(PruningStep(after, keep) for after, keep in blocks.items() if after)
    return PruningSchedule(steps, schedule.method)
