"""A GAN whose fakes an oracle makes: a stale, low-precision copy of the generator, while the discriminator trains.

    python examples/gan.py                                              # digits, both arms, seconds
    python examples/gan.py --data FOLDER --seeds 0 1 2 --steps 4000 --width 32 --oracle openvino:int8 \\
        --update-every 4 --delay-steps 4 --looked-at 5000 --classifier-epochs 3 --folder runs/gan

Two arms, the same seeds. `alternating` is what GANs do: each step of the discriminator has the generator make fakes, in
the trainer's time. In `hybrid` they come from `infer2train.generate()`, made ahead on other cores. The generator's own
steps are the same in both.

DCGAN (Radford et al. 2016) at 8 x 8 or 32 x 32, but for the transposed convolutions, which no int8 engine runs in
integers: the generator scales up by repetition and convolves (Odena et al. 2016). Printed for each arm and seed: the
Fréchet distance of fakes to the training images on the features of a small classifier that this script trains itself
(no FID, which has another network, and comparable only within one classifier), the time of a discriminator's step and
its accuracy. A run that was stopped goes on from its `--folder`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional as F

import infer2train
from infer2train.data.load import default_cache_dir, load_data

LATENT, BATCH, ARMS = 64, 64, ("alternating", "hybrid")
REAL, NOISE = 1, 2


def drawn(purpose: int, seed: int, step: int) -> torch.Generator:
    """Random numbers of one place in a run, whatever came before."""
    return torch.Generator().manual_seed((seed << 40) + (step << 8) + purpose)


def noise(seed: int) -> Tensor:
    """The latent of one fake."""
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))


def some_noise(seed: int, step: int, count: int = BATCH) -> Tensor:
    """The latents of a batch."""
    return torch.randn(count, LATENT, generator=drawn(NOISE, seed, step))


class Generator(nn.Module):
    """Latents to images in [-1, 1]. The running statistics of its batch-norm are those of the last batch."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        doublings = (side // 4).bit_length() - 1
        self.widest = width << (doublings - 1)
        self.first = nn.Sequential(
            nn.Linear(LATENT, self.widest * 16, bias=False), nn.BatchNorm1d(self.widest * 16, momentum=1.0)
        )
        layers: list[nn.Module] = [nn.ReLU()]
        for i in range(doublings):
            now, after = self.widest >> i, max(width, self.widest >> (i + 1))
            convolution = nn.Conv2d(now, after, 3, padding=1, bias=False)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(after, momentum=1.0), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    def forward(self, latents: Tensor) -> Tensor:
        return self.rest(self.first(latents).view(-1, self.widest, 4, 4))


def convolutions(channels: int, side: int, width: int, outputs: int, *, norm: bool) -> nn.Sequential:
    """Halves images until they are 4 x 4: a discriminator, or the classifier that the distance is measured by."""
    layers: list[nn.Module] = []
    now = channels
    while side > 4:
        after = width if now == channels else now * 2
        layers += [nn.Conv2d(now, after, 4, stride=2, padding=1), nn.BatchNorm2d(after) if norm else nn.Identity()]
        layers += [nn.LeakyReLU(0.2)]
        side, now = side // 2, after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(now * 16, outputs))


def images_of(name: str) -> tuple[Tensor, Tensor]:
    """Training images in [-1, 1], and their classes; of the digits all."""
    data = load_data(name, cache_dir=default_cache_dir(), progress=False)
    parts = (data.train, data.test) if name == "digits" else (data.train,)
    pixels = np.concatenate([part.images for part in parts]).astype(np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
        np.concatenate([part.targets for part in parts]).astype(np.int64)
    )


# The distance


