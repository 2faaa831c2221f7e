"""The model pool: tiny models with random weights, as factories that return a model and a sample.

Architectures of transformers and timm, and two networks whose values leap over stages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pool_networks import DenseNet, UNet
from torch import nn

__all__ = ["POOL", "Factory"]

Factory = Callable[[], tuple[nn.Module, Any]]

WORDS, LENGTH, BATCH = 128, 64, 4
DEPTH = {"num_hidden_layers": 4}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, **DEPTH}
TEXT = {**SIZES, "vocab_size": WORDS, "max_position_embeddings": 2 * LENGTH, "pad_token_id": 0}
CAUSAL = {**TEXT, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SEQUENCES = {
    **{"d_model": 64, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": WORDS},
    **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2},
}


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def words(cache: bool = False) -> dict[str, Any]:
    """Return words and the same as labels; a model that could keep a cache is told not to."""
    ids = torch.randint(3, WORDS, (BATCH, LENGTH), generator=seeded(1))
    return {"input_ids": ids, "labels": ids} | ({"use_cache": False} if cache else {})


def images(side: int = 32) -> dict[str, Any]:
    """Return images and their classes."""
    return {
        "pixel_values": torch.randn(BATCH, 3, side, side, generator=seeded(1)),
        "labels": torch.arange(BATCH) % 2,
    }


def pictures(side: int = 32) -> dict[str, Any]:
    """Return images alone."""
    return {"pixel_values": images(side)["pixel_values"]}


def segments(side: int = 64) -> dict[str, Any]:
    """Return images and the class of every pixel."""
    return {**pictures(side), "labels": torch.randint(0, 2, (BATCH, side, side), generator=seeded(2))}


def sound() -> dict[str, Any]:
    """Return waveforms and their transcription."""
    return {
        "input_values": torch.randn(2, 4000, generator=seeded(1)),
        "labels": torch.randint(1, 16, (2, 5), generator=seeded(2)),
    }


def spectra() -> dict[str, Any]:
    """Return log-mel spectra and their transcription."""
    return {
        "input_features": torch.randn(2, 8, 128, generator=seeded(1)),
        "labels": torch.randint(3, WORDS, (2, 24), generator=seeded(2)),
        "use_cache": False,
    }


def pretrained(model: str, settings: Mapping[str, Any], sample: Callable[[], Any]) -> tuple[nn.Module, Any]:
    """Build a model of transformers from its configuration, with random weights."""
    define_vision_operators()
    library = importlib.import_module("transformers")
    torch.manual_seed(0)
    built = getattr(library, model)
    config = built.config_class(**settings)
    config._attn_implementation = "sdpa" if getattr(built, "_supports_sdpa", False) else "eager"
    return built(config).train(), sample()


causal = partial(words, cache=True)
CONVOLUTIONS = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 2, 1], "num_labels": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 4, "num_labels": 2}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "llama": ("LlamaForCausalLM", CAUSAL, causal),
    "mistral": ("MistralForCausalLM", {**CAUSAL, "sliding_window": 16}, causal),
    "qwen2": ("Qwen2ForCausalLM", CAUSAL, causal),
    "qwen3": ("Qwen3ForCausalLM", {**CAUSAL, "head_dim": 16}, causal),
    "gemma2": ("Gemma2ForCausalLM", {**CAUSAL, "head_dim": 16, "sliding_window": 16}, causal),
    "gemma3": ("Gemma3ForCausalLM", {**CAUSAL, "head_dim": 16, "sliding_window": 16}, causal),
    "phi3": ("Phi3ForCausalLM", CAUSAL, causal),
    "granite": ("GraniteForCausalLM", CAUSAL, causal),
    "mixtral": ("MixtralForCausalLM", {**CAUSAL, "num_local_experts": 4, "output_router_logits": True}, causal),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": WORDS, "n_positions": 128, **ENDS},
        causal,
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", {**TEXT, **ENDS}, causal),
    "opt": (
        "OPTForCausalLM",
        {**TEXT, **ENDS, "ffn_dim": 128, "word_embed_proj_dim": 64, "layerdrop": 0.0, "dropout": 0.1},
        causal,
    ),
    "bloom": ("BloomForCausalLM", {"hidden_size": 64, "n_layer": 4, "n_head": 4, "vocab_size": WORDS, **ENDS}, causal),
    "falcon": ("FalconForCausalLM", {**TEXT, **ENDS, "alibi": False}, causal),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            **{"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 16},
            **{"vocab_size": WORDS, **DEPTH, **ENDS},
        },
        causal,
    ),
    "bert": ("BertForMaskedLM", TEXT, words),
    "roberta": ("RobertaForMaskedLM", {**TEXT, "pad_token_id": 1}, words),
    "modernbert": ("ModernBertForMaskedLM", {**TEXT, **ENDS, "cls_token_id": 1, "sep_token_id": 2}, words),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128, "vocab_size": WORDS, "pad_token_id": 0},
        words,
    ),
    "electra": ("ElectraForMaskedLM", {**TEXT, "embedding_size": 32}, words),
    "deberta-v2": ("DebertaV2ForMaskedLM", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c"]}, words),
    "t5": (
        "T5ForConditionalGeneration",
        {
            **{"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4, "vocab_size": WORDS},
            **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
        },
        causal,
    ),
    "bart": ("BartForConditionalGeneration", SEQUENCES, causal),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**SEQUENCES, "num_mel_bins": 8, "max_source_positions": 64, "max_target_positions": 64},
        spectra,
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **{**SIZES, "vocab_size": 16, "conv_dim": [16, 16, 32], "conv_kernel": [10, 3, 3], "layerdrop": 0.0},
            **{"conv_stride": [5, 2, 2], "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16},
            **{"num_conv_pos_embedding_groups": 4},
        },
        sound,
    ),
    "vit": ("ViTForImageClassification", VISION, images),
    "deit": ("DeiTForImageClassification", VISION, images),
    "beit": ("BeitForImageClassification", VISION, images),
    "dinov2": ("Dinov2ForImageClassification", {**VISION, "mlp_ratio": 2}, images),
    "clip-vision": ("CLIPVisionModelWithProjection", {**VISION, "projection_dim": 32}, pictures),
    "siglip-vision": ("SiglipVisionModel", VISION, pictures),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        images,
    ),
    "hf-resnet": (
        "ResNetForImageClassification",
        {**CONVOLUTIONS, "embedding_size": 16, "layer_type": "basic"},
        partial(images, 64),
    ),
    "hf-convnext": ("ConvNextForImageClassification", {**CONVOLUTIONS, "drop_path_rate": 0.1}, partial(images, 64)),
    "hf-regnet": (
        "RegNetForImageClassification",
        {**CONVOLUTIONS, "embedding_size": 16, "groups_width": 8},
        partial(images, 64),
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            **{"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 2, 4]},
            **{"decoder_hidden_size": 32, "num_labels": 2},
        },
        segments,
    ),
}

VISION_TRANSFORMER = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {}),
    "resnet26d": ("resnet26d", {}),
    "resnext50": ("resnext50_32x4d", {}),
    "seresnet18": ("legacy_seresnet18", {}),
    "densenet": ("densenet121", {"growth_rate": 8, "block_config": (3, 4, 3)}),
    "efficientnet": ("efficientnet_b0", {"drop_path_rate": 0.1}),
    "mobilenetv2": ("mobilenetv2_035", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "regnet": ("regnety_002", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "vgg": ("VGG", {"cfg": (16, "M", 32, "M", 48, 48, "M", 64), "mlp_ratio": 0.02, "norm_layer": nn.BatchNorm2d}),
    "timm-vit": ("vit_tiny_patch16_224", {**VISION_TRANSFORMER, "drop_path_rate": 0.1}),
    "timm-deit3": ("deit3_small_patch16_224", VISION_TRANSFORMER),
    "timm-beit": ("beit_base_patch16_224", VISION_TRANSFORMER),
    "cait": ("cait_xxs24_224", VISION_TRANSFORMER),
    "timm-swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    ),
    "timm-convnext": (
        "convnext_atto",
        {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.2},
    ),
    "mixer": ("MlpMixer", {"img_size": 64, "patch_size": 8, "embed_dim": 48, "num_blocks": 4}),
    "visformer": ("visformer_tiny", {"img_size": 64}),
    "poolformer": ("MetaFormer", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "drop_path_rate": 0.1}),
    "ghostnet": ("ghostnet_050", {}),
    "nfnet": ("nfnet_l0", {}),
    "dla": ("dla34", {}),
    "res2net": ("res2net50_14w_8s", {}),
    "inception": ("inception_v3", {"aux_logits": False}),
    "xception": ("legacy_xception", {}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", {"img_size": 64}),
    "coat": ("coat_tiny", {"img_size": 64}),
    "edgenext": ("edgenext_xx_small", {}),
}


def pictured(name: str, settings: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """Build a model of timm, by its name or class, with random weights."""
    define_vision_operators()
    library = importlib.import_module("timm")
    torch.manual_seed(0)
    side = 128 if name in {"inception_v3", "legacy_xception"} else 64
    build = getattr(library.models, name) if name[0].isupper() else partial(library.create_model, name)
    return build(num_classes=4, **settings).train(), torch.randn(BATCH, 3, side, side, generator=seeded(1))


KEPT: list[torch.library.Library] = []  # the definitions go when the library object does


def define_vision_operators() -> None:
    """Define the operators that torchvision looks for, since it has no build for the CPU.

    timm imports it, and so does transformers where it is installed.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            KEPT[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def own(kind: type[nn.Module]) -> tuple[nn.Module, Any]:
    """Build a network of the pool's own."""
    torch.manual_seed(0)
    return kind().train(), torch.randn(BATCH, 3, 64, 64, generator=seeded(1))


POOL: dict[str, dict[str, Factory]] = {
    "transformers": {name: partial(pretrained, *spec) for name, spec in TRANSFORMERS.items()},
    "timm": {name: partial(pictured, *spec) for name, spec in TIMM.items()},
    "own": {"unet": partial(own, UNet), "dense-lists": partial(own, DenseNet)},
}
