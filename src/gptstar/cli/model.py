"""`gptstar import`, `export`, `download` and `consolidate`: convert models from and to other formats."""

import argparse
from collections.abc import Callable
from pathlib import Path

from gptstar.checkpoint.published.registry import MODELS, TOKENIZER_FINGERPRINT, TOKENIZER_URL, File
from gptstar.cli.arguments import Commands, add_checkpoint, add_command, add_plugins
from gptstar.errors import CheckpointError
from gptstar.terminal import Terminal


def add_model_commands(commands: Commands) -> None:
    """Add the four commands to the `gptstar` command."""
    text = "convert a Hugging Face folder or a file of the original GPT* code into a checkpoint"
    description = (
        "Read SOURCE and write OUT. SOURCE is either a Hugging Face folder (one that gptstar exported, or a GPT-2) or "
        "a file of the original GPT* code, in either of its layouts. The model's shape is inferred from a file. If the "
        "file holds the optimizer state, training can continue: train.py resume=OUT."
    )
    command = add_command(commands, "import", _import, text, description)
    add = command.add_argument
    add("source", type=Path, metavar="SOURCE", help="a .pth.tar file of the original code, or a Hugging Face folder")
    add("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    add("--heads", type=int, metavar="H", help="number of attention heads, for a file without ALiBi slopes")
    add("--tokenizer", type=Path, metavar="FILE", help="`tokenizers` JSON file to store with the model")
    add_plugins(command)

    description = (
        "Write CHECKPOINT to FOLDER, which `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` "
        "loads and `hf upload` uploads. A model of GPT-2's shape is written in Hugging Face's own GPT-2 layout, which "
        "doesn't need trust_remote_code."
    )
    text = "write a model as a Hugging Face folder, with a model card"
    command = add_command(commands, "export", _export, text, description)
    add_checkpoint(command)
    add = command.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the folder to write; must not exist")
    text = "longest input of the export (default: twice the training context, or the capacity of learned positions)"
    add("--context-length", type=int, metavar="N", help=text)
    add("--name", help="name of the model in its card (default: the folder's name)")
    add("--licence", metavar="ID", help="licence of the weights, by the Hub's identifier: apache-2.0, mit …")
    text = "folders with evaluation results for the card (default: the checkpoint's folder, and runs/evaluations)"
    add("--evaluations", type=Path, nargs="*", metavar="DIR", help=text)
    add_plugins(command)

    names = "; ".join(f"{name}: {published.what}" for name, published in MODELS.items())
    description = f"Download NAME and import it. An interrupted download continues. {names}"
    text = "download the weights that the original authors published"
    add = add_command(commands, "download", _download, text, description).add_argument
    add("name", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    add("out", type=Path, nargs="?", metavar="OUT", help="the checkpoint to write (default: NAME.ckpt)")
    add(
        "--full-state",
        action="store_true",
        help="include the optimizer state, to continue training: three times the size",
    )
    add("--tokenizer", type=Path, metavar="FILE", help="GPT-2's tokenizer.json (default: downloaded from the Hub)")
    add("--url", metavar="URL", help="download the same file from another address")
    add("--keep", action="store_true", help="keep the downloaded file next to OUT")

    description = "Read and verify CHECKPOINT, and write everything in it to the single file OUT."
    text = "convert a sharded checkpoint into one file"
    command = add_command(commands, "consolidate", _consolidate, text, description)
    add_checkpoint(command)
    add = command.add_argument
    add("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    add("--weights-only", action="store_true", help="omit the training state, which is two thirds of the size")
    add_plugins(command)


def _import(options: argparse.Namespace) -> None:
    _refuse_existing(options.out)
    _import_to(options.source, options.out, n_heads=options.heads, tokenizer=options.tokenizer)


def _import_to(source: Path, out: Path, *, n_heads: int | None, tokenizer: Path | None) -> None:
    from dataclasses import replace

    from gptstar.checkpoint.format import write
    from gptstar.checkpoint.huggingface.read import read_huggingface
    from gptstar.checkpoint.legacy import read_legacy
    from gptstar.data.tokenizer import Tokenizer
    from gptstar.model.positions import POSITIONS

    given = Tokenizer.from_file(tokenizer) if tokenizer else None
    if source.is_dir():
        if n_heads is not None:
            raise CheckpointError(f"--heads {n_heads} is not needed: {source} states its number of heads; drop --heads")
        checkpoint = read_huggingface(source)
        if given is not None:
            given.check_vocabulary(checkpoint.model.n_vocab, str(tokenizer))
            checkpoint = replace(checkpoint, tokenizer=given.json_text)
    else:
        checkpoint = read_legacy(source, n_heads=n_heads, tokenizer=given)
    write(out, checkpoint)
    model, training = checkpoint.model, checkpoint.training
    print(
        f"{out}: {model.n_params:,} parameters, {model.n_layers} layers of {model.d_model}, "
        f"{model.n_heads} heads, {model.residual}, "
        f"{', '.join((POSITIONS.name_of(model.positions), *model.modifiers))}, vocabulary {model.n_vocab:,}; "
        + (f"training can continue at step {training.step:,}" if training else "weights only")
        + ("" if checkpoint.tokenizer else "; no tokenizer, so it can't generate text: import it with --tokenizer FILE")
    )


def _export(options: argparse.Namespace) -> None:
    from gptstar.checkpoint.huggingface.export import export
    from gptstar.checkpoint.read import find, read
    from gptstar.results.card import model_card

    path = find(options.checkpoint)
    checkpoint = read(path)
    trained_at = checkpoint.training.settings.get("data.context_length") if checkpoint.training else None
    length = options.context_length
    if length is None:
        length = checkpoint.model.positions.capacity or 2 * (trained_at or 512)
    name = options.name or options.folder.resolve().name
    folders = options.evaluations
    if folders is None:
        folders = [folder for folder in (path.resolve().parent, Path("runs/evaluations")) if folder.is_dir()]
    card = model_card(path, checkpoint, name=name, context_length=length, licence=options.licence, evaluations=folders)
    export(checkpoint, options.folder, context_length=length, card=card)
    which = "averaged weights, " if checkpoint.is_average else ""
    print(f"{options.folder}: {checkpoint.model.n_params:,} parameters, {which}context {length:,}")
    print(f"next: read {options.folder / 'README.md'}, then hf upload YOUR_NAME/{name} {options.folder}")


def _download(options: argparse.Namespace) -> None:
    from gptstar.checkpoint.legacy import read_legacy
    from gptstar.checkpoint.published.fetch import OTHERWISE
    from gptstar.data.tokenizer import Tokenizer

    published = MODELS[options.name]
    file = published.full_state if options.full_state else published.weights
    if file is None:
        raise CheckpointError(f"--full-state: only the weights of {options.name} were published; drop --full-state")
    if options.url:
        if not options.url.rpartition("/")[2].strip("."):
            raise CheckpointError(
                f"--url {options.url} does not end with the name of a file: give the address of the file"
            )
        file = File(options.url, file.size, file.sha256)

    def check_tokenizer(path: Path) -> None:
        if Tokenizer.from_file(path).fingerprint != TOKENIZER_FINGERPRINT:
            raise CheckpointError(f"{path} is not GPT-2's tokenizer, which {options.name} was trained with: replace it")

    out = options.out or Path(f"{options.name}.ckpt")
    _refuse_existing(out)
    tokenizer = options.tokenizer or out.parent / "gpt2-tokenizer.json"
    if options.tokenizer is None:
        otherwise = "give GPT-2's tokenizer.json as --tokenizer FILE"
        _fetch(File(TOKENIZER_URL), tokenizer, otherwise=otherwise, check=check_tokenizer)
    check_tokenizer(tokenizer)
    fetched = out.parent / file.url.rpartition("/")[2]
    is_ours = not fetched.exists()
    sha256 = _fetch(file, fetched, otherwise=OTHERWISE, check=lambda path: read_legacy(path, n_heads=published.n_heads))
    print(
        f"{fetched}: {fetched.stat().st_size:,} bytes, sha256 {sha256}"
        + ("" if file.sha256 else " (the authors published no hash)")
    )
    _import_to(fetched, out, n_heads=published.n_heads, tokenizer=tokenizer)
    if is_ours and not options.keep:
        fetched.unlink()


def _fetch(file: File, path: Path, *, otherwise: str, check: Callable[[Path], object]) -> str:
    """Download a file with a progress bar, and return its SHA-256."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from gptstar.checkpoint.published.fetch import fetch

    columns = (
        TextColumn(path.name, markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        return fetch(file, path, progress=progress, otherwise=otherwise, check=check)


def _consolidate(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from gptstar.checkpoint.format import write
    from gptstar.checkpoint.read import find, read

    _refuse_existing(options.out)
    checkpoint = read(path := find(options.checkpoint))
    if checkpoint.is_average and not options.weights_only:
        raise CheckpointError(f"{path} holds averaged weights, which a run can't resume from: add --weights-only")
    write(options.out, replace(checkpoint, training=None) if options.weights_only else checkpoint)
    print(f"{options.out}: {checkpoint.model.n_params:,} parameters of {path}, {options.out.stat().st_size:,} bytes")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists and is not overwritten: choose another name or remove it")
