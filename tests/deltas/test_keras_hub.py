"""Every kind of KerasHub backbone has a mask and a delta, whatever its paths are."""

import inspect

import keras
import pytest

from keras_bayestune import BayesTuneSGLD, SparseMask, SparseOptimizer
from keras_bayestune.deltas import SparseDelta, base_values
from keras_bayestune.paths import variable_paths
from keras_bayestune.selectors import Random

hub = pytest.importorskip("keras_hub").models

# KerasHub's own, when T5 and RWKV7 are built.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state"),
    pytest.mark.filterwarnings("ignore:The 'rwkv_ops' package is not installed"),
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking"),
]

TEXT = {
    "vocabulary_size": 20,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
QUERY = {
    "vocabulary_size": 20,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
HEADS = {**QUERY, "head_dim": 4}
EXPERTS = {"num_experts": 4, "top_k": 2}
VISION = {
    "patch_size": 4,
    "hidden_dim": 4,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 8,
    "image_shape": (8, 8, 3),
}
TOWER = {**TEXT, "embedding_dim": 4, "max_sequence_length": 8}
VIT = {
    "image_shape": (8, 8, 3),
    "patch_size": 4,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 4,
}
SMOL = {
    "vocabulary_size": 20,
    "hidden_dim": 8,
    "intermediate_dim": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, True],
    "layer_types": ["full_attention", "full_attention"],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 16,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
}
T5GEMMA = {
    "vocabulary_size": 20,
    "encoder_hidden_dim": 4,
    "encoder_intermediate_dim": 8,
    "encoder_num_layers": 2,
    "encoder_num_attention_heads": 2,
    "encoder_num_key_value_heads": 1,
    "encoder_head_dim": 4,
    "encoder_layer_types": ["full_attention", "full_attention"],
    "decoder_hidden_dim": 4,
    "decoder_intermediate_dim": 8,
    "decoder_num_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_num_key_value_heads": 1,
    "decoder_head_dim": 4,
    "decoder_layer_types": ["full_attention", "full_attention"],
}
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
    "image_shape": (64, 64, 3),
}

