"""The base class of all families: a model with a pruning schedule, and the forward pass that obeys it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spaces import PruningSchedule, PruningStep, TokenLayout
from spaces.errors import ScheduleError, UsageError
from spaces.schedule import ALIGNMENT, as_schedule
from ssm_models.importance import Signals, image_seeds
from ssm_models.pruning import prune
from ssm_models.scan_paths import Direction
from ssm_models.timm_methods import TimmMethods
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView


class PrunableModel(TimmMethods, ABC):
    """A model that drops or merges tokens between its blocks, as a schedule says.

    >>> import torch, ssm_models
    >>> model = ssm_models.build("vim_nano")
    >>> model.set_schedule("4:0.7,8:0.5")
    >>> model(torch.zeros(2, 3, 28, 28)).shape  # normalised images
    torch.Size([2, 10])
    >>> [tuple(kept.shape) for kept in model.kept_patches(torch.zeros(2, 3, 28, 28))]  # 49 patches
    [(2, 34), (2, 17)]

    A family implements `embed`, `blocks` and `last_tokens` (or `classify`), reads its own checkpoints (`settings_of`,
    `patches_of`, `adapt`), and declares in the class attributes what it supports (docs/adding-a-model.md). A block is
    a module called as block(x, view, signal) with the features that travel (b, T, D), the view of the tokens, and
    whether a pruning step follows. It returns these features with those of the kept tokens updated, and, if a step
    follows, its `Signals`, else None. A family with several stages also implements `downsample`, from the whole grid
    of one stage to that of the next; `set_aside` keeps whole grids for later stages or the head, such as the skips of
    a UNet. A block that changes the width of the features also implements `pass_by`, for the tokens that no longer
    travel.

    The schedule is the only state that `forward` reads, and a forward pass leaves no state behind. A model is not
    thread-safe: `set_schedule` affects every caller. Returned tensors belong to the caller.

    Attributes:
        contexts, reductions, importances, alignments: the choices of a schedule's method that the family supports.
        directions: in which each sequence of Δ is scanned. Directions that share their Δ count once.
        published_directions: those that the `published` count of FLOPs includes.
        task: `classification`, with logits (b, classes), or `segmentation`, with logits (b, classes, H, W).
        layout: blocks and tokens, for the search.
        num_classes: outputs.
        in_chans: channels of an image.
        pretrained_cfg: the preprocessing that the model expects, in timm's terms.
    """

    contexts: ClassVar[tuple[str, ...]] = ("drop", "conv", "freeze")
    reductions: ClassVar[tuple[str, ...]] = ("prune", "merge")
    importances: ClassVar[tuple[str, ...]] = ("clip", "l1", "l2", "sum", "delta", "random")
    alignments: ClassVar[tuple[str, ...]] = ALIGNMENT
    task: str = "classification"
    directions: tuple[Direction, ...]
    published_directions: tuple[Direction, ...]

    in_chans: int = 3
    pretrained_cfg: dict[str, Any]

    def __init__(self, layout: TokenLayout, num_classes: int) -> None:
        super().__init__()
        self.layout, self.num_classes = layout, num_classes
        self._schedule = PruningSchedule()

    def use_directions(self, directions: tuple[Direction, ...]) -> None:
        """Scan only in these directions, to count FLOPs by the published convention."""
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
        """What the family supports, by field of a schedule's method."""
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

    def set_schedule(self, schedule: PruningSchedule | str | None) -> None:
        """Obey a schedule, or its text, from the next forward pass on; None is dense. The weights do not change.

        Raises:
            ScheduleError: it is no schedule, names a block that the model lacks, or a method or context that its
                family does not support. The previous schedule stays.

        >>> import ssm_models
        >>> model = ssm_models.create_model("vim_nano")
        >>> model.set_schedule("6:0.5;importance=l2")
        >>> model.set_schedule("13:0.5")
        Traceback (most recent call last):
        spaces.errors.ScheduleError: step after block 13: vim_nano has 12 blocks, numbered from 1
        >>> model.schedule.text
        '6:0.5;importance=l2'
        """
        self._schedule = self.check_schedule(schedule)

    def check_schedule(self, schedule: PruningSchedule | str | None) -> PruningSchedule:
        """Return a schedule that may be given as text, or as None for dense.

        Raises:
            ScheduleError: the model does not have its blocks, or does not offer its method and contexts.
        """
        schedule = as_schedule(schedule)
        self.layout.check(schedule)
        for name, offered in self.offers.items():
            chosen = schedule.contexts if name == "context" else (getattr(schedule.method, name),)
            for choice in chosen:
                if choice not in offered:
                    raise ScheduleError(f"method {name}={choice!r}: {self.model_name} offers {', '.join(offered)}")
        return schedule

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in order, over all stages."""

    @property
    def protected(self) -> tuple[int, ...]:
        """Positions in the sequence of the tokens that are never pruned, such as a cls token."""
        return ()

    @abstractmethod
    def scan_channels(self, index: int) -> tuple[int, ...]:
        """Return the channels of each sequence of Δ in block `index` (from 0)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Turn images (b, 3, H, W) into tokens (b, L, D)."""

    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        """Turn the features after the last block into logits, of the shape that `task` says.

        Args:
            x: (b, T, D) the travelling tokens; in a model with stages, the whole grid of the last stage.
            view: the tokens.
        """
        return self.forward_head(self.last_tokens(x, view))

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """Return the tokens (b, T, D) that the head of a classifier reads, of what `classify` takes."""
        raise NotImplementedError(f"{type(self).__name__} has neither last_tokens nor a classify of its own")

    def features_of(self, images: Tensor) -> Tensor:
        """See `TimmMethods`."""
        return self.last_tokens(*self.run_blocks(images)[:2])

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """Turn the whole grid at the end of a stage into the tokens of the next stage.

        Args:
            stage: the one that ends, from 0.
            x: (b, L, D) its features.
            aside: what `set_aside` returned when it began.
        """
        raise NotImplementedError(f"{type(self).__name__} has several stages but no downsample method")

    def set_aside(self, stage: int, x: Tensor, aside: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the whole grids to keep for later stages or the head, at the beginning of a stage.

        Args:
            stage: the one that begins, from 0.
            x: (b, L, D) its tokens.
            aside: what has been set aside so far.
        """
        return ()

    def pass_by(self, index: int, left: Tensor) -> Tensor:
        """Return the last features (b, L, D) of the tokens that block `index` (from 0) did not compute, after it.

        They do not change, unless the block changes the width of the features.
        """
        return left

    @classmethod
    @abstractmethod
    def settings_of(cls, config: Any, state: dict[str, Tensor]) -> dict[str, int]:
        """Read num_classes from a state dict."""

    @classmethod
    def patches_of(cls, state: dict[str, Tensor]) -> int | None:
        """Return the number of patches that a state dict has position embeddings for; None if it has none."""
        return None

    def adapt(self, state: dict[str, Tensor], img_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Return the authors' weights with this model's keys and shapes.

        Args:
            state: the weights.
            img_size: (height, width) of the images that they are for; None leaves position embeddings as they are.
        """
        return state

    def forward(self, images: Tensor) -> Tensor:
        """Return logits for normalised images, of the shape that `task` says.

        The logits of an image with a NaN are NaN; those of the other images are what they would be without it.

        Args:
            images: (b, in_chans, H, W) of `img_size` and the weights' dtype; without images there are no logits.

        Raises:
            UsageError: images of another shape or dtype.

        >>> import torch, ssm_models
        >>> ssm_models.create_model("vim_nano", img_size=(24, 32))(torch.zeros(1, 3, 32, 24))
        Traceback (most recent call last):
        spaces.errors.UsageError: vim_nano takes images of 24×32 pixels, (batch, 3, 24, 32), got (1, 3, 32, 24)
        """
        self.check_images(images)
        if not _is_tracing() and images.shape[0] == 0:
            pixels = self.img_size if self.task == "segmentation" else ()
            return images.new_zeros(0, self.num_classes or self.num_features, *pixels)
        return self.classify(*self.run_blocks(images)[:2])

    def check_images(self, images: Tensor) -> None:
        """Raise a UsageError unless a batch of images has the model's channels, size and dtype."""
        if not isinstance(images, Tensor):
            raise UsageError(f"{self.model_name} takes a tensor of images, got {type(images).__name__}")
        if _is_tracing():  # where sizes are nodes of the graph
            return
        expected = (self.in_chans, *self.img_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            height, width = self.img_size
            raise UsageError(
                f"{self.model_name} takes images of {height}×{width} pixels, "
                f"(batch, {self.in_chans}, {height}, {width}), got {tuple(images.shape)}"
            )
        weights = next(self.parameters(), images).dtype  # a replica of nn.DataParallel has no parameters
        if images.dtype != weights and not (images.is_floating_point() and _is_mixed(images.device.type)):
            raise UsageError(
                f"{self.model_name} has weights of {_name(weights)}, got images of {_name(images.dtype)}: "
                f"normalise and convert them with .to(torch.{_name(weights)})"
            )

    def kept_patches(self, images: Tensor) -> list[Tensor]:
        """Return for each step the raster indices (b, k) of the patches that it keeps, on the grid of its stage."""
        patches = []
        for positions in self.run_blocks(images)[2]:
            keep = torch.ones_like(positions, dtype=torch.bool)
            for cls in self.protected:
                keep &= positions != cls
            rest = positions[keep].view(positions.shape[0], -1)
            patches.append(rest - sum((rest > cls).long() for cls in self.protected))
        return patches

    def begin(self, images: Tensor) -> tuple[Tensor, TokenView]:
        """Return the tokens before the first block, and the view in which all are kept.

        Raises:
            UsageError: there are no images, or they have another shape or dtype; see `forward`.
        """
        self.check_images(images)
        if not _is_tracing() and images.shape[0] == 0:
            raise UsageError(f"{self.model_name}: the batch has no images")
        x = self.embed(images)
        return x, self.first_view(images, aside=self.set_aside(0, x, ()))

    def first_view(self, images: Tensor, index: int = 0, aside: tuple[Tensor, ...] = ()) -> TokenView:
        """Return the view in which all tokens are kept, for block `index` (from 0) and the grids set aside so far."""
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
        """Run block `index` (from 0), the pruning step after it, if any, and the end of the stage, if it ends one."""
        return self.end_stage(index, *self.prune_block(index, x, view, step))

    def prune_block(
        self, index: int, x: Tensor, view: TokenView, step: PruningStep | None
    ) -> tuple[Tensor, TokenView]:
        """Run block `index` (from 0) and the pruning step after it, unless it is None or has no effect there."""
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
        """After the last block of a stage, bring all tokens back and lead on to the next stage."""
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


def _is_tracing() -> bool:
    """Return whether sizes are nodes of a graph, as fvcore records one."""
    return torch._C._get_tracing_state() is not None


def _is_mixed(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
