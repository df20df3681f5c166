"""The head of a KerasHub task carries no prior unless told otherwise."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.losses import SparseCategoricalCrossentropy
from keras.optimizers import Adam

from keras_bayestune import BayesTuneSGLD, LaplacePrior, SparseMaskCallback
from keras_bayestune.callbacks.task_head import without_prior_on
from keras_bayestune.noise import Rademacher
from keras_bayestune.samplers import Collapsed
from keras_bayestune.tasks import task_head_paths

keras_hub = pytest.importorskip("keras_hub")

HEAD = {"logits/kernel", "logits/bias"}


def constant_rate():
    return 0.01


def new_task():
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=4,
        max_sequence_length=4,
        dropout=0.0,
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=2, dropout=0.0)


def new_optimizer(**arguments):
    arguments = {
        "warmup_steps": 1,
        "burn_in_steps": 2,
        "thinning": 1,
        "seed": 0,
        **arguments,
    }
    return BayesTuneSGLD(1e-4, **arguments)


def begin_training(task, callback):
    """What `fit` does before the first step."""
    callback.set_model(task)
    callback.set_params({"epochs": 1, "steps": 9})
    callback.on_train_begin()
    optimizer = task.optimizer
    optimizer.build(task.trainable_variables)
    return {"/".join(path.split("/")[-2:]) for path in optimizer.excluded_paths()}


def test_the_head_trains_by_adam_and_is_in_the_mask():
    task = new_task()
    task.compile(new_optimizer(), loss=SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(0, 8, size=(12, 4)),
        "segment_ids": np.zeros((12, 4), "int32"),
        "padding_mask": np.ones((12, 4), "int32"),
    }
    y = rng.integers(0, 2, size=12)
    before = {v.path: ops.convert_to_numpy(v).copy() for v in task.trainable_variables}
    select = SparseMaskCallback(
        fraction=0.1, selection_epochs=1, finetune_optimizer=Adam(1e-3)
    )
    task.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[select], shuffle=False)
    assert {"/".join(path.split("/")[-2:]) for path in select.mask.always} == HEAD
    backbone = {v.path for v in task.backbone.trainable_variables}
    assert set(select.scores) == backbone
    for variable in task.trainable_variables:
        chosen = select.mask.indices[variable.path]
        now = ops.convert_to_numpy(variable).reshape(-1)
        old = before[variable.path].reshape(-1)
        assert np.delete(now, chosen).tobytes() == np.delete(old, chosen).tobytes()
        if variable.path not in backbone:
            assert (now != old).all()


def test_unless_told_otherwise():
    task = new_task()
    task.compile(new_optimizer())
    assert begin_training(task, SparseMaskCallback(exclude_head=False)) == set()
    task.compile(new_optimizer(exclude="embedding"))
    excluded = begin_training(task, SparseMaskCallback())
    assert excluded
    assert not excluded & HEAD
    task.compile(new_optimizer())
    LaplacePrior().wrap(task.backbone)
    # Its variables are marked, so the head is out without an `exclude`.
    assert begin_training(task, SparseMaskCallback()) == HEAD
    assert task.optimizer.exclude == ()


def test_a_resumed_run_is_left_as_it_is():
    task = new_task()
    task.compile(new_optimizer())
    optimizer = task.optimizer
    optimizer.build(task.trainable_variables)
    optimizer._chain.count.assign(1)
    assert begin_training(task, SparseMaskCallback()) == set()
    assert task.optimizer is optimizer


def test_a_model_that_is_no_task_has_no_head():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert task_head_paths(model) == ()
    task = new_task()
    assert len(task_head_paths(task)) == 2
    task.backbone.trainable = False
    assert len(task_head_paths(task)) == 2


def test_the_new_optimizer_is_like_the_old_one():
    class Signs(Rademacher):
        """Of a class that is not registered."""

    old = BayesTuneSGLD(
        constant_rate,
        prior=LaplacePrior(beta=3.0),
        sampler=Collapsed(noise=Signs()),
        weight_decay=0.1,
        clipnorm=0.5,
        seed=4,
    )
    old.exclude_from_weight_decay(var_names=["bias"])
    new = without_prior_on(["bias", "b.as"], old)
    assert new.exclude == ("^bias$", r"^b\.as$")
    new.exclude = new.exclude[:1]
    assert new.sampler is old.sampler
    assert {**new.get_config(), "exclude": []} == old.get_config()
    variables = [keras.Variable(np.ones(4), name=n) for n in ("kernel", "bias")]
    new.build(variables)
    assert [new._use_weight_decay(v) for v in variables] == [True, False]
    assert new.excluded_paths() == ("bias",)
