"""The settings that checkpoints and run directories record, and the comparison of two runs' settings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gptstar.checkpoint.kept import LAST, waiting
from gptstar.fields import Role
from gptstar.keys import UNSTATED, Declared, about, declared, flatten
from gptstar.training.averaging import AVERAGING
from gptstar.training.hardware import Hardware
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.recipe import Recipe
from gptstar.training.record import Record
from gptstar.training.schedules import SCHEDULES
from gptstar.training.status import Status, read_config


def run_keys() -> dict[str, Declared]:
    """Return every key of a run's configuration, with its declaration."""
    computed = {
        "data.mixture": Declared(Role.RESULT, is_group=True),  # blocks of each corpus, which follow from its text
        "trainer.callbacks": Declared(Role.CHANGEABLE, before=[]),  # one of them may end the run
        "hardware": Declared(Role.MACHINE, is_group=True),
    }
    recipe, hardware = declared(Recipe, role=Role.RESULT), declared(Hardware, "hardware.", Role.MACHINE)
    return computed | recipe | hardware | declared(Record)


def shown_keys() -> list[str]:
    """Return the keys that reports and model cards show even if all runs have the same value."""
    return [key for key, it in run_keys().items() if it.is_shown]


def settings_of(recipe: Recipe, hardware: Hardware) -> dict[str, Any]:
    """Return the settings that a checkpoint records, by dotted key: fixed settings, and those that reports show.

    Args:
        recipe: the resolved recipe.
        hardware: the hardware, for the precision.
    """
    known = run_keys()
    groups = {
        "model": recipe.model.as_dict(),
        "data": vars(recipe.data),
        "optimizer": OPTIMIZERS.describe(recipe.optimizer),
        "schedule": SCHEDULES.describe(recipe.schedule),
        "averaging": AVERAGING.describe(recipe.averaging),
        "curriculum": vars(recipe.curriculum),
        "hardware": {"precision": hardware.resolved_precision()},
    }
    flat = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    flat |= {key: value for key, value in vars(recipe).items() if key not in groups}
    return {key: value for key, value in flat.items() if (it := about(key, known)).role.is_fixed or it.is_shown}


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fixed settings in which two runs differ: the key, their value and ours.

    A setting that an older checkpoint lacks has the value that its declaration states for this case. Keys that only one
    of the two runs has, such as those of another optimizer, are ignored.
    """
    known = run_keys()
    for key, value in ours.items():
        it = about(key, known)
        there = theirs.get(key, it.before)
        if it.role.is_fixed and there is not UNSTATED and there != value:
            yield key, there, value


def has_nothing_left(record: Record, config_yaml: str) -> bool:
    """Whether a run and the evaluations of its checkpoints are finished."""
    if not is_finished(record.output, config_yaml):
        return False
    return not waiting(record.output, record.evaluation.every_n_steps)


def is_finished(folder: Path, config_yaml: str) -> bool:
    """Whether a run finished with this configuration, ignoring keys that don't shape the result.

    A run whose checkpoints were deleted does not count as finished, because it can't be evaluated.
    """
    status = Status.read(folder)
    if status is None or status.state != "finished" or not (folder / LAST).exists():
        return False
    try:
        return not any(reopening(read_config(folder), config_yaml))
    except (OSError, ValueError):
        return False


def reopening(config: Mapping[str, Any], config_yaml: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys whose changed values require a finished run to be continued, each with its old and its new value.

    Args:
        config: the configuration of the finished run, nested.
        config_yaml: the configuration now, as composed.
    """
    now = OmegaConf.to_container(OmegaConf.create(config_yaml))
    assert isinstance(now, dict)
    known, old, new = run_keys(), flatten(config), flatten({str(key): now[key] for key in now})
    for key in {**old, **new}:
        it = about(key, known)
        missing = None if it.before is UNSTATED else it.before
        there, here = old.get(key, missing), new.get(key, missing)
        if it.role.reopens and there != here:
            yield key, there, here
