"""The SQL store of studies, evaluations and the front."""

from results.store.store import Store

__all__ = ["Store"]