# By name of the class; what is not a dictionary makes the backbone.
CHEAP = {
    "T5Backbone": TEXT,
    "CLIPBackbone": lambda: hub.CLIPBackbone(
        hub.CLIPVisionEncoder(**VISION), hub.CLIPTextEncoder(**TOWER), projection_dim=4
    ),
    "SigLIPBackbone": lambda: hub.SigLIPBackbone(
        hub.SigLIPVisionEncoder(**VISION),
        hub.SigLIPTextEncoder(**TOWER, projection_dim=4),
    ),
}
OTHERS = {
    "AlbertBackbone": {**TEXT, "embedding_dim": 4},
    "BartBackbone": TEXT,
    "BertBackbone": TEXT,
    "BloomBackbone": TEXT,
    "CLIPTextEncoder": TOWER,
    "CLIPVisionEncoder": VISION,
    "CSPNetBackbone": {
        "stem_filters": 4,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [4, 8],
        "block_type": "dark_block",
        "stage_type": "dark",
        "image_shape": (16, 16, 3),
    },
    "DINOV2Backbone": {**VISION, "position_embedding_shape": (8, 8, 3)},
    "DINOV3Backbone": VISION,
    "DebertaV3Backbone": {**TEXT, "max_sequence_length": 8, "bucket_size": 4},
    "DeiTBackbone": {**VIT, "intermediate_dim": 8},
    "DenseNetBackbone": {
        "stackwise_num_repeats": [1, 1, 1],
        "growth_rate": 4,
        "image_shape": (32, 32, 3),
    },
    "DistilBertBackbone": TEXT,
    "ESM2Backbone": TEXT,
    "ESMBackbone": TEXT,
    "EdRecBackbone": {
        "vocab_size": 20,
        "num_layers_enc": 2,
        "num_layers_dec": 2,
        "hidden_dim": 4,
        "intermediate_dim": 8,
        "num_heads": 2,
    },
    "ElectraBackbone": {
        **{k: v for k, v in TEXT.items() if k != "vocabulary_size"},
        "vocab_size": 20,
        "embedding_dim": 4,
    },
    "FNetBackbone": {k: v for k, v in TEXT.items() if k != "num_heads"},
    "FalconBackbone": {
        **{k: v for k, v in TEXT.items() if k != "num_heads"},
        "num_attention_heads": 2,
    },
    "GPT2Backbone": TEXT,
    "GPTNeoXBackbone": {**TEXT, "hidden_dim": 16},
    "Gemma3Backbone": {**HEADS, "image_size": 8},
    "Gemma4Backbone": {**HEADS, "image_size": 8},
    "GemmaBackbone": HEADS,
    "GptOssBackbone": {**HEADS, **EXPERTS},
    "Llama3Backbone": QUERY,
    "LlamaBackbone": QUERY,
    "MetaCLIP2Backbone": lambda: hub.MetaCLIP2Backbone(
        hub.MetaCLIP2VisionEncoder(**VISION),
        hub.MetaCLIP2TextEncoder(**TOWER),
        projection_dim=4,
    ),
    "MiTBackbone": {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [3, 3],
        "layerwise_strides": [2, 2],
        "hidden_dims": [4, 8],
        "image_shape": (16, 16, 3),
    },
    "MistralBackbone": QUERY,
    "MixtralBackbone": {**QUERY, **EXPERTS},
    "MoonshineBackbone": {
        "vocabulary_size": 20,
        "filter_dim": 4,
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "hidden_dim": 8,
        "intermediate_dim": 8,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    },
    "OPTBackbone": TEXT,
    "PaliGemmaBackbone": {
        **HEADS,
        "image_size": 8,
        "vit_patch_size": 4,
        "vit_num_heads": 2,
        "vit_hidden_dim": 4,
        "vit_num_layers": 2,
    },
    "Phi3Backbone": QUERY,
    "Qwen2Backbone": QUERY,
    "Qwen3Backbone": HEADS,
    "Qwen3MoeBackbone": {**HEADS, **EXPERTS, "moe_intermediate_dim": 8},
    "QwenBackbone": QUERY,
    "QwenMoeBackbone": {
        **QUERY,
        **EXPERTS,
        "moe_intermediate_dim": 8,
        "shared_expert_intermediate_dim": 8,
    },
    "RWKV7Backbone": {
        "hidden_size": 8,
        "head_size": 4,
        "num_layers": 2,
        "vocabulary_size": 20,
        "intermediate_dim": 8,
        "gate_lora": 4,
        "mv_lora": 4,
        "aaa_lora": 4,
        "decay_lora": 4,
    },
    "ResNetBackbone": RESNET,
    "RobertaBackbone": TEXT,
    "RoformerV2Backbone": {**TEXT, "head_size": 2},
    "SegFormerBackbone": lambda: hub.SegFormerBackbone(
        hub.MiTBackbone(**OTHERS["MiTBackbone"]), projection_filters=4
    ),
    "SigLIPTextEncoder": {**TOWER, "projection_dim": 4},
    "SigLIPVisionEncoder": VISION,
    "SmolLM3Backbone": SMOL,
    "SmolLMBackbone": SMOL,
    "SwinTransformerBackbone": {
        "image_shape": (32, 32, 3),
        "embed_dim": 4,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "T5Gemma2Backbone": T5GEMMA,
    "T5GemmaBackbone": T5GEMMA,
    "VGGBackbone": {
        "stackwise_num_repeats": [1, 1],
        "stackwise_num_filters": [4, 4],
        "image_shape": (16, 16, 3),
    },
    "ViTBackbone": {**VIT, "mlp_dim": 8},
    "ViTDetBackbone": {
        "hidden_size": 4,
        "num_layers": 2,
        "intermediate_dim": 8,
        "num_heads": 2,
        "global_attention_layer_indices": [1],
        "image_shape": (32, 32, 3),
        "num_output_channels": 4,
        "window_size": 2,
    },
    "WhisperBackbone": {
        **TEXT,
        "max_encoder_sequence_length": 8,
        "max_decoder_sequence_length": 8,
    },
    "XLMRobertaBackbone": TEXT,
    "XLNetBackbone": TEXT,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[4, 4], [4, 4]],
        "stackwise_pooling": [True, False],
        "image_shape": (32, 32, 3),
    },
}
# Diffusion, detection and segmentation pipelines of several backbones, and large
# configurations: their paths are told apart as all others.
NOT_TRIED = {
    "BASNetBackbone",
    "BLIP2Backbone",
    "DFineBackbone",
    "DeepLabV3Backbone",
    "DepthAnythingBackbone",
    "EfficientNetBackbone",
    "FluxBackbone",
    "Gemma3nBackbone",
    "HGNetV2Backbone",
    "MetaCLIP2TextEncoder",
    "MetaCLIP2VisionEncoder",
    "MobileNetBackbone",
    "MobileNetV5Backbone",
    "PARSeqBackbone",
    "Qwen3_5Backbone",
    "Qwen3_5MoeBackbone",
    "RetinaNetBackbone",
    "SAM3PromptableConceptBackbone",
    "SAMBackbone",
    "StableDiffusion3Backbone",
    "VideoPrismBackbone",
}
ABSTRACT = {"Backbone", "FeaturePyramidBackbone"}


