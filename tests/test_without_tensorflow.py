"""On JAX and torch the package needs no TensorFlow: both stages, files, pictures."""

import importlib.util
import subprocess
import sys

import keras
import pytest

RUN = """
import sys
for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "grain"):
    sys.modules[name] = None  # as if it were not installed: every import of it fails

import keras
import numpy as np

import keras_bayestune as kbt

rng = np.random.default_rng(0)
x = rng.normal(size=(32, 4)).astype("float32")
y = (x[:, 0] > 0).astype("int32")


def build():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model = build()
model.compile(kbt.BayesTuneSGLD(1e-3, warmup_steps=2, burn_in_steps=4), loss)
select = kbt.SparseMaskCallback(
    0.2, selection_epochs=3, finetune_optimizer=keras.optimizers.Adam(1e-2)
)
model.fit(x, y, batch_size=8, epochs=5, callbacks=[select], verbose=0)
select.mask.save("mask.safetensors")
kbt.SparseDelta.from_model(model, select).save("task.safetensors")
fresh = build()
kbt.SparseDelta.load("task.safetensors").apply(fresh)
same = keras.ops.convert_to_numpy(fresh(x)) == keras.ops.convert_to_numpy(model(x))
assert same.all()
print("core", keras.backend.backend())
"""

# KerasHub tokenizes without TensorFlow; `fit` of a task asks for grain or TensorFlow
# whatever its input, a Keras model round a backbone does not.
RUN_HUB = """
import keras_hub

tokenizer = keras_hub.models.BertTokenizer(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film"]
)
tokens = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)(
    ["a film", "film"] * 8
)
backbone = keras_hub.models.BertBackbone(7, 1, 2, 8, 16, max_sequence_length=8)
output = keras.layers.Dense(2)(backbone.output["pooled_output"])
model = keras.Model(backbone.input, output)
model.compile(kbt.BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=1), loss)
model.fit(tokens, y[:16], batch_size=8, epochs=2, verbose=0)

task = keras_hub.models.BertTextClassifier(backbone, num_classes=2)
task.compile("adam", loss)
try:
    task.fit(tokens, y[:16], verbose=0)
except ImportError as error:
    assert "requires `grain` or `tensorflow`" in str(error), error
else:
    raise AssertionError("fit of a task no longer needs either: say so in README.md")
print("hub", keras.backend.backend())
"""


def _run(code, folder):
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.split()


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="this backend is TensorFlow"
)
def test_trains_without_tensorflow(tmp_path):
    code, printed = RUN, ["core", keras.config.backend()]
    if importlib.util.find_spec("keras_hub"):
        code, printed = RUN + RUN_HUB, [*printed, "hub", keras.config.backend()]
    assert _run(code, tmp_path) == printed
