"""litgpt's pythia-160m, from the installed package: bfloat16 weights, its chunked cross-entropy, AdamW fused."""

import torch
from litgpt.model import GPT, Config
from litgpt.utils import chunked_cross_entropy

from gptstar.model import GPTConfig
from speed.job import Job, training_flops
from speed.steps import adamw, n_params, training_job


def training(config: GPTConfig, *, batch: int, context: int, device: str, compiled: bool = False) -> Job:
    """A training step; weights, gradients and the optimizer's state are all bfloat16.

    Args:
        config: sizes; GPT-2 small's are pythia-160m's, whose embeddings are not tied.
    """
    sizes = {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_query_groups": config.n_heads,
        "head_size": config.head_width,
        "intermediate_size": config.mlp_width,
        "padded_vocab_size": -config.n_vocab // 128 * -128,
    }
    model = GPT(Config.from_name("pythia-160m", **sizes)).to(device, torch.bfloat16)
    model.max_seq_length = context
    forward = torch.compile(model) if compiled else model
    return training_job(
        model,
        lambda tokens, targets: chunked_cross_entropy(forward(tokens), targets),
        adamw(model, fused=True),
        autocast=False,
        flops=training_flops(n_params(model) - model.transformer.wte.weight.numel(), config, context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )
