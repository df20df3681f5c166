"""A stage-1 optimizer that leaves the head of a KerasHub task without a prior."""

import re
from collections.abc import Iterable

import keras

from keras_bayestune.callbacks.optimizer_config import config_of
from keras_bayestune.callbacks.stage_one import stage_one_optimizer
from keras_bayestune.callbacks.switching import switch_optimizer
from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.priors import is_marked
from keras_bayestune.tasks import task_head_paths
from keras_bayestune.updates.replicas import strategy_scope


def exclude_head(model: keras.Model) -> None:
    """Give a KerasHub task's head no prior, unless someone said what carries one.

    That takes a new optimizer; a chain that has begun is left as it is.
    """
    optimizer = stage_one_optimizer(model)
    told = optimizer.exclude or any(is_marked(v) for v in model.trainable_variables)
    head = task_head_paths(model)
    if told or not head or optimizer.num_updates:
        return
    with strategy_scope(model):
        switch_optimizer(model, without_prior_on(head, optimizer))


def without_prior_on(paths: Iterable[str], optimizer: BayesTuneSGLD) -> BayesTuneSGLD:
    """Return a new optimizer like `optimizer`, with no prior on the variables."""
    # Not through `from_config`, which asks for registered classes and no lambda.
    arguments = {
        **config_of(optimizer),
        "prior": optimizer.prior,
        "sampler": optimizer.sampler,
        "exclude": [f"^{re.escape(path)}$" for path in paths],
    }
    del arguments["saved_shapes"]
    if not isinstance(optimizer._learning_rate, keras.Variable):
        arguments["learning_rate"] = optimizer._learning_rate
    new = BayesTuneSGLD(**arguments)
    # What `exclude_from_weight_decay` left (Keras 3.15) is in no config.
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if name in vars(optimizer):
            setattr(new, name, vars(optimizer)[name])
    return new
