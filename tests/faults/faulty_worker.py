"""The command line with workers that fail on some schedules: the variable `FAULTS` is JSON, a fault by schedule."""

import ctypes
import json
import os
import signal
import sys
from typing import Any

import torch

from search import cli
from search.driver import tune_run
from search.evaluation import worker

FAULTS: dict[str, str] = json.loads(os.environ["FAULTS"])


class FaultyWorker(worker.EvaluationTrainable):
    """Fails in the middle of a group, when it embeds the first images under a faulty schedule."""

    def setup(self, config: dict[str, Any], setup: worker.WorkerSetup) -> None:  # type: ignore[override]
        """Open the model, and build the faults into it."""
        super().setup(config, setup)
        model: Any = self.candidates.evaluator.model
        embed, classify, faults = model.embed, model.classify, FAULTS

        def faulty_embed(images: torch.Tensor) -> torch.Tensor:
            fault = faults.get(model.schedule.text)
            if fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hangs":
                ctypes.PyDLL(None).sleep(
                    10_000
                )  # in C, holding the interpreter's lock: only another process can end it
            if fault == "grows" or (fault == "halves" and len(images) > 5):
                torch.empty(2**47, dtype=torch.uint8)  # 128 TiB, which torch's allocator refuses
            return embed(images)  # type: ignore[no-any-return]

        def faulty_classify(*features: Any) -> torch.Tensor:
            logits = classify(*features)
            return logits * torch.nan if faults.get(model.schedule.text) == "nan" else logits  # type: ignore[no-any-return]

        model.embed, model.classify = faulty_embed, faulty_classify


if __name__ == "__main__":
    tune_run.EvaluationTrainable = FaultyWorker  # type: ignore[misc]
    sys.exit(cli.run(sys.argv[1:]))
