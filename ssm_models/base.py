"""What every model family shares: a schedule, and the forward pass that obeys it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spaces import PruningSchedule, PruningStep, TokenLayout
from spaces.errors import ScheduleError
from spaces.schedule import ALIGNMENT
from ssm_models.importance import Signals, image_seeds
from ssm_models.pruning import prune
from ssm_models.scan_paths import Direction
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView


class PrunableModel(nn.Module, ABC):
    """A model whose tokens a schedule can drop between blocks; what a family offers (docs/adding-a-model.md).

    A family gives `embed`, `blocks` and `classify`, reads its own checkpoints (`settings_of`, `adapt`), and says
    in the class attributes what it can do. A block is a module called as block(x, view, signal) with the features
    that travel (b, S, D), the view of the kept tokens, and whether a pruning step follows; it returns these
    features with those of the kept tokens updated, and its `Signals` if a step follows, else None. A family whose
    layout has several stages also gives `downsample`, which leads from the whole grid of one to that of the next;
    what a later stage or the head wants of an earlier one beside that goes by way of `set_aside`. Where a block
    changes the width of the features that travel, `pass_by` says what that does to a token that is gone.

    A model is used by one thread at a time, in any process: by a worker's evaluator, a training, a user's script.
    The schedule is the only state that `forward` reads, and nothing of a forward pass stays behind. What a method
    returns belongs to the caller.

    Attributes:
        contexts, reductions, importances, alignments: what a schedule may ask of the family.
        directions: in which each sequence of Δ is scanned. Directions that share their Δ count once.
        published_directions: those of them that the `published` count of FLOPs includes.
        task: what the outputs are: of `classification` logits (b, classes), of `segmentation` (b, classes, H, W).
        layout: blocks and tokens, for the search.
        num_classes: outputs.
        in_chans: channels of an image.
        pretrained_cfg: the images that the model expects, as timm writes it.
    """

    contexts: ClassVar[tuple[str, ...]] = ("drop", "conv", "freeze")
    reductions: ClassVar[tuple[str, ...]] = ("prune", "merge")
    importances: ClassVar[tuple[str, ...]] = ("clip", "l1", "l2", "sum", "delta", "random")
    alignments: ClassVar[tuple[str, ...]] = ALIGNMENT
    task: ClassVar[str] = "classification"
    directions: tuple[Direction, ...]
    published_directions: tuple[Direction, ...]

    in_chans: int = 3
    pretrained_cfg: dict[str, Any]

    def __init__(self, layout: TokenLayout, num_classes: int) -> None:
        super().__init__()
        self.layout, self.num_classes = layout, num_classes
        self._schedule = PruningSchedule()

    def use_directions(self, directions: tuple[Direction, ...]) -> None:
        """Scan in these directions only; for counting FLOPs by the published convention."""
        self.directions = directions

    @property
    def model_name(self) -> str:
        """The registered name."""
        return self.layout.model

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.layout.img_size

    @property
    def offers(self) -> dict[str, tuple[str, ...]]:
        """What a schedule may ask of the family, by choice of the method."""
        return {
            "reduction": self.reductions,
            "importance": self.importances,
            "alignment": self.alignments,
            "context": self.contexts,
        }

    @property
    def schedule(self) -> PruningSchedule:
        """The schedule that the next forward pass obeys."""
        return self._schedule

    def set_schedule(self, schedule: PruningSchedule | None) -> None:
        """Obey `schedule` from the next forward pass on; None is dense.

        Raises:
            ScheduleError: a block that the model lacks, or a method or context that its family does not offer.
                The schedule set before stays.
        """
        schedule = schedule or PruningSchedule()
        self.layout.check(schedule)
        asked = [(name, choice) for name, choice in schedule.method.as_dict().items() if name != "context"]
        for name, choice in [*asked, *(("context", context) for context in schedule.contexts)]:
            if choice not in self.offers[name]:
                raise ScheduleError(
                    f"method {name}={choice!r}: {self.model_name} offers {', '.join(self.offers[name])}"
                )
        self._schedule = schedule

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in order, over all stages."""

    @property
    def protected(self) -> tuple[int, ...]:
        """Positions of the protected tokens in the sequence; none where a family has no cls token."""
        return ()

    @abstractmethod
    def scan_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of each sequence of Δ in block `index` (from 0)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Turn images (b, 3, H, W) into tokens (b, L, D)."""

    @abstractmethod
    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        """Turn the features that travelled through all blocks into logits, of the shape that `task` says.

        With stages these are the last stage's whole grid, and the view that of all its tokens.
        """

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """Turn the whole grid (b, L, D) that stage `stage` (from 0) leaves into the tokens of the next one.

        Args:
            stage: the one that ends.
            x: its features.
            aside: what `set_aside` gave when it began.
        """
        raise NotImplementedError(f"{type(self).__name__} has stages, and no way from one to the next")

    def set_aside(self, stage: int, x: Tensor, aside: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the whole grids that later stages or the head ask for, as stage `stage` (from 0) begins with x.

        Args:
            stage: the one that begins.
            x: (b, L, D) its tokens.
            aside: what was set aside until now.
        """
        return ()

    def pass_by(self, index: int, left: Tensor) -> Tensor:
        """Return the features (b, L, D) of tokens that block `index` (from 0) passed by, with it behind them.

        As they were, unless the block changes the width of the features, so that theirs must keep step.
        """
        return left

    @classmethod
    @abstractmethod
    def settings_of(cls, config: Any, state: dict[str, Tensor]) -> dict[str, int]:
        """Read num_classes and, where shapes depend on it, img_size (of a square image) off a state dict."""

    def adapt(self, state: dict[str, Tensor], img_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Return a state dict of the authors', for images of a size (square if None), as this model shapes it."""
        return state

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of normalised images (b, 3, H, W), of the shape that `task` says."""
        return self.classify(*self.run_blocks(images)[:2])

    def kept_patches(self, images: Tensor) -> list[Tensor]:
        """Return, for each step, the raster indices (b, k) of the patches it kept, on the grid of its stage."""
        patches = []
        for positions in self.run_blocks(images)[2]:
            keep = torch.ones_like(positions, dtype=torch.bool)
            for cls in self.protected:
                keep &= positions != cls
            rest = positions[keep].view(positions.shape[0], -1)
            patches.append(rest - sum((rest > cls).long() for cls in self.protected))
        return patches

    def begin(self, images: Tensor) -> tuple[Tensor, TokenView]:
        """Return the tokens before the first block, and the view in which all are kept."""
        x = self.embed(images)
        return x, self.first_view(images, aside=self.set_aside(0, x, ()))

    def first_view(self, images: Tensor, index: int = 0, aside: tuple[Tensor, ...] = ()) -> TokenView:
        """Return the view in which all tokens are kept, for block `index` (from 0), with what is set aside there."""
        method = self._schedule.method
        seeds = image_seeds(images) if method.importance == "random" else images.new_zeros(images.shape[0]).long()
        return self._whole_view(self.layout.stage_of(index + 1), seeds, aside)

    def _whole_view(self, stage: int, seeds: Tensor, aside: tuple[Tensor, ...] = ()) -> TokenView:
        here = self.layout.stages[stage]
        return TokenView(
            TokenSets(here.tokens + self.layout.protected),
            seeds,
            self._schedule.method,
            grid=(here.height, here.width),
            returning=self.layout.returning,
            aside=aside,
        )

    def step(self, index: int, x: Tensor, view: TokenView, step: PruningStep | None) -> tuple[Tensor, TokenView]:
        """Run block `index` (from 0), the pruning step after it if one is given, and what ends its stage."""
        return self.end_stage(index, *self.prune_block(index, x, view, step))

    def prune_block(
        self, index: int, x: Tensor, view: TokenView, step: PruningStep | None
    ) -> tuple[Tensor, TokenView]:
        """Run block `index` (from 0) and, if one is given that has an effect there, the pruning step after it."""
        if step is not None and not self.layout.prunes(index + 1):
            step = None
        x, signals = self.blocks[index](x, view, step is not None)
        last = view.last_features
        if last is not None and (passed := self.pass_by(index, last)) is not last:
            view = view.with_last_features(passed)
        if step is None:
            return x, view
        assert isinstance(signals, Signals)
        return prune(x, view, signals, step, self.protected, self.directions)

    def end_stage(self, index: int, x: Tensor, view: TokenView) -> tuple[Tensor, TokenView]:
        """Behind the last block of a stage let all tokens come back, and lead on to the next one."""
        layout = self.layout
        if not layout.returning or index + 1 not in layout.ends:
            return x, view
        x, stage, aside = view.whole(x), layout.stage_of(index + 1), view.aside
        if index + 1 < layout.depth:
            x, stage = self.downsample(stage, x, aside), stage + 1
            aside = self.set_aside(stage, x, aside)
        return x, self._whole_view(stage, view.seeds, aside)

    def run_blocks(self, images: Tensor) -> tuple[Tensor, TokenView, list[Tensor]]:
        """Return the features after the last block, the last view, and the kept positions after each step.

        Positions are those on the grid of the step's stage.
        """
        steps = {step.after: step for step in self._schedule.steps}
        kept = []
        x, view = self.begin(images)
        for index in range(len(self.blocks)):
            x, view = self.prune_block(index, x, view, steps.get(index + 1))
            if index + 1 in steps:
                kept.append(view.all_positions())
            x, view = self.end_stage(index, x, view)
        return x, view, kept
