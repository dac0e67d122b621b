"""The experiments by name: the paper's figures 1 to 3, its numbers as a table, oracles of few bits, whether it pays.

λ, picks and T are chosen in sweeps on held-out training images. Names of arms are shared: `fig1`, `precision`, `table`
and `pays` train one baseline together. Batch-augment trains on two views, for the device-seconds of trainer and oracle.
"""

from dataclasses import replace

from infer2train.studies.reproduce.arms import ORACLE_8_BIT, Arm, Experiment, Sweep

CIFAR, IMAGENET = "cifar10-resnet44", "imagenet-resnet50"

BASELINE = Arm(name="baseline", against=None, paper="93.07 % accuracy (CIFAR-10), 76.4 % (ImageNet)")
NM_AUGMENT = Arm(name="nm-augment", settings={"method": "nm-augment"}, paper="94.1 % accuracy")
NM_AUGMENT_8 = Arm(
    name="nm-augment-8bit",
    settings={"method": "nm-augment", "oracle": ORACLE_8_BIT},
    paper="negligible difference from the full-precision oracle",
)
NM_AUGMENT_4 = Arm(name="nm-augment-4bit", settings={"method": "nm-augment", "oracle": "openvino:b4"})
SOFT_8 = Arm(name="nm-augment-soft-8bit", settings={"method": "nm-augment-soft", "oracle": ORACLE_8_BIT})
NM_SAMPLE = Arm(
    name="nm-sample-0.01", settings={"method": "nm-sample", "ramp_rate": 0.01}, paper="+0.4 points of accuracy"
)
NM_SAMPLE_FAST = Arm(
    name="nm-sample-0.1",
    settings={"method": "nm-sample", "ramp_rate": 0.1},
    paper="mining hard early does harm (figure 3)",
)
RANDOM_SAMPLE = Arm(name="random-sample-0.01", settings={"method": "random-sample", "ramp_rate": 0.01})
TUNED = {"lr_schedule": "cosine", "nesterov": True, "label_smoothing": 0.1, "view": "trivial-augment"}

LAMBDA = Sweep(
    name="lambda",
    candidates=tuple(
        Arm(name=f"self-distill-{weight:g}", settings={"method": "self-distill", "distill_weight": weight})
        for weight in (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    ),
)
PICK = Sweep(
    name="pick",
    candidates=(
        Arm(name="nm-augment", settings={"method": "nm-augment"}),
        Arm(name="nm-augment-soft", settings={"method": "nm-augment-soft"}),
        Arm(name="nm-augment-quantile", settings={"method": "nm-augment", "pick": "quantile"}),
    ),
)
REFRESH = Sweep(
    name="T",
    candidates=tuple(
        Arm(name=f"nm-augment-T{steps}", settings={"method": "nm-augment", "update_every": steps})
        for steps in (1, 50, 500)
    ),
)
PICK_8 = Sweep(name="8-bit pick", candidates=(NM_AUGMENT_8, SOFT_8))


def _against(other: Arm, arm: Arm) -> Arm:
    """The same runs, compared with other ones."""
    return replace(arm, against=other.name)


def _of_capacity(model: str) -> tuple[Arm, Arm]:
    """A network's baseline, and what mining does for it."""
    return (
        Arm(name=f"baseline-{model}", settings={"model": model}, against=None),
        Arm(
            name=f"nm-augment-{model}",
            settings={"method": "nm-augment", "model": model},
            against=f"baseline-{model}",
            paper="more capacity may gain more (section 5.2)",
        ),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "fig1": Experiment(
        title="Does NM-augment lower the error, and does an 8-bit oracle keep it?",
        regime=CIFAR,
        arms=(BASELINE, NM_AUGMENT, NM_AUGMENT_8),
        source="figure 1, section 5.1",
    ),
    "fig2": Experiment(
        title="Does NM-augment help ResNet-50 when every second batch is mined?",
        regime=IMAGENET,
        arms=(
            BASELINE,
            Arm(
                name="nm-augment",
                settings={"method": "nm-augment", "mine_every": 2},
                paper="about 76.8 % accuracy on ImageNet",
            ),
        ),
        source="figure 2, section 5.2",
    ),
    "fig3": Experiment(
        title="How fast may NM-sample's share of mined samples grow?",
        regime=CIFAR,
        arms=(BASELINE, NM_SAMPLE_FAST, NM_SAMPLE, RANDOM_SAMPLE),
        source="figure 3, section 5.1",
    ),
    "table": Experiment(
        title="What do λ, the pick, T and the network's capacity change?",
        regime=CIFAR,
        arms=(
            BASELINE,
            Arm(name="self-distill", winner_of="lambda", paper="+0.3 points of accuracy with λ = 1e-5"),
            Arm(name="nm-augment-pick", winner_of="pick"),
            Arm(name="nm-augment-T", winner_of="T"),
            *_of_capacity("resnet20"),
            *_of_capacity("resnet44"),
            *_of_capacity("resnet56"),
        ),
        sweeps=(LAMBDA, PICK, REFRESH),
        curves=False,
        source="sections 5.1 and 5.2",
    ),
    "precision": Experiment(
        title="Does the oracle need 32 bits?",
        regime=CIFAR,
        arms=(BASELINE, NM_AUGMENT, *(_against(NM_AUGMENT, arm) for arm in (NM_AUGMENT_8, NM_AUGMENT_4)), SOFT_8),
        source="section 4 and figure 1; 4 bits and the soft pick are ours",
    ),
    "pays": Experiment(
        title="Does it pay, against what the same hardware could do instead?",
        regime=CIFAR,
        arms=(
            BASELINE,
            NM_AUGMENT_8,
            SOFT_8,
            Arm(name="baseline-all-devices", wall_clock_of="nm-augment-8bit"),
            Arm(name="tuned", settings=TUNED),
            Arm(name="tuned-mined", settings=TUNED, against="tuned", winner_of="8-bit pick"),
            Arm(name="nm-sample-8bit", settings={**NM_SAMPLE.settings, "oracle": ORACLE_8_BIT}),
            RANDOM_SAMPLE,
            Arm(name="batch-augment-2", settings={"method": "batch-augment", "gamma": 2}),
        ),
        sweeps=(PICK_8,),
        curves=False,
        source="ours: equal hardware and a tuned baseline",
    ),
}
