"""Pruning schedules, and the search spaces that they are drawn from. Standard library only."""

from spaces.budget import FlopsBudget
from spaces.errors import PrunefrontError
from spaces.layout import Stage, TokenLayout
from spaces.schedule import PruningMethod, PruningSchedule, PruningStep

__all__ = [
    "FlopsBudget",
    "PrunefrontError",
    "PruningMethod",
    "PruningSchedule",
    "PruningStep",
    "Stage",
    "TokenLayout",
]
