"""`generate()` as its users meet it: what a model made is trained on, and is the same wherever and whenever it is made.

The run: a student is trained on what a teacher makes of noise, while the teacher itself is trained.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from infer2train import MadeLoader, generate
from infer2train.draws.addresses import Purpose, seeds
from infer2train.draws.draw import Draw, Kind
from infer2train.machine.cores import as_text, available_cores
from infer2train.observe.runlog import read_config, read_rows
from infer2train.oracle.engines import missing_packages
from infer2train.pool.process import ProcessPool
from mined_runs import equal, state_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:oracle 0 was killed", "ignore:the oracle gets new weights every"),
]

LATENT, SIZE, BATCH, DRAWS = 6, 8, 10, 7
IN_PROCESS = {"pool": "process", "oracle_cores": as_text(available_cores()[-1:])}


def noise(seed: int) -> Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))


def careless_noise(seed: int) -> Tensor:
    return torch.randn(LATENT)


class Teacher(nn.Module):
    """Makes images of noise."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.norm = nn.Linear(LATENT, 4 * SIZE * SIZE // 4), nn.BatchNorm2d(4)
            self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        small = self.norm(self.first(noise).view(-1, 4, SIZE // 2, SIZE // 2)).relu()
        return self.last(F.interpolate(small, scale_factor=2.0)).tanh()


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, LATENT))