def new(name):
    made = {**CHEAP, **OTHERS}[name]
    return getattr(hub, name)(**made) if isinstance(made, dict) else made()


@pytest.mark.parametrize(
    "name",
    [*CHEAP, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)],
)
def test_mask_and_delta(name, small, tmp_path):
    model = new(name)
    paths = variable_paths(model.weights)
    assert len(set(paths)) == len(paths)
    optimizer = BayesTuneSGLD(1e-3)
    optimizer.build(model.trainable_variables)
    trainable = variable_paths(model.trainable_variables)
    assert list(optimizer.anchors()) == trainable

    scores = Random(seed=1).scores(model)
    assert list(scores) == trainable
    mask = SparseMask.from_scores(scores, fraction=0.1)
    SparseOptimizer(keras.optimizers.SGD(), mask).build(model.trainable_variables)
    mask.save(tmp_path / "mask.safetensors")
    assert SparseMask.load(tmp_path / "mask.safetensors") == mask

    start, base = small.bits(model), base_values(model)
    for path, variable in zip(trainable, model.trainable_variables, strict=True):
        values = small.array(variable)
        values.reshape(-1)[mask.indices[path]] += 1.0
        variable.assign(values)
    tuned = small.bits(model)
    delta = SparseDelta.from_model(model, mask=mask, base=base)
    assert delta.count == mask.count
    delta.save(tmp_path / "delta.safetensors")

    fresh = new(name)  # with names numbered anew
    fresh.set_weights(model.get_weights())
    for path, variable in zip(base, small.floating(fresh), strict=True):
        variable.assign(base[path])
    assert small.bits(fresh) == start
    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    delta.apply(fresh)
    assert small.bits(fresh) == tuned
    delta.revert(fresh)
    assert small.bits(fresh) == start


def test_no_backbone_is_forgotten():
    """A new release of KerasHub may bring others: give them a line above."""
    present = {
        name
        for name, value in vars(hub).items()
        if inspect.isclass(value) and issubclass(value, hub.Backbone)
    }
    assert present <= {*CHEAP, *OTHERS} | NOT_TRIED | ABSTRACT


def test_which_backbones_repeat_a_path():
    """What this file is about is still the case, in the backbones of every run."""
    for name in CHEAP:
        weights = new(name).weights
        assert len({variable.path for variable in weights}) < len(weights)
