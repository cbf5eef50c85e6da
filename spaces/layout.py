"""What a search must know of a model: its blocks, its tokens, and which of them are protected."""

from dataclasses import dataclass

from spaces.errors import ScheduleError
from spaces.schedule import PruningSchedule, kept_tokens


@dataclass(frozen=True)
class Stage:
    """`blocks` blocks that work on the same grid of `height` × `width` patch tokens."""

    blocks: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Patch tokens on the whole grid."""
        return self.height * self.width


@dataclass(frozen=True)
class TokenLayout:
    """Blocks and patch tokens of a model at one image size.

    Attributes:
        model: the model's registered name.
        img_size: (height, width) of the images in pixels.
        stages: in order; a model without stages has one.
        protected: tokens beside the patch tokens (cls) that are never dropped nor counted.
    """

    model: str
    img_size: tuple[int, int]
    stages: tuple[Stage, ...]
    protected: int = 0

    @property
    def depth(self) -> int:
        """Blocks over all stages."""
        return sum(stage.blocks for stage in self.stages)

    def check(self, schedule: PruningSchedule) -> None:
        """Raise a ScheduleError unless every step names a block of this model."""
        for step in schedule.steps:
            if step.after > self.depth:
                raise ScheduleError(
                    f"step after block {step.after}: {self.model} has {self.depth} blocks, numbered from 1"
                )

    def tokens(self, schedule: PruningSchedule) -> list[int]:
        """Return the patch tokens that are left after each block (protected ones not counted).

        Tokens dropped inside a stage come back where the next stage needs its grid.
        """
        self.check(schedule)
        keeps = {step.after: step.keep for step in schedule.steps}
        counts, block = [], 0
        for stage in self.stages:
            left = stage.tokens
            for _ in range(stage.blocks):
                block += 1
                if block in keeps:
                    left = kept_tokens(left, keeps[block])
                counts.append(left)
        return counts
