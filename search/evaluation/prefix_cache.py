"""What candidates that begin alike share: the features at their branching points, kept within a bound.

A schedule's forward pass is a path. It branches where a step follows a block: whatever comes before that
block depends only on the steps before it, and before the first step on the image alone. So the input of each
block with a step is worth keeping for the next candidate, of this brood or a later one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from spaces import PruningSchedule, TokenLayout
from ssm_models import PrunableModel
from ssm_models.token_view import TokenView

MOST_REMEMBERED = 10_000  # branching points whose uses are counted
FORGET = 0.98  # of a branching point's uses, with each candidate: what was useful long ago makes room


@dataclass(frozen=True)
class Stem:
    """What was done before a branching point, beside running blocks.

    Attributes:
        steps: (after, tokens left, context) of each step so far. Ratios that leave as many tokens are one.
        method: the schedule's choices but for the context, which these steps obeyed; empty where there are none.
    """

    steps: tuple[tuple[int, int, str], ...] = ()
    method: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Branch:
    """A branching point: the input of a block that a step follows.

    Attributes:
        stem: what was done before.
        block: index from 0 of the block.
        work: blocks since the last step, each by the share of tokens it works on.
    """

    stem: Stem
    block: int
    work: float = field(compare=False)


def branches(schedule: PruningSchedule, layout: TokenLayout) -> list[Branch]:
    """Return the branching points on a schedule's way, first to last."""
    tokens, left = layout.worked_on(schedule), layout.tokens(schedule)
    shares = [count / layout.stages[layout.stage_of(i + 1)].tokens for i, count in enumerate(tokens)]
    found: list[Branch] = []
    steps: list[tuple[int, int, str]] = []
    since = 0
    method = tuple((name, choice) for name, choice in schedule.method.as_dict().items() if name != "context")
    for step, context in zip(schedule.steps, schedule.contexts, strict=True):
        block = step.after - 1
        stem = Stem(tuple(steps), method) if steps else Stem()
        found.append(Branch(stem, block, sum(shares[since:block])))
        steps.append((step.after, left[block], context))
        since = block
    return found


