"""A stage-1 optimizer that leaves the head of a KerasHub task without a prior."""

import re
from collections.abc import Iterable

import keras

from keras_bayestune.optimizers import BayesTuneSGLD


def without_prior_on(paths: Iterable[str], optimizer: BayesTuneSGLD) -> BayesTuneSGLD:
    """Return a new optimizer like `optimizer`, with no prior on the variables."""
    # Not through `from_config`, which asks for registered classes and no lambda.
    arguments = {
        **optimizer.get_config(),
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
