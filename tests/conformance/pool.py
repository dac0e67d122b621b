"""What every pool must do: run it for a way to build one and a case; an AssertionError says what the pool did wrong.

Every score is compared with a slow reference: the candidate's view read alone through the source, the model with
exactly the version's weights in evaluation mode, the score function.
"""

import copy
import functools
import gc
import itertools
import math
import random
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from conformance.networks import NUM_CLASSES, TextEncoder, experienced, pixels
from conformance.views import same
from infer2train.batches import call_model, logits_of, map_tensors, split_batch, tensors_of
from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.draws.scores import Score, loss
from infer2train.oracle.scorer import Scores
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.pool.pool import Pool
from infer2train.pool.task import Answer
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews

VERSIONS = (0, 100, 200)
SLOTS, VIEWS = 7, 3
CHUNK = 8
"""A draw is 21 candidates: chunks cut across slots, and the last one is not full."""

TOLERANCE = 1e-4
"""Between one candidate at a time and chunks of them, in fp32, relative to the spread of the scores."""

RANDOM_CALLS = 30


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a pool is built for."""

    source: Source
    model: nn.Module | None
    """The trainer's; None where only labels are wanted."""
    score: Score | None
    distill_views: int = 0
    num_workers: int = 0
    """Processes that make views."""


MakePool = Callable[[Task], Pool]


class Case:
    """A task, the records of some versions, and what the reference says of any draw by any of them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.versions: tuple[int | None, ...] = (None,) if task.model is None else VERSIONS
        self._tensors: dict[int, dict[str, Tensor]] = {}
        self.expected = functools.cache(self._expected)
        if task.model is not None:
            model, (inputs, _) = copy.deepcopy(task.model), split_batch(task.source.batch(self.addresses(0)))
            for seed, version in enumerate(VERSIONS):
                self._tensors[version] = dict(snapshot(experienced(model, inputs, seed), version).tensors)

    def addresses(self, draw: int) -> Addresses:
        """Draws share samples and never views."""
        ids = integers(len(self.task.source), 0, Purpose.PROBE, draw=draw, slot=np.arange(SLOTS))
        return Addresses(np.repeat(ids, VIEWS), seeds(0, Purpose.VIEW, draw=draw, slot=np.arange(SLOTS * VIEWS)))

    def record(self, version: int) -> Record:
        """A record that nobody else holds."""
        return Record(version, {name: tensor.clone() for name, tensor in self._tensors[version].items()})

    def _expected(self, draw: int, version: int | None) -> Answer:
        task = self.task
        addresses = self.addresses(draw)
        alone = [split_batch(task.source.batch(addresses[i : i + 1])) for i in range(len(addresses))]
        targets = default_collate([target[0] for _, target in alone])
        if version is None:
            return scored(draw, None, Scores(targets=targets))
        model = copy.deepcopy(task.model).eval()
        assert model is not None
        model.load_state_dict(self._tensors[version])
        with torch.no_grad():
            outputs = [call_model(model, inputs) for inputs, _ in alone]
        scores = Scores(
            targets=targets,
            values=task.score and torch.cat([task.score(o, y) for o, (_, y) in zip(outputs, alone, strict=True)]),
            log_probabilities=_averaged(outputs, task.distill_views) if task.distill_views else None,
        )
        return scored(draw, version, scores)


def scored(draw: int, version: int | None, scores: Scores) -> Answer:
    """The answer of a pool that scores."""
    return Answer(draw, version, vars(scores))


def _averaged(outputs: list[Any], views: int) -> Tensor:
    """Equation 1's constant, one slot and one view after the other."""
    rows = []
    for start in range(0, len(outputs), views):
        total = torch.zeros(logits_of(outputs[0]).shape[1])
        for output in outputs[start : start + views]:
            total += logits_of(output)[0].log_softmax(0)
        rows.append(total / views)
    return torch.stack(rows)


class Sentences(Dataset[Any]):
    """Dictionaries of tokens, one of them replaced at random."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = torch.arange(index, index + 6) * 7 % 20
        tokens[torch.randint(6, ())] = torch.randint(20, ())
        mask = torch.ones(6, dtype=torch.int64)
        mask[3 + index % 4 :] = 0
        return {"input_ids": tokens, "attention_mask": mask, "labels": index % NUM_CLASSES}


class Small(nn.Module):
    """Batch-norm and dropout, whose training mode would show, and else as little as will do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 9, NUM_CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.norm(self.stem(images.float() / 64 - 2)).relu())  # type: ignore[no-any-return]


def _images() -> Source:
    return ImageViews(
        pixels(20, size=8).permute(0, 2, 3, 1).contiguous(), torch.arange(20) % NUM_CLASSES, PadCropFlip(2)
    )


