"""The parameters of a search space: what a sampler may choose, and within which bounds."""

from dataclasses import dataclass

Value = float | int | str


@dataclass(frozen=True)
class FloatParameter:
    """A real number in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class IntParameter:
    """An integer in [low, high]."""

    low: int
    high: int


@dataclass(frozen=True)
class ChoiceParameter:
    """One of several strings, in no order."""

    choices: tuple[str, ...]


Parameter = FloatParameter | IntParameter | ChoiceParameter
