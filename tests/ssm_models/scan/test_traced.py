"""The loop that exporters keep is the reference, whatever it is given."""

import pytest
import torch

from ssm_models.scan import reference, traced
from ssm_models.scan.arguments import ScanArguments


def inputs(reverse: list[int], paths: int = 0, kept: int | None = None, optional: bool = True) -> ScanArguments:
    """Return arguments of a scan over 7 tokens of 6 channels; `optional` ones are there or None."""
    random = torch.Generator().manual_seed(0)
    b, length, channels, states, groups = 2, 7, 6, 3, len(reverse)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    emit = None
    if kept is not None:
        emit = torch.stack([torch.randperm(length, generator=random)[:kept].sort().values for _ in range(b)])
    orders = None
    if paths:
        orders = torch.stack([torch.randperm(length, generator=random) for _ in range(paths)])[None]
    read = length if emit is None or paths else emit.shape[1]
    out = length if emit is None else emit.shape[1]
    return ScanArguments(
        u=tensor(b, length, channels),
        delta=tensor(b, length, channels),
        A=-tensor(channels, states).exp(),
        B=tensor(b, length, groups, states),
        C=tensor(b, read, groups, states),
        D=tensor(channels) if optional else None,
        z=tensor(b, out, channels) if optional else None,
        delta_bias=tensor(channels) if optional else None,
        gap=tensor(b, length, channels).abs() if optional else None,
        emit=emit,
        orders=orders,
        B_orders=tensor(1, paths, length, states) if paths and optional else None,
        delta_softplus=True,
        reverse=reverse,
    ).check()


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize(
    ("reverse", "paths", "kept"),
    [
        ([0], 0, None),
        ([1], 0, None),
        ([1], 0, 3),
        ([0, 1, 0], 0, None),
        ([1, 0], 0, 4),
        ([0], 4, None),
        ([0], 2, 3),
    ],
)
@torch.no_grad()
def test_it_is_the_reference(reverse: list[int], paths: int, kept: int | None, optional: bool) -> None:
    given = inputs(reverse, paths, kept, optional)
    assert torch.allclose(traced.forward(given), reference.forward(given), atol=1e-12)


def test_a_graph_does_not_grow_with_the_tokens() -> None:
    class Scan(torch.nn.Module):
        def forward(self, u: torch.Tensor) -> torch.Tensor:
            steps = u[..., None, :3]
            return traced.forward(ScanArguments(u, u, -torch.ones(6, 3), steps, steps, *[None] * 7, True, [0]))

    with torch.no_grad():
        sizes = [len(torch.export.export(Scan(), (torch.zeros(2, n, 6),)).graph.nodes) for n in (5, 50)]
    assert sizes[0] == sizes[1] < 40
