"""The scores by their formulas."""

import pytest
import torch

from ssm_models.importance import SCORES, Signals, image_seeds


def signals(**changes: object) -> Signals:
    generator = torch.Generator().manual_seed(0)
    deltas = tuple(torch.rand(2, 7, 5, generator=generator) for _ in range(2))
    outputs = tuple(torch.randn(2, 7, 5, generator=generator) for _ in range(2))
    given = {
        "y": outputs[0] + outputs[1],
        "outputs": outputs,
        "deltas": lambda: deltas,
        "positions": torch.arange(7).expand(2, -1),
        "seeds": torch.tensor([3, 4]),
    }
    return Signals(**{**given, **changes})  # type: ignore[arg-type]


FORMULAS = {
    "clip": lambda s: s.y.clamp(min=0).mean(-1),
    "l1": lambda s: s.y.abs().mean(-1),
    "l2": lambda s: s.y.norm(dim=-1),
    "sum": lambda s: s.y.mean(-1),
    "forward": lambda s: s.outputs[0].clamp(min=0).mean(-1),
    "backward": lambda s: s.outputs[1].clamp(min=0).mean(-1),
    "delta": lambda s: torch.cat(s.deltas(), -1).mean(-1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_rank_as_their_formulas(name: str) -> None:
    given = signals()
    assert torch.equal(SCORES[name](given).argsort(1), FORMULAS[name](given).argsort(1))


def test_random_scores_depend_on_image_and_position_alone() -> None:
    score = SCORES["random"]
    first = score(signals())
    assert torch.equal(first, score(signals(y=torch.zeros(2, 7, 5))))
    assert not torch.equal(first[0], first[1]) and len(set(first[0].tolist())) == 7
    later = signals(positions=torch.tensor([[1, 5], [1, 5]]), y=torch.zeros(2, 2, 5))
    assert torch.equal(score(later), first[:, [1, 5]])


def test_random_scores_are_uniform() -> None:
    many = signals(positions=torch.arange(2000).expand(2, -1), y=torch.zeros(2, 2000, 1), seeds=torch.tensor([1, 2]))
    scores = SCORES["random"](many) / 2**31
    assert (
        scores.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=1).T - torch.tensor([0.1, 0.5, 0.9])
    ).abs().max() < 0.04


def test_seeds_depend_on_the_image_alone() -> None:
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(image_seeds(images)[1:2], image_seeds(images[1:2]))
    assert len(set(image_seeds(images).tolist())) == 3


@pytest.mark.parametrize("name", SCORES)
def test_half_precision_ranks_as_single_precision(name: str) -> None:
    """Large outputs, whose squares and sums are beyond fp16, and ranks that its rounding would change."""
    wide = 300 * torch.randn(2, 7, 768, generator=torch.Generator().manual_seed(1))
    half = tuple((wide + shift).half() for shift in (0, 0.5))
    found = SCORES[name](signals(y=half[0], outputs=half, deltas=lambda: tuple(x.abs() for x in half)))
    full = tuple(x.float() for x in half)
    expected = SCORES[name](signals(y=full[0], outputs=full, deltas=lambda: tuple(x.abs() for x in full)))
    assert torch.equal(found, expected)
