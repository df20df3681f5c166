"""Time the published stage 1 beside torch's AdamW, and ours beside Keras's Adam.

The published update (github.com/minyoungkim21/BayesTune, commit 8eace13) is written
here from its equations, see `keras_bayestune.Authors`, in plain torch on a torch model
of the size of the Keras one. All four take turns in one process, each ratio is to the
Adam of its own framework. Example:

    KERAS_BACKEND=torch python -m benchmarks.authors --size 23m --tokens 64
"""

import argparse
import statistics
import time
from collections.abc import Callable

import keras
import torch

from benchmarks.step import METHODS, SIZES, build_model, random_batch

SIZE, LEARNING_RATE, SCALE_RATE = 1e12, 1e-4, 0.01  # the published settings
ALPHA, BETA = 0.01, 100.0


class TorchModel(torch.nn.Module):
    """A transformer encoder with a two-class head on the mean of its last layer."""

    def __init__(self, size: str, tokens: int):
        super().__init__()
        layers, heads, width, inner, vocabulary = SIZES[size]
        self.tokens = torch.nn.Embedding(vocabulary, width)
        self.positions = torch.nn.Embedding(max(tokens, 128), width)
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, layers)
        self.logits = torch.nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of token ids."""
        places = torch.arange(ids.shape[1])
        hidden = self.encoder(self.tokens(ids) + self.positions(places))
        return self.logits(hidden.mean(1))


class PublishedStageOne:
    """Noisy gradients of weights and scales, each fed to its own Adam."""

    def __init__(self, weights: list[torch.nn.Parameter]):
        self.weights = weights
        self.anchors = [w.detach().clone() for w in weights]
        self.scales = [torch.nn.Parameter(torch.full_like(w, 1e-4)) for w in weights]
        self.means = [torch.zeros_like(w) for w in weights]
        self.adam = torch.optim.Adam(weights, LEARNING_RATE)
        self.scale_adam = torch.optim.Adam(self.scales, SCALE_RATE)
        self.count = 0

    def zero_grad(self) -> None:
        """As in `torch.optim`."""
        self.adam.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Make one update; every fifth one is a sample."""
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for weight, anchor, parameter in zip(
            self.weights, self.anchors, self.scales, strict=True
        ):
            scale = parameter.clamp(min=1e-8)
            moved = weight - anchor
            weight.grad += moved.sign() / scale / SIZE
            weight.grad += (2 / (SIZE * LEARNING_RATE)) ** 0.5 * torch.randn_like(scale)
            slope = (ALPHA - 1) / scale - BETA + moved.abs() / scale**2 - 1 / scale
            noise = (2 / (SIZE * SCALE_RATE)) ** 0.5 * torch.randn_like(scale)
            parameter.grad = -slope / SIZE + noise
        self.adam.step()
        self.scale_adam.step()
        self.count += 1
        if self.count % 5 == 0:
            for mean, scale in zip(self.means, self.scales, strict=True):
                mean += (scale.clamp(min=1e-8) - mean) / (self.count // 5)


def torch_step(
    size: str, tokens: int, x: torch.Tensor, y: torch.Tensor, make: Callable
):
    """Return a function that makes one step of a new torch model."""
    torch.manual_seed(0)
    model = TorchModel(size, tokens)
    optimizer = make(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def keras_step(size: str, tokens: int, x: dict, y: object, method: str) -> Callable:
    """Return a function that makes one step of a new Keras model."""
    model = build_model(size, tokens)
    model.compile(
        METHODS[method](model),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(x, y)


def main() -> None:
    """Run and print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="23m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    size, tokens = arguments.size, arguments.tokens
    x, y = random_batch(arguments.batch, tokens)
    ids, labels = torch.as_tensor(x["token_ids"]).long(), torch.as_tensor(y)
    steps = {
        "torch AdamW": torch_step(
            size, tokens, ids, labels, lambda w: torch.optim.AdamW(w, LEARNING_RATE)
        ),
        "published stage 1": torch_step(size, tokens, ids, labels, PublishedStageOne),
        "Keras Adam": keras_step(size, tokens, x, y, "adam"),
        "our stage 1": keras_step(size, tokens, x, y, "stage 1"),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:  # the first step compiles, allocates and builds
                times[name].append(time.perf_counter() - start)

    print(
        f"BERT of size {size}, batch {arguments.batch} x {tokens} tokens, median of "
        f"{arguments.repeats}; Keras on {keras.backend.backend()}, torch with "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'method':<20}{'step s':>8}{'/ its Adam':>12}")
    ratios = {}
    for name, of in (
        ("torch AdamW", "torch AdamW"),
        ("published stage 1", "torch AdamW"),
        ("Keras Adam", "Keras Adam"),
        ("our stage 1", "Keras Adam"),
    ):
        pairs = zip(times[name], times[of], strict=True)
        ratios[name] = statistics.median(a / b for a, b in pairs)
        print(f"{name:<20}{statistics.median(times[name]):8.3f}{ratios[name]:12.2f}")
    print(
        "our ratio / published ratio: "
        f"{ratios['our stage 1'] / ratios['published stage 1']:.2f}"
    )


if __name__ == "__main__":
    main()