@dataclass(frozen=True)
class State:
    """What a run goes on from at a branching point.

    Attributes:
        x: (b, S, D) the features that travel.
        view: of the kept tokens; None: all are.
        aside: whole grids of earlier stages that the model still wants.
    """

    x: Tensor
    view: TokenView | None
    aside: tuple[Tensor, ...] = ()

    @property
    def bytes(self) -> int:
        """What it holds of memory."""
        tensors = [self.x, *(self.aside if self.view is None else self.view.tensors)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class PrefixCache:
    """States of batches at branching points, the most useful ones within `limit` bytes; for one thread.

    A state's worth is the work that it saves, times how often candidates came by (lately more than long
    ago), for each byte. What is worth least goes first, the last batches of it before the first ones, since
    every race runs the first ones.

    Attributes:
        limit: bytes of features at most.
        bytes: that are held now.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.bytes = limit, 0
        self._held: dict[Branch, dict[int, State]] = {}
        self._blocks: dict[Stem, list[Branch]] = {}  # what is held, by stem, the last block first
        self._uses: dict[Branch, tuple[float, int]] = {}  # uses, and at which candidate they were counted
        self._candidates = 0

    def expect(self, path: Sequence[Branch]) -> None:
        """Count a candidate that comes by these branching points."""
        self._candidates += 1
        for branch in path:
            self._uses[branch] = (self._used(branch) + 1, self._candidates)
        if len(self._uses) > 2 * MOST_REMEMBERED:
            known = sorted(self._uses, key=self._used, reverse=True)[:MOST_REMEMBERED]
            self._uses = {branch: self._uses[branch] for branch in known}

    def find(self, batch: int, path: Sequence[Branch]) -> tuple[int, State] | None:
        """Return the farthest block on the way whose input is held for that batch, and this input."""
        for point in reversed(path):
            for held in self._blocks.get(point.stem, ()):
                if held.block <= point.block and batch in self._held[held]:
                    return held.block, self._held[held][batch]
        return None

    def offer(self, batch: int, branch: Branch, state: State) -> None:
        """Keep a state if there is room for it, or something worth less to let go."""
        size = state.bytes
        if batch in self._held.get(branch, {}) or size > self.limit:
            return
        worth = self._used(branch) * branch.work / size
        while self.bytes + size > self.limit:
            least = min(self._held, key=self._worth)
            if least == branch or self._worth(least) >= worth:
                return
            self._release(least)
        if branch not in self._held:
            self._held[branch] = {}
            stem = self._blocks.setdefault(branch.stem, [])
            stem.append(branch)
            stem.sort(key=lambda held: -held.block)
        self._held[branch][batch] = state
        self.bytes += size

    def clear(self) -> None:
        """Let everything go; memory is short."""
        self._held.clear()
        self._blocks.clear()
        self.bytes = 0

    def _release(self, branch: Branch) -> None:
        states = self._held[branch]
        self.bytes -= states.pop(max(states)).bytes
        if not states:
            del self._held[branch]
            self._blocks[branch.stem].remove(branch)
            if not self._blocks[branch.stem]:
                del self._blocks[branch.stem]

    def _used(self, branch: Branch) -> float:
        uses, counted = self._uses.get(branch, (0.0, self._candidates))
        return float(uses * FORGET ** (self._candidates - counted))

    def _worth(self, branch: Branch) -> float:
        return self._used(branch) * branch.work / next(iter(self._held[branch].values())).bytes


class SharedRun:
    """Runs one batch under several schedules, each from the farthest point of its way that is known.

    Args:
        model: in eval mode; its schedule is set at will.
        cache: where states outlive the batch.
        batch: its number.
        images: (b, 3, H, W), moved to the device when they are first run.
        paths: of all the candidates that will run; what several of them share is kept until the batch ends.
        device: the model's.
    """

    def __init__(
        self,
        model: PrunableModel,
        cache: PrefixCache,
        batch: int,
        images: Tensor,
        paths: Sequence[Sequence[Branch]],
        device: str | torch.device = "cpu",
    ) -> None:
        self._model, self._cache, self._batch, self._images = model, cache, batch, images
        self._device = device
        stems = Counter(branch.stem for path in paths for branch in path)
        self._shared = {stem for stem, count in stems.items() if count > 1}
        self._mine = PrefixCache(inf)

    def logits(self, schedule: PruningSchedule, path: Sequence[Branch]) -> Tensor:
        """Return what the model answers under `schedule`: to the bit what a run from the images gives."""
        model = self._model
        model.set_schedule(schedule)
        start, x, view = self._begin(path)
        steps = {step.after - 1: step for step in schedule.steps}
        points = {branch.block: branch for branch in path}
        for index in range(start, len(model.blocks)):
            if index in points:
                pruned = view.of(view.method) if points[index].stem.steps else None
                self._keep(points[index], State(x, pruned, view.aside))
            x, view = model.step(index, x, view, steps.get(index))
        return model.classify(x, view)

    def clear(self) -> None:
        """Let go of all that is kept, in the cache too; memory is short."""
        self._mine.clear()
        self._cache.clear()

    def _begin(self, path: Sequence[Branch]) -> tuple[int, Tensor, TokenView]:
        self._images = self._images.to(self._device)  # here, where a lack of memory is this candidate's
        known = [found for cache in (self._cache, self._mine) if (found := cache.find(self._batch, path))]
        if not known:
            return 0, *self._model.begin(self._images)
        block, state = max(known, key=lambda found: found[0])
        if state.view is None:
            return block, state.x, self._model.first_view(self._images, block, state.aside)
        return block, state.x, state.view.of(self._model.schedule.method)

    def _keep(self, branch: Branch, state: State) -> None:
        if branch.stem in self._shared:
            self._mine.offer(self._batch, branch, state)
        self._cache.offer(self._batch, branch, state)


def cache_bytes(device: torch.device, limit: int) -> int:
    """Return the bound of a cache on a device: no more than half of what a GPU has free."""
    if device.type != "cuda":
        return limit
    free, _ = torch.cuda.mem_get_info(device)
    return min(limit, free // 2)
