"""GPT* for transformers: parallel or sequential residual; ALiBi, rotary, learned or no positions.

This file stands alone: it is copied into exported folders, for `AutoModelForCausalLM.from_pretrained(FOLDER,
trust_remote_code=True)`.
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class GPTStarConfig(PretrainedConfig):
    """Sizes and variants."""

    model_type = "gptstar"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # transformers' own form
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "head_dim": "d_head",
        "intermediate_size": "d_ff",
        "vocab_size": "n_vocab",
        "max_position_embeddings": "context_length",
    }

    def __init__(
        self,
        n_layers=6,
        d_model=1024,
        n_heads=8,
        n_vocab=50257,
        d_head=128,
        d_ff=4096,
        residual="parallel",
        positions="alibi",
        n_ctx=None,
        gelu="exact",
        context_length=1024,
        **kwargs,
    ):
        self.n_layers, self.d_model, self.n_heads, self.n_vocab = n_layers, d_model, n_heads, n_vocab
        self.d_head, self.d_ff, self.residual, self.positions = d_head, d_ff, residual, positions
        self.n_ctx, self.gelu, self.context_length = n_ctx, gelu, context_length
        super().__init__(**kwargs)


def alibi_slopes(n_heads):
    """One slope a head (Press, Smith and Lewis 2022)."""
    if n_heads & (n_heads - 1) == 0:
        return [2.0 ** (-8.0 * (head + 1) / n_heads) for head in range(n_heads)]
    lower = 2 ** math.floor(math.log2(n_heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: n_heads - lower]


def rotate(x, cosines, sines):
    """Turn pairs of features `(i, i + d_head / 2)` of `(batch, head, position, d_head)`."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1).type_as(x)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config, layer):
        super().__init__()
        self.n_heads, self.d_head, self.layer = config.n_heads, config.d_head, layer
        self.qkv = nn.Linear(config.d_model, 3 * config.n_heads * config.d_head)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model)

    def forward(self, x, mask, is_causal, angles, cache):
        """`(batch, position, d_model)` to the same."""
        B, T, _ = x.shape
        query, key, value = self.qkv(x).view(B, T, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
        if angles is not None:
            query, key = rotate(query, *angles), rotate(key, *angles)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        if mask is None or mask.dtype is torch.bool:
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        else:  # ALiBi, which bfloat16 can't hold: it can't count past 256
            with torch.autocast(x.device.type, enabled=False):
                query, key, value, dtype = query.float(), key.float(), value.float(), query.dtype
                mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.gelu = nn.GELU(approximate="none" if config.gelu == "exact" else "tanh")
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x):
        """`(batch, position, d_model)` to the same."""
        return self.down(self.gelu(self.up(x)))


class Block(nn.Module):
    """`x + attention(norm(x)) + mlp(norm(x))`, or one after the other with two norms."""

    def __init__(self, config, layer):
        super().__init__()
        self.parallel = config.residual == "parallel"
        if self.parallel:
            self.norm = nn.LayerNorm(config.d_model, eps=1e-5)
        else:
            self.attention_norm = nn.LayerNorm(config.d_model, eps=1e-5)
            self.mlp_norm = nn.LayerNorm(config.d_model, eps=1e-5)
        self.attention, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x, *scope):
        """`(batch, position, d_model)` to the same."""
        if self.parallel:
            normed = self.norm(x)
            return x + self.attention(normed, *scope) + self.mlp(normed)
        x = x + self.attention(self.attention_norm(x), *scope)
        return x + self.mlp(self.mlp_norm(x))


class GPTStarForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only transformer; its output matrix is the token embedding."""

    config_class = GPTStarConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over what it is given, so that a Trainer divides by its steps
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.n_vocab, config.d_model)
        self.position_embedding = nn.Embedding(config.n_ctx, config.d_model) if config.n_ctx else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=1e-5)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        """The token embedding."""
        return self.token_embedding

    def set_input_embeddings(self, value):
        """Replace the token embedding, and so the output matrix."""
        self.token_embedding = value

    def get_output_embeddings(self):
        """None: there is no second matrix to tie."""
        return

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits `(batch, position, n_vocab)`; with labels also the mean loss of each token's successor.

        Positions are counted from each row's first token that `attention_mask` lets be seen.
        """
        x = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        T, cache = x.shape[1], past_key_values
        recomputes = self.gradient_checkpointing and self.training
        if cache is None and use_cache and not recomputes:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        padding = None if attention_mask is None or bool(attention_mask.all()) else attention_mask[:, : past + T].bool()
        slots = torch.arange(past + T, device=x.device)
        positions = slots[None] if padding is None else (padding.cumsum(1) - 1).clamp(min=0)  # (batch or 1, key)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions[:, past:])
        mask, is_causal = self._mask(slots, positions, past, padding)
        angles = self._angles(positions[:, past:]) if self.config.positions == "rotary" else None
        for block in self.blocks:
            scope = (mask, is_causal, angles, cache)
            x = self._gradient_checkpointing_func(block, x, *scope) if recomputes else block(x, *scope)
        kept = x[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else x[:, logits_to_keep]
        logits = linear(self.norm(kept), self.token_embedding.weight)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache if use_cache else None)

    def _mask(self, slots, positions, past, padding):
        """What is added to the scores, `(batch or 1, head or 1, query, key)`, or whether plain causality will do."""
        alibi = self.config.positions == "alibi"
        n_queries = len(slots) - past
        if not alibi and padding is None and (past == 0 or n_queries == 1):
            return None, past == 0 and n_queries > 1
        seen = (slots[past:, None] >= slots[None, :])[None, None]  # (1, 1, query, key)
        if padding is not None:
            itself = slots[past:, None] == slots[None, :]  # so that no row of scores is empty
            seen = seen & padding[:, None, None, :] | itself
        if not alibi:
            return seen, False
        distance = positions[:, None, past:, None] - positions[:, None, None, :]
        slopes = torch.tensor(alibi_slopes(self.config.n_heads), dtype=torch.float32, device=slots.device)
        return (-slopes[:, None, None] * distance).masked_fill_(~seen, -torch.inf), False

    def _angles(self, positions):
        """Cosines and sines, `(batch or 1, 1, query, d_head / 2)` each, float32."""
        width = self.config.d_head
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
        angles = positions[:, None, :, None] * frequencies
        return angles.cos(), angles.sin()
