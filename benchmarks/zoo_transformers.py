"""Specimens from Hugging Face's transformers: small configurations with random weights."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_check import Specimen

__all__ = ["ARCHITECTURES", "Architecture", "specimens"]


def _pictures(side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, side, side)}


def _tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(50, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


def _sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800)}


_TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
}


@dataclass(frozen=True)
class Architecture:
    """A model class, the settings that make it small, and what it takes.

    Attributes:
        model: class in ``transformers``.
        config: class of its configuration.
        settings: arguments of the configuration.
        inputs: named arguments of its forward.
        parts: by argument, further configurations that this one is made of: class and settings.
    """

    model: str
    config: str
    settings: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    parts: dict[str, tuple[str, dict[str, Any]]] | None = None


_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "layer_type": "basic"}

ARCHITECTURES = (
    Architecture("ResNetForImageClassification", "ResNetConfig", _RESNET, _pictures),
    Architecture(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "drop_path_rate": 0.1},
        _pictures,
    ),
    Architecture("ViTForImageClassification", "ViTConfig", {**_VISION, "patch_size": 8}, _pictures),
    Architecture("BertForSequenceClassification", "BertConfig", _TEXT, _tokens),
    Architecture("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2}, _tokens),
    Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
        lambda: _tokens() | {"decoder_input_ids": torch.randint(50, (2, 7))},
    ),
    Architecture(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            **_TEXT,
            "conv_dim": (8, 8, 8),
            "conv_stride": (5, 2, 2),
            "conv_kernel": (10, 3, 3),
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "num_feat_extract_layers": 3,
            "mask_time_prob": 0.0,
        },
        _sound,
    ),
    Architecture(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
        partial(_pictures, 64),
    ),
    Architecture(
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": 32},
        _pictures,
    ),
    Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": 50,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        lambda: {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(50, (2, 7))},
    ),
    Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
        lambda: {"input_ids": torch.randint(50, (2, 12))},
    ),
    Architecture(
        "DetrForObjectDetection",
        "DetrConfig",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_queries": 5,
            "num_labels": 4,
        },
        partial(_pictures, 64),
        {"backbone_config": ("ResNetConfig", {**_RESNET, "out_features": ["stage4"]})},
    ),
    Architecture("LlamaForCausalLM", "LlamaConfig", {**_TEXT, "num_key_value_heads": 1}, _tokens),
    Architecture(
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        _pictures,
    ),
    Architecture(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_TEXT, "eos_token_id": 49, "max_position_embeddings": 16},
            "vision_config": {**_VISION, "patch_size": 8},
            "projection_dim": 16,
        },
        lambda: _tokens() | _pictures(),
    ),
    Architecture(
        "MixtralForCausalLM", "MixtralConfig", {**_TEXT, "num_key_value_heads": 1, "num_local_experts": 3}, _tokens
    ),
)


def specimens() -> Iterator[Specimen]:
    """One network an architecture."""
    for one in ARCHITECTURES:
        yield Specimen(f"transformers {one.model}", "transformers", partial(_make, one), one.inputs)


def _make(architecture: Architecture) -> nn.Module:
    transformers = importlib.import_module("transformers")
    parts = {
        name: getattr(transformers, config)(**settings)
        for name, (config, settings) in (architecture.parts or {}).items()
    }
    config = getattr(transformers, architecture.config)(**architecture.settings, **parts)
    return getattr(transformers, architecture.model)(config)
