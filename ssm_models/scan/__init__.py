"""The selective scan: one operator, its reference and its backends."""

from ssm_models.scan.backends import scan_backend
from ssm_models.scan.ops import channel_last_scan, selective_scan

__all__ = ["channel_last_scan", "scan_backend", "selective_scan"]
