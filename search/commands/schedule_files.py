"""Schedules that users give as text or file, and the check that a file is for the model at hand."""

from typing import Any

from spaces import PruningSchedule
from spaces.errors import ScheduleError
from spaces.paths import is_file
from spaces.schedule import read_schedule_file


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
