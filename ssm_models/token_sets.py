"""Which tokens of each image travel, which are scanned and which are kept: nested index sets.

Only some tokens of the whole sequence travel through the blocks. The state scans some of these, and some of the
scanned ones are kept: only these are updated and give an output. What a pruning step removes a token from depends on
the step's context:

    context         kept   scanned   travelling
    freeze           no      yes        yes       later blocks read its last feature, in convolution and state
    conv             no      no         yes       later blocks read its last feature in the convolution
    drop, zeros      no      no         no        later blocks read nothing of it

Steps may differ in their contexts. Here tokens 1 and 5 of ten are dropped, 0 and 7 convolved, 3, 6 and 9 frozen:

    whole sequence   0  1  2  3  4  5  6  7  8  9     L = 10
    travelling       0     2  3  4     6  7  8  9     T = 8    travelling_idx = 0 2 3 4 6 7 8 9
    scanned                2  3  4     6     8  9     S = 6    scanned_idx    = 1 2 3 4 6 7
    kept                   2     4           8        K = 3    kept_idx       = 0 2 4

    scanned_positions = 2 3 4 6 8 9      kept_positions = 2 4 8      kept_in_travelling = 1 3 6

The names say what an index counts in: `X_idx` in the next larger set, `X_positions` in the whole sequence, `X_in_Y`
in Y. All of them are (b, n), ascending. None stands for the whole set, so that nothing is gathered from a set that
equals the one around it.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

# How many of the sets, from the kept outwards, a pruned token leaves.
SETS_LEFT = {"freeze": 1, "conv": 2, "drop": 3, "zeros": 3}


@dataclass(frozen=True, eq=False)
class TokenSets:
    """The travelling, scanned and kept tokens of a batch; see the diagram at the head of the module.

    >>> import torch
    >>> sets = TokenSets(4).without(torch.tensor([[0, 3]]), torch.tensor([[1, 2]]), SETS_LEFT["freeze"]).sets
    >>> sets.kept_positions, sets.scanned_positions
    (tensor([[0, 3]]), None)

    Attributes:
        length: tokens of the whole sequence, protected ones included.
        travelling_idx: (b, T) places in the whole sequence.
        scanned_idx: (b, S) places among the travelling tokens.
        kept_idx: (b, K) places among the scanned tokens.
    """

    length: int
    travelling_idx: Tensor | None = None
    scanned_idx: Tensor | None = None
    kept_idx: Tensor | None = None

    @cached_property
    def scanned_positions(self) -> Tensor | None:
        """(b, S) places of the scanned tokens in the whole sequence; there are gaps between them."""
        return _compose(self.travelling_idx, self.scanned_idx)

    @cached_property
    def kept_in_travelling(self) -> Tensor | None:
        """(b, K) places of the kept tokens among those that travel."""
        return _compose(self.scanned_idx, self.kept_idx)

    @cached_property
    def kept_positions(self) -> Tensor | None:
        """(b, K) places of the kept tokens in the whole sequence."""
        return _compose(self.travelling_idx, self.kept_in_travelling)

    @property
    def travelling_count(self) -> int:
        """T."""
        return self.length if self.travelling_idx is None else self.travelling_idx.shape[1]

    @property
    def scanned_count(self) -> int:
        """S."""
        return self.travelling_count if self.scanned_idx is None else self.scanned_idx.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The index tensors that are stored, without those derived from them."""
        return tuple(x for x in (self.travelling_idx, self.scanned_idx, self.kept_idx) if x is not None)

    def without_cache(self) -> "TokenSets":
        """Return the same sets without the derived indices that were computed so far."""
        return replace(self)

    def without(self, keep_idx: Tensor, drop_idx: Tensor, sets: int) -> "Remaining":
        """Remove kept tokens from the innermost `sets` of the kept, the scanned and the travelling tokens.

        Args:
            keep_idx: (b, k) ascending places, among the kept tokens, of those that stay.
            drop_idx: (b, K - k) places, among the kept tokens, of the others.
            sets: 1, 2 or 3; see `SETS_LEFT`.
        """
        chain = [self.kept_idx, self.scanned_idx, self.travelling_idx]  # each indexes the next set
        sizes_around = [self.scanned_count, self.travelling_count]
        still: list[Tensor | None] = [None, None]
        for level in range(sets):
            index = chain[level]
            if index is not None:  # from places in this set to places in the set around it
                keep_idx, drop_idx = index.gather(1, keep_idx), index.gather(1, drop_idx)
            if level + 1 == sets:  # the set around it loses nothing
                chain[level] = keep_idx
                break
            if index is not None:  # the set around it also holds tokens that were not kept before
                keep_idx, chain[level] = _remove(drop_idx, keep_idx, sizes_around[level])
            still[level] = keep_idx
        kept_idx, scanned_idx, travelling_idx = chain
        return Remaining(TokenSets(self.length, travelling_idx, scanned_idx, kept_idx), *still)


class Remaining(NamedTuple):
    """The sets after a pruning step, and what is left of those before it.

    Attributes:
        sets: the new sets.
        still_scanned_idx: (b, S') ascending places, among the tokens scanned before, of those scanned now; None: all.
        still_travelling_idx: (b, T') the same of the travelling tokens.
    """

    sets: TokenSets
    still_scanned_idx: Tensor | None
    still_travelling_idx: Tensor | None


def _compose(outer_idx: Tensor | None, inner_idx: Tensor | None) -> Tensor | None:
    """Return places in the set that `outer_idx` counts in, of the tokens at `inner_idx` of those at `outer_idx`."""
    if outer_idx is None or inner_idx is None:
        return inner_idx if outer_idx is None else outer_idx
    return outer_idx.gather(1, inner_idx)


def _remove(drop_idx: Tensor, subset_idx: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Remove tokens from a set of `size`.

    Returns:
        The ascending places of the tokens that are left, and the places among these of the tokens `subset_idx`.
    """
    left = subset_idx.new_ones(subset_idx.shape[0], size).scatter(1, drop_idx, 0)
    order = left.argsort(dim=1, descending=True, stable=True)
    return order[:, : size - drop_idx.shape[1]], order.argsort(dim=1).gather(1, subset_idx)
