"""The command line with workers in which some schedules are ill: `ILL` of the environment is JSON by text."""

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

ILL: dict[str, str] = json.loads(os.environ["ILL"])


class IllWorker(worker.EvaluationTrainable):
    """Falls ill in the middle of a group, at the embedding of the schedule's first images."""

    def setup(self, config: dict[str, Any], setup: worker.WorkerSetup) -> None:  # type: ignore[override]
        """Open the model, and make it ill."""
        super().setup(config, setup)
        model: Any = self.candidates.evaluator.model
        embed, classify, ills = model.embed, model.classify, ILL

        def embed_ill(images: torch.Tensor) -> torch.Tensor:
            ill = ills.get(model.schedule.text)
            if ill == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if ill == "hangs":
                ctypes.PyDLL(None).sleep(10_000)  # in C, with the interpreter's lock: nothing within can end it
            if ill == "grows" or (ill == "halves" and len(images) > 5):
                torch.empty(2**47, dtype=torch.uint8)  # 128 TiB, which torch's allocator refuses
            return embed(images)  # type: ignore[no-any-return]

        def classify_ill(*features: Any) -> torch.Tensor:
            logits = classify(*features)
            return logits * torch.nan if ills.get(model.schedule.text) == "nan" else logits  # type: ignore[no-any-return]

        model.embed, model.classify = embed_ill, classify_ill


if __name__ == "__main__":
    tune_run.EvaluationTrainable = IllWorker  # type: ignore[misc]
    sys.exit(cli.run(sys.argv[1:]))
