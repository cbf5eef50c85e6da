"""The Σ Δ over gaps, against a walk over the whole sequence."""

import torch

from ssm_models.scan.alignment import hold


def test_hold_sums_what_pruned_tokens_had() -> None:
    """Two steps with held Δ."""
    delta = torch.rand(2, 12, 3)
    for reverse in (False, True):
        first = torch.stack([torch.randperm(12)[:7].sort().values for _ in range(2)])
        gaps = hold(delta, first, None, reverse)
        later = torch.rand(2, 7, 3)
        second = torch.stack([torch.randperm(7)[:4].sort().values for _ in range(2)])
        gaps = hold(later, second, gaps, reverse)
        for b in range(2):
            survivors = first[b][second[b]].tolist()
            held = {t: delta[b, t] for t in range(12) if t not in first[b].tolist()}
            held |= {first[b, j].item(): later[b, j] for j in range(7) if j not in second[b].tolist()}
            for j, t in enumerate(survivors):
                if reverse:
                    between = range(t + 1, survivors[j + 1] if j + 1 < 4 else 12)
                else:
                    between = range(survivors[j - 1] + 1 if j else 0, t)
                expected = sum((held[s] for s in between), torch.zeros(3))
                assert torch.allclose(gaps[b, j], expected, atol=1e-5)


def test_hold_in_half_precision_rounds_its_sums_and_no_more() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.empty(1, 197, 4).uniform_(1e-3, 0.1, generator=generator).bfloat16()
    stays = torch.randperm(197, generator=generator)[:98].sort().values[None]
    found, expected = hold(delta, stays, None, False), hold(delta.double(), stays, None, False)
    assert found.dtype is torch.bfloat16
    assert torch.allclose(found.double(), expected, rtol=0.01, atol=1e-6)
