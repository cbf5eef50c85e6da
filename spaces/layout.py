"""Token layouts: all that a search needs to know of a model, namely its blocks and their patch tokens."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from spaces.errors import ScheduleError
from spaces.schedule import PruningSchedule, as_schedule, kept_tokens


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks that work on the same grid of patch tokens.

    >>> Stage(blocks=24, height=14, width=14).tokens
    196

    Attributes:
        blocks: how many.
        height: rows of the grid.
        width: columns of the grid.
    """

    blocks: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Patch tokens of the whole grid."""
        return self.height * self.width


@dataclass(frozen=True)
class TokenLayout:
    """Blocks and patch tokens of a model at one image size.

    In a model with several stages, tokens dropped inside a stage return at its end with their last value, because
    the next stage (or the head, after the last one) needs the whole grid. There, a step after the last block of a
    stage has no effect; it is not an error.

    >>> layout = TokenLayout("staged", (32, 32), (Stage(2, 8, 8), Stage(3, 4, 4)))
    >>> layout.depth, layout.places
    (5, (1, 3, 4))
    >>> layout.tokens("1:0.5,4:0.25")
    [32, 32, 16, 4, 4]

    Attributes:
        model: the model's registered name.
        img_size: (height, width) of the images in pixels.
        stages: in order; a model without stages has one.
        protected: tokens other than patch tokens, such as cls; they are never dropped and not counted.
    """

    model: str
    img_size: tuple[int, int]
    stages: tuple[Stage, ...]
    protected: int = 0

    @cached_property
    def depth(self) -> int:
        """The number of blocks in all stages."""
        return sum(stage.blocks for stage in self.stages)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The last block of each stage, counted from 1."""
        return tuple(accumulate(stage.blocks for stage in self.stages))

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The blocks, counted from 1, after which a search may prune: all but the last of each stage."""
        return tuple(block for block in range(1, self.depth) if block not in self.ends)

    @property
    def returning(self) -> bool:
        """Whether dropped tokens return at the end of their stage."""
        return len(self.stages) > 1

    def prunes(self, after: int) -> bool:
        """Whether a step after block `after`, counted from 1, has any effect."""
        return not (self.returning and after in self.ends)

    def stage_of(self, block: int) -> int:
        """Return the index of the stage of block `block`, counted from 1."""
        return next(index for index, end in enumerate(self.ends) if block <= end)

    def check(self, schedule: PruningSchedule | str) -> None:
        """Raise a ScheduleError unless every step of a schedule, or of its text, names a block of this model."""
        for step in as_schedule(schedule).steps:
            if step.after > self.depth:
                raise ScheduleError(
                    f"step after block {step.after}: {self.model} has {self.depth} blocks, numbered from 1"
                )

    def tokens(self, schedule: PruningSchedule | str) -> list[int]:
        """Return the number of patch tokens that remain after each block, protected tokens not counted.

        The schedule may be given as text. For the last block of a stage this is the number that it worked on, before
        dropped tokens return.

        Raises:
            ScheduleError: the schedule names a block that the model does not have.
        """
        schedule = as_schedule(schedule)
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

    def worked_on(self, schedule: PruningSchedule | str) -> list[int]:
        """Return how many patch tokens each block works on: those the block before left, or the whole grid."""
        left, found = self.tokens(schedule), list[int]()
        for stage in self.stages:
            start = len(found)
            found += [stage.tokens, *left[start : start + stage.blocks - 1]]
        return found
