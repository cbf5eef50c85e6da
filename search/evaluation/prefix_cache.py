"""What candidates with the same beginning share: the features at their branching points, within a bound of memory.

A schedule's forward pass is a path that branches where a step follows a block. What comes before that block depends
on the earlier steps only, and before the first step on the image alone. So the input of each block with a step is
worth keeping for other candidates, of this group or a later one.
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
FORGET = 0.98  # factor on a branching point's uses with each new candidate, so that old ones make room


@dataclass(frozen=True)
class Stem:
    """The pruning before a branching point.

    Attributes:
        steps: (after, tokens left, context) of each step so far; ratios that leave the same tokens are equal.
        method: the schedule's other choices, which these steps obeyed; empty if there are no steps.
    """

    steps: tuple[tuple[int, int, str], ...] = ()
    method: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Branch:
    """A branching point: the input of a block that a step follows.

    Attributes:
        stem: the pruning before it.
        block: index of the block, from 0.
        work: blocks since the last step, each weighted by the share of tokens that it works on.
    """

    stem: Stem
    block: int
    work: float = field(compare=False)


def branches(schedule: PruningSchedule, layout: TokenLayout) -> list[Branch]:
    """Return the branching points of a schedule, first to last.

    >>> from spaces import Stage
    >>> layout = TokenLayout("tiny", (28, 28), (Stage(12, 7, 7),))
    >>> [branch.block for branch in branches(PruningSchedule.parse("4:0.5,8:0.5"), layout)]
    [3, 7]
    """
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
    """What a forward pass continues from at a branching point.

    Attributes:
        x: (b, S, D), the features.
        view: of the kept tokens; None if all are kept.
        aside: whole grids of earlier stages that the model still needs.
    """

    x: Tensor
    view: TokenView | None
    aside: tuple[Tensor, ...] = ()

    @property
    def bytes(self) -> int:
        """The memory that it holds."""
        tensors = [self.x, *(self.aside if self.view is None else self.view.tensors)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class PrefixCache:
    """States of batches at branching points, the most useful ones within `limit` bytes; not thread-safe.

    A state's worth is the work that it saves times its uses (recent ones count more), per byte. The branching point
    of least worth is evicted first, its last batches before its first ones, since every race runs the first ones.

    Attributes:
        limit: bytes of features at most.
        bytes: held now.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.bytes = limit, 0
        self._held: dict[Branch, dict[int, State]] = {}
        self._blocks: dict[Stem, list[Branch]] = {}  # what is held, by stem, the last block first
        self._uses: dict[Branch, tuple[float, int]] = {}  # uses, and at which candidate they were counted
        self._candidates = 0

    def expect(self, path: Sequence[Branch]) -> None:
        """Count a candidate that passes these branching points."""
        self._candidates += 1
        for branch in path:
            self._uses[branch] = (self._used(branch) + 1, self._candidates)
        if len(self._uses) > 2 * MOST_REMEMBERED:
            known = sorted(self._uses, key=self._used, reverse=True)[:MOST_REMEMBERED]
            self._uses = {branch: self._uses[branch] for branch in known}

    def find(self, batch: int, path: Sequence[Branch]) -> tuple[int, State] | None:
        """Return the last block of the path whose input is held for that batch, and that input."""
        for point in reversed(path):
            for held in self._blocks.get(point.stem, ()):
                if held.block <= point.block and batch in self._held[held]:
                    return held.block, self._held[held][batch]
        return None

    def offer(self, batch: int, branch: Branch, state: State) -> None:
        """Keep a state if there is room for it, or something worth less to evict."""
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
        """Evict everything, since memory is short."""
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
    """Runs one batch under several schedules, each from the last point of its path that is known.

    Args:
        model: in eval mode; its schedule is set at will.
        cache: where states outlive the batch.
        batch: its number.
        images: (b, 3, H, W), moved to the device when first run.
        paths: of all candidates that will run; what several of them share is kept until the batch ends.
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
        self._of_batch = PrefixCache(inf)

    def logits(self, schedule: PruningSchedule, path: Sequence[Branch]) -> Tensor:
        """Return the logits under `schedule`, equal to the bit to those of a run from the images."""
        model = self._model
        model.set_schedule(schedule)
        start, x, view = self._start(path)
        steps = {step.after - 1: step for step in schedule.steps}
        points = {branch.block: branch for branch in path}
        for index in range(start, len(model.blocks)):
            if index in points:
                pruned = view.of(view.method) if points[index].stem.steps else None
                self._keep(points[index], State(x, pruned, view.aside))
            x, view = model.step(index, x, view, steps.get(index))
        return model.classify(x, view)

    def clear(self) -> None:
        """Evict all that is kept, in the cache too, since memory is short."""
        self._of_batch.clear()
        self._cache.clear()

    def _start(self, path: Sequence[Branch]) -> tuple[int, Tensor, TokenView]:
        self._images = self._images.to(self._device)  # here, where running out of memory fails this candidate
        known = [found for cache in (self._cache, self._of_batch) if (found := cache.find(self._batch, path))]
        if not known:
            return 0, *self._model.begin(self._images)
        block, state = max(known, key=lambda found: found[0])
        if state.view is None:
            return block, state.x, self._model.first_view(self._images, block, state.aside)
        return block, state.x, state.view.of(self._model.schedule.method)

    def _keep(self, branch: Branch, state: State) -> None:
        if branch.stem in self._shared:
            self._of_batch.offer(self._batch, branch, state)
        self._cache.offer(self._batch, branch, state)


def cache_bytes(device: torch.device, limit: int) -> int:
    """Return the bound of a cache on a device: at most half of what a GPU has free."""
    if device.type != "cuda":
        return limit
    free, _ = torch.cuda.mem_get_info(device)
    return min(limit, free // 2)
