"""Datasets of the Hugging Face Hub, streamed shard by shard in their original order."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.data.config import CorpusConfig
from gptstar.data.text.records import Fields, Record, Unit, row
from gptstar.errors import DataError, with_type


@dataclass(frozen=True)
class HubShard(Unit):
    """One shard of a dataset on the Hugging Face Hub, or of a folder in the same format; it is streamed."""

    dataset: Any
    index: int
    fields: Fields

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the rows, without the first `start`; raise DataError if the Hub can't be reached."""
        rows = self.dataset.shard(num_shards=self.dataset.num_shards, index=self.index)
        try:
            for number, content in enumerate(rows.skip(start), start=start + 1):
                yield from row(content, self.fields, f"{self.name}, row {number}", number)
        except Exception as error:  # each dataset format has a reader with its own errors
            raise DataError(f"{self.name}: {with_type(error)}") from error


def hub_shards(config: CorpusConfig, fields: Fields) -> tuple[HubShard, ...]:
    """Open a dataset for streaming; raise DataError if it doesn't exist or can't be reached."""
    import datasets

    datasets.logging.set_verbosity_error()  # errors are reported below, in one line
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub = str(config.hub)
    try:
        dataset: Any = datasets.load_dataset(
            hub, config.hub_config, revision=config.revision, split=config.split, streaming=True
        )
    except Exception as error:  # connection, authentication, not found, no such split, …
        raise _unreachable(hub, error) from error
    indices = range(dataset.num_shards)
    return tuple(HubShard(f"{hub}, shard {index}", None, dataset, index, fields) for index in indices)


def saved_files(folder: Path) -> list[str]:
    """List the files that `Dataset.save_to_disk` wrote, in order; raise DataError if the list can't be read."""
    state = folder / "state.json"
    try:
        files = [str(folder / each["filename"]) for each in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{state} doesn't list the files of a saved dataset ({with_type(error)}): save it again"
        ) from error
    for name in files:
        if not Path(name).is_file():
            raise DataError(f"{name} is missing, although {state} lists it: copy the whole folder")
    return files


def commit_of(hub: str, revision: str | None) -> str:
    """Return `DATASET@COMMIT` for today's commit of a revision; for a local folder, return the folder."""
    if Path(hub).exists():
        return hub
    import huggingface_hub

    try:
        return f"{hub}@{huggingface_hub.HfApi().dataset_info(hub, revision=revision).sha}"
    except Exception as error:  # each HTTP library has its own
        raise _unreachable(hub, error) from error


def _unreachable(hub: str, error: Exception) -> DataError:
    return DataError(
        f"the dataset {hub} can't be read ({with_type(error)}): check its name and the "
        "network (a gated dataset needs `hf auth login`), or give your own copy as data.corpora.NAME.files=GLOB"
    )
