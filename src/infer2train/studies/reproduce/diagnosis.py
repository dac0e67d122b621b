"""Is a difference in the weights, or in the statistics of batch-norm? One more evaluation of a finished run.

A network that was trained on the hardest views has batch-norm statistics of hard views, and is tested on ordinary
ones. Here they are measured anew on random views, weights untouched.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.swa_utils import update_bn

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.draws.addresses import Addresses
from infer2train.observe.runlog import RunLog, read_config, read_rows
from infer2train.training.config import from_plain, unmined
from infer2train.training.evaluation import BATCH, evaluate, random_views
from infer2train.training.folder import CHECKPOINTS
from infer2train.training.setup import Run, prepare

VIEWS = 5000
"""Random views on which the statistics are measured; each batch counts alike."""
EVENT = "recalibrated"


def diagnose(folder: Path) -> None:
    """Evaluate a finished run with batch-norm statistics of random views, and add a row that says so, once.

    Args:
        folder: of a run, with its last checkpoint.
    """
    if any(row.get("event") == EVENT for row in read_rows(folder)):
        return
    config = replace(unmined(from_plain(read_config(folder))), compile="none")
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None, folder
    run = prepare(config, progress=False)
    try:
        run.model.load_state_dict(checkpoint.state["model"])
        views = random_views(len(run.training_images), min(VIEWS, len(run.training_images)), config.seed, config.epochs)
        recalibrate(run, views)
        result = evaluate(run.model, run.evaluation_images, run.evaluation_addresses(), run.device, run.view_workers)
    finally:
        run.loader.close()
    log = RunLog(folder, tensorboard=False)
    message = f"test error {result.error:.2%} with batch-norm statistics of random views"
    log.write("event", event=EVENT, step=checkpoint.step, message=message, test_error=result.error)
    log.close()


def recalibrate(run: Run, views: Addresses) -> None:
    """Batch-norm statistics as the mean over batches of these views of training images; weights stay as they are.

    Source: Izmailov et al. 2018, arXiv 1803.05407, whose `update_bn` this is.
    """
    batches = (views[start : start + BATCH] for start in range(0, len(views), BATCH))
    with torch.no_grad():
        update_bn((run.training_images.batch(batch)[0] for batch in batches), run.model, run.device)
