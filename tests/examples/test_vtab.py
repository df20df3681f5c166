import importlib
import json
import math
import sys

import keras
import numpy as np
import pytest

import keras_bayestune as kbt

keras_hub = pytest.importorskip("keras_hub")
CLASSES = 100


@pytest.fixture(scope="module")
def vtab(root):
    pytest.importorskip("tensorflow_datasets")
    sys.path.insert(0, str(root / "examples"))
    yield importlib.import_module("vtab")
    sys.path.remove(str(root / "examples"))


@pytest.fixture(scope="module")
def tasks(vtab):
    return importlib.import_module("vtab_tasks")


@pytest.fixture
def data_dir(tasks, tmp_path, monkeypatch):
    """A folder in which TFDS finds a small cifar100, as if downloaded."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # or it asks the network where it runs
    tfds = tasks.tfds
    builder = tfds.builder_cls("cifar100")
    rng = np.random.default_rng(0)
    splits = {
        name: [
            (
                i,
                {
                    "image": rng.integers(0, 256, (32, 32, 3)).astype("uint8"),
                    "label": i % CLASSES,
                    "coarse_label": 0,
                    "id": str(i),
                },
            )
            for i in range(rows)
        ]
        for name, rows in {"train": 1010, "test": 12}.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar100",
        version=str(builder.VERSION),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=CLASSES),
                "coarse_label": tfds.features.ClassLabel(num_classes=20),
                "id": tfds.features.Text(),
            }
        ),
        split_datasets=splits,
        data_dir=tmp_path / "tfds",
        description="-",
        homepage="-",
        citation="-",
        disable_shuffling=True,
    )
    return tmp_path / "tfds"


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A folder with a tiny ViT of random weights for images of 16 x 16."""
    folder = str(tmp_path_factory.mktemp("preset"))
    models = keras_hub.models
    backbone = models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    converter = keras_hub.layers.ViTImageConverter(image_size=(16, 16), scale=1 / 255)
    models.ViTImageClassifier(
        backbone,
        num_classes=5,
        preprocessor=models.ViTImageClassifierPreprocessor(converter),
    ).save_to_preset(folder)
    return folder


def test_the_splits_are_those_of_vtab(tasks, data_dir):
    parts, classes = tasks.load("cifar100", data_dir)
    assert classes == CLASSES
    assert [len(part) for part in parts] == [800, 200, 12]
    labels = [[int(label) for _, label in part] for part in parts]
    assert labels[0][:3] == [0, 1, 2] and labels[1][0] == 800 % CLASSES
    images, _ = next(iter(tasks.batches(parts[2], (16, 16), 5)))
    assert images.shape == (5, 16, 16, 3)


@pytest.mark.parametrize("method", ["bayestune", "full", "head"])
def test_a_task(vtab, data_dir, preset, tmp_path, method):
    out = tmp_path / "out"
    result = vtab.main(
        ["--smoke", "--data-dir", str(data_dir), "--preset", preset]
        + ["--method", method, "--fraction", "0.05", "--out", str(out)]
    )
    assert json.loads((out / "result.json").read_text()) == result
    assert 0 <= result["test accuracy"] <= 1
    model = keras_hub.models.ImageClassifier.from_preset(preset, num_classes=CLASSES)
    size = {v.path: math.prod(v.shape) for v in model.trainable_variables}
    backbone = sum(math.prod(v.shape) for v in model.backbone.trainable_variables)
    head = sum(size.values()) - backbone
    assert result["test accuracy of the majority class"] == round(1 / 12, 4)
    if method == "head":
        assert result["trained scalars"] == head
    elif method == "full":
        assert result["trained scalars"] == head + backbone
    else:
        assert result["trained scalars"] == head + int(0.05 * backbone)
        before = keras.ops.convert_to_numpy(model.output_dense.kernel)
        kbt.SparseDelta.load(out / "delta.safetensors").apply(model)
        after = keras.ops.convert_to_numpy(model.output_dense.kernel)
        assert not np.array_equal(before, after)


def rows_of(tasks, places, types=()):
    locations = tasks.tf.constant([[0.0, 0.0, z] for z in places])
    objects = {"pixel_coords": locations, "size": tasks.tf.zeros(len(places))}
    return {"objects": {**objects, "location": locations, "type": np.array(types)}}


def test_computed_labels(tasks):
    clevr = [rows_of(tasks, [8.2, 12, 11]), rows_of(tasks, [9.7] * 10)]
    label = {task: row[-1] for task, row in tasks.COMPUTED.items()}
    assert [int(label["clevr-count"](row)) for row in clevr] == [0, 7]
    assert [int(label["clevr-distance"](row)) for row in clevr] == [1, 4]
    kitti = [
        rows_of(tasks, [5.0, 30.0], [2, 0]),
        rows_of(tasks, [5.0, 12.0], [3, 1]),  # the near one walks
        rows_of(tasks, [40.0], [0]),
        rows_of(tasks, [5.0], [4]),
    ]
    assert [int(label["kitti-distance"](row)) for row in kitti] == [0, 1, 2, 3]
    for task, field, values, found in (
        ("dsprites-location", "label_x_position", [0, 1, 31], [0, 0, 15]),
        ("dsprites-orientation", "label_orientation", [2, 3, 5, 39], [0, 1, 2, 15]),
    ):
        rows = [{field: tasks.tf.constant(value, "int64")} for value in values]
        assert [int(label[task](row)) for row in rows] == found


def test_grey_images_of_another_label(tasks, monkeypatch):
    def fake(name, split, data_dir, with_info):
        assert name == "dsprites" and split[-1] == "train[90%:]"
        row = {"image": np.ones((4, 8, 8, 1), "uint8"), "label_x_position": [7] * 4}
        return [tasks.tf.data.Dataset.from_tensor_slices(row)] * 3, None

    monkeypatch.setattr(tasks.tfds, "load", fake)
    parts, classes = tasks.load("dsprites-location", None)
    images, labels = next(iter(tasks.batches(parts[0], (16, 16), 4)))
    assert classes == 16 and labels.numpy().tolist() == [3] * 4
    assert images.shape == (4, 16, 16, 3) and (images.numpy() == 255).all()


def test_every_task_is_one_of_tfds(tasks):
    assert len(tasks.TASKS) == 19
    for name, *_ in [*tasks.LABELLED.values(), *tasks.COMPUTED.values()]:
        assert tasks.tfds.builder_cls(name.split("/")[0]).name == name.split("/")[0]
