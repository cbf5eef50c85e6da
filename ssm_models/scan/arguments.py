"""The inputs of a selective scan and their gradients, by name.

Shapes use b images, L scanned positions, D channels, N states per channel, G groups of D / G channels, K outputs per
image and P scan orders. Tensors are channel-last, as the linear layers of a model leave them.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ScanArguments:
    """What every backend's `forward` and `backward` take; `ssm_models.scan.ops` gives the recurrence.

    The order of the fields is that of the inputs of the operator `prunefront::selective_scan`.

    Attributes:
        u: (b, L, D) inputs.
        delta: (b, L, D) Δ before bias and softplus.
        A: (D, N), negative for a state that decays.
        B: (b, L, G, N).
        C: (b, K, G, N); with `orders` (b, L, 1, N).
        D: (D,) weight of the skip connection.
        z: (b, K, D) gate, before its SiLU.
        delta_bias: (D,) added to `delta`.
        gap: (b, L, D) sum of Δ over the pruned positions between each position and the one scanned before it.
        emit: (b, K) ascending positions that give an output; None: every position does, and K = L.
        orders: (b or 1, P, L) permutations of the tokens; at step t direction p visits token orders[p, t].
        B_orders: (b or 1, P, L, N) what each direction adds to B.
        delta_softplus: whether Δ = softplus(delta + delta_bias), rather than the sum itself.
        reverse: for each group 1 if it is scanned from the last position to the first, else 0. Integers, because the
            TorchScript tracer that fvcore uses accepts no lists of booleans.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    gap: Tensor | None
    emit: Tensor | None
    orders: Tensor | None
    B_orders: Tensor | None
    delta_softplus: bool
    reverse: list[int]

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape (b, K, D) of the output."""
        batch, length, channels = self.u.shape
        return batch, length if self.emit is None else self.emit.shape[1], channels

    @property
    def paths(self) -> int:
        """How many directions each token is visited in: P, or 1 without `orders`."""
        return 1 if self.orders is None else self.orders.shape[1]

    @property
    def groups(self) -> int:
        """G, each with its own B, C and direction."""
        return len(self.reverse)

    @property
    def states(self) -> int:
        """N, the states of each channel."""
        return self.A.shape[1]

    def flatten(self) -> tuple[Any, ...]:
        """Return the values in the order of the operator's inputs."""
        return tuple(getattr(self, name) for name in ARGUMENT_NAMES)

    def differentiable(self) -> dict[str, Tensor | None]:
        """Return by name the tensors that have a gradient, also those that are absent."""
        return {name: getattr(self, name) for name in GRADIENT_NAMES}

    def activated_delta(self) -> Tensor:
        """Return Δ (b, L, D) after bias and softplus, in the dtype of `delta`."""
        delta = self.delta if self.delta_bias is None else self.delta + self.delta_bias
        return F.softplus(delta) if self.delta_softplus else delta

    def check(self) -> Self:
        """Return these arguments if their shapes fit one another.

        Raises:
            ValueError: they do not; the message names the argument.
        """
        self._check_recurrence()
        batch, length, channels = self.u.shape
        gated = (batch, self.C.shape[1] if self.emit is None else self.emit.shape[1], channels)
        self._check_shape("D", self.D, (channels,))
        self._check_shape("delta_bias", self.delta_bias, (channels,))
        self._check_shape("gap", self.gap, (batch, length, channels))
        self._check_shape("z", self.z, gated)
        if self.orders is not None:
            self._check_orders(self.orders)
        return self

    @staticmethod
    def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"selective_scan: {name} has shape {tuple(tensor.shape)}, expected {shape}")

    def _check_recurrence(self) -> None:
        (batch, length, channels), groups, states = self.u.shape, self.B.shape[2], self.A.shape[-1]
        if self.delta.shape != self.u.shape:
            raise ValueError(
                f"selective_scan: delta has shape {tuple(self.delta.shape)}, u has {tuple(self.u.shape)}"
            )
        if self.A.shape != (channels, states):
            raise ValueError(f"selective_scan: A has shape {tuple(self.A.shape)}, expected ({channels}, N)")
        of_b = (batch, length, groups, states)
        if self.B.shape != of_b or self.C.shape[0] != batch or self.C.shape[2:] != of_b[2:]:
            raise ValueError(
                f"selective_scan: B {tuple(self.B.shape)} and C {tuple(self.C.shape)} "
                f"do not fit u {tuple(self.u.shape)}"
            )
        if channels % groups or len(self.reverse) != groups:
            raise ValueError(
                f"selective_scan: {channels} channels, {groups} groups and {len(self.reverse)} directions"
            )

    def _check_orders(self, orders: Tensor) -> None:
        batch, length, _ = self.u.shape
        if self.reverse != [0]:
            raise ValueError("selective_scan: orders are for one group that runs forwards; reverse the order itself")
        if orders.dim() != 3 or orders.shape[0] not in (1, batch) or orders.shape[2] != length:
            raise ValueError(f"selective_scan: orders {tuple(orders.shape)}, expected (1 or {batch}, P, {length})")
        if self.C.shape[1] != length:
            raise ValueError(f"selective_scan: C has {self.C.shape[1]} steps, orders have {length}")
        added = self.B_orders
        if added is not None and (
            added.shape[0] not in (1, batch) or added.shape[1:] != (*orders.shape[1:], self.C.shape[3])
        ):
            raise ValueError(f"selective_scan: B_orders {tuple(added.shape)} do not fit orders {tuple(orders.shape)}")


@dataclass(frozen=True, eq=False)
class ScanGradients:
    """The gradients of `ScanArguments`, by the same names and in the same shapes; None where an input is absent."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    gap: Tensor | None
    B_orders: Tensor | None

    @classmethod
    def zeros(cls, arguments: ScanArguments) -> "ScanGradients":
        """Return gradients of zero, as for an empty batch."""
        zeros: dict[str, Any] = {
            name: x if x is None else torch.zeros_like(x) for name, x in arguments.differentiable().items()
        }
        return cls(**zeros)

    def of(self, name: str) -> Tensor:
        """Return the gradient of an input that is present."""
        gradient: Tensor | None = getattr(self, name)
        assert gradient is not None, f"the backend gave no gradient of {name}"
        return gradient


ARGUMENT_NAMES = tuple(field.name for field in fields(ScanArguments))
GRADIENT_NAMES = tuple(field.name for field in fields(ScanGradients))
