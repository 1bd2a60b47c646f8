"""`gptstar data …`: look at prepared text, verify it, hold it against benchmarks, and merge its parts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable


def add_data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `data` and what it can do to the `gptstar` command."""
    data = commands.add_parser("data", help="look at prepared text: inspect, verify, overlap, merge")
    of_data = data.add_subparsers(metavar="COMMAND", required=True)

    command = _command(of_data, "inspect", _inspect, "show tokens, documents, lengths, what was left out, and samples")
    command.add_argument("--samples", type=int, default=1, metavar="N", help="documents shown of each corpus")
    command.add_argument("--picture", type=Path, metavar="PNG", help="where to draw the lengths of documents")
    command.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")

    _command(of_data, "verify", _verify, "hash every file and compare it with the manifest")

    command = _command(of_data, "overlap", _overlap, "find benchmark items that share 13 words in a row with the text")
    command.add_argument("benchmarks", nargs="+", type=Path, metavar="FILE", help=".jsonl in the Hub's columns")
    command.add_argument("--json", type=Path, metavar="FILE", help="where to write the items found, by their row")

    _command(of_data, "merge", _merge, "make one folder of the parts that `gptstar prepare part=I/N` wrote into it")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: "Callable[[argparse.Namespace], None]",
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.add_argument("shards", metavar="SHARDS", help="a folder of shards")
    command.set_defaults(run=run)
    return command


def _inspect(options: argparse.Namespace) -> None:
    from rich.console import Console

    from gptstar.data.inspection.inspect import inspect
    from gptstar.data.storage.shards import ShardFolder

    inspect(ShardFolder(options.shards), Console(), options.samples, options.picture, options.seed)


def _verify(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track

    from gptstar.data.storage.manifest import AGAIN, read_manifest
    from gptstar.data.storage.shards import damaged
    from gptstar.data.tokenizer import Tokenizer

    folder, console = Path(options.shards), Console()
    manifest = read_manifest(folder / "manifest.json")
    if Tokenizer.from_file(folder / "tokenizer.json").fingerprint != manifest.tokenizer:
        raise DataError(f"{folder}/tokenizer.json is not the tokenizer that made these shards: {AGAIN}")
    files = [file for shard in manifest.shards for file in shard.files.items()]
    bad = [name for file in track(files, "hashing", console=console) for name in damaged(folder, [file])]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(files)} files in {folder} are damaged or missing: {', '.join(bad)}: {AGAIN}"
        )
    console.print(f"{len(files):,} files of {len(manifest.shards):,} shards are as their manifest says")


def _overlap(options: argparse.Namespace) -> None:
    from rich.console import Console

    from gptstar.data.inspection.overlap import overlap_of_shards

    overlap_of_shards(options.shards, options.benchmarks, Console(), options.json)


def _merge(options: argparse.Namespace) -> None:
    from gptstar.data.preparation.parts import merge

    manifest = merge(Path(options.shards))
    if manifest is None:
        raise DataError(f"{options.shards} lacks parts: copy the others there, or prepare them")
    print(f"{options.shards}: {manifest.total('train', 'tokens'):,} tokens to train on")
