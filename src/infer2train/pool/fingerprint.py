"""What a process computes with: two processes of one fingerprint give the same bits for the same work."""

import hashlib
import importlib.metadata
import platform
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.oracle.weight_bits import exact_weight_bits
from infer2train.sources.source import Source

PACKAGES = ("infer2train", "torch", "numpy", "openvino", "onnxruntime")
PROBES = 4
"""Samples that are read to see whether two processes have the same data."""


def fingerprint(source: Source) -> dict[str, str]:
    """By what: packages and their versions, the processor's instructions, arithmetic settings, the data."""
    found = {
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bits of int8 weights": str(exact_weight_bits(8)),
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"matrix products": torch.get_float32_matmul_precision(), "data": data_digest(source)}


def data_digest(source: Source) -> str:
    """A digest of a few views, by which two processes know that they read the same."""
    digest = hashlib.sha256(f"{len(source)}".encode())
    at = integers(len(source.ids), 0, Purpose.PROBE, slot=np.arange(PROBES))
    batch = source.batch(Addresses(source.ids[at], seeds(0, Purpose.PROBE, slot=np.arange(PROBES))))
    leaves, structure = pytree.tree_flatten(batch)
    digest.update(str(structure).encode())
    for leaf in leaves:
        digest.update(_bytes(leaf))
    return digest.hexdigest()[:16]


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
        plain = leaf.detach().cpu().contiguous()
        return f"{plain.dtype}{tuple(plain.shape)}".encode() + plain.flatten().view(torch.uint8).numpy().tobytes()
    # What has no plain text (an object's address would be another in each process) tells by its type only.
    return repr(leaf).encode() if isinstance(leaf, str | int | float | bytes | None) else type(leaf).__name__.encode()


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Where two fingerprints differ, each as `name: ours here, theirs there`."""
    return [
        f"{name} {ours.get(name)} here, {theirs.get(name)} there"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
