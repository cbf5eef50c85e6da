"""Hyperparameters, the learning rate and the seeds of epochs."""

import math
from typing import Any

import pytest

from search.training.recipe import Recipe, epoch_seed, learning_rate
from spaces import errors


class TestRecipe:
    @pytest.mark.parametrize(
        "change",
        [
            {"epochs": 0},
            {"lr": -1.0},
            {"lr": math.nan},
            {"batch_size": 0},
            {"ema": 1.0},
            {"warmup": 2.0},
            {"seed": -1},
        ],
    )
    def test_bad_values_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(errors.UsageError, match=next(iter(change))):
            Recipe(**{"epochs": 1, **change})

    def test_the_learning_rate_warms_up_then_follows_a_cosine(self) -> None:
        recipe = Recipe(epochs=1, lr=1.0, warmup=0.1)
        rates = [learning_rate(step, 1000, recipe) for step in range(1000)]
        assert rates[:100] == sorted(rates[:100])
        assert rates[100:] == sorted(rates[100:], reverse=True)
        assert (max(rates), rates[100]) == (1.0, 1.0)
        assert rates[550] == pytest.approx(0.505)
        assert rates[-1] == pytest.approx(0.01, abs=1e-4)

    @pytest.mark.parametrize("warmup", [0.0, 1.0])
    def test_the_learning_rate_without_warmup_or_decay(self, warmup: float) -> None:
        rates = [learning_rate(step, 3, Recipe(epochs=1, lr=1.0, warmup=warmup)) for step in range(3)]
        assert all(0 < rate <= 1 for rate in rates)

    def test_epochs_have_different_seeds(self) -> None:
        assert len({epoch_seed(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500
