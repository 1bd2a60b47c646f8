"""Export a checkpoint as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from gptstar import __version__
from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.huggingface.gpt2 import gpt2_config, is_gpt2, to_gpt2
from gptstar.checkpoint.huggingface.standalone import standalone
from gptstar.data.tokenizer import END_OF_TEXT, Tokenizer
from gptstar.errors import CheckpointError, in_one_line
from gptstar.files import partial_path, remove, write_json, write_text
from gptstar.model.blocks import BLOCKS
from gptstar.model.config import SOFTMAX_SCALES

MODELLING = "modeling_gptstar.py"
DRAWING = {"do_sample": True, "temperature": 0.8, "top_k": 50}
"""Default sampling of transformers' `generate`, equal to that of `gptstar generate`."""

TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": True,
    "model_input_names": ["input_ids", "attention_mask"],
}


def export(checkpoint: Checkpoint, folder: Path, *, context_length: int, card: str | None = None) -> None:
    """Write a folder that transformers can read; it appears complete or not at all.

    A model of GPT-2's shape is written in GPT-2's layout. Any other model is written with a modelling file and the file
    of its positions, for `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. The tokenizer reads
    text that looks like a special token as text, as gptstar does. `config.json` has the known facts of the training, as
    `trained_…`.

    Args:
        context_length: longest input that users of the folder may give.
        card: content of `README.md`.

    Raises:
        CheckpointError: the folder is not empty or can't be written; `context_length` exceeds the positions' capacity;
            the file of the positions can't stand alone; or block or softmax scale are the user's own.
    """
    model, folder = checkpoint.model, folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not overwritten: choose another name or remove it")
    if folder.exists() and folder.samefile("."):
        raise CheckpointError(f"{folder} is the current folder, and would be replaced: name a folder inside it")
    if context_length < 1:
        raise CheckpointError(f"--context-length {context_length} is below 1: give 1 or more")
    if plugin := BLOCKS.plugin_of(BLOCKS.find(model.residual)):
        raise CheckpointError(
            f"model.residual={model.residual} is your own block, from {plugin}, but an exported folder supports "
            "parallel and sequential only: share the checkpoint and that file instead"
        )
    if plugin := SOFTMAX_SCALES.plugin_of(model.softmax_scale):
        raise CheckpointError(
            f"model.softmax_scale={SOFTMAX_SCALES.name_of(model.softmax_scale)} is your own, from {plugin}, but an "
            "exported folder supports ssmax only: share the checkpoint and that file instead"
        )
    if model.n_ctx is not None and context_length > model.n_ctx:
        raise CheckpointError(
            f"--context-length {context_length} exceeds the capacity of the positions, model.n_ctx={model.n_ctx}: "
            "give a smaller one"
        )
    tokenizer = Tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text} if tokenizer else {}
    code: dict[str, str] = {}
    if is_gpt2(model):
        config, weights = gpt2_config(model), to_gpt2(checkpoint.weights)
    else:
        automatic = {"AutoConfig": "GPTStarConfig", "AutoModelForCausalLM": "GPTStarForCausalLM"}
        config = model.as_dict() | {
            "model_type": "gptstar",
            "architectures": ["GPTStarForCausalLM"],
            "auto_map": {key: f"{MODELLING.removesuffix('.py')}.{name}" for key, name in automatic.items()},
            "context_length": context_length,
        }
        weights = checkpoint.weights
        code = standalone(Path(__file__).with_name(MODELLING).read_text(encoding="utf-8"), model.positions)
    config |= {"dtype": "float32", "tie_word_embeddings": is_gpt2(model), "gptstar_version": __version__} | ends
    trained = {
        "trained_context_length": checkpoint.trained_at,
        "trained_steps": checkpoint.training.step if checkpoint.training else None,
        "trained_tokens": checkpoint.trained_tokens,
    }
    config |= {name: value for name, value in trained.items() if value is not None}
    partial = partial_path(folder)
    try:
        remove(partial)  # left by a killed process
        partial.mkdir(parents=True)
        write_json(partial / "config.json", config)
        beyond = list(range(tokenizer.n_vocab, model.n_vocab)) if tokenizer else []
        suppressed = {"suppress_tokens": beyond} if beyond else {}  # rows of padding in the vocabulary
        write_json(partial / "generation_config.json", ends | DRAWING | suppressed)
        if card is not None:
            write_text(partial / "README.md", card)
        # safetensors doesn't support tensors that share memory.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "model.safetensors").chmod(
            (partial / "config.json").stat().st_mode
        )  # otherwise other users can't read it
        for name, text in code.items():
            (partial / name).write_text(text, encoding="utf-8")
        if tokenizer:
            write_text(partial / "tokenizer.json", _without_additions(tokenizer.json_text))
            write_json(partial / "tokenizer_config.json", TOKENIZER | {"model_max_length": context_length})
        partial.rename(folder)  # replaces an empty folder
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = getattr(error, "strerror", None) or in_one_line(error)
        raise CheckpointError(f"can't write {folder} ({cause})") from error


def _without_additions(json_text: str) -> str:
    """Return a tokenizer that adds no special tokens to a text, as `Tokenizer.encode` does."""
    tree = json.loads(json_text)
    if (tree.get("post_processor") or {}).get("type") in (None, "ByteLevel"):  # ByteLevel changes offsets only
        return json_text
    return json.dumps(tree | {"post_processor": None}, ensure_ascii=False)
