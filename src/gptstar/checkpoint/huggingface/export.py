"""A checkpoint as a Hugging Face folder."""

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
"""How `generate` draws by default: as ours does."""

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
    """Write a folder that transformers reads; it appears complete or not at all.

    GPT-2's own shape is written in GPT-2's own layout, everything else with a modelling file beside it, and the file of
    its positions, for `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. Its tokenizer takes text
    that looks like a special token as text, as ours does. What is known of the training stands in `config.json`, as
    `trained_…`.

    Args:
        context_length: tokens that users of the folder may read at once.
        card: what `README.md` says.

    Raises:
        CheckpointError: the folder exists and is not empty, can't be written, the positions' capacity is below
            `context_length`, their file can't stand alone, or the blocks or the softmax's scale are a user's.
    """
    model, folder = checkpoint.model, folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists: nothing is overwritten; choose another name or remove it")
    if folder.exists() and folder.samefile("."):
        raise CheckpointError(f"{folder} is the folder you are in, and would be replaced: name one within it")
    if context_length < 1:
        raise CheckpointError(f"a context length of {context_length} is below 1")
    if plugin := BLOCKS.plugin_of(BLOCKS.find(model.residual)):
        raise CheckpointError(
            f"model.residual={model.residual} is a block of your own, in {plugin}, and an exported folder carries "
            "parallel and sequential ones only: give the checkpoint itself, with that file"
        )
    if plugin := SOFTMAX_SCALES.plugin_of(model.softmax_scale):
        raise CheckpointError(
            f"model.softmax_scale={SOFTMAX_SCALES.name_of(model.softmax_scale)} is your own, in {plugin}, and an "
            "exported folder carries ssmax only: give the checkpoint itself, with that file"
        )
    if model.n_ctx is not None and context_length > model.n_ctx:
        raise CheckpointError(f"a context length of {context_length} exceeds the positions' n_ctx={model.n_ctx}")
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
        remove(partial)  # left by a process that was killed
        partial.mkdir(parents=True)
        write_json(partial / "config.json", config)
        beyond = list(range(tokenizer.n_vocab, model.n_vocab)) if tokenizer else []
        suppressed = {"suppress_tokens": beyond} if beyond else {}  # rows that only fill up the vocabulary
        write_json(partial / "generation_config.json", ends | DRAWING | suppressed)
        if card is not None:
            write_text(partial / "README.md", card)
        # The format takes no tensors that share memory.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "model.safetensors").chmod((partial / "config.json").stat().st_mode)  # else nobody else reads it
        for name, text in code.items():
            (partial / name).write_text(text, encoding="utf-8")
        if tokenizer:
            write_text(partial / "tokenizer.json", _without_additions(tokenizer.json_text))
            write_json(partial / "tokenizer_config.json", TOKENIZER | {"model_max_length": context_length})
        partial.rename(folder)  # an empty folder is replaced
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        cause = getattr(error, "strerror", None) or in_one_line(error)
        raise CheckpointError(f"can't write {folder} ({cause})") from error


def _without_additions(json_text: str) -> str:
    """A tokenizer that adds no tokens to a text of its own accord: `Tokenizer.encode` does not ask for them."""
    tree = json.loads(json_text)
    if (tree.get("post_processor") or {}).get("type") in (None, "ByteLevel"):  # which moves offsets only
        return json_text
    return json.dumps(tree | {"post_processor": None}, ensure_ascii=False)
