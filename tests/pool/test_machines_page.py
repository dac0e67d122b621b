"""The commands of the page "More than one machine", as they are printed there, between two nodes of this machine.

Only names of machines, a port, and the size of the run are others. Each node listens on a loopback address of its own.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.cli.main import main
from pool.ray_pools import SETTINGS, require_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).parents[2] / "docs" / "more-than-one-machine.md"
TRAINER, ORACLE = "127.0.0.2", "127.0.0.3"
NODE = " --block --num-cpus=1 --object-store-memory=200000000"
"""Of two nodes on one machine: each stays in its process, and ends with it."""
RUN = "--data digits --model resnet8 --gamma 2 --epochs 1 --batch-size 32 --limit 64 --update-every 1 --quiet"
UP_SECONDS = 240


def block_with(text: str) -> list[str]:
    """The commands of the page's code block in which a text stands, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if text in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*", "", line) for line in lines if line.strip()]


def free_port() -> int:
    """One below those that Ray gives its workers."""
    for port in range(7000, 9900, 7):
        with socket.socket() as tried:
            if tried.connect_ex((TRAINER, port)) != 0:
                return port
    pytest.skip("no port is free below 10,000")


@contextmanager
def node(command: str, environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Within, a node that runs; after, it has ended, and with it all that it started."""
    told = folder / f"node {len(list(folder.glob('node *')))}"
    with told.open("wb") as out:
        process = subprocess.Popen(["bash", "-c", command], stdout=out, stderr=out, env=environment, cwd=folder)
    try:
        end = time.monotonic() + UP_SECONDS
        while "block forever" not in told.read_text("utf-8"):
            assert process.poll() is None, told.read_text("utf-8")
            if time.monotonic() > end:
                pytest.skip(f"this machine is too busy to start a node within {UP_SECONDS} s")
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user with an empty home."""
    require_ray()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **SETTINGS, "HOME": str(tmp_path), "PATH": path, "OMP_NUM_THREADS": "1"}


def adapted(command: str, port: int) -> str:
    return command.replace("10.0.0.1:6379", f"{TRAINER}:{port}").replace("10.0.0.1", TRAINER).replace("6379", str(port))


def done(command: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


def certificates(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """What the page says to do for TLS, done; the environment that it says all machines have."""
    *made, exported = block_with("openssl")
    for command in made:
        ran = done(command.replace("10.0.0.1", TRAINER).replace("10.0.0.2", ORACLE), environment, folder)
        assert ran.returncode == 0, ran.stderr
    told = exported.removeprefix("export ").replace("~", str(folder))
    return dict(setting.split("=", 1) for setting in told.split())


@pytest.mark.parametrize("has_tls", [False, True], ids=["token", "token and TLS"])
def test_five_commands_from_nothing_to_a_run(has_tls: bool, environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    install, token, head, other, train = (adapted(line, port) for line in block_with("pip install"))
    assert install == "pip install 'infer2train[int8,ray]'", "as here"
    made = done(token.replace("scp -rp ~/.ray ORACLE:", "ls ~/.ray/auth_token"), environment, tmp_path)
    assert made.returncode == 0, made.stderr
    if has_tls:
        environment |= certificates(environment, tmp_path)
    with ExitStack() as nodes:
        short = nodes.enter_context(TemporaryDirectory(prefix="r"))  # a socket's path has 107 bytes at most
        nodes.enter_context(node(f"{head}{NODE} --temp-dir={short}", environment, tmp_path))
        nodes.enter_context(node(f"{other}{NODE} --node-ip-address={ORACLE}", environment, tmp_path))
        command = train.replace("--oracle-workers 8", "--oracle-workers 2")
        ran = done(f"{command} {RUN} --name ray --runs-dir {tmp_path}", environment, tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert "test error" in ran.stdout
        stranger = {"RAY_USE_TLS": "0"} if has_tls else {"RAY_AUTH_TOKEN": 32 * "ab"}
        asked = f"RAY_AUTH_MODE=token ray status --address {TRAINER}:{port}"
        assert done(asked, environment, tmp_path).returncode == 0
        assert done(asked, environment | stranger, tmp_path).returncode != 0, "strangers are not heard"
    assert "on the cluster at" in (tmp_path / "ray" / "metrics.jsonl").read_text("utf-8")
    inline = ["train", "--method", "nm-augment", "--pool", "inline", *RUN.split()]
    assert main([*inline, "--name", "inline", "--runs-dir", str(tmp_path)]) == 0
    trained = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("ray", "inline")]
    ours, theirs = (one.state["model"] for one in trained if one is not None)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