class Run:
    """Models, optimisers and the loader between them."""

    def __init__(self, seed: int = 0, inputs: Any = noise, **settings: Any) -> None:
        self.teacher, self.student = Teacher(seed), student()
        self.optimizers = [
            torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9),
            torch.optim.SGD(self.teacher.parameters(), lr=0.05),
        ]
        own = {} if isinstance(inputs, DataLoader) else {"batch_size": BATCH, "draws_per_epoch": DRAWS}
        settings = {"update_every": 3, "delay_steps": 2, "oracle_chunk": 4, **own, **settings}
        self.made: MadeLoader = generate(inputs, self.teacher, self.optimizers, **settings)

    def epoch(self) -> Iterator[tuple[Draw, Tensor]]:
        """One epoch of the loop that users have; tells of each draw after its step."""
        for images, noises in self.made:
            F.mse_loss(self.student(images), noises).backward()
            self.optimizers[0].step()
            (self.teacher(noises).square().mean() - 0.5).square().backward()
            self.optimizers[1].step()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            assert self.made.last is not None
            yield self.made.last, images

    def state(self) -> dict[str, Any]:
        return {
            "models": [state_of(self.teacher), state_of(self.student)],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "made": self.made.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        for model, found in zip((self.teacher, self.student), state["models"], strict=True):
            model.load_state_dict(found)
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        self.made.load_state_dict(state["made"])


Told = list[tuple[int | None, bytes]]


def trained(run: Run, epochs: int = 2) -> tuple[Told, list[dict[str, Tensor]]]:
    """Versions and bits of what was made, and the weights in the end."""
    told = [
        (draw.version, images.numpy().tobytes()) for _ in range(run.made.epoch, epochs) for draw, images in run.epoch()
    ]
    run.made.close()
    return told, [state_of(run.teacher), state_of(run.student)]


@pytest.fixture(scope="module")
def inline() -> tuple[Told, list[dict[str, Tensor]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = trained(Run())
    torch.set_num_threads(threads)
    return found


def test_a_draw_is_what_the_weights_of_its_version_make_of_its_seeds() -> None:
    run, weights = Run(), {}
    weights[0] = state_of(run.teacher)
    versions = []
    for draw, images in run.epoch():
        step = draw.number
        assert draw.kind is Kind.MADE
        assert draw.version == 3 * (max(0, step - 2) // 3)
        assert draw.lag == step - draw.version
        expected = seeds(0, Purpose.INPUT, epoch=0, draw=step, slot=np.arange(BATCH))
        assert (draw.addresses.seeds == expected).all()
        teacher = Teacher()
        teacher.load_state_dict(weights[draw.version])
        with torch.no_grad():
            wanted = teacher.eval()(torch.stack([noise(int(seed)) for seed in expected]))
        torch.testing.assert_close(images, wanted, atol=1e-5, rtol=1e-5)
        weights[step + 1] = state_of(run.teacher)
        versions.append(draw.version)
    assert versions == [0, 0, 0, 0, 0, 3, 3]
    figures = run.made.metrics()
    assert figures["lag"] == np.mean([0, 1, 2, 3, 4, 2, 3])
    assert (figures["draws"], figures["steps"], "score_mean" in figures) == (DRAWS, DRAWS, False)
    run.made.close()


def test_in_a_process_the_run_is_the_same_also_where_its_worker_is_killed(
    inline: tuple[Told, list[dict[str, Tensor]]],
) -> None:
    run = Run(**IN_PROCESS)
    told: Told = []
    pool = run.made._pool
    assert isinstance(pool, ProcessPool)
    for _ in range(2):
        for draw, images in run.epoch():
            told.append((draw.version, images.numpy().tobytes()))
            if draw.number == 8:
                os.kill(pool.workers()["oracle 0"], signal.SIGKILL)
    assert pool.totals()["worker_restarts"] == 1
    run.made.close()
    assert told == inline[0]
    assert equal([state_of(run.teacher), state_of(run.student)], inline[1])


@pytest.mark.parametrize("after", [4, 9])
def test_a_resumed_run_goes_on_identically(inline: tuple[Told, list[dict[str, Tensor]]], after: int) -> None:
    first = Run()
    begun = (told for _ in range(2) for told in first.epoch())
    for _ in range(after):
        next(begun)
    state = first.state()
    first.made.close()
    again = Run(seed=9)
    again.load(state)
    told, weights = trained(again)
    assert told == inline[0][after:]
    assert equal(weights, inline[1])


def test_a_look_before_a_state_is_saved_changes_nothing(inline: tuple[Told, list[dict[str, Tensor]]]) -> None:
    first = Run()
    list(first.epoch())
    next(look := iter(first.made))
    next(iter(first.made))
    with pytest.raises(RuntimeError, match="iterated once at a time"):
        next(look)
    state = first.state()
    first.made.close()
    again = Run(seed=9)
    again.load(state)
    told, weights = trained(again)
    assert told == inline[0][DRAWS:]
    assert equal(weights, inline[1])


def test_of_one_optimiser_each_step_counts_at_once_and_of_none_the_loops_own_word() -> None:
    teacher, learner = Teacher(), student()
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for given in (optimizer, None):
        made = generate(noise, teacher, given, batch_size=2, draws_per_epoch=3, update_every=1)
        for step, (images, noises) in enumerate(made):
            assert made.last is not None
            assert made.last.version == step
            F.mse_loss(learner(images), noises).backward()
            optimizer.step()
            if given is None:
                made.step_done()
            assert made.steps == step + 1
        made.close()


def test_what_is_random_of_an_input_follows_its_seed_whichever_generator_it_draws_from() -> None:
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        made = generate(careless_noise, Teacher(), batch_size=4, draws_per_epoch=2, seed=3)
        runs.append(next(iter(made))[1])
        made.close()
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(torch.get_rng_state(), before)


def test_freshest_weights_are_the_newest_that_are_published() -> None:
    run = Run(staleness="freshest")
    assert [draw.version for draw, _ in run.epoch()] == [0, 0, 0, 3, 3, 3, 6]
    run.made.close()


@pytest.mark.parametrize("oracle", ["torch:bf16", "openvino:int8", "onnxruntime:int8"])
def test_any_engine_makes_nearly_the_same(oracle: str) -> None:
    if missing_packages(oracle):
        pytest.skip(f"{oracle} is not installed")
    teacher = Teacher()
    plain, other = (
        generate(noise, teacher, batch_size=16, draws_per_epoch=1, oracle=name) for name in ("torch:fp32", oracle)
    )
    (exact, _), (made, _) = next(iter(plain)), next(iter(other))
    assert other.mining.oracle == oracle
    error = (made - exact).square().mean() / exact.var()
    assert 0 < error < 0.01
    plain.close()
    other.close()


# Data sets, splits, sampling


class Sentences(Dataset[Any]):
    """Token sequences with a name each."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.arange(5) * (index + 1) % 7, index


class Next(nn.Module):
    """Logits of the token behind each."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.table = nn.Embedding(7, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)  # type: ignore[no-any-return]


def tokens_and_names(batch: Any) -> tuple[Any, Any]:
    return batch[0], batch


def continued(model: Any, tokens: Tensor, seeds: Any) -> Tensor:
    """Each sequence with three more tokens, drawn by its own seed."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    for _ in range(3):
        chances = model(tokens)[:, -1].softmax(1)
        drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(chances.cpu(), generators, strict=True)]
        tokens = torch.cat([tokens, torch.stack(drawn)], 1)
    return tokens


def carelessly_continued(model: Any, tokens: Tensor, seeds: Any) -> Tensor:
    return torch.cat([tokens, torch.multinomial(model(tokens)[:, -1].softmax(1), 1)], 1)


def drawn(sample: Any, **settings: Any) -> list[tuple[Tensor, Any]]:
    base = DataLoader(Sentences(), batch_size=6, shuffle=True)
    made = generate(base, Next(), sample=sample, split=tokens_and_names, oracle_chunk=4, **settings)
    found = []
    for batch in made:
        made.step_done()
        found.append(batch)
    made.close()
    return found


def test_what_is_drawn_follows_the_seeds_and_comes_with_what_it_was_drawn_for() -> None:
    before = torch.get_rng_state()
    found, again, others = drawn(continued), drawn(continued), drawn(continued, seed=1)
    assert equal(found, again)
    assert not equal([made for made, _ in found], [made for made, _ in others])
    assert sorted(int(name) for _, (_, names) in found for name in names) == list(range(24))
    for made, (tokens, names) in found:
        assert made.shape == (6, 8)
        assert torch.equal(made[:, :5], tokens)
        assert torch.equal(tokens, torch.stack([Sentences()[int(name)][0] for name in names]))
    assert equal(drawn(carelessly_continued), drawn(carelessly_continued))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_another_process_the_same_is_drawn() -> None:
    assert equal(drawn(continued, **IN_PROCESS), drawn(continued))


def test_a_data_set_is_shuffled_whole_batches() -> None:
    made = generate(Sentences(), Next(), split=tokens_and_names, batch_size=7)
    assert len(made) == 3
    names = []
    for _, (_, of_draw) in made:
        made.step_done()
        names += of_draw.tolist()
    assert len(set(names)) == 21
    assert names != sorted(names)
    made.close()


# Refusals


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.ones(LATENT)


class Moody(Teacher):
    def forward(self, noise: Tensor) -> Tensor:
        return super().forward(noise + torch.randn_like(noise))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gamma": 4}, "a setting must have an effect: got gamma=4"),
        ({"staleness": "freshest", "when_late": "skip"}, "got when_late='skip'"),
        ({"draws_per_epoch": None}, "draws_per_epoch says how long .*got none for a function; pass it"),
        ({"inputs": DataLoader(Sentences()), "draws_per_epoch": None}, "a DataLoader says its batch size itself"),
        ({"inputs": Endless(), "draws_per_epoch": None}, "map-style"),
        ({"generator": Moody()}, "a model must be deterministic in evaluation mode"),
        ({"generator": nn.Linear(9, 2)}, "the model must take a batch's inputs"),
        ({"orcale": "int8"}, "did you mean 'oracle'"),
        ({"quantization": "tials"}, "did you mean 'tails'"),
        ({"pool": "stream", "sample": continued}, "sample= sets its random state"),
    ],
)
def test_what_would_have_no_effect_or_cannot_be_made_is_refused(given: dict[str, Any], said: str) -> None:
    call = {"inputs": noise, "generator": Teacher(), "batch_size": 4, "draws_per_epoch": 2, **given}
    with pytest.raises(ValueError, match=said):
        generate(call.pop("inputs"), call.pop("generator"), **call)


def test_asking_for_weights_that_the_loop_has_not_made_raises() -> None:
    made = generate(noise, Teacher(), batch_size=4, draws_per_epoch=4, update_every=2)
    with pytest.raises(RuntimeError, match="the weights after step 2: got 0 steps done"):
        for _ in made:
            pass
    made.close()


def test_a_state_is_of_the_same_settings() -> None:
    state = Run().made.state_dict()
    with pytest.raises(ValueError, match="update_every: 3 -> 4"):
        Run(update_every=4).made.load_state_dict(state)


def test_addresses_of_a_draw_are_its_own() -> None:
    made = generate(noise, Teacher(), batch_size=3, draws_per_epoch=2, update_every=2)
    found = []
    for _ in range(2):
        for _ in made:
            assert made.last is not None
            found.append(made.last.addresses.seeds)
            made.step_done()
    made.close()
    assert len(np.unique(np.concatenate(found))) == 12


def test_a_run_is_written_down_and_another_one_not_over_it(tmp_path: Path) -> None:
    def run() -> MadeLoader:
        return generate(
            noise, nn.Linear(LATENT, 3), batch_size=4, draws_per_epoch=6, update_every=2, log_every=2, log_dir=tmp_path
        )

    made = run()
    for _ in made:
        made.step_done()
    state = made.state_dict()
    for _ in made:
        made.step_done()
    made.close()
    rows = [row for row in read_rows(tmp_path) if row["kind"] == "step"]
    assert [(row["step"], row["version"]) for row in rows] == [(2, 0), (4, 2), (6, 4), (8, 6), (10, 8), (12, 10)]
    assert {"trainer_scores_seconds", "lag"} <= rows[0].keys()
    assert "score_mean" not in rows[0], "nothing is scored"
    config = read_config(tmp_path)
    assert config["update_every"] == 2
    assert "gamma" not in config

    other = run()
    with pytest.raises(ValueError, match="log_dir must be a new folder, or that of the state loaded"):
        next(iter(other))
    other.close()
    again = run()
    again.load_state_dict(state)
    kept = [row["step"] for row in read_rows(tmp_path) if row["kind"] == "step"]
    assert kept == [2, 4, 6], "what follows comes again"
    again.close()
