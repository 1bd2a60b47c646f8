"""A checkpoint in parts: a folder to which each rank of a sharded run writes what it has. Writer and reader together.

The tensors lie as PyTorch's distributed checkpoints do (DCP), so any number of ranks reads them. Beside them
`checkpoint.json` holds all that is no tensor, and the hash of every file. The folder appears under its name complete or
not at all.
"""

import json
import logging
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gptstar.checkpoint.format import DESCRIPTION, FORMAT, FORMAT_VERSION, Checkpoint, TrainingState
from gptstar.errors import CheckpointError, ConfigError
from gptstar.files import file_sha256, partial_path, remove, write_json
from gptstar.model import GPTConfig
from gptstar.ranks import Ranks

METADATA = "torch.distributed.checkpoint.metadata"
HARMLESS = {
    *((METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""What DCP's pickled `.metadata` is made of, beside types of tensors."""

STANDS = "what was there before is untouched"


def write_parts(path: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Write a folder so that a crash at any moment leaves no half of it under its name; all ranks have to.

    Args:
        checkpoint: of tensors in parts, or whole ones that all ranks have.

    Raises:
        CheckpointError: it can't be written, as on a full disk; names the cause.
        RefusedElsewhere: another rank could not.
    """
    partial = partial_path(path)
    try:
        ranks.agreed(lambda: _written(path, ranks, lambda: _anew(partial)))
        ranks.together(lambda: _written(path, ranks, lambda: _write_tensors(partial, checkpoint, ranks)))
        own = f"__{ranks.rank}_*.distcp"
        hashes = ranks.gathered(ranks.together(lambda: _written(path, ranks, lambda: _hashes(partial, own))))
        described = json.dumps(_description(checkpoint)) if ranks.first else ""
        ranks.agreed(lambda: _written(path, ranks, lambda: _finish(partial, path, described, hashes)))
    finally:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)


def _written(path: Path, ranks: Ranks, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except CheckpointException as error:
        first = min(error.failures)
        cause = error.failures[first][0]
        refusal = CheckpointError(f"can't write {path} (rank {first}: {_reason(cause)}); {STANDS}")
        raise ranks.alike(refusal) from error  # DCP tells all of them
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"can't write {path} ({_reason(error)}); {STANDS}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch turns a full disk into a RuntimeError about positions in the file
    return "not all of it fits: is the disk full?" if isinstance(error, RuntimeError) else repr(error)


def _anew(partial: Path) -> None:
    remove(partial)  # left by a run that was killed while it wrote
    partial.mkdir(parents=True)


def _write_tensors(partial: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    tensors = {f"weights.{name}": tensor for name, tensor in checkpoint.weights.items()}
    for name, state in (checkpoint.training.optimizer if checkpoint.training else {}).items():
        tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in state.items()}
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        save(
            tensors,
            storage_writer=FileSystemWriter(partial),
            process_group=ranks.group,
            no_dist=ranks.world_size == 1,
        )


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    training = checkpoint.training and {
        key: value for key, value in vars(checkpoint.training).items() if key != "optimizer"
    }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model.as_dict(),
        "tokenizer": checkpoint.tokenizer,
        "training": training,
    }


def _hashes(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in sorted(folder.glob(pattern))
    }


def _finish(partial: Path, path: Path, described: str, hashes: list[dict[str, dict[str, Any]]]) -> None:
    files = {name: about for each in hashes for name, about in each.items()} | _hashes(partial, ".metadata")
    write_json(partial / DESCRIPTION, json.loads(described) | {"files": files})
    replaced = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():  # one of the same step, damaged or of a run that went on from before
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def verify_parts(path: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Check files against their hashes.

    Args:
        share: (rank, world_size), where the ranks divide the work.

    Raises:
        CheckpointError: one is missing, cut short or altered; names it.
    """
    files = sorted(describe(path)[1].items())
    for name, about in files[share[0] :: share[1]]:
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} has lost {name}: use another checkpoint")
        if file.stat().st_size != about["bytes"]:
            raise CheckpointError(f"{path}: {name} was cut short or grew: use another checkpoint")
        if file_sha256(file) != about["sha256"]:
            raise CheckpointError(f"{path}: {name} is damaged (its sha256 differs): use another checkpoint")


def describe(path: Path) -> tuple[Checkpoint, dict[str, dict[str, Any]]]:
    """A checkpoint without tensors, and what its files should be: bytes and sha256 by name.

    Raises:
        CheckpointError: the description is missing, damaged, or of another format.
    """
    try:
        about = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        if about["format"] != FORMAT or about["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {about['format']} {about['format_version']}, this version reads "
                f"{FORMAT} {FORMAT_VERSION}: use a matching one"
            )
        files = {str(name): {"bytes": each["bytes"], "sha256": each["sha256"]} for name, each in about["files"].items()}
        if any(Path(name).name != name for name in files):
            raise ValueError("a file lies elsewhere")
        training = about["training"] and TrainingState(**about["training"], optimizer={})
        return Checkpoint(GPTConfig(**about["model"]), {}, about["tokenizer"], training), files
    except OSError as error:
        raise CheckpointError(f"can't read {path / DESCRIPTION}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path / DESCRIPTION} is damaged ({error!r}): use another checkpoint") from error


def read_parts(path: Path) -> Checkpoint:
    """Read and verify all of it, as whole tensors.

    Raises:
        CheckpointError: missing, cut short, altered, unsafe, or not of this format; names the file.
    """
    verify_parts(path)
    checkpoint, _ = describe(path)
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in tensors_in(path).items()}
    load_parts(path, tensors)
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        whose, _, rest = name.partition(".")
        parameter, _, key = rest.rpartition(".")
        if whose == "weights":
            weights[rest] = tensor
        else:
            optimizer.setdefault(parameter, {})[key] = tensor
    training = checkpoint.training and replace(checkpoint.training, optimizer=optimizer)
    return replace(checkpoint, weights=weights, training=training)


def load_parts(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole or in parts, by name; each rank reads no more than it needs.

    Args:
        tensors: by the names in the folder: `weights.NAME`, and `optimizer.NAME.KEY`.

    Raises:
        CheckpointError: they are not those in the folder.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=_SafeReader(path), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{path} does not hold the tensors asked for ({_first_line(cause)})") from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} can't be read ({_first_line(error)}): use another checkpoint") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def tensors_in(path: Path) -> dict[str, TensorStorageMetadata]:
    """Names, shapes and types of what a folder holds.

    Raises:
        CheckpointError: its `.metadata` is damaged, or carries code.
    """
    return _SafeReader(path).read_metadata().state_dict_metadata  # type: ignore[return-value]


class _SafeReader(FileSystemReader):
    """PyTorch's reader, where its own would unpickle anything."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                metadata = _Plain(stream).load()
        except OSError as error:
            raise CheckpointError(f"can't read {file}: {error.strerror or error}") from error
        except Exception as error:  # unpickling damaged bytes raises anything
            raise CheckpointError(f"{file} is damaged or unsafe ({_first_line(error)})") from error
        entries = metadata.state_dict_metadata.values() if isinstance(metadata, Metadata) else [None]
        if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
            raise CheckpointError(f"{file} tells of something else than tensors")
        return metadata


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """PyTorch's descriptions of tensors, and nothing that could run."""
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or (module, name) in HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its pickle carries code ({module}.{name})")
