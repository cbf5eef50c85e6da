"""Schedules that users give as text or file, and the check that a file is for the model at hand."""

from typing import TYPE_CHECKING, Any

from search.config import given_size
from spaces import PruningSchedule
from spaces.errors import ScheduleError
from spaces.paths import is_file
from spaces.schedule import read_schedule_file

if TYPE_CHECKING:
    from search.data.image_set import StudyImages


def read_schedule(text_or_file: str) -> tuple[PruningSchedule, dict[str, Any] | None]:
    """Read a schedule from its text form or from a file; also return the decoded file, or None.

    Raises:
        ScheduleError: it is neither the text form nor a file of the JSON form.
    """
    if not (text_or_file.endswith(".json") or "/" in text_or_file or is_file(text_or_file)):
        return PruningSchedule.parse(text_or_file), None
    content = read_schedule_file(text_or_file)
    return PruningSchedule.from_dict(content, text_or_file), content


def check_belongs(
    content: dict[str, Any],
    where: str,
    *,
    model: str | None = None,
    img_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
) -> None:
    """Check that a schedule file is for the model at hand; a field that it leaves out fits any model.

    Raises:
        ScheduleError: a field is of the wrong kind, or names another model, image size or number of classes.
    """
    named, size = content.get("model"), content.get("img_size")
    if named is not None and not isinstance(named, str):
        raise ScheduleError(f"{where}: model is {named!r}, expected a name")
    if model is not None and named not in (None, model):
        raise ScheduleError(f"{where}: model is {named!r}, but --model is {model!r}: a schedule is for one model")
    classes = content.get("num_classes")
    if classes is not None and not (type(classes) is int and 0 < classes <= 1_000_000):
        raise ScheduleError(f"{where}: num_classes is {classes!r}, expected a number of classes")
    if num_classes is not None and classes not in (None, num_classes):
        raise ScheduleError(f"{where}: num_classes is {classes}, but this model has {num_classes} classes")
    if size is None:
        return
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= 100_000 for side in sides):
        raise ScheduleError(f"{where}: img_size is {size!r}, expected pixels such as 224, or [height, width]")
    if img_size is not None and tuple(sides) != tuple(img_size):
        raise ScheduleError(
            f"{where}: img_size is {size!r}, but this model takes images of {img_size[0]}×{img_size[1]} pixels"
        )


def size_of_images(content: dict[str, Any] | None) -> tuple[int, int] | None:
    """Return the (height, width) in a schedule file that `check_belongs` has accepted; None if it names none."""
    size = None if content is None else content.get("img_size")
    if size is None:
        return None
    return (size[0], size[1]) if isinstance(size, list) else (size, size)


def size_to_open(asked: str | None, checkpoint: str | None, content: dict[str, Any] | None) -> tuple[int, int] | None:
    """Return the image size to open a model at; None where its weights say it.

    Args:
        asked: --img-size.
        checkpoint: --checkpoint.
        content: the schedule file, whose size is taken where neither of the two says one.
    """
    from ssm_models.checkpoints import RANDOM, read_metadata

    if asked is not None:
        return given_size(asked)
    size = size_of_images(content)
    if size is None or checkpoint is None:
        return None
    return size if checkpoint == RANDOM or "img_size" not in read_metadata(checkpoint) else None


def images_of_file(content: dict[str, Any] | None, where: str) -> "StudyImages | None":
    """Return the images of the study that a schedule file is from; None if the file does not name them.

    Files of version 0.2 name those of the search, but not how many images confirm the front.

    Raises:
        ScheduleError: a field is malformed.
    """
    from search.data.dataset import SPLITS
    from search.data.image_set import REST, VAL, ImageSet, StudyImages
    from search.study_data import confirming_images

    provenance, metrics = ((content or {}).get(name) for name in ("provenance", "metrics"))
    if not isinstance(provenance, dict) or "study" not in provenance:
        return None
    older = metrics if isinstance(metrics, dict) else {}
    searched = provenance.get("images", older.get("search_images"))
    digest, split = provenance.get("data_digest"), provenance.get("confirm_split", VAL)
    if searched is None or digest is None:
        return None
    confirming: Any = provenance.get("confirm_images")
    if confirming is None:
        confirming = older.get("images") if older.get("confirmed") else 0
    for name, value, least in (("images", searched, 1), ("confirm_images", confirming, 0)):
        if type(value) is not int or not least <= value <= 10**12:
            raise ScheduleError(f"{where}: provenance: {name} is {value!r}, expected a number of images")
    if not isinstance(digest, str) or split not in (*SPLITS, REST):
        raise ScheduleError(f"{where}: provenance: data_digest or confirm_split is malformed")
    order = order_of_images(content or {}, where)
    return StudyImages(
        where=f"study {str(provenance['study'])!r} (named in {where})",
        searched=ImageSet(VAL, searched, 0, order),
        confirming=confirming_images(split, confirming, searched, order),
        digest=digest,
    )


def order_of_images(content: dict[str, Any], where: str) -> str:
    """Return the order of images that the study of a schedule file has; without a study, that of new ones.

    Files that were exported before there was a choice name no order; their studies have the stratified one.

    Raises:
        ScheduleError: the file names an order that this version does not know.
    """
    from search.data.image_order import DEFAULT_ORDER, ORDERS, STRATIFIED

    provenance = content.get("provenance")
    if not isinstance(provenance, dict) or "study" not in provenance:
        return DEFAULT_ORDER
    order = provenance.get("order", STRATIFIED)
    if not isinstance(order, str) or order not in ORDERS:
        raise ScheduleError(f"{where}: provenance: order is {order!r}, expected one of {', '.join(ORDERS)}")
    return order
