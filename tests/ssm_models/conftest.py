"""What the tests of the models share: the smallest model of each family, with weights that make every part matter."""

import sys
from pathlib import Path

import pytest
import torch

import ssm_models
from ssm_models import PrunableModel

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
    return shaken(ssm_models.create_model("vim_nano"))


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> PrunableModel:
    """The smallest model of each registered family, in turn."""
    return shaken(ssm_models.create_model(FAMILIES[request.param]))


def pictures(model: PrunableModel, count: int = 5) -> torch.Tensor:
    """Return random images of the model's size."""
    return torch.randn(count, 3, *model.img_size, generator=torch.Generator().manual_seed(1))


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
