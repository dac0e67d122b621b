"""Freed memory that is taken again costs no page faults."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from infer2train.machine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [torch.ones(1_000_000) for _ in range(8)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

was = faults()
done = keep_freed_memory()
faults()
print(was, int(done), faults())
"""


def run(**environment: str) -> list[int]:
    """Page faults of 20 × 32 MB before, whether freed memory is kept, page faults after."""
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=plain | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc's malloc"
)
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    before, done, after = run()
    assert done == 1
    assert after < before / 20


def test_what_the_environment_says_of_malloc_stays() -> None:
    assert run(MALLOC_TRIM_THRESHOLD_="100000")[1] == 0
