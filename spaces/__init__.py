"""What a pruning schedule is, and which ones a search may try. Pure Python."""

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
