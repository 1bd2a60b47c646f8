"""Sharded checkpoints: folders to which each rank of a run writes its part. Writer and reader together.

The tensors are stored in the format of PyTorch's distributed checkpoints (DCP), which any number of ranks can read.
`checkpoint.json` holds everything else, and the hash of every file. The folder appears under its name complete or not
at all.
"""

import logging
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gptstar.checkpoint.format import (
    DESCRIPTION,
    Checkpoint,
    check_weights,
    described,
    not_written,
    parsed,
    tensors_of,
)
from gptstar.errors import CheckpointError, in_one_line
from gptstar.files import file_sha256, partial_path, read_json, remove, write_json
from gptstar.ranks import Ranks

METADATA = "torch.distributed.checkpoint.metadata"
HARMLESS = {
    *((METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}
"""The classes in DCP's pickled `.metadata`, besides types of tensors."""

AVERAGED = "averaged."
"""The prefix of averaged weights' names."""

Files = dict[str, dict[str, Any]]
"""Size in bytes and sha256 of files, by name."""


def write_parts(path: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Write a folder that appears complete or not at all, even after a crash. All ranks must call this.

    Tensors are sharded, or whole and the same on all ranks.

    Raises:
        CheckpointError: it can't be written, for example because the disk is full; names the cause.
        RefusedElsewhere: another rank can't write its part.
    """

    def attempt(action: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def attempted() -> Any:
            try:
                return action(*arguments)
            except CheckpointException as error:
                rank = min(error.failures)
                refusal = not_written(path, error.failures[rank][0], f"rank {rank}: ")
                raise ranks.alike(refusal) from error  # DCP raises the same error on all ranks
            except (OSError, RuntimeError) as error:
                raise not_written(path, error) from error

        return attempted

    partial = partial_path(path)
    try:
        ranks.agreed(attempt(_anew, partial))
        ranks.together(attempt(_write_tensors, partial, checkpoint, ranks))
        hashes = ranks.gathered(ranks.together(attempt(_hashes, partial, f"__{ranks.rank}_*.distcp")))
        ranks.agreed(attempt(_finish, partial, path, checkpoint, hashes))
    finally:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)


def _anew(partial: Path) -> None:
    remove(partial)  # left by a run that was killed while writing
    partial.mkdir(parents=True)


def _write_tensors(partial: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    tensors = {f"weights.{name}": tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {f"{AVERAGED}{name}": tensor for name, tensor in checkpoint.averaged.items()}
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


def _hashes(folder: Path, pattern: str) -> Files:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in sorted(folder.glob(pattern))
    }


def _finish(partial: Path, path: Path, checkpoint: Checkpoint, hashes: list[Files]) -> None:
    files = {name: about for each in [*hashes, _hashes(partial, ".metadata")] for name, about in each.items()}
    training = checkpoint.training and {
        key: value for key, value in vars(checkpoint.training).items() if key != "optimizer"
    }
    write_json(partial / DESCRIPTION, described(checkpoint) | {"training": training, "files": files})
    replaced = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if (
        path.is_dir() and not path.is_symlink()
    ):  # an older checkpoint of this step: damaged, or of a run that resumed from an earlier step
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def verify_parts(path: Path, share: tuple[int, int] = (0, 1)) -> Checkpoint:
    """Check the files' hashes, and return the checkpoint without its tensors.

    With `share`, (rank, world_size), the ranks divide the files among them.

    Raises:
        CheckpointError: a file is missing, truncated, altered or has another format; names it.
    """
    file = path / DESCRIPTION
    try:
        tree = read_json(file)
        files = [(str(name), each["bytes"], each["sha256"]) for name, each in sorted(tree["files"].items())]
        if any(Path(name).name != name for name, _, _ in files):
            raise ValueError("a file is outside the folder")
        training = tree["training"] and tree["training"] | {"optimizer": {}}
    except OSError as error:
        raise CheckpointError(f"can't read {file}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged ({in_one_line(repr(error))}): use another checkpoint") from error
    checkpoint = parsed(file, tree | {"weights": {}, "training": training}, lacks_weights=True)
    for name, n_bytes, sha256 in files[share[0] :: share[1]]:
        part = path / name
        if not (part.is_file() and part.stat().st_size == n_bytes and file_sha256(part) == sha256):
            raise CheckpointError(f"{path}: {name} is missing, truncated or altered: use another checkpoint")
    return checkpoint


def read_parts(path: Path) -> Checkpoint:
    """Read and verify a complete checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated, altered, unsafe, or has another format; names it.
    """
    checkpoint = verify_parts(path)
    try:
        about = {name: (each.size, each.properties.dtype) for name, each in tensors_in(path).items()}
        tensors = {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in about.items()}
        own = {name.removeprefix("weights."): each for name, each in tensors.items() if name.startswith("weights.")}
        check_weights(own, expected := tensors_of(checkpoint.model, len(own)))
        averages = {name.removeprefix(AVERAGED): each for name, each in tensors.items() if name.startswith(AVERAGED)}
        if averages:
            check_weights(averages, expected)
        n_stored = sum(file.stat().st_size for file in path.glob("*.distcp"))
        if sum(each.nbytes for each in tensors.values()) > n_stored:
            raise CheckpointError(f"its .metadata describes more than the {n_stored:,} bytes in the folder")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its .metadata is damaged ({in_one_line(error)})") from error
    tensors = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors.items()}
    load_parts(path, tensors)
    weights: dict[str, Tensor] = {}
    averaged: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "weights":
            weights[rest] = tensor
        elif name.startswith(AVERAGED):
            averaged[rest] = tensor
        else:
            parameter, _, key = rest.rpartition(".")
            optimizer.setdefault(parameter, {})[key] = tensor
    training = checkpoint.training and replace(checkpoint.training, optimizer=optimizer)
    return replace(checkpoint, weights=weights, training=training, averaged=averaged)


def load_parts(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill whole or sharded tensors named `weights.NAME` or `optimizer.NAME.KEY`; each rank reads what it needs.

    Raises:
        CheckpointError: the folder has other tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=_SafeReader(path), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{path} does not hold the tensors of this model ({in_one_line(cause)})") from error
    except Exception as error:  # damaged bytes raise many kinds of errors
        raise CheckpointError(f"{path} can't be read ({in_one_line(error)}): use another checkpoint") from error


def tensors_in(path: Path) -> dict[str, TensorStorageMetadata]:
    """Read the names, shapes and dtypes of the tensors in a folder.

    Raises:
        CheckpointError: its `.metadata` is damaged, or contains code.
    """
    return _SafeReader(path).read_metadata().state_dict_metadata  # type: ignore[return-value]


class _SafeReader(FileSystemReader):
    """PyTorch's reader, restricted to safe pickles; the original would unpickle anything."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                metadata = _Plain(stream).load()
        except OSError as error:
            raise CheckpointError(f"can't read {file}: {error.strerror or error}") from error
        except Exception as error:  # damaged bytes raise many kinds of errors
            raise CheckpointError(f"{file} is damaged or unsafe ({in_one_line(error)})") from error
        entries = metadata.state_dict_metadata.values() if isinstance(metadata, Metadata) else [None]
        if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
            raise CheckpointError(f"{file} describes objects other than tensors")
        return metadata


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class if it is one of PyTorch's descriptions of tensors; refuse everything that could run code."""
        if (module, name) in (("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")):  # Python 3.13 uses the latter
            return PosixPath
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or (module, name) in HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its pickle contains code ({module}.{name})")
