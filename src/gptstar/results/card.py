"""Model cards: an exported model's architecture, training data and measured quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from gptstar import __version__
from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.huggingface.gpt2 import is_gpt2
from gptstar.checkpoint.identity import identity
from gptstar.errors import ConfigError
from gptstar.evaluation.results import TaskResults
from gptstar.model.positions import POSITIONS
from gptstar.results.loaded import Loaded
from gptstar.terminal import in_markdown
from gptstar.training.settings import shown_keys


def model_card(
    path: Path,
    checkpoint: Checkpoint,
    *,
    name: str,
    context_length: int,
    licence: str | None = None,
    evaluations: Sequence[Path] = (),
) -> str:
    """Return the text of `README.md` for an exported folder, with the header that the Hub reads.

    Args:
        path: the path of the checkpoint.
        checkpoint: the checkpoint; its results in `evaluations` are found by its hash.
        name: the name of the model.
        context_length: the context length in tokens that the card states.
        licence: the licence of the weights, as the Hub abbreviates it.
        evaluations: folders with `results.json` files.

    Raises:
        ConfigError: an evaluation is damaged; the message names it.
    """
    known, training = identity(path, checkpoint), checkpoint.training
    loaded = Loaded(evaluations) if evaluations else None
    read = list(loaded.task_results().values()) if loaded is not None else []
    if loaded is not None and loaded.damaged:
        raise ConfigError(next(iter(loaded.damaged.values())))
    evaluated = [each for each in read if each.checkpoint.get("sha256") == known["sha256"]]
    best_loss = training.best_loss if training and not checkpoint.is_average else None  # it belongs to the last weights
    settings: dict[str, Any] = training.settings if training else {}
    data: dict[str, Any] = training.data if training else {}
    environment = Environment(
        loader=PackageLoader("gptstar.results"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: in_markdown(value) if isinstance(value, str) else value,
    )
    return environment.get_template("model_card.md").render(
        header=_header(name, licence, evaluated),
        name=name,
        model=checkpoint.model,
        positions=POSITIONS.name_of(checkpoint.model.positions),
        needs_trust=not is_gpt2(checkpoint.model),
        context_length=context_length,
        known=known,
        settings={key: settings[key] for key in shown_keys() if key in settings and not key.startswith("model.")},
        averaged=checkpoint.is_average,
        best_loss=best_loss,
        perplexity=float(np.exp(best_loss)) if best_loss else None,
        corpora=data.get("corpora", {}),
        fingerprint=data.get("fingerprint"),
        tasks=[task for results in evaluated for task in results.tasks],
        licence=licence,
        version=__version__,
    )


def _header(name: str, licence: str | None, evaluated: Sequence[TaskResults]) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task.task,
            dataset_name=task.task,
            metric_type=metric.name,
            metric_value=metric.value,
            metric_name=metric.name if metric.subset is None else f"{metric.name} ({metric.subset})",
        )
        for result in evaluated
        for task in result.tasks
        for metric in task.metrics
    ]
    data = ModelCardData(
        language="en",
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gptstar"],
        model_name=name,
        eval_results=results or None,
    )
    return data.to_yaml()
