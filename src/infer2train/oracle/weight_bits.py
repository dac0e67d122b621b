"""How many bits the weights of an int8 program may have, so that this CPU adds their products exactly.

x86 CPUs without VNNI (AMD's before Zen 4, most of Intel's before 2019 and some after) multiply bytes with an
instruction that adds each pair of products in 16 bits and saturates there: 2·255·127 is twice what fits. Both OpenVINO
and ONNX Runtime use it, and answer wrongly without a word. With weights of 7 bits 2·255·63 fits, and both agree with
their simulation again.
"""

import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch

EXACT_BITS_WITHOUT_VNNI = 7
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions that add products of bytes in 32 bits, as torch calls them."""


def exact_weight_bits(bits: int, capabilities: Mapping[str, Any] | None = None) -> int:
    """The most bits, up to `bits`, that weights may have on a CPU.

    Args:
        bits: of the program.
        capabilities: of the CPU, as `torch.cpu.get_capabilities()` lists them. Default: this one's.

    Example:
        >>> exact_weight_bits(8, {"architecture": "x86_64", "avx2": True})
        7
        >>> exact_weight_bits(8, {"architecture": "x86_64", "avx512_vnni": True}), exact_weight_bits(4, {})
        (8, 4)

    Source: ONNX Runtime, "Quantize ONNX models", on U8S8 and saturation; Intel's VPMADDUBSW.
    """
    known = _capabilities() if capabilities is None else capabilities
    is_x86 = known.get("architecture") in ("x86_64", "amd64", "x86")
    if is_x86 and not any(known.get(name) for name in VNNI):
        return min(bits, EXACT_BITS_WITHOUT_VNNI)
    return bits


def _capabilities() -> Mapping[str, Any]:
    listed: Callable[[], Mapping[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    if listed is not None:
        return listed()
    # Older releases know of VNNI alone.
    return {"architecture": platform.machine().lower(), "avx512_vnni": torch.cpu._is_vnni_supported()}
