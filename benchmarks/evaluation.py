"""Benchmark scoring against lm-evaluation-harness's own `hf` model: same weights, float32, interleaved rounds.

    python benchmarks/evaluation.py DATA_DIR gpt2.json                          all five sets, gpt127
    python benchmarks/evaluation.py DATA_DIR gpt2.json --sets piqa --items 200 --model gpt2_small --rounds 5
    python benchmarks/evaluation.py DATA_DIR gpt2.json --sets lambada_openai,piqa --items 5153 --device cuda

`DATA_DIR` holds the tasks' files. `hellaswag` is a set with the same shape made from WikiText, with four endings and
contexts of about 58 tokens, because HellaSwag's file may be missing. `hf` uses its best batch size, which is determined
before the rounds. Its model is transformers' GPT-2 for models of GPT-2's shape, and the exported folder's code for
others. `bound` is the ratio of `hf`'s floating-point operations to the fewest possible: every prefix is read once, and
only the needed logits are computed, without padding.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.console import Console
from rich.table import Table

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.huggingface.export import export
from gptstar.data.tokenizer import Tokenizer
from gptstar.evaluation.tasks.config import LONGER_CONTEXTS, SUITE
from gptstar.evaluation.tasks.offline import load_tasks
from gptstar.evaluation.tasks.rows import rows_of
from gptstar.evaluation.tasks.scoring import Scorable, Scorer
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.model import GPT, GPTConfig

MODELS = {
    "gpt127": {"n_layers": 6, "d_model": 1024, "n_heads": 8},
    "gpt2_small": {
        "n_layers": 12,
        "d_model": 768,
        "n_heads": 12,
        "residual": "sequential",
        "positions": "learned",
        "n_ctx": 1024,
        "gelu": "tanh",
    },
    "tiny": {"n_layers": 2, "d_model": 64, "n_heads": 4},
}
ITEMS = {"lambada_openai": 120, "wikitext": 2, "piqa": 100, "hellaswag": 60, "winogrande": 120}
BATCH_SIZES = {"cpu": (4, 8, 16, 32), "cuda": (64, 128, 256, 512)}
WIKITEXT_BATCH_SIZES = {"cpu": (1, 2), "cuda": (4, 8, 16)}
Tokens = tuple[list[int], list[int]]


def requests(task: str, items: int, data_dir: Path, tokenizer: Tokenizer, length: int) -> list[Tokens]:
    """Return the harness's contexts and continuations of a task as tokens."""
    if task == "hellaswag":
        return hellaswag_shaped(items, data_dir, tokenizer)
    (loaded,) = load_tasks([task], data_dir)
    loaded.set_config(key="num_fewshot", value=0)
    loaded.build_all_requests(limit=items)
    encode = lambda text: tokenizer.encode([text])[0].tolist()  # noqa: E731
    pairs: list[Tokens] = []
    for instance in loaded.instances:
        if task == "wikitext":
            windows = get_rolling_token_windows(encode(instance.args[0]), tokenizer.end_of_text, length, 1)
            pairs += [make_disjoint_window(window) for window in windows]
        else:
            context, continuation = instance.args
            context, continuation = context.rstrip(), context[len(context.rstrip()) :] + continuation
            before = encode(context)
            pairs.append((before, encode(context + continuation)[len(before) :]))
    return pairs


def hellaswag_shaped(items: int, data_dir: Path, tokenizer: Tokenizer) -> list[Tokens]:
    """Return contexts of about 58 tokens with four endings of about 25 tokens each, cut from WikiText."""
    (task,) = load_tasks(["wikitext"], data_dir)
    text = "\n".join(document["page"] for document, _ in zip(task.eval_docs, range(20), strict=False))
    tokens, draw = tokenizer.encode([text])[0].tolist(), np.random.default_rng(0)

    def cut(mean: int, spread: int) -> list[int]:
        length = max(5, round(draw.normal(mean, spread)))
        start = int(draw.integers(len(tokens) - length))
        return tokens[start : start + length]

    return [(context, cut(25, 8)) for context in (cut(58, 15) for _ in range(items)) for _ in range(4)]


