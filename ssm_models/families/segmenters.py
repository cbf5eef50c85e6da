"""Segmentation with the stages of a classifier and a linear head on each grid.

The logits of each grid are upsampled bilinearly and added. The grids are the inputs of all stages and the output of
the last one. They are whole whatever a schedule prunes in between.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ssm_models.families.layers import init_linear
from ssm_models.families.staged import as_grid
from ssm_models.families.vmamba import VMamba, VMambaConfig
from ssm_models.registry import ModelInfo, register
from ssm_models.token_view import TokenView


class VMambaSegmenter(VMamba):
    """VMamba with a linear layer on each stage's grid in place of its head."""

    task = "segmentation"

    def __init__(
        self, config: VMambaConfig, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        super().__init__(config, name, num_classes, img_size, in_chans=in_chans)
        del self.classifier
        widths = [config.width(stage) for stage in range(len(config.depths))]
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes)) for width in (*widths, widths[-1])]
        )
        self.class_layers = tuple(f"heads.{index}.1" for index in range(len(self.heads)))
        init_linear(self.heads)

    def set_aside(self, stage: int, x: Tensor, aside: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `PrunableModel`."""
        return (*aside, x)

    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        """Give each pixel its logits, (b, classes, H, W)."""
        stages = (*self.layout.stages, self.layout.stages[-1])
        size = (stages[0].height, stages[0].width)
        total: Tensor | None = None
        for head, tokens, here in zip(self.heads, (*view.aside, x), stages, strict=True):
            logits = as_grid(head(tokens), (here.height, here.width))
            if logits.shape[2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            total = logits if total is None else total + logits
        assert total is not None
        return F.interpolate(total, self.img_size, mode="bilinear", align_corners=False)

    @classmethod
    def settings_of(cls, config: VMambaConfig, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`; no shape depends on the size of the images."""
        return {"num_classes": state["heads.0.1.weight"].shape[0]}


register(
    ModelInfo(
        "vmamba_nano_segmenter",
        VMambaSegmenter,
        VMambaConfig(32, (2, 6, 4), patch=4),
        img_size=64,
        num_classes=6,
        crop_pct=1.0,
        description="12 blocks in three stages, widths 32 to 128, with a linear head for segmentation",
    )
)
