"""What was measured as a table, and what follows from it.

A row is a layer's measurement: its names, its check, and its times and floors in seconds.
"""

from collections.abc import Sequence
from typing import Any

from int8conv.layers import Card, Layer

WANTED = 1.3
"""The engine is built from this ratio on."""
HEADER = (
    f"{'layer, times in µs':32}  n int8:eag   graph  floor bf16:eag   graph   fused  floor ratio  steps   exact     cut"
)


def roofline(layers: Sequence[Layer], card: Card) -> list[str]:
    """What each layer moves and multiplies, and the least time for it."""
    lines = [f"{'layer':32}  n  MB int8  MB bf16   GMAC  int8 µs  bf16 µs  ratio  bound by"]
    for layer in layers:
        int8, bf16 = (card.floor_seconds(layer, precision) * 1e6 for precision in ("int8", "bf16"))
        bound = "bytes" if layer.num_bytes(1) / card.bandwidth >= 2 * layer.macs / card.int8 else "MACs"
        lines.append(
            f"{layer.name:32} {layer.count:2} {layer.num_bytes(1) / 1e6:8.1f} {layer.num_bytes(2) / 1e6:8.1f} "
            f"{layer.macs / 1e9:6.1f} {int8:8.1f} {bf16:8.1f} {bf16 / int8:6.2f}  {bound}"
        )
    for network in dict.fromkeys(layer.network for layer in layers):
        part = [layer for layer in layers if layer.network == network]
        int8, bf16 = (
            sum(layer.count * card.floor_seconds(layer, precision) for layer in part) * 1e6
            for precision in ("int8", "bf16")
        )
        lines.append(f"{network}, sum of n ×: int8 {int8:.0f} µs, bf16 {bf16:.0f} µs")
    return lines


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each layer, and one for each network's sum."""
    lines = [HEADER, *map(_line, rows)]
    for network, found in totals(rows).items():
        int8, bf16 = found["int8_graph"] * 1e6, found["bf16_best_graph"] * 1e6
        lines.append(f"{network}, sum of n ×: int8 {int8:.0f} µs, fastest bf16 {bf16:.0f} µs, {found['ratio']:.2f} ×")
    return lines


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each network's layers, each as often as the network has it, inside CUDA graphs."""
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        found = sums.setdefault(row["network"], {})
        for name in ("int8_graph", "bf16_best_graph", "int8_floor", "bf16_floor"):
            found[name] = found.get(name, 0.0) + row["count"] * row[name]
    return {
        network: found | {"ratio": found["bf16_best_graph"] / found["int8_graph"]} for network, found in sums.items()
    }


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether the engine is to be built."""
    wrong = [row["layer"] for row in rows if not row["right"]]
    if wrong:
        return f"build the engine: no verdict, the kernel is wrong at {', '.join(wrong)}"
    sums = totals(rows)
    if "ResNet-44" not in sums:
        return "build the engine: no verdict without --networks resnet44"
    ratio = sums["ResNet-44"]["ratio"]
    answer, sign = ("yes", "≥") if ratio >= WANTED else ("no", "<")
    return f"build the engine: {answer} ({ratio:.2f} × {sign} {WANTED} × over ResNet-44's layers)"


def _line(row: dict[str, Any]) -> str:
    cut, fused = row["configuration"], row.get("bf16_fused_graph")
    micro = {name: seconds * 1e6 for name, seconds in row.items() if name.endswith(("eager", "graph", "floor"))}
    return (
        f"{row['layer']:32} {row['count']:2} {micro['int8_eager']:8.1f} {micro['int8_graph']:7.1f} "
        f"{micro['int8_floor']:6.1f} {micro['bf16_plain_eager']:8.1f} {micro['bf16_plain_graph']:7.1f} "
        f"{'–' if fused is None else format(fused * 1e6, '.1f'):>7} {micro['bf16_floor']:6.1f} "
        f"{row['bf16_best_graph'] / row['int8_graph']:5.2f}    {row['max_steps']}/{row['allowed_steps']} "
        f"{row['exact']:9.5%} {'ok ' if row['right'] else 'BAD'} "
        f"{cut['rows']}×{cut['columns']}×{cut['depth']} w{cut['warps']} s{cut['stages']}"
    )
