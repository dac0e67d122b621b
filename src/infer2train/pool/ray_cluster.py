"""This process in a Ray cluster: one that runs and that it joins, or one of this machine, which ends with its users."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from infer2train.machine.cores import on_cores

LOOPBACK = "127.0.0.1"
ORACLE = "oracle"
"""The custom resource of which an oracle takes one."""
PLACES = 1000
"""Of it in a Ray of this machine alone: cores are given by number there."""
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # an oracle with a core of its own steps back for nobody
}
"""Of a Ray of this machine alone, where the user has not set them."""
_users = 0
"""Of a Ray that was started here."""


def require_ray() -> None:
    """Refuse where Ray is not installed.

    Raises:
        ValueError: it says what to install.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise ValueError(
            "pool='ray' needs ray, which this Python does not have: pip install 'infer2train[ray]', or use "
            "pool='process' on this machine"
        )


def join(address: str | None, *, cores: Sequence[int] = ()) -> Callable[[], None]:
    """Join a cluster, or start one of this machine alone. A cluster that this process is in already is used as it is.

    Args:
        address: of its head; None for one that is started.
        cores: that a started one runs on.

    Returns:
        What leaves it again.

    Raises:
        ValueError: Ray is not installed, or would listen elsewhere than on the loopback interface.
        ConnectionError: there is no cluster at the address.
    """
    global _users
    require_ray()
    import ray

    if ray.is_initialized() and _users == 0:
        return lambda: None
    if not ray.is_initialized():
        with on_cores(cores), _own_sigterm():
            if address:
                ray.init(address=address, logging_level=logging.WARNING)
            else:
                _start()
    _users += 1
    return _leave


def _start() -> None:
    import ray

    with _without_clusters():
        ray.init(
            address="local",  # or it would join whatever cluster this machine is in
            num_cpus=1,
            resources={ORACLE: PLACES},
            include_dashboard=False,
            _node_ip_address=LOOPBACK,
            logging_level=logging.WARNING,
        )
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
    if address != LOOPBACK:
        ray.shutdown()
        raise ValueError(
            f"a Ray of this machine alone must listen on {LOOPBACK} only: got {address}, as this version of Ray has "
            "it; start a cluster as you like it, and pass ray_address"
        )


def _leave() -> None:
    global _users
    import ray

    _users -= 1
    if _users == 0:
        ray.shutdown()


@contextmanager
def _without_clusters() -> Iterator[None]:
    """Within, Ray listens where it is told to: where clusters are enabled it takes 127.0.0.1 for a mistake, and listens
    on all interfaces. What it starts reads the environment, what it has imported has read it."""
    from ray._private import ray_constants

    variables = {_CLUSTERS: "0"} | {name: os.environ.get(name, value) for name, value in _DEFAULTS.items()}
    before, enabled = {name: os.environ.get(name) for name in variables}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(variables)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Within, what starts may take the signal for itself; after, it is again whose it was, if it was anybody's."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
