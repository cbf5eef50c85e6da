"""The view of nested sets against sets, and merging against a loop."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spaces import PruningMethod, PruningStep
from ssm_models.importance import Signals
from ssm_models.pruning import Choice, merge, prune
from ssm_models.scan_paths import FORWARD
from ssm_models.token_sets import SETS_LEFT, TokenSets
from ssm_models.token_view import TokenView
from tests.ssm_models.conftest import KEPT, NESTED, places, view_of


def signals(view: TokenView, scores: Tensor) -> Signals:
    """Return signals whose clip score is `scores` (b, L) of the kept tokens."""
    positions = view.all_positions()
    return Signals(scores.gather(1, positions)[..., None], tuple, positions, view.seeds)


@given(st.data())
def test_any_sequence_of_steps_leaves_what_the_fates_say(data: st.DataObject) -> None:
    length, batch = data.draw(st.integers(2, 12)), 2
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    protected = (length // 2,) if data.draw(st.booleans()) else ()
    contexts = data.draw(st.lists(st.sampled_from(["drop", "conv", "freeze"]), min_size=1, max_size=5))
    view = TokenView(TokenSets(length), torch.zeros(batch).long(), PruningMethod())
    x, fates = torch.randn(batch, length, 3), [[KEPT] * length for _ in range(batch)]
    full = x
    for context in contexts:
        scores = torch.rand(batch, length)
        keep = data.draw(st.integers(30, 90)) / 100
        x, view = prune(x, view, signals(view, scores), PruningStep(1, keep, context), protected, (FORWARD,))
        for b, image in enumerate(fates):
            kept = set(view.all_positions()[b].tolist())
            pruned = set(places(image, KEPT)) - kept
            assert kept <= set(places(image, KEPT)) and set(protected) <= kept
            patches = kept - set(protected)
            assert all(scores[b, t] <= scores[b, s] for t in pruned for s in patches)
            fates[b] = [context if t in pruned else fate for t, fate in enumerate(image)]
            assert torch.equal(x[b], full[b, places(fates[b], *NESTED[0])])
        expected = view_of(fates)
        sets = view.sets
        found_sets = (sets.travelling_idx, sets.scanned_positions, sets.kept_positions)
        for found, members in zip(found_sets, NESTED, strict=True):
            found = torch.arange(length).expand(batch, -1) if found is None else found
            assert found.tolist() == [places(image, *members) for image in fates]
        assert torch.equal(view.kept(x), expected.kept(x)) and torch.equal(view.scanned(x), expected.scanned(x))


@pytest.mark.parametrize("context", SETS_LEFT)
def test_one_context_gathers_nothing_but_its_own_set(context: str) -> None:
    view = TokenView(TokenSets(9), torch.zeros(2).long(), PruningMethod(context=context))
    x = torch.randn(2, 9, 3)
    for _ in range(3):
        x, view = prune(x, view, signals(view, torch.rand(2, 9)), PruningStep(1, 0.7), (), (FORWARD,))
        sets = view.sets
        gathered = [index is not None for index in (sets.kept_idx, sets.scanned_idx, sets.travelling_idx)]
        assert gathered == [depth + 1 == SETS_LEFT[context] for depth in range(3)]


def merged_by_a_loop(
    x: Tensor, sizes: Tensor, keep: list[int], drop: list[int], is_protected: Tensor
) -> tuple[Tensor, Tensor]:
    """One image: every dropped token joins the most similar one that stays; then each group's mean by size."""
    groups = {t: [t] for t in keep}
    for t in drop:
        likeness = {s: F.cosine_similarity(x[t], x[s], dim=0).item() for s in keep if not is_protected[s]}
        groups[max(likeness, key=lambda s: likeness[s])].append(t)
    means = [(x[group] * sizes[group, None]).sum(0) / sizes[group].sum() for group in groups.values()]
    return torch.stack(means), torch.stack([sizes[group].sum() for group in groups.values()])


@given(st.data())
def test_merging_is_the_mean_of_each_group(data: st.DataObject) -> None:
    tokens, batch = data.draw(st.integers(1, 12)), 2
    count = data.draw(st.integers(1, tokens))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(batch, tokens, 5, dtype=torch.float64)
    sizes = torch.randint(1, 6, (batch, tokens)).double()
    order = torch.stack([torch.randperm(tokens) for _ in range(batch)])
    keep_idx, drop_idx = order[:, :count].sort(1).values, order[:, count:]
    is_protected = torch.zeros(batch, tokens, dtype=torch.bool)
    if count > 1 and data.draw(st.booleans()):
        is_protected.scatter_(1, keep_idx[:, :1], True)
    change, after = merge(x, sizes, Choice(keep_idx, drop_idx, is_protected))
    for b in range(batch):
        keep, drop = keep_idx[b].tolist(), drop_idx[b].tolist()
        mean, total = merged_by_a_loop(x[b], sizes[b], keep, drop, is_protected[b])
        assert torch.allclose(x[b, keep] + change[b], mean) and torch.equal(after[b], total)
        untouched = after[b] == sizes[b, keep]
        assert (change[b, untouched] == 0).all() and not (change[b] != 0)[is_protected[b, keep]].any()


@given(st.lists(st.sampled_from(["drop", "conv", "freeze"]), min_size=1, max_size=4), st.integers(0, 1000))
def test_merged_tokens_keep_all_that_the_patches_add_up_to(contexts: list[str], seed: int) -> None:
    """The kept tokens, each as often as it stands for a token, add up to all tokens; the others stay as they were."""
    torch.manual_seed(seed)
    view = TokenView(TokenSets(11), torch.zeros(2).long(), PruningMethod(reduction="merge"))
    x = first = torch.randn(2, 11, 3, dtype=torch.float64)
    full, rows = first.clone(), torch.arange(2)[:, None]
    for context in contexts:
        given_ = signals(view, torch.rand(2, 11))
        x, view = prune(x, view, given_, PruningStep(1, 0.7, context), (5,), (FORWARD,))
        positions, sizes = view.all_positions(), view.merged_sizes
        assert sizes is not None and (sizes.sum(1) == 11).all() and (sizes[positions == 5] == 1).all()
        assert torch.allclose((view.kept(x) * sizes[..., None]).sum(1), first.sum(1))
        full[rows, positions] = view.kept(x)
        travelling = view.sets.travelling_idx
        travelling = torch.arange(11).expand(2, -1) if travelling is None else travelling
        assert torch.equal(x, full[rows, travelling])