TASKS: dict[str, Callable[[], Task]] = {
    "images": lambda: Task(source=_images(), model=Small(), score=loss),
    "dictionaries": lambda: Task(source=Replay(Sentences(), default_collate), model=TextEncoder(), score=loss),
    "labels only": lambda: Task(source=_images(), model=None, score=None),
    "distillation": lambda: Task(source=_images(), model=Small(), score=None, distill_views=VIEWS),
}


@functools.cache
def case(name: str) -> Case:
    """The case of that name, made once, for its reference is slow."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Case(TASKS[name]())


def check_pool(make_pool: MakePool, case: Case) -> None:
    """Everything below, each on pools of its own.

    Args:
        make_pool: builds a pool for a task, whose engine runs in fp32 in chunks of at most `CHUNK`.
        case: what is scored.
    """
    for check in CHECKS:
        check(make_pool, case)


def check_versions_interleaved(make_pool: MakePool, case: Case) -> None:
    pool = make_pool(case.task)
    script = [("publish", case.versions[0]), ("submit", 0, case.versions[0])]
    for draw, version in enumerate(case.versions[1:], start=1):
        script += [("publish", version), ("submit", 2 * draw - 1, version), ("submit", 2 * draw, case.versions[0])]
        script += [("collect", draw - 1)]
    script += [("submit", 6, case.versions[-1]), ("submit", 7, case.versions[0])]
    _run(pool, case, script)
    pool.close()


def check_any_order_of_calls(make_pool: MakePool, case: Case) -> None:
    pool = make_pool(case.task)
    _run(pool, case, _random_script(case, random.Random(5)))
    pool.close()


def check_versions_differ(make_pool: MakePool, case: Case) -> None:
    """The canary: the reference itself must tell versions, draws and candidates apart."""
    first = case.expected(0, case.versions[0])
    said = _said(first)
    others = [case.expected(0, version) for version in case.versions[1:]] + [case.expected(1, case.versions[0])]
    for tensor, others_tensor in ((t, o) for o in others for t, o in zip(said, _said(o), strict=True)):
        assert float((tensor - others_tensor).abs().mean()) > 100 * TOLERANCE * _spread(tensor), "versions say the same"
    assert len(set(map(int, first.tree["targets"]))) > 1


def check_refusals(make_pool: MakePool, case: Case) -> None:
    if case.task.model is None:
        return
    pool = make_pool(case.task)
    error = _raised(lambda: pool.submit(0, case.addresses(0), 0))
    assert isinstance(error, ValueError), f"before any version is published a draw must be refused, got {error!r}"
    pool.publish(case.record(0))
    error = _raised(lambda: pool.submit(0, case.addresses(0), 100))
    assert isinstance(error, ValueError), f"an unpublished version must be refused with ValueError, got {error!r}"
    assert "100" in str(error), f"the refusal must name the version asked for: {error}"
    _run(pool, case, [("submit", 1, 0), ("collect", 1)])
    pool.close()


def check_order(make_pool: MakePool, case: Case) -> None:
    pool, version = make_pool(case.task), case.versions[0]
    _run(pool, case, [("publish", version), ("submit", 0, version), ("submit", 1, version)], drain=False)
    assert _raised(lambda: pool.collect(1)) is not None, "a draw collected out of order must not be answered"
    pool.forget()
    _run(pool, case, [("submit", 1, version), ("submit", 0, version), ("collect", 1), ("collect", 0)])
    assert _raised(lambda: pool.collect(0)) is not None, "a draw collected twice must not be answered"
    pool.close()


def check_forget(make_pool: MakePool, case: Case) -> None:
    pool, version = make_pool(case.task), case.versions[0]
    pool.forget()
    before = _run(pool, case, [("publish", version), *_one_by_one(case, 3, version)])
    _run(pool, case, [("submit", draw, version) for draw in (3, 4, 5)] + [("collect", 3)], drain=False)
    pool.forget()
    pool.forget()
    assert _raised(lambda: pool.collect(4)) is not None, "what was submitted before forget() must be forgotten"
    after = _run(pool, case, _one_by_one(case, 3, version))
    assert before == after, "the same draws after forget() must give the same bits: something of before it was left"
    pool.close()
    pool.close()


def check_cancel(make_pool: MakePool, case: Case) -> None:
    pool, version = make_pool(case.task), case.versions[0]
    if version is not None:
        pool.publish(case.record(version))
    for draw in range(4):
        pool.submit(draw, case.addresses(draw), version)
    pool.cancel(0)
    _assert_expected(pool.collect(1), case.expected(1, version))
    pool.cancel(2)
    _assert_expected(pool.collect(3), case.expected(3, version))
    _run(pool, case, _one_by_one(case, 2, version))
    pool.close()


def check_ready(make_pool: MakePool, case: Case) -> None:
    pool, version = make_pool(case.task), case.versions[0]
    if version is not None:
        pool.publish(case.record(version))
    pool.submit(0, case.addresses(0), version)
    until = perf_counter() + 60
    while not pool.is_ready(0):
        assert perf_counter() < until, "a submitted draw must become ready without being collected"
    _assert_expected(pool.collect(0), case.expected(0, version))
    pool.close()


def check_records(make_pool: MakePool, case: Case) -> None:
    if case.task.model is None:
        return
    pool = make_pool(case.task)
    assert not pool.records, "nothing is published before anything is"
    room = pool.room(case.record(0).tensors)
    for name, tensor in case.record(0).tensors.items():
        room[name].copy_(tensor)
    pool.publish(Record(0, room))
    pool.publish(case.record(100))
    assert {version: record.version for version, record in pool.records.items()} == {0: 0, 100: 100}
    for version, record in pool.records.items():
        assert same(dict(record.tensors), case.record(version).tensors), "a record must have the published weights"
    _run(pool, case, [*_one_by_one(case, 1, 0), *_one_by_one(case, 1, 100)])
    pool.retire(100)
    assert list(pool.records) == [100], "what is retired is no longer published"
    pool.close()


def check_retire(make_pool: MakePool, case: Case) -> None:
    if case.task.model is None:
        return
    pool = make_pool(case.task)
    records = [case.record(version) for version in VERSIONS]
    forgotten = [weakref.ref(record) for record in records[:-1]]
    for record in records:
        pool.publish(record)
    del record, records
    _run(pool, case, _one_by_one(case, 1, 0))
    pool.retire(VERSIONS[-1])
    _run(pool, case, _one_by_one(case, 1, VERSIONS[-1]))  # who scores elsewhere lets go in its own time
    gc.collect()
    assert not any(reference() for reference in forgotten), "retired records must be let go, or memory grows"
    error = _raised(lambda: pool.submit(9, case.addresses(9), 0))
    assert isinstance(error, ValueError), f"a retired version must be refused with ValueError, got {error!r}"
    pool.close()


def check_published_again(make_pool: MakePool, case: Case) -> None:
    """A checkpoint that is loaded brings other weights under a number that was there before."""
    if case.task.model is None:
        return
    pool = make_pool(case.task)
    for version in (100, 0, 200, 0):
        pool.publish(Record(0, case.record(version).tensors))
        pool.submit(1, case.addresses(1), 0)
        _assert_expected(pool.collect(1), replace(case.expected(1, version), version=0))
    pool.close()


def check_ahead_and_workers(make_pool: MakePool, case: Case) -> None:
    version = case.versions[-1]
    ahead = [("submit", draw, version) for draw in range(4)] + [("collect", draw) for draw in range(4)]
    wanted = None
    for how, num_workers, script in (
        ("one after the other", 0, _one_by_one(case, 4, version)),
        ("ahead", 0, ahead),
        ("ahead", 2, ahead),
    ):
        pool = make_pool(replace(case.task, num_workers=num_workers))
        got = _run(pool, case, [("publish", version), *script])
        pool.close()
        wanted = wanted or got
        assert got == wanted, f"submitted {how}, with {num_workers} workers for views, the scores have other bits"


def check_trainer_is_left_alone(make_pool: MakePool, case: Case) -> None:
    if case.task.model is None:
        return
    model = case.task.model.train()
    pool, record = make_pool(case.task), case.record(0)
    weights, published = _copied(dict(model.state_dict())), _copied(dict(record.tensors))
    torch.rand(1)  # away from any state that a seed gives
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    pool.publish(record)
    _run(pool, case, _one_by_one(case, 2, 0))
    pool.close()
    assert same(dict(record.tensors), published), "a pool never writes to a record"
    assert same(dict(model.state_dict()), weights), "scoring must not move the trainer's weights or statistics"
    assert all(module.training for module in model.modules()), "nor switch its model to another mode"
    assert all(parameter.grad is None for parameter in model.parameters()), "nor leave gradients"
    assert torch.equal(torch.get_rng_state(), torch_state), "nor move torch's random state"
    assert np.random.get_state()[1].tolist() == numpy_state, "nor NumPy's"


def check_seconds(make_pool: MakePool, case: Case) -> None:
    pool = make_pool(case.task)
    seen = [pool.seconds()]
    for version in case.versions:
        _run(pool, case, [("publish", version), *_one_by_one(case, 2, version)])
        seen.append(pool.seconds())
    for before, after in itertools.pairwise(seen):
        assert after.keys() == {"views", "scoring", "publishing"}, f"seconds are of other things: {sorted(after)}"
        assert all(math.isfinite(value) and value >= before[name] for name, value in after.items()), "seconds shrink"
        mining = [seconds["views"] + seconds["scoring"] for seconds in (before, after)]
        assert mining[0] < mining[1], f"seconds stand still: {before} -> {after}"
        assert case.task.model is None or after["publishing"] > before["publishing"], "publishing takes no time"
    pool.close()


CHECKS = (
    check_versions_differ,
    check_versions_interleaved,
    check_refusals,
    check_order,
    check_forget,
    check_cancel,
    check_ready,
    check_records,
    check_retire,
    check_published_again,
    check_trainer_is_left_alone,
    check_seconds,
    check_any_order_of_calls,
    check_ahead_and_workers,
)


def _run(pool: Pool, case: Case, script: list[tuple[Any, ...]], drain: bool = True) -> list[bytes]:
    """Make these calls, collect what is left over, and compare every answer; returns their bits."""
    waiting: deque[tuple[int, int | None]] = deque()
    answers = []
    calls = deque(script)
    while calls or (drain and waiting):
        name, *arguments = calls.popleft() if calls else ("collect", waiting[0][0])
        if name == "publish" and arguments[0] is not None:
            pool.publish(case.record(arguments[0]))
        elif name == "retire":
            pool.retire(arguments[0])
        elif name == "submit":
            pool.submit(arguments[0], case.addresses(arguments[0]), arguments[1])
            waiting.append((arguments[0], arguments[1]))
        elif name == "collect":
            answer = pool.collect(arguments[0])
            _assert_expected(answer, case.expected(*waiting.popleft()))
            answers.append(b"|".join(tensor.numpy().tobytes() for tensor in tensors_of(answer.tree)))
        elif name == "forget":
            pool.forget()
            waiting.clear()
    return answers


def _random_script(case: Case, chance: random.Random) -> list[tuple[Any, ...]]:
    """Calls in an order that the contract allows; draws are of any published version."""
    script: list[tuple[Any, ...]] = [("publish", case.versions[0])]
    published, unpublished = [case.versions[0]], deque(case.versions[1:])
    waiting: deque[int] = deque()
    for call in range(RANDOM_CALLS):
        kind = chance.choices(("submit", "collect", "publish", "forget"), (12, 12, 2, 1))[0]
        if kind == "submit":
            waiting.append(call % 6)
            script.append(("submit", call % 6, chance.choice(published)))
        elif kind == "collect" and waiting:
            script.append(("collect", waiting.popleft()))
        elif kind == "publish" and unpublished:
            published.append(unpublished.popleft())
            script.append(("publish", published[-1]))
        elif kind == "forget":
            waiting.clear()
            script.append(("forget",))
    return script


def _one_by_one(case: Case, draws: int, version: int | None) -> list[tuple[Any, ...]]:
    return [call for draw in range(draws) for call in (("submit", draw, version), ("collect", draw))]


def _assert_expected(got: Answer, wanted: Answer) -> None:
    assert got.draw == wanted.draw, f"scores are of draw {got.draw}, asked for were those of {wanted.draw}"
    assert got.version == wanted.version, f"scores say version {got.version}, asked for was {wanted.version}"
    assert got.tree.keys() == wanted.tree.keys()
    assert same(got.tree["targets"], wanted.tree["targets"]), (
        "the targets are not those of the candidates, in their order"
    )
    for name in ("values", "log_probabilities"):
        ours, theirs = got.tree[name], wanted.tree[name]
        assert (ours is None) == (theirs is None), f"{name} must be given exactly where the task asks for them"
        if theirs is not None:
            assert ours.dtype == torch.float32, f"{name} must be float32: got {ours.dtype}"
            assert ours.shape == theirs.shape, f"{name} have shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
            error = float((ours - theirs).abs().max()) / _spread(theirs)
            assert error < TOLERANCE, (
                f"{name} of draw {wanted.draw} by version {wanted.version} differ from the reference by {error:.2g} of "
                "their spread"
            )


def _said(answer: Answer) -> list[Tensor]:
    return [tensor for name in ("values", "log_probabilities") if (tensor := answer.tree[name]) is not None]


def _spread(tensor: Tensor) -> float:
    spread = float((tensor - tensor.mean(0)).square().mean().sqrt())
    assert spread > 0.01, "the candidates' scores must differ, or no permutation shows"
    return spread


def _copied(tree: Any) -> Any:
    return map_tensors(torch.clone, tree)


def _raised(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None
