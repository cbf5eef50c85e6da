"""A pruning step: which tokens stay, and what becomes of the others.

The step ranks the kept patch tokens by a score, removes the lowest from the sets that its context names
(`token_sets`), and passes on what later blocks need: the Δ of the pruned positions (`hold`), the averages (`merge`),
and in a model with stages the features with which pruned tokens return at the end of the stage.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces import PruningStep
from spaces.schedule import kept_tokens
from ssm_models.gather import add, put, take, take_if
from ssm_models.importance import SCORES, Signals
from ssm_models.precision import precise
from ssm_models.scan import alignment
from ssm_models.scan_paths import Direction
from ssm_models.token_sets import SETS_LEFT
from ssm_models.token_view import TokenView


class Choice(NamedTuple):
    """Which of the kept tokens a step keeps.

    Attributes:
        keep_idx: (b, k) ascending places, among the kept tokens, of those that stay.
        drop_idx: (b, K - k) places of the others.
        is_protected: (b, K) whether a token always stays.
    """

    keep_idx: Tensor
    drop_idx: Tensor
    is_protected: Tensor


def prune(
    x: Tensor,
    view: TokenView,
    signals: Signals,
    step: PruningStep,
    protected: tuple[int, ...],
    directions: tuple[Direction, ...],
) -> tuple[Tensor, TokenView]:
    """Keep the most important share of the current patch tokens.

    Args:
        x: (b, T, D) the features that travel, already updated by the block that gave `signals`.
        view: the tokens before the step.
        signals: what the block before the step saw.
        step: the share of the kept patch tokens that stays, and the context of the others.
        protected: positions that always stay.
        directions: in which each sequence of Δ is scanned.

    Returns:
        The features that travel on, and the view of the tokens after the step. Ties go to the earlier token.
    """
    chosen = choose(view, signals, step.keep, protected)
    sets_left = SETS_LEFT[step.context or view.method.context]
    sets, still_scanned_idx, still_travelling_idx = view.sets.without(chosen.keep_idx, chosen.drop_idx, sets_left)
    after = replace(view, sets=sets)
    if view.method.alignment == "hold" and still_scanned_idx is not None:
        after = replace(after, gap_sums=_gap_sums(view, signals, still_scanned_idx, directions))
    if view.returning and still_travelling_idx is not None:
        after = replace(after, last_features=view.whole(x))
    onwards = take_if(x, still_travelling_idx)
    if view.method.reduction == "prune":
        return onwards, after
    sizes = precise(x.new_ones(signals.positions.shape)) if view.merged_sizes is None else view.merged_sizes
    change, sizes = merge(view.kept(x), sizes, chosen)
    return after.update(onwards, change), replace(after, merged_sizes=sizes)


def choose(view: TokenView, signals: Signals, keep: float, protected: tuple[int, ...]) -> Choice:
    """Rank the kept tokens by the score of the method; `keep` is the share of the patch tokens that stays."""
    positions = signals.positions
    is_protected = torch.zeros_like(positions, dtype=torch.bool)
    for position in protected:
        is_protected = is_protected | (positions == position)
    scores = SCORES[view.method.importance](signals).masked_fill(is_protected, torch.inf)
    count = kept_tokens(int(positions.shape[1]) - len(protected), keep) + len(protected)
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    return Choice(ranked[:, :count].sort(dim=1).values, ranked[:, count:], is_protected)


def merge(x: Tensor, sizes: Tensor, chosen: Choice) -> tuple[Tensor, Tensor]:
    """Average each dropped token into the kept one whose feature is most similar by cosine.

    This is the matching of ToMe (arXiv:2210.09461), on the features and between the two sets that a score has chosen.

    Args:
        x: (b, K, D) features.
        sizes: (b, K) how many tokens each stands for: its weight in the average.
        chosen: which stay. Nothing is averaged into protected tokens; at least one that stays is not protected.

    Returns:
        What is to be added to the tokens that stay, (b, k, D), zero where nothing was merged, and how many tokens
        they then stand for, (b, k).
    """
    keep_idx, drop_idx, is_protected = chosen
    unit = F.normalize(x, dim=-1)
    similarity = take(unit, drop_idx) @ take(unit, keep_idx).transpose(1, 2)
    target = similarity.masked_fill(is_protected.gather(1, keep_idx)[:, None], -torch.inf).argmax(2)
    weights = sizes.gather(1, drop_idx)
    sizes = sizes.gather(1, keep_idx).scatter_add(1, target, weights)
    share = weights / sizes.gather(1, target)
    kept = take(x, keep_idx)
    pull = (take(x, drop_idx) - take(kept, target)) * share[..., None]
    return add(torch.zeros_like(kept, dtype=pull.dtype), target, pull).to(x.dtype), sizes


def _gap_sums(
    view: TokenView, signals: Signals, still_scanned_idx: Tensor, directions: tuple[Direction, ...]
) -> tuple[Tensor, ...]:
    """Return for each sequence of Δ the gap sums (b, S', D) of the tokens still scanned, in scan order."""
    before = view.gap_sums or (None,) * len(directions)
    found = []
    for delta, old, direction in zip(signals.deltas(), before, directions, strict=True):
        path = view.scan_path(direction)
        scanned = path.arrange(_among_scanned(view, delta))
        found.append(alignment.hold(scanned, path.ranks(still_scanned_idx), old, direction.reverse))
    return tuple(found)


def _among_scanned(view: TokenView, delta: Tensor) -> Tensor:
    """Return Δ of the kept tokens (b, K, D) at their places among the scanned ones, (b, S, D); zeros elsewhere."""
    kept_idx = view.sets.kept_idx
    if kept_idx is None:
        return delta
    return put(delta.new_zeros(delta.shape[0], view.sets.scanned_count, delta.shape[2]), kept_idx, delta)