def bound(config: GPTConfig, scorables: list[Scorable]) -> float:
    """Return the ratio of operations without shared prefixes to those with them, ignoring attention scores."""
    head = 2 * config.n_vocab * config.d_model
    blocks = 2 * (config.n_params - (config.n_vocab + (config.n_ctx or 0)) * config.d_model)
    inputs = sum(len(each.tokens) - 1 for each in scorables)
    rows = rows_of([each.tokens[:-1] for each in scorables])
    nodes = sum(len(row.tokens) for row in rows)
    scored_nodes = sum(
        len({int(node) for number, path in row.paths.items() for node in path[-scorables[number].n_scored :]})
        for row in rows
    )
    return inputs * (blocks + head) / (nodes * blocks + scored_nodes * head)


def hf_scores(lm: Any, pairs: list[Tokens], batch_size: int) -> tuple[list[tuple[float, bool]], float]:
    """Return the scores by the harness's own model, and the seconds."""
    lm.batch_size_per_gpu = batch_size
    start = time.perf_counter()
    scores = lm._loglikelihood_tokens([(("", ""), *pair) for pair in pairs], disable_tqdm=True)
    return scores, time.perf_counter() - start


def our_scores(model: GPT, pairs: list[Tokens], length: int, batch_tokens: int | None) -> tuple[list[Any], float]:
    """Return the scores by our model, and the seconds."""
    start = time.perf_counter()
    scorables = [Scorable.cut(*pair, length) for pair in pairs]
    scores = Team(Worker(Scorer(model, batch_tokens=batch_tokens), SimpleNamespace())).all_results(scorables)
    return scores, time.perf_counter() - start


def where(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"


def main() -> None:
    """Time both, compare their scores, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--model", choices=MODELS, default="gpt127")
    parser.add_argument("--sets", default=",".join(SUITE))
    parser.add_argument("--items", type=int, help=f"of each set (default: {ITEMS})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, help="of ours (default: as an evaluation chooses them)")
    parser.add_argument("--device", choices=BATCH_SIZES, default="cpu")
    options = parser.parse_args()

    tokenizer = Tokenizer.from_file(options.tokenizer)
    config = GPTConfig(n_vocab=tokenizer.n_vocab, **MODELS[options.model])
    torch.manual_seed(0)
    model = GPT(config).to(options.device).eval()
    columns = (
        "set",
        "requests",
        "hf's batch",
        "hf s",
        "ours s",
        "ratio",
        "from",
        "to",
        "bound",
        "nats a token",
        "greedy",
    )
    table = Table(*columns, title=f"{options.model}, float32, {where(options.device)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HF_MODULES_CACHE", f"{folder}/modules")
        exported = Path(folder) / "exported"
        weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
        export(Checkpoint(config, weights, tokenizer.json_text), exported, context_length=2048)
        lm = HFLM(
            pretrained=str(exported), trust_remote_code=True, dtype="float32", device=options.device, batch_size=1
        )
        for task in options.sets.split(","):
            length = min(LONGER_CONTEXTS.get(task, 1024), config.n_ctx or 4096)
            lm._max_length = length
            pairs = requests(task, options.items or ITEMS[task], options.data_dir, tokenizer, length)
            scorables = [Scorable.cut(*pair, length) for pair in pairs]
            some = pairs[:: max(1, len(pairs) // (48 if options.device == "cpu" else 2048))]
            sizes = (WIKITEXT_BATCH_SIZES if task == "wikitext" else BATCH_SIZES)[options.device]
            best = min(sizes, key=lambda size: hf_scores(lm, some, size)[1])
            theirs, ours = [], []
            for _ in range(options.rounds):
                expected, seconds = hf_scores(lm, pairs, best)
                theirs.append(seconds)
                scores, seconds = our_scores(model, pairs, length, options.batch_tokens)
                ours.append(seconds)
            ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
            worst = max(
                abs(one.log_likelihood - other) / each.n_scored
                for one, (other, _), each in zip(scores, expected, scorables, strict=True)
            )
            different = sum(one.greedy != greedy for one, (_, greedy) in zip(scores, expected, strict=True))
            figures = statistics.median(theirs), statistics.median(ours), statistics.median(ratios), min(ratios)
            table.add_row(
                *(task, f"{len(pairs):,}", str(best), *(f"{figure:.2f}" for figure in (*figures, max(ratios)))),
                *(f"{bound(config, scorables):.2f}", f"{worst:.0e}", f"{different} differ"),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
