"""Import weights of the original GPT* code, in its two layouts: a plain state dict, or one with training state."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptstar.checkpoint.format import Checkpoint, OptimizerState, TrainingState, check_weights, read_tensors, tensors_of
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError, ConfigError, DataError, in_one_line
from gptstar.model import GPTConfig
from gptstar.model.positions import Alibi, Learned, alibi_slopes

NAMES = {
    r"wte\.weight": "token_embedding.weight",
    r"wpe\.weight": "position_embedding.weight",
    r"norm\.(weight|bias)": r"norm.\1",
    r"blocks\.(\d+)\.ln2\.(weight|bias)": r"blocks.\1.mlp_norm.\2",
    r"blocks\.(\d+)\.attn\.fc_resid\.(weight|bias)": r"blocks.\1.attention.out.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"blocks.\1.mlp.up.\2",
    r"blocks\.(\d+)\.mlp\.fc_resid\.(weight|bias)": r"blocks.\1.mlp.down.\2",
}
FIRST_NORMS = {"parallel": "norm", "sequential": "attention_norm"}
QKV = re.compile(r"blocks\.(\d+)\.attn\.(query|key|value)\.(weight|bias)")
NOT_PARAMETERS = re.compile(r"lm_head\.weight|blocks\.\d+\.attn\.(slopes|mask)")


def read_legacy(path: Path, *, n_heads: int | None = None, tokenizer: Tokenizer | None = None) -> Checkpoint:
    """Read a checkpoint of the original code.

    Args:
        n_heads: number of heads; needed only if the file has no ALiBi slopes.
        tokenizer: the tokenizer to store with the model; it must fit the model's vocabulary.

    Raises:
        CheckpointError: the file is unsafe, damaged, in neither layout, or has inconsistent shapes; names it.
    """
    tree = read_tensors(path)
    try:
        state = tree.get("state_dict", tree)
        parameters = {name: tensor for name, tensor in state.items() if not NOT_PARAMETERS.fullmatch(name)}
        config = _infer(state, n_heads)
        if "lm_head.weight" in state and not torch.equal(state["lm_head.weight"], state["wte.weight"]):
            raise CheckpointError("lm_head.weight differs from wte.weight; this architecture ties them")
        if tokenizer:
            tokenizer.check_vocabulary(config.n_vocab, "the tokenizer")
        weights = _convert(parameters, config.residual)
        check_weights(weights, tensors_of(config, len(weights)))
        training = _training(tree, list(parameters), config.residual) if "optimizer" in tree else None
        return Checkpoint(config, weights, tokenizer.json_text if tokenizer else None, training)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} is not in a layout of the original GPT* code (at {in_one_line(repr(error))}): give one of its "
            ".pth.tar files"
        ) from error
    except (CheckpointError, ConfigError, DataError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _infer(state: dict[str, Tensor], n_heads: int | None) -> GPTConfig:
    n_vocab, d_model = state["wte.weight"].shape
    slopes = state.get("blocks.0.attn.slopes")
    if slopes is not None:
        if n_heads not in (None, slopes.numel()):
            raise CheckpointError(
                f"--heads {n_heads} contradicts the {slopes.numel()} ALiBi slopes in the file: drop --heads"
            )
        n_heads = slopes.numel()
        if not torch.allclose(slopes.flatten().float(), torch.tensor(alibi_slopes(n_heads)), rtol=1e-5):
            raise CheckpointError(
                f"its ALiBi slopes {slopes.flatten().tolist()} are not the paper's for {n_heads} heads"
            )
    elif n_heads is None:
        raise CheckpointError("the file has no ALiBi slopes, so the number of heads is unknown: give --heads H")
    width = state["blocks.0.attn.query.weight"].shape[0]
    if n_heads < 1 or width % n_heads:
        raise CheckpointError(f"{n_heads} heads do not divide an attention of width {width}: check --heads")
    learned = state.get("wpe.weight")
    return GPTConfig(
        n_layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        d_model=d_model,
        n_heads=n_heads,
        n_vocab=n_vocab,
        d_head=width // n_heads,
        d_ff=state["blocks.0.mlp.fc1.weight"].shape[0],
        residual="sequential" if "blocks.0.ln2.weight" in state else "parallel",
        positions=Alibi() if learned is None else Learned(learned.shape[0]),
        residual_init="legacy",
    )


def _convert(tensors: dict[str, Tensor], residual: str, join: Callable[..., Tensor] = torch.cat) -> dict[str, Tensor]:
    """Rename tensors; `join` makes one tensor of query, key and value."""
    names = NAMES | {r"blocks\.(\d+)\.ln1\.(weight|bias)": rf"blocks.\1.{FIRST_NORMS[residual]}.\2"}
    converted = {}
    for name, tensor in tensors.items():
        if match := QKV.fullmatch(name):
            layer, part, leaf = match.groups()
            if part == "query":
                parts = [tensors[f"blocks.{layer}.attn.{each}.{leaf}"] for each in ("query", "key", "value")]
                converted[f"blocks.{layer}.attention.qkv.{leaf}"] = join(parts)
            continue
        for pattern, ours in names.items():
            if match := re.fullmatch(pattern, name):
                converted[match.expand(ours)] = tensor
                break
        else:
            raise CheckpointError(f"{name} is not a tensor of the original GPT*")
    return converted


def _training(tree: dict[str, Any], names: list[str], residual: str) -> TrainingState:
    """Read the full layout's training state. Drop the gradient scaler, which bfloat16 and float32 don't need."""
    groups, states = tree["optimizer"]["param_groups"], tree["optimizer"]["state"]
    order = [index for group in groups for index in group["params"]]
    if sorted(order) != list(range(len(names))) or set(states) - set(order):
        raise CheckpointError(f"its optimizer has {len(order)} parameters, but the model {len(names)}")
    optimizer: OptimizerState = {}
    for key, join in (("step", max), ("exp_avg", torch.cat), ("exp_avg_sq", torch.cat)):
        dtype = torch.float32 if key == "step" else None
        by_name = {names[index]: torch.as_tensor(state[key], dtype=dtype) for index, state in states.items()}
        for name, value in _convert(by_name, residual, join).items():
            optimizer.setdefault(name, {})[key] = value
    step = int(tree["step"])
    return TrainingState(step, step, float(tree["best_val"]), settings={}, data={}, optimizer=optimizer)