class Distance:
    """Fréchet distance to real images on the features of a classifier that is trained once, from a seed of its own."""

    def __init__(self, images: Tensor, classes: Tensor, epochs: int) -> None:
        torch.manual_seed(0)
        channels, side = images.shape[1:3]
        network = convolutions(channels, side, 32, int(classes.max()) + 1, norm=True)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(epochs):
            for at in torch.randperm(len(images)).split(128):
                F.cross_entropy(network(images[at]), classes[at]).backward()
                optimizer.step()
                optimizer.zero_grad()
        self._features = nn.Sequential(*network[:-2], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        self._real = self._moments(images)

    def _moments(self, images: Tensor) -> tuple[Any, Any]:
        with torch.no_grad():
            found = torch.cat([self._features(part) for part in images.split(256)]).double().numpy()
        return found.mean(0), np.cov(found, rowvar=False)

    def __call__(self, fakes: Tensor) -> float:
        """|m - n|² + tr(S + T - 2 (S T)^½), of the means m, n and covariances S, T."""
        (m, s), (n, t) = self._real, self._moments(fakes)
        return float(((m - n) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


# The two arms


class Gan:
    """Both networks and their optimisers, from one seed, and where the fakes of discriminator's steps come from."""

    def __init__(self, arm: str, seed: int, images: Tensor, options: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        channels, side = images.shape[1:3]
        self.seed, self.step = seed, 0
        self.generator = Generator(channels, side, options.width)
        self.discriminator = convolutions(channels, side, options.width, 1, norm=False)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.discriminator, self.generator)
        ]
        self.made = None
        if arm == "hybrid":
            self.made = infer2train.generate(
                noise,
                self.generator,
                self.optimizers,  # a step is one of the discriminator, and of the generator where there is one
                batch_size=BATCH,
                draws_per_epoch=options.steps,
                oracle=options.oracle,
                update_every=options.update_every,
                delay_steps=options.delay_steps,
                pool=options.pool,
                seed=seed,
            )

    def fakes(self) -> Iterator[Tensor]:
        """Those of each step of the discriminator."""
        if self.made is not None:
            yield from (images for images, _ in self.made)
        while True:
            with torch.no_grad():
                images = self.generator(some_noise(self.seed, 2 * self.step))
            yield images

    def train_discriminator(self, real: Tensor, fakes: Tensor) -> float:
        """A step; the share of images that it told apart before."""
        of_real, of_fakes = self.discriminator(real), self.discriminator(fakes)
        (F.softplus(-of_real).mean() + F.softplus(of_fakes).mean()).backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        return float(((of_real > 0).float().mean() + (of_fakes < 0).float().mean()) / 2)

    def train_generator(self) -> None:
        """A step by the non-saturating loss."""
        F.softplus(-self.discriminator(self.generator(some_noise(self.seed, 2 * self.step + 1)))).mean().backward()
        self.optimizers[1].step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.made is not None:  # an oracle goes by running statistics: they must be of the weights as they are now
            with torch.no_grad():
                self.generator(some_noise(self.seed, 2 * self.step + 1))

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "networks": [self.generator.state_dict(), self.discriminator.state_dict()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "made": None if self.made is None else self.made.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for part, saved in zip((self.generator, self.discriminator), state["networks"], strict=True):
            part.load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.made is not None:
            self.made.load_state_dict(state["made"])


def trained(arm: str, seed: int, images: Tensor, distance: Distance, options: argparse.Namespace) -> dict[str, Any]:
    """One run: its distances by step, and what its steps took."""
    gan, told = Gan(arm, seed, images, options), {"arm": arm, "seed": seed, "distances": {}, "seconds": [], "right": []}
    saved = options.folder / f"{arm}-{seed}.pt" if options.folder else None
    if saved is not None and saved.exists():
        state = torch.load(saved, weights_only=True)
        gan.load_state_dict(state["gan"])
        told = json.loads(state["told"])
    fakes = gan.fakes()
    while gan.step < options.steps:
        started = perf_counter()
        real = images[torch.randint(len(images), (BATCH,), generator=drawn(REAL, seed, gan.step))]
        told["right"].append(gan.train_discriminator(real, next(fakes)))
        told["seconds"].append(perf_counter() - started)
        if (gan.step + 1) % options.critic_steps == 0:  # after them, so that fakes of all are of one generator
            gan.train_generator()
        gan.step += 1
        if gan.step % options.look_every == 0 or gan.step == options.steps:
            told["distances"][str(gan.step)] = distance(looked_at(gan.generator, options.looked_at))
            if saved is not None:
                torch.save({"gan": gan.state_dict(), "told": json.dumps(told)}, saved)
    if gan.made is not None:
        gan.made.close()
    return told


def looked_at(generator: Generator, count: int) -> Tensor:
    """Fakes of the generator itself, the same latents for all."""
    generator.eval()
    with torch.no_grad():
        fakes = torch.cat([generator(part) for part in some_noise(0, 0, count).split(256)])
    generator.train()
    return fakes


def main() -> None:
    """Train both arms and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, cifar10, or a folder of 32 x 32 images")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=30, help="of the discriminator")
    parser.add_argument("--critic-steps", type=int, default=1, help="of them for one of the generator")
    parser.add_argument("--width", type=int, default=16, help="channels at the full size")
    parser.add_argument("--oracle", default="torch:fp32")
    parser.add_argument("--pool", default="process")
    parser.add_argument("--update-every", type=int, default=2, help="steps")
    parser.add_argument("--delay-steps", type=int, default=2, help="steps")
    parser.add_argument("--look-every", type=int, default=500, help="steps between distances, and saves")
    parser.add_argument("--looked-at", type=int, default=500, help="fakes of a distance")
    parser.add_argument("--classifier-epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where runs are saved, and go on from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    images, classes = images_of(options.data)
    distance = Distance(images, classes, options.classifier_epochs)
    for seed in options.seeds:
        for arm in options.arms:
            told = trained(arm, seed, images, distance, options)
            if options.folder:
                (options.folder / f"{arm}-{seed}.json").write_text(json.dumps(told))
            half = len(told["seconds"]) // 2
            print(
                f"{arm} seed {seed}: Fréchet distance {list(told['distances'].values())[-1]:.3f} after {options.steps} "
                f"steps, discriminator's step {1000 * np.mean(told['seconds'][half:]):.1f} ms, it is right "
                f"{np.mean(told['right'][half:]):.1%}"
            )


if __name__ == "__main__":
    main()
