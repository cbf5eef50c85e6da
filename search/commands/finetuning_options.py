"""The options of `finetune`, beside those that it shares with `train`."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.options import (
    Checkpoint,
    ClassOrder,
    Database,
    Images,
    ImgSize,
    MaxFlops,
    Skip,
    Split,
    database,
    note_ray_address,
)

if TYPE_CHECKING:
    from results.records import Study
    from search.data.image_set import ImageChoice
    from search.training.finetune import Workers


@dataclass(frozen=True)
class InputOptions:
    """The images, the weights, and the study that the outcome is recorded in."""

    data: Annotated[
        str | None, typer.Option(metavar="D", help="As for `search`. Default: the study's.", show_default=False)
    ] = None
    checkpoint: Checkpoint = None
    class_order: ClassOrder = None
    img_size: ImgSize = None
    study: Annotated[str | None, typer.Option(metavar="S", help="Record the outcome in this study.")] = None
    db: Database = None
    split: Split = None
    skip: Skip = None
    images: Images = None

    @property
    def choice(self) -> "ImageChoice":
        """The images that scores shall be of; UnknownNameError if there is no such split."""
        from search.data.image_set import ImageChoice

        return ImageChoice(self.split, self.skip, self.images)

    def open_study(self) -> "Study | None":
        """Return the study, if one is named."""
        from results.store.store import Store

        if self.study is None:
            return None
        with Store.open(database(self.db)) as store:
            return store.study(self.study)


@dataclass(frozen=True)
class HalvingOptions:
    """Several schedules of a study in place of a file."""

    top: Annotated[
        int | None, typer.Option(metavar="K", help="In place of FILE: the K most promising schedules of the study.")
    ] = None
    max_flops: MaxFlops = None
    eta: Annotated[int, typer.Option(metavar="N", help="With --top: one in N goes on, N times as far.")] = 2


@dataclass(frozen=True)
class DistillationOptions:
    """How much the student learns from the teacher."""

    distill: Annotated[
        float | None, typer.Option(metavar="X", help="Weight of the teacher's logits in the loss. Default: 0.5.")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Temperature of these logits. Default: 2.")
    ] = None
    features: Annotated[
        float | None,
        typer.Option(metavar="X", help="Weight of the teacher's features of kept tokens in the loss. Default: 0."),
    ] = None


@dataclass(frozen=True)
class WorkerOptions:
    """The processes that train."""

    workers: Annotated[int, typer.Option(metavar="W", help="Processes on Ray that share each batch.")] = 1
    ray_address: Annotated[
        str | None, typer.Option(metavar="A", help="A running Ray cluster, HOST:PORT. Default: Ray on this machine.")
    ] = None

    def open(
        self, checkpoint: str | None, img_size: tuple[int, int] | None
    ) -> "AbstractContextManager[Workers | None]":
        """Return the workers; None if this process trains alone, since Ray takes seconds to import."""
        note_ray_address(self.ray_address, "the fine-tuning")
        if self.workers == 1 and self.ray_address is None:
            return nullcontext()
        from search.training.ray_workers import RayWorkers

        return RayWorkers(self.workers, self.ray_address, checkpoint, img_size=img_size)
