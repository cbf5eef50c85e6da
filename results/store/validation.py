"""Checks of records before they are written: no contradictions, no NaN or infinity, only JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields

from results.records import FAILURES, FINISHED, Confirmation, Evaluation, FineTune, StudySpec
from spaces.errors import StoreError


def check_evaluation(evaluation: Evaluation) -> None:
    """Raise a StoreError if an evaluation is not finished, contradicts itself, or a number is NaN or infinite."""
    where = f"evaluation of {evaluation.schedule.text or 'the dense model'}"
    refuse_nonfinite(where, evaluation)
    state = evaluation.state
    if state not in FINISHED:
        raise StoreError(f"{where}: state {state!r} cannot be recorded; expected one of {', '.join(FINISHED)}")
    if state == "failed":
        if evaluation.failure not in FAILURES:
            raise StoreError(f"{where}: unknown failure {evaluation.failure!r}; use one of {', '.join(FAILURES)}")
    elif evaluation.failure is not None:
        raise StoreError(f"{where}: is {state}, but has the failure {evaluation.failure}")
    if state == "done" and (evaluation.top1 is None or evaluation.loss is None):
        raise StoreError(f"{where}: is done, but lacks its top1 or loss")
    if state == "stopped" and evaluation.images < 1:
        raise StoreError(f"{where}: was stopped after {evaluation.images} images; expected at least one")
    if evaluation.outcomes is not None and len(evaluation.outcomes) != (evaluation.images + 7) // 8:
        raise StoreError(
            f"{where}: {len(evaluation.outcomes)} bytes of outcomes do not match {evaluation.images} images"
        )


def check_confirmation(confirmation: Confirmation) -> None:
    """Raise a StoreError if a confirmation has no images, or outcomes of others, or a number is NaN or infinite."""
    where = f"confirmation of {confirmation.schedule_hash}"
    refuse_nonfinite(where, confirmation)
    images, outcomes = confirmation.images, confirmation.outcomes
    if images < 1:
        raise StoreError(f"{where}: has {images} images; expected at least one")
    if outcomes is not None and len(outcomes) != (images + 7) // 8:
        raise StoreError(f"{where}: {len(outcomes)} bytes of outcomes do not match {images} images")


def refuse_nonfinite(where: str, record: StudySpec | Evaluation | Confirmation | FineTune) -> None:
    """Raise a StoreError if a number is NaN or infinite, or a mapping is not JSON; SQLite would store NaN as NULL."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise StoreError(f"{where}: {field.name} is {value}, not a finite number")
        if isinstance(value, Mapping | list):
            try:
                json.dumps(value if isinstance(value, list) else dict(value), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise StoreError(f"{where}: {field.name} cannot be written as JSON: {error}") from None
