"""The precision of sums and exponents that half precision would overflow or round away."""

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
