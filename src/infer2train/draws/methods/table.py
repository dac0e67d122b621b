"""Each method of the paper and of later work, and each control, as its choices: the table first, then who asks it."""

from dataclasses import replace

from infer2train.draws.methods.method import Choices, Method
from infer2train.draws.mining import Mining
from infer2train.draws.ramp import OVER_THE_TRAINING
from infer2train.draws.scores import SCORES, Score
from infer2train.draws.selection import PICKS
from infer2train.settings import name_of, resolve, unknown

METHODS: dict[str, Choices] = {
    "baseline": Choices(
        candidates="one-view",
        score=None,
        pick="all",
        source="section 5: the original training regime",
        made_by="infer2train.draws.methods.controls:Baseline",
    ),
    "batch-augment": Choices(
        candidates="views",
        score=None,
        pick="all",
        source="control: [4], batches of several views of each sample",
        made_by="infer2train.draws.methods.controls:AllViews",
    ),
    "nm-sample": Choices(
        candidates="samples",
        score="loss",
        pick="hardest",
        schedule=OVER_THE_TRAINING,
        source="sections 3.1 and 5.1",
        made_by="infer2train.draws.methods.samples:HardSamples",
    ),
    "random-sample": Choices(
        candidates="samples",
        score="uniform",
        pick="hardest",
        schedule=OVER_THE_TRAINING,
        source="control: nm-sample, blind",
        made_by="infer2train.draws.methods.samples:HardSamples",
    ),
    "nm-augment": Choices(
        candidates="views",
        score="loss",
        pick="max",
        source="sections 3.1 and 5.1",
        made_by="infer2train.draws.methods.views:HardViews",
    ),
    "nm-augment-soft": Choices(
        candidates="views",
        score="loss",
        pick="proportional",
        source="arXiv 2005.00695 (Wu et al. 2020)",
        made_by="infer2train.draws.methods.views:HardViews",
    ),
    "infobatch": Choices(
        candidates="one-view",
        score="loss",
        pick="pruned",
        loss="weighted",
        source="arXiv 2303.04947 (Qin et al. 2023)",
        made_by="infer2train.draws.methods.infobatch:InfoBatch",
    ),
    "rho": Choices(
        candidates="samples",
        score="loss",
        pick="learnable",
        schedule=OVER_THE_TRAINING,
        source="arXiv 2206.07137 (Mindermann et al. 2022)",
        made_by="infer2train.draws.methods.rho:Rho",
    ),
    "trusted": Choices(
        candidates="samples",
        score="loss",
        pick="trusted",
        source="ours, after arXiv 1911.00068 (Northcutt et al. 2021)",
        made_by="infer2train.draws.methods.trusted:Trusted",
    ),
    "trusted-random": Choices(
        candidates="samples",
        score="uniform",
        pick="trusted",
        source="control: trusted, blind",
        made_by="infer2train.draws.methods.trusted:Trusted",
    ),
    "self-distill": Choices(
        candidates="anchors",
        score=None,
        pick="anchors",
        loss="distillation",
        source="section 3.2, equation 1",
        made_by="infer2train.draws.methods.distillation:SelfDistillation",
    ),
}


def choices_of(mining: Mining) -> Choices:
    """The method asked for, with what the user chose instead of its own score, pick and schedule.

    A score of the user's own stands in it by its name; `get_score` gives the function.

    Raises:
        ValueError: an unknown name, or a choice that this method does not have.
    """
    name, score, pick = mining.method, mining.score, mining.pick
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    own = METHODS[name]
    if score is not None and (not own.has_oracle or own.score is None):
        raise ValueError(f"score must be left out where nothing is scored: got {score!r:.80} for {name}; drop it")
    if isinstance(score, str) and score not in SCORES:
        raise unknown("score", score, SCORES)
    if pick is not None and own.pick not in PICKS:
        raise ValueError(f"pick must be left out where no view is picked: got {pick!r} for {name}; use nm-augment")
    if pick is not None and pick not in PICKS:
        raise unknown("pick", pick, PICKS)
    if score == "margin" and (pick or own.pick) in ("proportional", "trusted"):
        remedy = "pass score='loss'" + ("" if own.pick == "trusted" else ", or pick='max'")
        raise ValueError(
            f"a pick in proportion to scores needs scores of at least 0: got score='margin' for {name}, from -1 to 1; "
            f"{remedy}"
        )
    if mining.ramp is not None and not own.is_rampable:
        raise ValueError(f"a ramp must be left out where nothing is mined: got one for {name}; drop it")
    schedule = mining.ramp or own.schedule
    if schedule.needs_length and mining.epochs is None:
        raise ValueError(
            f"{name} needs epochs=, the length of the training, for its ramp: got none; or pass ramp_rate=0.01"
        )
    return replace(own, score=own.score if score is None else name_of(score), pick=pick or own.pick, schedule=schedule)


def get_method(mining: Mining) -> Method:
    """The method asked for, new, with no memory of anything.

    Raises:
        ValueError: as `choices_of`.
    """
    choices = choices_of(mining)
    method: Method = resolve(choices.made_by)(mining, choices)
    return method


def get_score(mining: Mining) -> Score | None:
    """The score function: the user's own, or ours by name; None where the oracle gives no score."""
    if callable(mining.score):
        return mining.score
    name = choices_of(mining).score
    return None if name is None or name == "uniform" else SCORES[name]
