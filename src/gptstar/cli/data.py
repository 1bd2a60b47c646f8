"""`gptstar data …`: look at prepared text, verify it, merge its parts, and adopt the tokens of other projects."""

import argparse
from pathlib import Path

from gptstar.cli.arguments import Commands, Run, add_command
from gptstar.errors import DataError
from gptstar.terminal import Terminal


def add_data_commands(commands: Commands) -> None:
    """Add `data` and what it can do to the `gptstar` command."""
    data = commands.add_parser("data", help="look at prepared text: inspect, verify, overlap, merge, adopt")
    parts = data.add_subparsers(metavar="COMMAND", required=True)

    text = "show tokens, documents, lengths, what was left out, and samples"
    add = _shards_command(parts, "inspect", _inspect, text).add_argument
    add("--samples", type=int, default=1, metavar="N", help="documents shown of each corpus")
    add("--picture", type=Path, metavar="PNG", help="where to draw the lengths of documents")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")

    _shards_command(parts, "verify", _verify, "hash every file and compare it with the manifest")

    text = "find benchmark items that share 13 words in a row with the text"
    add = _shards_command(parts, "overlap", _overlap, text).add_argument
    add("benchmarks", nargs="+", type=Path, metavar="FILE", help=".jsonl in the Hub's columns")
    add("--json", type=Path, metavar="FILE", help="where to write the items found, by their row")

    text = "make one folder of the parts that `gptstar prepare part=I/N` wrote into it"
    _shards_command(parts, "merge", _merge, text)

    text = "read the tokens of other projects where they are: llm.c's .bin, flat .npy of uint16 or uint32"
    description = (
        "Look through FILES once, and write to FOLDER a manifest, the tokenizer, and where documents begin: a folder "
        "for data.shards=FOLDER, without a copy of the tokens. Files with `val` in their name are validated on."
    )
    add = add_command(parts, "adopt", _adopt, text, description).add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help=".bin with llm.c's header, or .npy")
    add("--tokenizer", type=Path, required=True, metavar="FILE", help="`tokenizers` JSON that the tokens are of")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for the manifest; must not exist")
    add("--validation", type=Path, nargs="+", default=[], metavar="FILE", help="to validate on, beside `val`")
    add("--corpus", metavar="NAME", help="of the text (default: the folder of the first file)")
    add("--licence", default="not stated", help="of the text, for the manifest (default: %(default)s)")


def _shards_command(commands: Commands, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    command = add_command(commands, name, run, text)
    command.add_argument("shards", metavar="SHARDS", help="a folder of shards")
    return command


def _inspect(options: argparse.Namespace) -> None:
    from gptstar.data.inspection.inspect import inspect
    from gptstar.data.storage.shards import ShardFolder

    inspect(ShardFolder(options.shards), Terminal(), options.samples, options.picture, options.seed)


def _verify(options: argparse.Namespace) -> None:
    from rich.progress import track

    from gptstar.data.storage.manifest import AGAIN, read_manifest
    from gptstar.data.storage.shards import check_arrays, check_tokens, damaged
    from gptstar.data.tokenizer import Tokenizer

    folder = Path(options.shards)
    manifest = read_manifest(folder / "manifest.json")
    if Tokenizer.from_file(folder / "tokenizer.json").fingerprint != manifest.tokenizer:
        raise DataError(f"{folder}/tokenizer.json is not the tokenizer that made these shards: {AGAIN}")
    files = [file for shard in manifest.shards for file in shard.files.items()]
    bad = [name for file in track(files, "hashing") for name in damaged(folder, [file])]
    if bad:
        raise DataError(
            f"{len(bad)} of {len(files)} files in {folder} are damaged or missing: {', '.join(bad)}: {AGAIN}"
        )
    for shard in manifest.shards:
        check_tokens(folder, shard, check_arrays(folder, shard, manifest.n_vocab), manifest.n_vocab)
    Terminal().print(f"{len(files):,} files of {len(manifest.shards):,} shards are as their manifest says")


def _overlap(options: argparse.Namespace) -> None:
    from gptstar.data.inspection.overlap import overlap_of_shards

    overlap_of_shards(options.shards, options.benchmarks, Terminal(), options.json)


def _merge(options: argparse.Namespace) -> None:
    from gptstar.data.preparation.parts import merge

    manifest = merge(Path(options.shards))
    if manifest is None:
        raise DataError(f"{options.shards} lacks parts: copy the others there, or prepare them")
    print(f"{options.shards}: {manifest.total('train', 'tokens'):,} tokens to train on")


def _adopt(options: argparse.Namespace) -> None:
    from rich.progress import track

    from gptstar.data.preparation.adopt import Adoption, adopt

    asked = Adoption(
        files=tuple(options.files),
        validation=tuple(options.validation),
        tokenizer=options.tokenizer,
        corpus=options.corpus,
        licence=options.licence,
    )
    console = Terminal(stderr=True)
    quiet = not console.is_terminal
    manifest = adopt(asked, options.output, lambda files: track(files, "reading", console=console, disable=quiet))
    sizes = {split: manifest.total(split, "tokens") for split in ("train", "validation")}
    print(f"{options.output}: {sizes['train']:,} tokens to train on, {sizes['validation']:,} to validate on")
    print(f"next: gptstar train data=local data.shards={options.output}")
