"""The lines that a training prints."""

import io

from rich.console import Console

from search.training.epoch_log import EpochLog


def test_a_line_for_each_reference_and_epoch() -> None:
    text = io.StringIO()
    with EpochLog("fine-tune", Console(file=text, width=40), score="mIoU") as log:
        log.on_reference("dense", 0.9, 0.25)
        log.on_start(3, 10, 1)
        log.on_batch(2, 0.5)
        log.on_epoch({"epoch": 2, "train_loss": 0.5, "top1": None, "loss": None, "seconds": 1.4})
        log.on_epoch({"epoch": 3, "train_loss": 0.4, "top1": 0.75, "loss": 0.3, "seconds": 2.0})
    assert text.getvalue().splitlines() == [
        "dense  val mIoU 0.9000  val loss 0.2500",
        "fine-tune: 1 of 3 epochs are done already",
        "epoch 2/3  loss 0.5000  1 s",
        "epoch 3/3  loss 0.4000  val mIoU 0.7500  val loss 0.3000  2 s",
    ]
