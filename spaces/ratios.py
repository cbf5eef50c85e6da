"""One keep ratio for each number of kept tokens, so that schedules that compute the same are written the same."""

from dataclasses import replace
from functools import lru_cache

from spaces.layout import TokenLayout
from spaces.schedule import PruningSchedule

DIGITS = 3  # of a ratio at most: it tells the counts of up to 1,000 tokens apart


@lru_cache(maxsize=2**16)
def keep_ratio(tokens: int, kept: int) -> tuple[float, int]:
    """Return the ratio that keeps `kept` of `tokens`, and how many it keeps.

    Of all decimals that keep so many by `kept_tokens`, it is the one with the fewest digits, and of these the
    nearest to `kept / tokens` (the lower of two). Where no decimal of `DIGITS` digits keeps so many, which takes
    more than 1,000 tokens, it is the nearest one, and the second value says how many that keeps.

    Args:
        tokens: before the step.
        kept: after it, in 1 … tokens.

    Raises:
        ValueError: `kept` is outside its bounds.
    """
    if not 1 <= kept <= tokens:
        raise ValueError(f"kept={kept}: outside 1 … {tokens}")
    ratio, count = 1.0, tokens
    for digits in range(1, DIGITS + 1):
        scale = 10**digits
        # The nearest multiple of 1/scale; if any keeps `kept` it does, since what rounds to `kept` surrounds it.
        numerator = max(1, -((tokens - 2 * kept * scale) // (2 * tokens)))
        ratio, count = numerator / scale, max(1, (2 * numerator * tokens + scale) // (2 * scale))
        if count == kept:
            break
    return ratio, count


def canonical(schedule: PruningSchedule, layout: TokenLayout) -> PruningSchedule:
    """Return the schedule that keeps the same tokens, each number of them by its one ratio.

    Steps that drop nothing, as at the end of a stage, vanish.

    Raises:
        ScheduleError: it does not fit the model.
    """
    before, left, steps = layout.worked_on(schedule), layout.tokens(schedule), []
    for step in schedule.steps:
        block = step.after - 1
        steps.append(replace(step, keep=keep_ratio(before[block], left[block])[0]))
    return PruningSchedule(tuple(steps), schedule.method)
