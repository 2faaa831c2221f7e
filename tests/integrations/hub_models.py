"""Tiny models of transformers with random weights."""

from __future__ import annotations

import os

import pytest
import torch
from vision_operators import define_vision_operators

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
define_vision_operators()
transformers = pytest.importorskip("transformers", reason="needs the extra [transformers]")

WORDS, DEPTH = 64, 3
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "intermediate_size": 64}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def words(rows=4, length=32):
    """Return a batch of words, which are their own labels."""
    ids = torch.randint(1, WORDS, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, **ENDS, num_key_value_heads=2, vocab_size=WORDS)
    return transformers.LlamaForCausalLM(config).train()


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "vocab_size": WORDS, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ENDS, loss_type="ForCausalLM")).train()


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).train()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, vocab_size=WORDS, max_position_embeddings=64)
    return transformers.BertForMaskedLM(config).train()


def vit(side=16):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=side, patch_size=2, num_channels=1, num_labels=3)
    return transformers.ViTForImageClassification(config).train()


def plainly(model, batch):
    """Run a step as :func:`gradients` does, without a cache, which would change the order of sums."""
    return gradients(model, {**batch, "use_cache": False})


def gradients(model, batch):
    """Run a step from the same random state; return loss and gradients."""
    torch.manual_seed(5)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


def equal(first, second):
    """Whether two results have the same names and the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def instrumented(model):
    """Return the paths of modules that something has been put on."""
    return [path for path, m in model.named_modules() if "forward" in vars(m) or m._forward_pre_hooks]
