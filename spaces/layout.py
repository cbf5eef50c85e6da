"""What a search must know of a model: its blocks, its tokens, and which of them are protected."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

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

    In a model with several stages, tokens dropped inside a stage come back at its end with the value they last had:
    the next stage needs the whole grid, and so does the head behind the last one. So a step after the last block of
    a stage prunes nothing there; it is no error, but leaves all as it was.

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

    @cached_property
    def depth(self) -> int:
        """Blocks over all stages."""
        return sum(stage.blocks for stage in self.stages)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The last block of each stage, counted from 1."""
        return tuple(accumulate(stage.blocks for stage in self.stages))

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The blocks, counted from 1, after which a search may prune: some later block works on what is kept."""
        return tuple(block for block in range(1, self.depth) if block not in self.ends)

    @property
    def returning(self) -> bool:
        """Whether tokens that are gone come back at the end of their stage."""
        return len(self.stages) > 1

    def prunes(self, after: int) -> bool:
        """Whether a step after block `after`, counted from 1, has any effect."""
        return not (self.returning and after in self.ends)

    def stage_of(self, block: int) -> int:
        """Return the index of the stage of block `block`, counted from 1."""
        return next(index for index, end in enumerate(self.ends) if block <= end)

    def check(self, schedule: PruningSchedule) -> None:
        """Raise a ScheduleError unless every step names a block of this model."""
        for step in schedule.steps:
            if step.after > self.depth:
                raise ScheduleError(
                    f"step after block {step.after}: {self.model} has {self.depth} blocks, numbered from 1"
                )

    def tokens(self, schedule: PruningSchedule) -> list[int]:
        """Return the patch tokens that are left after each block (protected ones not counted).

        After the last block of a stage these are the ones that it worked on; see the head of this class.
        """
        self.check(schedule)
        keeps = {step.after: step.keep for step in schedule.steps if self.prunes(step.after)}
        counts, block = [], 0
        for stage in self.stages:
            left = stage.tokens
            for _ in range(stage.blocks):
                block += 1
                if block in keeps:
                    left = kept_tokens(left, keeps[block])
                counts.append(left)
        return counts

    def worked_on(self, schedule: PruningSchedule) -> list[int]:
        """Return the patch tokens that each block works on: those left by the one before, or its stage's grid."""
        left, found = self.tokens(schedule), list[int]()
        for stage in self.stages:
            start = len(found)
            found += [stage.tokens, *left[start : start + stage.blocks - 1]]
        return found
