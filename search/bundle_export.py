"""Exports a point of a study as a bundle: weights, schedule, model card, and graphs for other runtimes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import ssm_models
from results.export.model_card import model_card
from results.export.schedule_json import export_schedule
from results.files import write_json, write_whole
from results.finetuned import latest_runs
from results.records import Confirmation, Evaluation, FineTune, Study
from search.data.image_set import ImageChoice, ImageSet
from search.study_data import open_study_data, study_images
from spaces.errors import CheckpointError, DataError
from ssm_models import PrunableModel, bundle
from ssm_models.checkpoints import RANDOM
from ssm_models.exporting import Parity, check_target, export

PARITY = "parity.json"
SEED = 0  # of the random images that stand in for real ones


@dataclass(frozen=True)
class Weights:
    """A model with the weights that a bundle gets.

    Attributes:
        model: with the schedule set.
        digest: SHA-256 of the weights.
        finetune: the recorded fine-tuning that produced them, if any.
        best: whether they are the best of the latest fine-tunings.
        measured: whether the study measured these weights: they are its own, or a recorded fine-tuning of them.
    """

    model: PrunableModel
    digest: str
    finetune: FineTune | None
    measured: bool
    best: bool = False


def choose_weights(
    study: Study, evaluation: Evaluation, finetunes: Sequence[FineTune], checkpoint: str | None = None
) -> Weights:
    """Load the weights of a point: the given ones, else its best fine-tuned ones, else the study's.

    The best are those of the latest fine-tunings, which differ by their seed only: scores of other images or recipes
    are not compared.

    Args:
        study: the study.
        evaluation: the point.
        finetunes: all fine-tunings of the study.
        checkpoint: a file that takes precedence over the recorded weights.

    Raises:
        CheckpointError: the weights are missing, cannot be read, or are not those that were recorded.
    """
    spec = study.spec
    tuned = [one for one in finetunes if one.schedule_hash == evaluation.hash]
    best = max(latest_runs(tuned).get(evaluation.hash, ()), key=lambda one: one.top1, default=None)
    source: str | None
    expected: str | None
    if checkpoint is None and best is not None:
        if not Path(best.checkpoint).is_file():
            raise CheckpointError(
                f"the fine-tuned weights {best.checkpoint} that study {spec.name!r} records are gone: "
                "give their new path with --checkpoint FILE, or the study's own weights"
            )
        source, expected = best.checkpoint, best.weights_digest
    elif checkpoint is None:
        source, expected = spec.checkpoint, spec.weights_digest
    else:
        source, expected = checkpoint, None
    classes = spec.num_classes if source == RANDOM else None
    model = ssm_models.build(spec.model, source, num_classes=classes, img_size=spec.img_size)
    digest = ssm_models.weights_digest(model)
    where = source or f"those that {spec.model} ships"
    if expected not in (None, digest):
        raise CheckpointError(f"the weights ({where}) are not those that study {spec.name!r} records")
    if (model.img_size, model.num_classes) != (tuple(spec.img_size), spec.num_classes):
        raise CheckpointError(
            f"the weights ({where}) are for {model.num_classes} classes and images of {model.img_size} pixels, "
            f"study {spec.name!r} is about {spec.num_classes} and {tuple(spec.img_size)}"
        )
    model.set_schedule(evaluation.schedule)
    latest = [one for one in reversed(tuned) if one.weights_digest == digest]
    origin = best if best in latest else next(iter(latest), None)
    measured = origin is not None or digest == spec.weights_digest
    return Weights(model, digest, origin, measured, best=origin is not None and origin is best)


def parity_images(study: Study, model: PrunableModel, choice: ImageChoice) -> tuple[ImageSet, Tensor]:
    """Return the images of a study's data set that are asked for, preprocessed for the model, (n, 3, H, W).

    Raises:
        UsageError: there are no such images.
        PrunefrontError: they cannot be read, or are no longer those of the study.
    """
    data = open_study_data(study.spec)
    if data.digest() != study.spec.data_digest:
        raise DataError(f"the images of {study.spec.data} are not those of study {study.name!r}")
    chosen = choice.image_set_of(data, study_images(study.spec))
    images, _ = next(iter(chosen.batches(data, model, chosen.images)))
    return chosen, images


def random_images(model: PrunableModel, count: int) -> Tensor:
    """Return normally distributed images (n, 3, H, W) from a fixed seed."""
    return torch.randn(count, 3, *model.img_size, generator=torch.Generator().manual_seed(SEED))


def export_bundle(
    directory: Path,
    study: Study,
    evaluation: Evaluation,
    weights: Weights,
    *,
    dense: Confirmation | None = None,
    targets: Sequence[str] = (),
    images: Tensor | None = None,
    images_from: str = "",
) -> list[Parity]:
    """Write the bundle of a point, whole or not at all, with the exported graphs beside its weights.

    Args:
        directory: a new folder, or one that holds an older bundle, which is replaced.
        study: the study.
        evaluation: the point.
        weights: the model that is written.
        dense: the dense model's confirmed score, if there is one.
        targets: names from `ssm_models.exporting.TARGETS`.
        images: (n, 3, H, W), on which each export is compared with the model; needed with targets.
        images_from: what the images are, for the record.

    Returns:
        How each export compares with the model.

    Raises:
        ExportError: the folder holds other files or cannot be written, or the model cannot be exported.
        UsageError: a target is unknown, or needs a package that is not installed.
    """
    for target in targets:
        check_target(target)
    form = export_schedule(evaluation, study, dense)
    model = weights.model
    with bundle.building(directory) as folder:
        bundle.write_parts(folder, model, form)
        parities = []
        for target in targets:
            assert images is not None
            parities.append(export(model, target, folder, images))
        if parities:
            write_json(folder / PARITY, {"images": images_from, "exports": [asdict(one) for one in parities]})
        card = model_card(
            form,
            model.pretrained_cfg,
            weights.digest,
            finetune=weights.finetune,
            runs=evaluation.finetuned if weights.best else None,
            measured=weights.measured,
            exports=[asdict(one) for one in parities],
        )
        write_whole(folder / bundle.CARD, card.encode())
    return parities
