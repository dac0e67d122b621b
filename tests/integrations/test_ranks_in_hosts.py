"""Several ranks under each host: two, started by torchrun, against one with twice the batch size."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from infer2train.loader.mine import mine
from infer2train.loader.order import in_turn
from integrations import rank_runs
from integrations.rank_runs import METHODS, STOP, Row
from mined_runs import jittered, network, sgd
from rank_processes import in_processes

TESTS = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PATIENCE_SECONDS = 200
"""For what takes fifteen on a machine that does nothing else."""


def on_two_ranks(host: str, folder: Path) -> dict[str, list[Row]]:
    """Rows of both ranks, joined to global draws."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    program = [str(TESTS / "integrations" / "rank_runs.py"), host, str(folder)]
    process = subprocess.Popen(
        [*TORCHRUN, *program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    first, second = (json.loads((folder / f"rows-{rank}.json").read_text()) for rank in range(2))
    return {name: [joined(*rows) for rows in zip(first[name], second[name], strict=True)] for name in first}


def joined(first: Any, second: Any) -> Row:
    assert first[:2] == second[:2], "ranks were at different draws"
    parts = first[2], second[2]
    places = in_turn([np.arange(len(part)) + 1000 * rank for rank, part in enumerate(parts)])
    return (*first[:2], [tuple(parts[place // 1000][place % 1000]) for place in places])


@pytest.mark.parametrize("host", ["accelerate", pytest.param("lightning", marks=pytest.mark.slow)])
def test_two_ranks_of_a_host_select_what_one_loop_of_twice_the_batch_does(host: str, tmp_path: Path) -> None:
    found = on_two_ranks(host, tmp_path)
    for method in METHODS:
        assert found[method] == rank_runs.loop(method), method
    assert found["resumed"] == found["nm-sample"][STOP:]


@pytest.mark.usefixtures("unchecked_types")
def test_two_ranks_under_the_trainer_select_what_one_of_twice_the_batch_does(tmp_path: Path) -> None:
    found = on_two_ranks("transformers", tmp_path)
    for method in METHODS:
        assert found[method] == rank_runs.transformers(method, tmp_path / "one"), method
    assert found["resumed"] == found["nm-sample"][STOP:]


@pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")
def test_batches_that_accelerate_divides_or_reads_for_all_are_refused(tmp_path: Path) -> None:
    def refused(**options: bool) -> str:
        base = prepare_data_loader(
            jittered(), torch.device("cpu"), num_processes=2, process_index=0, put_on_device=True, **options
        )
        model = network()
        with pytest.raises(ValueError, match="rank") as error:
            mine(base, model, sgd(model), method="nm-augment")
        return str(error.value)

    for split, dispatched in in_processes(
        2, lambda: (refused(split_batches=True), refused(dispatch_batches=True)), tmp_path
    ):
        assert split.endswith("with batches of 4 for 2 ranks; leave it out, and pass batch_size=2")
        assert dispatched.endswith("for 2 ranks, where the first reads for all; pass dispatch_batches=False")
