"""Pools by name: where the oracle of a run works."""

from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.pool.pool import Pool
from infer2train.settings import resolve, unknown

POOLS = {
    "inline": "infer2train.pool.inline:InlinePool",
    "process": "infer2train.pool.process:ProcessPool",
    "stream": "infer2train.pool.stream:StreamPool",
    "ray": "infer2train.pool.ray_pool:RayPool",
}
"""Name -> a `Pool`, whose class says what others must know of it: `built`, `runs_beside`, `cores`."""


def pool_of(mining: Mining) -> type[Pool]:
    """The pool that settings ask for. A control that looks at no candidate has no oracle to put anywhere.

    Raises:
        ValueError: there is no such pool; it names the nearest. Or it has no workers, and several are asked for, or
            cores for them; or it is of this machine, and a cluster is named.
    """
    if mining.pool not in POOLS:
        raise unknown("pool", mining.pool, POOLS)
    has_oracle = choices_of(mining).looks_at_candidates
    kind: type[Pool] = resolve(POOLS[mining.pool if has_oracle else "inline"])
    if has_oracle and not kind.runs_beside:
        _require_nothing_beside(mining)
    if has_oracle and mining.ray_address is not None and mining.pool != "ray":
        raise ValueError(
            f"ray_address names the cluster of the oracle: got {mining.ray_address!r} with pool={mining.pool!r}; pass "
            "pool='ray', or ray_address=None (--ray-address null)"
        )
    return kind


def _require_nothing_beside(mining: Mining) -> None:
    if mining.oracle_workers > 1:
        raise ValueError(
            f"oracle_workers are processes beside the trainer's: got {mining.oracle_workers} with "
            f"pool={mining.pool!r}; pass pool='process' or pool='ray', or oracle_workers=1"
        )
    if mining.oracle_cores is not None:
        raise ValueError(
            f"oracle_cores are those of the oracle's own processes: got {mining.oracle_cores!r} with "
            f"pool={mining.pool!r}; pass pool='process' or pool='ray', or oracle_cores=None (--oracle-cores null)"
        )
