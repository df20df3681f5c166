"""Learn which few scalars of a model to train, train those, and keep a delta.

    python examples/quickstart.py             about two minutes on 2 cores with JAX
    python examples/quickstart.py --smoke     the same in small, for a test

Real input, no network: scikit-learn's digits. A small KerasHub classifier learns 850
upright digits. Its backbone then gets a new head, as `from_preset` gives one, and has
to read digits turned by 90 degrees, of which only 200 have a label.

Part 1 is what a user does: both stages in one `fit`, two plots, a delta in a file.
Part 2 asks whether it pays. For each seed it trains from equal weights, for equally
many steps: the new head alone; the head and a random share p of the backbone's
scalars; the head and BayesTune's choice of equally many; everything.
"""

import argparse
import importlib.metadata
import json
import shlex
import sys
import time
from pathlib import Path

import keras
from digits import (
    SPARSE_RATE,
    Epochs,
    accuracy,
    digits,
    new_classifier,
    pretrained,
    sampler,
    train,
)
from digits_comparison import compare, report
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import keras_bayestune as kbt


class ShowProgress(keras.callbacks.Callback):
    """A bar for each `fit`, which a terminal shows live, and lines above it."""

    def __init__(self):
        super().__init__()
        columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        self.progress = Progress(*columns, transient=True)
        self.bar = self.progress.add_task("")
        self.print = self.progress.console.print

    def on_train_begin(self, logs=None):
        """Start over; `text` says what runs."""
        epochs = self.params["epochs"]
        self.progress.reset(self.bar, total=epochs, description=self.text)

    def on_epoch_end(self, epoch, logs=None):
        """Move on; the stage is what SparseMaskCallback logs."""
        stage = f", stage {logs['stage']}" if "stage" in logs else ""
        self.progress.update(self.bar, advance=1, description=self.text + stage)


def use(out, epochs, show):
    """Part 1, what a user does: both stages in one `fit`, two plots, the delta."""
    upright, few, test = digits(seed=0)
    model = pretrained(0, upright, epochs, show)
    model.backbone.save_weights(out / "backbone.weights.h5")

    show.text = "both stages in one fit"
    select = kbt.SparseMaskCallback(
        fraction=0.02,
        selection_epochs=epochs.sampling,
        finetune_optimizer=keras.optimizers.Adam(SPARSE_RATE),
    )
    both_stages = epochs.sampling + epochs.finetuning
    train(model, sampler(0, epochs), few, both_stages, select, show)
    tuned = accuracy(model, *test)
    show.print(f"Both stages in one fit: {tuned:.1f} % of the turned digits.")
    select.mask.summary()
    select.mask.save(out / "mask.safetensors")
    kbt.plot_scales(select.scores, select.mask).figure.savefig(out / "scales.png")
    kbt.plot_mask(select.mask).figure.savefig(out / "mask.png")

    delta = kbt.SparseDelta.from_model(model, select)
    delta.save(out / "delta.safetensors")
    fresh = new_classifier(seed=1)
    fresh.backbone.load_weights(out / "backbone.weights.h5")
    kbt.SparseDelta.load(out / "delta.safetensors").apply(fresh)
    reloaded = accuracy(fresh, *test)
    show.print(f"Fresh model + delta of {delta.nbytes:,} bytes: {reloaded:.1f} %.")
    if reloaded != tuned:
        raise RuntimeError(f"The delta lost accuracy: {tuned} % before saving.")
    return {"accuracy": tuned, "reloaded": reloaded, "delta_bytes": delta.nbytes}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="quick, means nothing")
    parser.add_argument(
        "--seeds", type=int, default=6, choices=range(2, 101), metavar="2..100"
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"))
    args = parser.parse_args(arguments)
    epochs = Epochs(1, 2, 1) if args.smoke else Epochs(20, 40, 30)
    fractions = [0.02] if args.smoke else [0.005, 0.02]

    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    show, runs = ShowProgress(), []
    with show.progress:
        show.print("1. Both stages, the plots, the delta")
        results = {"one fit": use(args.out, epochs, show)}
        show.print("\n2. Does it pay?")
        for seed in range(args.seeds):
            runs.append(compare(seed, fractions, epochs, show))
            found = (f"{x} {run['accuracy']:.1f}" for x, run in runs[-1].items())
            show.print(f"seed {seed} of {args.seeds}:", ", ".join(found))
    results |= report(runs, fractions, show)

    results["backend"] = backend = keras.backend.backend()
    packages = "keras", "keras-hub", "numpy", "scikit-learn", backend
    versions = {package: importlib.metadata.version(package) for package in packages}
    results["versions"] = {"keras-bayestune": kbt.__version__, **versions}
    results["command"] = shlex.join(["python", *sys.argv])
    results["seconds"] = time.perf_counter() - start
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    show.print(f"{results['seconds']:.0f} s on {backend}; files are in {args.out}/")


if __name__ == "__main__":
    main()
