"""What a model is, and how a schedule changes its forward pass. Importing this makes timm know the models."""

from ssm_models import (  # noqa: F401  (each registers its models)
    cvmh_unet,
    group_mamba,
    plain_mamba,
    segmenters,
    vim,
    vim2,
    vmamba,
    vssd,
)
from ssm_models.base import PrunableModel
from ssm_models.bundle import load_bundle
from ssm_models.checkpoints import build, load_checkpoint, read_checkpoint, save_checkpoint, weights_digest
from ssm_models.flops import CostTable, cost_table, count_flops
from ssm_models.registry import ModelInfo, create_model, list_models, model_info
from ssm_models.scan import scan_backend, selective_scan

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
