"""The head of `glue.py`."""

import keras
import keras_hub


class MeanPoolingClassifier(keras_hub.models.TextClassifier):
    """A linear layer on the mean token: sentence encoders have no trained [CLS]."""

    def __init__(self, backbone, preprocessor, outputs):
        self.backbone, self.preprocessor = backbone, preprocessor
        backbone.get_layer("pooled_dense").trainable = False  # it reads [CLS]
        tokens = backbone(backbone.input)["sequence_output"]
        pooling = keras.layers.GlobalAveragePooling1D(name="mean")
        mean = pooling(tokens, mask=backbone.input["padding_mask"])
        small = keras.initializers.TruncatedNormal(stddev=0.02)  # as BERT's own head
        logits = keras.layers.Dense(outputs, kernel_initializer=small, name="logits")
        super().__init__(inputs=backbone.input, outputs=logits(mean))
