"""Hugging Face's GPT-2, from the installed `transformers`, set to what is fastest for it."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from gptstar.model import GPTConfig
from speed.job import Job, timed, training_flops
from speed.steps import Precision, adamw, decoding_job, n_params, prompt_of, training_job


def build(config: GPTConfig, device: str) -> GPT2LMHeadModel:
    """GPT-2 of these sizes with PyTorch's fused attention and without dropout."""
    theirs = GPT2Config(  # type: ignore[call-arg]
        vocab_size=config.n_vocab,
        n_positions=config.n_ctx or 0,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(theirs).to(device)  # type: ignore[arg-type]


def training(
    config: GPTConfig, *, precision: Precision, batch: int, context: int, device: str, compiled: bool = False
) -> Job:
    """A training step with the model's own loss; bfloat16 by autocast."""
    model = build(config, device)
    if compiled:
        model.compile()
    return training_job(
        model,
        lambda tokens, _: model(tokens, labels=tokens, use_cache=False).loss,
        adamw(model, fused=True),
        autocast=precision == "bf16",
        flops=training_flops(matmul_params(model), config, context),
        n_vocab=config.n_vocab,
        batch=batch,
        context=context,
        device=device,
    )


def prefill(config: GPTConfig, *, precision: Precision, prompt: int, device: str) -> Job:
    """A prompt read into a cache, and the logits of its last token."""
    model = in_use(config, precision, device)
    tokens = prompt_of(config.n_vocab, 1, prompt, device)

    @torch.inference_mode()
    def read() -> None:
        assert model(tokens, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1).logits.shape[1] == 1

    return Job(timed(read, device), prompt, n_params=n_params(model))


def decoding(config: GPTConfig, *, precision: Precision, prompt: int, n_new: int, device: str, batch: int = 1) -> Job:
    """The likeliest token at a time, by a bare loop over the model and its cache: less than `generate` does."""
    model = in_use(config, precision, device)

    @torch.inference_mode()
    def continuation() -> Iterator[Tensor]:
        cache = DynamicCache()
        tokens = prompt_of(config.n_vocab, batch, prompt, device)
        while True:
            logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            yield tokens

    weights = matmul_params(model) * next(model.parameters()).element_size()
    return decoding_job(continuation, n_new=n_new, batch=batch, weight_bytes=weights, device=device)


def in_use(config: GPTConfig, precision: Precision, device: str) -> GPT2LMHeadModel:
    """A model in eval mode, its weights in the type that it computes in."""
    model = build(config, device)
    model.to(dtype=torch.bfloat16 if precision == "bf16" else torch.float32)  # type: ignore[call-arg]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def matmul_params(model: GPT2LMHeadModel) -> int:
    """Parameters but for the table of positions."""
    return n_params(model) - model.transformer.wpe.weight.numel()
