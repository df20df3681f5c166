"""Vision: a small KerasHub ViT that learned digits moves to the tasks of `digits`."""

import keras
import keras_hub

from benchmarks.quality.digits import Digits

WIDTH, LAYERS, HEADS = 32, 2, 4
# Query and value: Keras gives each head a first factor of its own.
SCALARS_PER_RANK = 2 * LAYERS * (WIDTH * HEADS + WIDTH // HEADS)


class Vit(Digits):
    """A vision transformer of 17,888 scalars on 16 patches of 2 x 2 pixels."""

    name = "vit"
    fractions = (0.005, 0.02)
    rates = (3e-3, 1e-2, 3e-2)
    full_rates = (1e-3, 3e-3)
    pretraining_epochs = 40

    def new_model(self, name):
        """Return a ViT with new weights; its head reads the class token."""
        backbone = keras_hub.models.ViTBackbone(
            image_shape=(8, 8, 1),
            patch_size=2,
            num_layers=LAYERS,
            num_heads=HEADS,
            hidden_dim=WIDTH,
            mlp_dim=2 * WIDTH,
            name="backbone",
        )
        inputs = keras.Input((8, 8, 1))
        logits = keras.layers.Dense(10, name="head")(backbone(inputs)[:, 0])
        return keras.Model(inputs, logits, name=name)

    def with_lora(self, problem, scalars):
        """LoRA on query and value, as KerasHub has it."""
        rank = round(scalars / SCALARS_PER_RANK)
        if rank == 0:
            return None
        model = self.new_model("vit_lora")
        model.set_weights(problem.weights)
        backbone = model.get_layer("backbone")
        backbone.enable_lora(rank)
        for variable in backbone.trainable_variables:  # biases of these layers
            if "lora" not in variable.path:
                variable.trainable = False
        return model
