"""What the tests of the models share: the smallest model of each family, with weights that make every part matter."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import ssm_models
from spaces import PruningMethod
from ssm_models import PrunableModel
from ssm_models.scan_paths import CROSS
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def _smallest_of_each_family() -> dict[str, str]:
    smallest: dict[str, tuple[int, str]] = {}
    for name in ssm_models.list_models():
        with torch.device("meta"):
            model = ssm_models.create_model(name)
        found = (sum(p.numel() for p in model.parameters()), name)
        family = type(model).__name__
        smallest[family] = min(smallest.get(family, found), found)
    return {family: name for family, (_, name) in smallest.items()}


FAMILIES = _smallest_of_each_family()


def shaken(model: PrunableModel) -> PrunableModel:
    """Move every weight away from its initial symmetry."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def model() -> PrunableModel:
    """A Vim."""
    torch.manual_seed(0)
    return shaken(ssm_models.create_model("vim_nano"))


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> PrunableModel:
    """The smallest model of each registered family, in turn; what is small in one of its outputs is so each time."""
    torch.manual_seed(0)
    return shaken(ssm_models.create_model(FAMILIES[request.param]))


def pictures(model: PrunableModel, count: int = 5) -> torch.Tensor:
    """Return random images of the model's size."""
    return torch.randn(count, 3, *model.img_size, generator=torch.Generator().manual_seed(1))


KEPT = "kept"  # what a token is that is not pruned; of a pruned one the word is its context
NESTED = (
    (KEPT, "freeze", "conv"),
    (KEPT, "freeze"),
    (KEPT,),
)  # the fates of those that travel, are scanned, are kept


def places(fates: Sequence[str], *members: str) -> list[int]:
    """Return where tokens of these fates stand."""
    return [place for place, fate in enumerate(fates) if fate in members]


def view_of(fates: Sequence[Sequence[str]], **method: Any) -> TokenView:
    """Return the view in which each token of each image has its fate, straight from what the sets mean."""
    around, sets = [list(range(len(image))) for image in fates], list[Tensor | None]()
    for members in NESTED:
        inside = [[t for t in tokens if image[t] in members] for tokens, image in zip(around, fates, strict=True)]
        index = [[a.index(t) for t in i] for a, i in zip(around, inside, strict=True)]
        sets.append(None if inside == around else torch.tensor(index))
        around = inside
    if "zeros" in fates[0]:
        method["context"] = "zeros"
    return TokenView(TokenSets(len(fates[0]), *sets), torch.zeros(len(fates)).long(), PruningMethod(**method))


@st.composite
def fates_of_a_batch(draw: st.DrawFn, batch: int, length: int, *contexts: str) -> list[list[str]]:
    """Draw fates that occur equally often in every image, at least one token kept."""
    fates = [KEPT, *draw(st.lists(st.sampled_from([KEPT, *contexts]), min_size=length - 1, max_size=length - 1))]
    return [draw(st.permutations(fates)) for _ in range(batch)]


def gap_sums(past: Tensor, seen: list[int], reverse: bool) -> Tensor:
    """Add up the Δ of past (L, D) over the positions between each one seen and the one scanned before it."""
    order, gaps, total = sorted(seen, reverse=reverse), {}, torch.zeros_like(past[0])
    for t in sorted(range(len(past)), reverse=reverse):
        if t in order:
            gaps[t], total = total, torch.zeros_like(total)
        else:
            total = total + past[t]
    return torch.stack([gaps[t] for t in sorted(order)])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the authors' logits; its module `seeded_weights` can be imported."""
    if not REFERENCE.exists():
        pytest.skip("the parity fixtures are not beside this checkout")
    monkeypatch.syspath_prepend(str(REFERENCE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return REFERENCE


def gap_sums_along_the_paths(past: Tensor, fates: Sequence[str], height: int, width: int) -> list[Tensor]:
    """Return the gap sums (S, d) of past (4, L, d) along each path of the cross-scan."""
    columns = torch.arange(height * width).view(height, width).T.flatten().tolist()
    found = []
    for k, direction in enumerate(CROSS):
        path = columns if direction.columns else list(range(height * width))
        seen = [place for place, t in enumerate(path) if t in places(fates, *NESTED[1])]
        found.append(gap_sums(past[k][path], seen, direction.reverse))
    return found
