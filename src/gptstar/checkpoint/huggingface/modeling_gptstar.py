"""GPT* for transformers: parallel or sequential residual, with the positions of the file next to this one.

gptstar copies this file into exported folders, for
`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.
"""

from dataclasses import fields

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gptstar.checkpoint.huggingface.reading import reading_of
from gptstar.model.mask import Mask
from gptstar.model.positions.alibi import Alibi as Kind
from gptstar.model.softmax_scale import SoftmaxScale, SSMax


class GPTStarConfig(PretrainedConfig):
    """The sizes and variants of a model."""

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
        attention_window=None,
        attention_sinks=0,
        softmax_scale="none",
        context_length=1024,
        **kwargs,
    ):
        self.n_layers, self.d_model, self.n_heads, self.n_vocab = n_layers, d_model, n_heads, n_vocab
        self.d_head, self.d_ff, self.residual, self.positions = d_head, d_ff, residual, positions
        self.n_ctx, self.gelu, self.context_length = n_ctx, gelu, context_length
        self.attention_window, self.attention_sinks = attention_window, attention_sinks
        self.softmax_scale = softmax_scale
        super().__init__(**kwargs)

    @property
    def head_width(self):
        """Width of a head, under the name that positions use."""
        return self.d_head

    def kind(self):
        """The positions, as an object."""
        own = self.positions if isinstance(self.positions, dict) else {}
        values = {"n_ctx": self.n_ctx} | own
        return Kind(**{each.name: values[each.name] for each in fields(Kind) if each.name in values})

    def mask(self):
        """The attention mask: which keys, up to its own, a query attends to."""
        return Mask(self.attention_window, self.attention_sinks)

    def scale(self):
        """The softmax scale, by its name; its other keys matter at initialisation only."""
        return SoftmaxScale() if self.softmax_scale == "none" else SSMax()


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config, layer):
        super().__init__()
        self.n_heads, self.d_head, self.layer, self.positions = config.n_heads, config.d_head, layer, config.kind()
        self.qkv = nn.Linear(config.d_model, 3 * config.n_heads * config.d_head)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model)
        if self.positions.per_layer:
            self.add_module(self.positions.name_in_model, self.positions.parameters(config))
        self.scale = config.scale()
        self.softmax_scale = self.scale.parameters(config.n_heads)

    def forward(self, x, reading):
        """Map `(batch, position, d_model)` to the same shape."""
        B, T, _ = x.shape
        query, key, value = self.qkv(x).view(B, T, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
        query, key = self.positions.rotate(query, key, reading.at, reading.at)
        query = self.scale.scaled(query, reading.n_keys, self.softmax_scale)
        parameters = self._modules.get(self.positions.name_in_model, reading.parameters)
        per_token = self.positions.per_token(x, parameters)
        if reading.cache is not None:
            if (
                per_token is not None
            ):  # transformers' cache holds keys and values only, so these values are appended to the keys
                key = torch.cat((key.float(), per_token), dim=-1)
            n_read = reading.pairs.keys.shape[1]  # a static cache returns its whole capacity
            key, value = (each[:, :, :n_read] for each in reading.cache.update(key, value, self.layer))
            if per_token is not None:
                key, per_token = key[..., : self.d_head].to(query.dtype), key[..., self.d_head :]
        mask = reading.visible
        if not self.positions.adds_bias:
            mask = None if mask is None else mask[:, None]
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=reading.is_causal)
        else:  # float32, because bfloat16 can't represent every integer above 256
            bias = reading.bias
            if bias is None:
                bias = self.positions.bias(reading.pairs, self.n_heads, parameters, per_token)
                bias = bias.masked_fill(~mask[:, None], -torch.inf)
            with torch.autocast(x.device.type, enabled=False):
                query, key, value, dtype = query.float(), key.float(), value.float(), query.dtype
                mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias).to(dtype)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.gelu = nn.GELU(approximate="none" if config.gelu == "exact" else "tanh")
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x):
        """Map `(batch, position, d_model)` to the same shape."""
        return self.down(self.gelu(self.up(x)))


class Block(nn.Module):
    """A block: `x + attention(norm(x)) + mlp(norm(x))`, or attention and MLP one after the other with two norms."""

    def __init__(self, config, layer):
        super().__init__()
        self.parallel = config.residual == "parallel"
        if self.parallel:
            self.norm = nn.LayerNorm(config.d_model, eps=1e-5)
        else:
            self.attention_norm = nn.LayerNorm(config.d_model, eps=1e-5)
            self.mlp_norm = nn.LayerNorm(config.d_model, eps=1e-5)
        self.attention, self.mlp = Attention(config, layer), MLP(config)

    def forward(self, x, reading):
        """Map `(batch, position, d_model)` to the same shape."""
        if self.parallel:
            normed = self.norm(x)
            return x + self.attention(normed, reading) + self.mlp(normed)
        x = x + self.attention(self.attention_norm(x), reading)
        return x + self.mlp(self.mlp_norm(x))


class GPTStarForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only transformer whose output matrix is the token embedding."""

    config_class = GPTStarConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = (
        False  # the loss is a mean over its own batch, so a Trainer must divide by the accumulation steps
    )
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.n_vocab, config.d_model)
        self.positions = config.kind()
        if not self.positions.per_layer:
            self.add_module(self.positions.name_in_model, self.positions.parameters(config))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=1e-5)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        """Return the token embedding."""
        return self.token_embedding

    def set_input_embeddings(self, value):
        """Replace the token embedding, and thereby the output matrix."""
        self.token_embedding = value

    def get_output_embeddings(self):
        """Return None: there is no second matrix to tie."""
        return

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        """Compute logits `(batch, position, n_vocab)` and, with labels, the mean next-token loss.

        Positions count from the first token of each row that `attention_mask` does not hide, unless `position_ids`
        gives them. Without a mask and a cache, a new sequence begins wherever `position_ids` do not increase by one. A
        mask of four axes marks the keys that each query attends to by True, or by 0 while the other keys have the
        dtype's lowest number.
        """
        refused = [name for name, value in kwargs.items() if value is not None and value is not False]
        config = self.config
        if getattr(config, "output_attentions", False) if output_attentions is None else output_attentions:
            refused.append("output_attentions")  # the attention kernels return no weights
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            refused.append("logits_to_keep together with labels")
        if refused:
            raise ValueError(f"GPT* does not support {', '.join(refused)}: drop this argument")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values
        recomputes = self.gradient_checkpointing and self.training
        use_cache = cache is not None if use_cache is None else use_cache
        if cache is None and use_cache and not recomputes:
            cache = DynamicCache()
        past = 0 if cache is None else int(cache.get_seq_length())
        reading = reading_of(self, x, past, attention_mask, position_ids, cache)
        x = self.positions.embed(x, reading.at, reading.parameters)
        states = []
        for block in self.blocks:
            states.append(x)
            x = self._gradient_checkpointing_func(block, x, reading) if recomputes else block(x, reading)
        if output_hidden_states is None:
            output_hidden_states = getattr(config, "output_hidden_states", False)
        states = (*states, self.norm(x)) if output_hidden_states else None
        x = x[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else x[:, logits_to_keep]
        logits = linear(self.norm(x), self.token_embedding.weight)
        loss = None
        if labels is not None:
            how = "mean" if num_items_in_batch is None else "sum"
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction=how)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        output = CausalLMOutputWithPast(loss, logits, cache if use_cache else None, states)
        as_object = getattr(config, "return_dict", True) if return_dict is None else return_dict
        return output if as_object else output.to_tuple()
