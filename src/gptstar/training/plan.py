"""What a run needs, by arithmetic: memory of each device, and time."""

from dataclasses import dataclass, fields

from gptstar.model import GPTConfig
from gptstar.model.kernels.products import KEPT_UP_TO
from gptstar.model.loss import CHUNK_LOGITS
from gptstar.training.hardware import Precision


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds at the height of a training step; PyTorch and its libraries come on top.

    Attributes:
        parameters, gradients, optimizer: of AdamW in float32, 16 bytes a parameter in all; with FSDP this rank's part.
        casts: parameters in bfloat16.
        gathered: with FSDP, whole parameters of the embedding and of two blocks, and the gradients of one.
        activations: what the backward pass reads.
        logits: of as many tokens as are made at once, with their gradient by the embedding.
    """

    parameters: int
    gradients: int
    optimizer: int
    casts: int
    gathered: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, each.name) for each in fields(self))


def memory(
    model: GPTConfig,
    *,
    context_length: int,
    micro_batch_size: int,
    precision: Precision,
    activation_checkpointing: bool,
    shards: int,
    fused_attention: bool,
) -> Memory:
    """What a device holds.

    Args:
        shards: the ranks that share parameters, gradients and optimizer state; 1 without FSDP.
        fused_attention: no weights of attention are kept, as on a GPU.
    """
    bf16, width = precision != "float32", 4 if precision == "float32" else 2
    D, F, A = model.d_model, model.mlp_width, model.n_heads * model.head_width
    embedding = model.n_vocab * D
    of_block = (model.n_params - embedding) // model.n_layers
    tokens = micro_batch_size * context_length

    scores = 0 if fused_attention or context_length > KEPT_UP_TO else model.n_heads * context_length
    # What autograd keeps of a token in a block: the residual stream, its norm, queries, keys and values (twice where
    # they are copied), the heads' outputs, and the MLP's hidden layer before and after its GELU.
    norms = 1 if model.residual == "parallel" else 2
    copies = 3 if fused_attention else 6
    kept = norms * D * (4 + width) + width * (copies * A + A + 2 * F + scores)
    if activation_checkpointing:
        activations = tokens * (4 * D * model.n_layers + kept)
    else:
        activations = tokens * kept * model.n_layers
    activations += tokens * D * (4 + width)  # into the head

    n = model.n_params
    gathered = 0
    if shards > 1:
        whole = embedding + 2 * of_block
        gathered = whole * (width if precision == "bf16_weights" else 4) + 4 * (embedding + of_block)
    casts = 0
    if bf16:
        casts = 2 * (embedding + of_block if shards > 1 else n)
    return Memory(
        parameters=4 * n // shards,
        gradients=4 * n // shards,
        optimizer=8 * n // shards,
        casts=casts,
        gathered=gathered,
        activations=activations,
        logits=width * min(tokens * model.n_vocab, CHUNK_LOGITS) + tokens * D * 4,
    )


def seconds(flops: float, *, peak_flops: float, share: float, devices: int) -> float:
    """How long operations take devices that reach a share of their peak."""
    return flops / (peak_flops * share * devices)
