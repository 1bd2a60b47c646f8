"""`gptstar data …`: inspect and verify prepared text, merge its parts, and adopt tokens of other projects."""

import argparse
from pathlib import Path

from gptstar.cli.arguments import Commands, Run, add_command
from gptstar.errors import DataError
from gptstar.terminal import Terminal


def add_data_commands(commands: Commands) -> None:
    """Add `data` and its subcommands to the `gptstar` command."""
    data = commands.add_parser("data", help="work with prepared text: inspect, verify, overlap, merge, adopt")
    parts = data.add_subparsers(metavar="COMMAND", required=True)

    text = "show token and document counts, document lengths, skipped text, and samples"
    add = _shards_command(parts, "inspect", _inspect, text).add_argument
    add("--samples", type=int, default=1, metavar="N", help="sample documents per corpus (default: %(default)s)")
    add("--picture", type=Path, metavar="PNG", help="file for a histogram of document lengths")
    add("--seed", type=int, default=0, help="seed for choosing the samples (default: %(default)s)")

    _shards_command(parts, "verify", _verify, "check the hash of every file against the manifest")

    text = "find benchmark items that share 13 consecutive words with the text"
    add = _shards_command(parts, "overlap", _overlap, text).add_argument
    add("benchmarks", nargs="+", type=Path, metavar="FILE", help=".jsonl file with the columns of the Hub's dataset")
    add("--json", type=Path, metavar="FILE", help="file for the row numbers of the items found")

    text = "merge the parts that `gptstar prepare part=I/N` wrote into a folder"
    _shards_command(parts, "merge", _merge, text)

    text = "use token files of other projects in place: llm.c's .bin, flat .npy of uint16 or uint32"
    description = (
        "Read each FILE once and write FOLDER, which holds a manifest, the tokenizer, and the document starts. Train "
        "on it with data.shards=FOLDER. The tokens are not copied. Files with `val` in their name are held out for "
        "validation."
    )
    add = add_command(parts, "adopt", _adopt, text, description).add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help=".bin file with llm.c's header, or .npy file")
    add("--tokenizer", type=Path, required=True, metavar="FILE", help="`tokenizers` JSON that made the tokens")
    add("--output", type=Path, required=True, metavar="FOLDER", help="the folder to write; must not exist")
    add(
        "--validation",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="further files to hold out for validation",
    )
    add("--corpus", metavar="NAME", help="name of the corpus (default: the folder of the first file)")
    add("--licence", default="not stated", help="licence to record in the manifest (default: %(default)s)")


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
    Terminal().print(f"{len(files):,} files of {len(manifest.shards):,} shards match their manifest")


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

    adoption = Adoption(
        files=tuple(options.files),
        validation=tuple(options.validation),
        tokenizer=options.tokenizer,
        corpus=options.corpus,
        licence=options.licence,
    )
    console = Terminal(stderr=True)
    quiet = not console.is_terminal
    manifest = adopt(adoption, options.output, lambda files: track(files, "reading", console=console, disable=quiet))
    sizes = {split: manifest.total(split, "tokens") for split in ("train", "validation")}
    print(f"{options.output}: {sizes['train']:,} tokens to train on, {sizes['validation']:,} to validate on")
    print(f"next: gptstar train data=local data.shards={options.output}")
