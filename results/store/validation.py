"""What the store refuses to write: records that contradict themselves, or hold what no database can."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields

from results.records import FAILURES, FINISHED, Confirmation, Evaluation, FineTune, StudySpec
from spaces.errors import StoreError


def check_evaluation(evaluation: Evaluation) -> None:
    """Raise a StoreError if an evaluation is not finished, contradicts itself or holds a NaN or an infinity."""
    where = f"evaluation of {evaluation.schedule.text or 'the dense model'}"
    refuse_nonfinite(where, evaluation)
    state = evaluation.state
    if state not in FINISHED:
        raise StoreError(f"{where}: state {state!r} is not one that can be recorded ({', '.join(FINISHED)})")
    if state == "failed":
        if evaluation.failure not in FAILURES:
            raise StoreError(f"{where}: failure {evaluation.failure!r} is none of {', '.join(FAILURES)}")
    elif evaluation.failure is not None:
        raise StoreError(f"{where}: is {state} and yet has the failure {evaluation.failure}")
    if state == "done" and (evaluation.top1 is None or evaluation.loss is None):
        raise StoreError(f"{where}: is done but lacks its top1 or loss")
    if state == "stopped" and evaluation.images < 1:
        raise StoreError(f"{where}: was stopped after {evaluation.images} images; it must have run some")
    if evaluation.outcomes is not None and len(evaluation.outcomes) != (evaluation.images + 7) // 8:
        raise StoreError(
            f"{where}: outcomes of {len(evaluation.outcomes)} bytes do not fit {evaluation.images} images"
        )


def refuse_nonfinite(where: str, record: StudySpec | Evaluation | Confirmation | FineTune) -> None:
    """Refuse what a database cannot hold; SQLite would take a NaN for a missing value without a word."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise StoreError(f"{where}: {field.name} is {value}; record it as failed with NONFINITE")
        if isinstance(value, Mapping | list):
            try:
                json.dumps(value if isinstance(value, list) else dict(value), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise StoreError(f"{where}: {field.name} cannot be written as JSON: {error}") from None
