"""What `mine()` takes: every setting of mining, spelled once, for callers, command line, config.yaml and resume."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from infer2train.draws.ramp import Ramp
from infer2train.draws.versions import VersionRule
from infer2train.settings import check_fields, is_spec, setting


@dataclass(frozen=True, kw_only=True)
class Mining:
    """Which candidates are scored, by what and where, and which are trained on.

    Example:
        >>> Mining(method="nm-sample", gamma=4, ramp_rate=0.01).ramp
        Ramp(rate=0.01, start=0.0, stop=0.0)
    """

    method: str = "nm-augment"
    """baseline, batch-augment, nm-sample, random-sample, nm-augment, nm-augment-soft, self-distill, infobatch, rho,
    trusted, trusted-random."""
    gamma: int = setting(10, at_least=1)
    """Candidates for each trained example (γ)."""
    oracle: str = "torch:fp32"
    """Engine that scores: int8 (the fastest installed), auto (measured here), or ENGINE:PRECISION[@DEVICE]: torch:fp32,
    torch:bf16[+compile], openvino:int8|bf16|fp32, onnxruntime:int8|fp32, simulated:b2 to b8 or b16. /2 behind any of
    them, as in int8/2, scores images at half their height and width."""
    quantization: str = "default"
    """Scales of an int8 oracle: default (per channel), paper (per tensor), percentile (without outliers) or tails."""
    oracle_chunk: int | None = setting(None, at_least=1)
    """Candidates that the oracle scores at a time (images). Default: 32 on a CPU, a whole draw elsewhere."""
    update_every: int = setting(100, at_least=1)
    """Steps between refreshes of the oracle (T)."""
    delay_steps: int = setting(0, at_least=0)
    """Extra steps of allowed staleness (D), for loops that fetch ahead and for oracles that get new weights late; 0 is
    the paper's Algorithm 1."""
    mine_every: int = setting(1, at_least=1)
    """Mine only at every so many steps; the others train on ordinary batches (steps)."""
    score: str | Callable[[Any, Any], Any] | None = None
    """Of classes loss, entropy, margin or gradient-norm-bound; of other targets multi-label-loss, soft-loss or
    squared-error; in Python also a function (outputs, targets) -> [n]. Default: the method's own."""
    pick: str | None = None
    """Pick among the views of a sample: max, proportional, quantile or uniform. Default: the method's own."""
    balance: Literal["none", "stratified", "uniform"] = "stratified"
    """Class quotas of nm-sample, random-sample, rho: none, as frequent as in the candidates, or equal (the paper)."""
    ramp_rate: float | None = None
    """Mined share grows by this much each epoch (the paper: 0.01 or 0.1). Default: by ramp_start and ramp_stop."""
    ramp_start: float | None = None
    """Part of the training before which nothing is mined (0 to 1). Default: the method's own; with ramp_stop 0."""
    ramp_stop: float | None = None
    """Part of the training after which all is mined (ramp_start to 1). Default: the method's own; with ramp_start 1."""
    epochs: int | None = setting(None, at_least=1)
    """Length of the training, for a ramp that is a part of it (epochs)."""
    distill_weight: float = setting(1e-5, at_least=0)
    """Weight λ of the distillation penalty of self-distill (equation 1)."""
    prune: float = setting(0.5, at_least=0)
    """Probability with which infobatch leaves out a sample whose loss is below the mean (a share, below 1)."""
    irreducible: Any = field(default=None, compare=False, metadata={"is_place": True})
    """What a model trained on other data loses on each sample, for rho, trusted and trusted-random: a .npy file of one
    number for each sample id, and in Python also an array, or a model, which is asked once for the loss of every
    sample."""
    trust: float | None = None
    """Irreducible loss above which trusted takes a label for wrong (nats). Default: that of guessing, the logarithm of
    the number of classes."""
    accumulation_steps: int = setting(1, at_least=1)
    """Draws in one optimiser step, where a loop of your own accumulates gradients; `train` steps after each."""
    seed: int = setting(0, at_least=0)
    """Seed of everything random here (in [0, 2^63))."""
    pool: str = setting("inline", is_place=True)
    """inline: the oracle scores in the trainer's own time; process: in processes of its own, ahead of the trainer;
    stream: in a CUDA stream beside the trainer's; ray: in actors of a Ray cluster. What is selected is the same."""
    oracle_workers: int = setting(1, at_least=1, is_place=True)
    """Processes of the oracle, with pool=process or pool=ray."""
    oracle_cores: str | None = setting(None, is_place=True)
    """Cores of the oracle, such as 1 or 4-7; the trainer gets the others. Default: the last ones, one a worker."""
    queue_depth: int = setting(4, at_least=0, is_place=True)
    """How far the oracle scores ahead of the trainer, with pool=process or pool=ray, as far as versions are published
    (draws)."""
    ray_address: str | None = setting(None, is_place=True)
    """With pool=ray, the cluster to join: HOST:PORT of its head, or auto on one of its machines. Default: a Ray of this
    machine alone, started and stopped with the loader."""
    ray_data: str | None = setting(None, is_place=True)
    """With pool=ray, package.module:function that gives each machine its own copy of the data set. Default: it is sent
    to them."""
    oracle_num_workers: int | None = setting(None, at_least=0, is_place=True)
    """Processes that read and transform candidates for the oracle, for each of its own. Default: as many as the
    DataLoader's num_workers."""
    # A state says itself of which windows it is.
    window: int | None = setting(None, at_least=1, is_place=True)
    """Items of a stream (an IterableDataset) that are held at a time, of which draws pick; rounded up to whole batches
    (items). Default: 2048."""
    staleness: Literal["strict", "freshest"] = "strict"
    """strict: the step decides which weights score a draw, so a run repeats bit for bit; freshest: the newest there."""
    when_late: Literal["wait", "skip"] = "wait"
    """When scores are late, with staleness=freshest: wait for them, or train on the draw unmined and count it."""
    on_oracle_loss: Literal["stop", "continue"] = "stop"
    """When no oracle can be started any more, with staleness=freshest: stop with an error, or go on unmined."""
    log_every: int = setting(20, at_least=1, is_place=True)
    """Steps between rows of metrics.jsonl (steps)."""
    audit: Literal["sampled", "all", "off"] = setting("sampled", is_place=True)
    """What was picked, for `infer2train inspect`: up to a million rows spread over the run, all of them, or none."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.staleness == "strict" and (self.when_late == "skip" or self.on_oracle_loss == "continue"):
            got = "when_late='skip'" if self.when_late == "skip" else "on_oracle_loss='continue'"
            raise ValueError(
                f"a strict run never depends on how fast an oracle is: got {got}; pass staleness='freshest' too, or "
                "leave it out"
            )
        self._check_ray_data()
        if not self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63): got {self.seed}; pass a smaller seed")
        if not self.prune < 1:
            raise ValueError(f"prune must be below 1, so that a sample can count for those left out: got {self.prune}")
        _ = self.ramp  # refuses one that is none

    def _check_ray_data(self) -> None:
        """Refuse what no machine of a cluster can import, or nobody would read."""
        if self.ray_data is None:
            return
        if not is_spec(self.ray_data) or self.ray_data.startswith("__main__:"):
            raise ValueError(
                f"ray_data must name a function that every machine can import, as package.module:function: got "
                f"{self.ray_data!r}; put the function into a module"
            )
        if self.pool != "ray":
            raise ValueError(
                f"ray_data is read by the machines of a Ray cluster: got it with pool={self.pool!r}; pass pool='ray', "
                "or leave it out"
            )

    @property
    def ramp(self) -> Ramp | None:
        """The ramp that was asked for; None for the method's own.

        Raises:
            ValueError: it is given twice, or none.
        """
        if self.ramp_rate is None and self.ramp_start is None and self.ramp_stop is None:
            return None
        if self.ramp_rate is None:
            return Ramp(start=self.ramp_start or 0.0, stop=1.0 if self.ramp_stop is None else self.ramp_stop)
        if self.ramp_start is not None or self.ramp_stop is not None:
            raise ValueError(
                "a ramp is given by its rate or by start and stop: got both; pass ramp_rate=None (--ramp-rate null) or "
                "drop the others"
            )
        return Ramp(rate=self.ramp_rate)

    @property
    def rule(self) -> VersionRule:
        """Which version of the weights scores a draw."""
        return VersionRule(update_every=self.update_every, delay_steps=self.delay_steps)
