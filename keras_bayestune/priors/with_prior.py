"""Layer wrapper that says which weights carry a prior."""

from typing import Any

import keras

from keras_bayestune.priors.laplace import LaplacePrior

_ATTRIBUTE = "bayestune_prior"


def _of_the_layer(name: str) -> property:
    """Return a property that reads and writes the wrapped layer's."""

    def read(self: "WithPrior") -> Any:
        return getattr(self.layer, name)

    def write(self: "WithPrior", value: Any) -> None:
        setattr(self.layer, name, value)

    return property(read, write, doc=f"The wrapped layer's `{name}`.")


@keras.saving.register_keras_serializable(package="keras_bayestune")
class WithPrior(keras.layers.Wrapper):
    """Wrapper that marks the weights of a layer and is otherwise that layer.

    `BayesTuneSGLD` samples the weights marked with a prior; as soon as one weight
    of a model is so marked, the weights outside any `WithPrior` train by Adam. Of
    nested wrappers the innermost wins, so `prior=None` takes a part out again. The
    wrapper works round any layer, `Sequential`, functional model or KerasHub
    backbone, and is saved and loaded with the model.

    A call goes to the layer as it is: arguments, masks, dtypes and losses are those of
    the bare layer, and so are the paths of its weights. Attributes of its class are
    found on `layer`, as with any Keras wrapper. A `.weights.h5` file of a model without
    the wrapper does not load into one with it, because Keras orders such a file by the
    nesting of layers: load it before wrapping, or call
    `wrapped.set_weights(bare.get_weights())`.

    Args:
        layer: The layer to wrap.
        prior: A `LaplacePrior`, or `None` for "no prior here" (a fresh head).
        name: Name of the wrapper; by default the layer's, under which Keras looks up
            the losses and metrics of an output.

    Raises:
        TypeError: if `layer` is not a Keras layer, or `prior` is neither a
            `LaplacePrior` nor `None`.

    Examples:
        >>> prior = LaplacePrior(alpha=0.01, beta=100.0)
        >>> model = keras.Sequential(
        ...     [
        ...         keras.Input((8,)),
        ...         prior.wrap(keras.layers.Dense(16, name="features")),
        ...         keras.layers.Dense(2, name="head"),
        ...     ]
        ... )
        >>> from keras_bayestune.priors import prior_of
        >>> prior_of(model.trainable_variables[0]) == prior
        True
    """

    trainable = _of_the_layer("trainable")
    dtype_policy = _of_the_layer("dtype_policy")
    compute_dtype = _of_the_layer("compute_dtype")
    variable_dtype = _of_the_layer("variable_dtype")
    quantization_mode = _of_the_layer("quantization_mode")
    supports_masking = _of_the_layer("supports_masking")
    input_spec = _of_the_layer("input_spec")

    def __init__(
        self,
        layer: keras.layers.Layer,
        prior: LaplacePrior | None,
        name: str | None = None,
    ):
        """Check the arguments and mark the weights that exist already."""
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "`layer` of WithPrior must be a Keras layer or model. Received: "
                f"{layer!r} of type {type(layer).__name__}."
            )
        if not (prior is None or isinstance(prior, LaplacePrior)):
            raise TypeError(
                "`prior` of WithPrior must be a LaplacePrior or None. Received: "
                f"{prior!r} of type {type(prior).__name__}. Pass e.g. "
                "LaplacePrior(), or None for a layer that carries no prior."
            )
        super().__init__(layer, name=name or layer.name)
        self.prior = prior
        # In place of the method as Keras wraps it, which adds the wrapper's name to
        # the paths of the weights; a call does not.
        self.build = self._build
        self._mark()

    def _mark(self) -> None:
        if not self.built:
            self.built: bool = self.layer.built
            self._build_shapes_dict = self.layer._build_shapes_dict  # for `summary`
        for variable in self.layer.weights:
            if not is_marked(variable):  # an inner wrapper came first and wins
                setattr(variable, _ATTRIBUTE, self.prior)

    def _build(self, *shapes: Any, **named_shapes: Any) -> None:
        self.layer.build(*shapes, **named_shapes)
        self._mark()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped layer; all that Keras does round a call happens there."""
        if any(
            isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))
        ):
            # The graph of a functional model gets the wrapper in place of the layer.
            return keras.Operation.symbolic_call(self, *args, **kwargs)
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped layer."""
        outputs = self.layer(*args, **kwargs)
        self._mark()  # some layers create weights only when called
        return outputs

    # What Keras asks for in place of `call`: without values, and of a quantized layer.
    compute_output_spec = call
    quantized_call = call

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return the wrapped layer's output shape."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        """Return the wrapped layer's mask."""
        return self.layer.compute_mask(*args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Quantize the wrapped layer."""
        self.layer.quantize(*args, **kwargs)
        self._mark()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """No metric of its own: Keras lists those of the layer inside by itself."""
        return []

    def get_build_config(self) -> None:
        """Return nothing: the wrapped layer saves how it was built."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "layer": serialize(self.layer),
            "prior": serialize(self.prior),
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "WithPrior":
        """Rebuild from `get_config()`."""
        config = dict(config)
        for name in ("layer", "prior"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)


def is_marked(variable: keras.Variable) -> bool:
    """Return whether `variable` lies inside a `WithPrior`."""
    return _ATTRIBUTE in vars(variable)


def prior_of(variable: keras.Variable) -> LaplacePrior | None:
    """Return the prior of the innermost `WithPrior` round `variable`, if any."""
    return vars(variable).get(_ATTRIBUTE)
