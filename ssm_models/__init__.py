"""Vision state-space models whose forward pass obeys a pruning schedule. Importing this registers them with timm.

>>> import torch, ssm_models
>>> model = ssm_models.build("vim_nano")  # with the weights that the package ships
>>> model.set_schedule("4:0.7,8:0.5")
>>> model(torch.zeros(2, 3, 28, 28)).shape
torch.Size([2, 10])
"""

from ssm_models.base import PrunableModel
from ssm_models.bundle import load_bundle
from ssm_models.checkpoints import build, load_checkpoint, read_checkpoint, save_checkpoint, weights_digest
from ssm_models.families import (  # noqa: F401  (each registers its models)
    cvmh_unet,
    group_mamba,
    plain_mamba,
    segmenters,
    vim,
    vim2,
    vmamba,
    vssd,
)
from ssm_models.flops import CostTable, cost_table, count_flops
from ssm_models.registry import ModelInfo, list_models, model_info
from ssm_models.scan import scan_backend, selective_scan
from ssm_models.timm_models import create_model, register_models

register_models()

__all__ = [
    "CostTable",
    "ModelInfo",
    "PrunableModel",
    "build",
    "cost_table",
    "count_flops",
    "create_model",
    "list_models",
    "load_bundle",
    "load_checkpoint",
    "model_info",
    "read_checkpoint",
    "save_checkpoint",
    "scan_backend",
    "selective_scan",
    "weights_digest",
]
