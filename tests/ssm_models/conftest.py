"""What the tests of the models share: a small Vim with weights that make every part matter."""

import pytest
import torch

import ssm_models
from ssm_models import PrunableModel


@pytest.fixture
def model() -> PrunableModel:
    """A vim_nano whose convolutions, dynamics and embeddings are all far from their initial symmetry."""
    return shaken(ssm_models.create_model("vim_nano"))


def shaken(model: PrunableModel) -> PrunableModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))
