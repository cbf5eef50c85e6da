"""The study of a search in the store: it is created, or resumed if it was begun with the same settings."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from results.records import Study, StudySpec
from results.store.database import parse_address, unchanged
from results.store.store import Store
from search.driver.search_setup import SearchSetup
from search.evaluation.metrics import DenseAnswers
from search.study_data import check_reading
from spaces.errors import DatabaseError, StoreError, StudyExistsError, StudyMismatchError, UnknownNameError

# What a resumed search must have in common with its study: fields of the spec, and their names in messages.
IDENTITY: Mapping[str, str] = {
    "model": "--model",
    "img_size": "image size (--img-size)",
    "num_classes": "number of classes",
    "weights_digest": "weights (--checkpoint)",
    "data_digest": "images, or the order of their classes (--data, --class-order)",
    "images": "--images",
    "limit": "--flops-budget, in FLOPs",
    "least": "the least FLOPs of --flops-budget",
    "confirm_split": "--confirm-split",
    "confirm_images": "--confirm-images",
    "confirm_digest": "images of --confirm-split, or the order of their classes",
    "space": "--space",
    "sampler": "--sampler",
    "objectives": "--objective",
    "seed": "--seed",
}


def open_study(setup: SearchSetup, url: str) -> tuple[Store, Study, DenseAnswers]:
    """Open the store and the study, which is created if it is new; nothing is written before all is checked.

    Returns:
        The store, the study, and the dense model's answers on the study's images in the study's own order.

    Raises:
        StoreError: the database cannot be read or written.
        StudyMismatchError: the study was begun with other settings.
        EvaluationError: the dense model has no finite answers.
    """
    address = parse_address(url)
    # An existing file is checked at once; a new one is made when all else has been checked.
    if address.get_backend_name() == "sqlite" and os.path.lexists(address.database or ""):
        with unchanged(url) as same, Store.open(same) as store, suppress(UnknownNameError):
            setup = setup.in_order(_same_study(store, setup).spec.order)
    dense, latency = setup.dense_answers()
    measured: dict[str, Any] = {
        "dense_top1": dense.metrics.top1,
        "dense_loss": dense.metrics.loss,
        "dense_latency_ms": latency,
    }
    store = Store.open(url, create=True)
    try:
        with suppress(StudyExistsError):  # it is resumed, or another driver has just begun it
            store.create_study(StudySpec(**setup.spec(), **measured))
        study = _same_study(store, setup)
        if study.spec.order != setup.order:
            dense, _ = setup.in_order(study.spec.order).dense_answers()
        return store, study, dense
    except BaseException:
        store.close()
        raise


def begun_study(url: str, name: str) -> StudySpec | None:
    """Return what a study was begun with; None if it is new.

    Raises:
        StoreError: the SQLite file cannot be read, or the server cannot be reached.
    """
    address = parse_address(url)
    sqlite = address.get_backend_name() == "sqlite"
    if sqlite and not os.path.lexists(address.database or ""):
        return None
    try:
        with suppress(UnknownNameError), unchanged(url) as same, Store.open(same) as store:
            return store.study(name).spec
    except StoreError as error:
        if sqlite or (isinstance(error, DatabaseError) and error.transient):
            raise
        # A server without our tables yet; `open_study` creates them, or says what is wrong.
    return None


def _same_study(store: Store, setup: SearchSetup) -> Study:
    study = store.study(setup.config.study)
    check_same(study.spec, setup.spec(), study.name)
    check_reading(study.spec, setup.data, {"val", setup.confirm.split})
    return study


def check_same(begun: StudySpec, now: Mapping[str, Any], name: str) -> None:
    """Check that a search continues the study that was begun under its name.

    Raises:
        StudyMismatchError: with each difference in `IDENTITY`.
    """
    differences = []
    for field, words in IDENTITY.items():
        was, is_now = getattr(begun, field), now[field]
        if was != is_now:
            differences.append(f"{words} was {_shown(was)}, now {_shown(is_now)}")
    if differences:
        raise StudyMismatchError(
            f"study {name!r} was begun with other settings: {'; '.join(differences)}; "
            "give the same ones, or another --study"
        )


def order_note(study: Study, order: str) -> str | None:
    """Return a line that says so if a study keeps another order of images than `order`, which new studies get."""
    if study.spec.order == order:
        return None
    return (
        f"study {study.name!r} goes on with the order of images that it was begun with, {study.spec.order}; "
        f"new studies use {order}"
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(map(str, value))
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text  # a digest
