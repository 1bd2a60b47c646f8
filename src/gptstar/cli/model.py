"""`gptstar import`, `export`, `download` and `consolidate`: models on their way in and out."""

import argparse
from collections.abc import Callable
from pathlib import Path

from gptstar.checkpoint.published.registry import MODELS, TOKENIZER_FINGERPRINT, TOKENIZER_URL, File
from gptstar.cli.arguments import Commands, add_checkpoint, add_command, add_plugins
from gptstar.errors import CheckpointError
from gptstar.terminal import Terminal


def add_model_commands(commands: Commands) -> None:
    """Add them to the `gptstar` command."""
    text = "turn a model of elsewhere into a checkpoint: Hugging Face folders, the original GPT* code's files"
    description = (
        "Read SOURCE and write OUT. SOURCE is a file of the original code, in either of its layouts: the shape is "
        "inferred, and the optimizer's state comes along where it is there, so that training can go on: train.py "
        "resume=OUT. Or it is a Hugging Face folder: one that gptstar exported, or a GPT-2."
    )
    command = add_command(commands, "import", _import, text, description)
    add = command.add_argument
    add("source", type=Path, metavar="SOURCE", help="a .pth.tar of the original code, or a folder")
    add("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    add("--heads", type=int, metavar="H", help="attention heads, where a file has no ALiBi slopes")
    add("--tokenizer", type=Path, metavar="FILE", help="`tokenizers` JSON to store with the model")
    add_plugins(command)

    description = (
        "Write CHECKPOINT to FOLDER for `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`; a "
        "GPT-2 in Hugging Face's own layout, which needs no trust. FOLDER is what `hf upload` takes."
    )
    text = "write a model as a Hugging Face folder, with a model card"
    command = add_command(commands, "export", _export, text, description)
    add_checkpoint(command)
    add = command.add_argument
    add("folder", type=Path, metavar="FOLDER", help="must not exist")
    text = "tokens that its users may read at once (default: twice the training context, or what positions hold)"
    add("--context-length", type=int, metavar="N", help=text)
    add("--name", help="of the model, in its card (default: the folder's)")
    add("--licence", metavar="ID", help="of the weights, as the Hub abbreviates it: apache-2.0, mit …")
    text = (
        "where results are, of which the card tells those of this checkpoint (default: beside it, and runs/evaluations)"
    )
    add("--evaluations", type=Path, nargs="*", metavar="DIR", help=text)
    add_plugins(command)

    names = "; ".join(f"{name}: {published.what}" for name, published in MODELS.items())
    description = f"Download NAME, which goes on where it was cut, and import it. {names}"
    text = "get the weights that the original authors published"
    add = add_command(commands, "download", _download, text, description).add_argument
    add("name", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    add("out", type=Path, nargs="?", metavar="OUT", help="the checkpoint to write (default: NAME.ckpt)")
    add("--full-state", action="store_true", help="with the optimizer's state, to train on: three times")
    add("--tokenizer", type=Path, metavar="FILE", help="GPT-2's tokenizer.json (default: from the Hub)")
    add("--url", metavar="URL", help="another address of the same file")
    add("--keep", action="store_true", help="keep the file that was downloaded, beside OUT")

    description = "Read CHECKPOINT, verified, and write OUT: a file, with nothing lost."
    text = "make one file of a checkpoint that several ranks wrote"
    command = add_command(commands, "consolidate", _consolidate, text, description)
    add_checkpoint(command)
    add = command.add_argument
    add("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    add("--weights-only", action="store_true", help="leave out what only training needs: two thirds")
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
            raise CheckpointError(f"{source} says itself how many heads it has: drop --heads")
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
        + (f"training goes on at step {training.step:,}" if training else "weights only")
        + ("" if checkpoint.tokenizer else "; no tokenizer, so it can't generate: import it with --tokenizer FILE")
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
        raise CheckpointError(f"of {options.name} only the weights were published: drop --full-state")
    if options.url:
        if not options.url.rpartition("/")[2].strip("."):
            raise CheckpointError(f"--url {options.url} does not end in the name of a file")
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
        f"{fetched}: {fetched.stat().st_size:,} bytes, sha256 {sha256}" + ("" if file.sha256 else ", never published")
    )
    _import_to(fetched, out, n_heads=published.n_heads, tokenizer=tokenizer)
    if is_ours and not options.keep:
        fetched.unlink()


def _fetch(file: File, path: Path, *, otherwise: str, check: Callable[[Path], object]) -> str:
    """Download a file behind a progress bar, and return its SHA-256."""
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
        raise CheckpointError(f"{path}: averaged weights can't be trained on as a run's last: give --weights-only, too")
    write(options.out, replace(checkpoint, training=None) if options.weights_only else checkpoint)
    print(f"{options.out}: {checkpoint.model.n_params:,} parameters of {path}, {options.out.stat().st_size:,} bytes")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists: nothing is overwritten; choose another name or remove it")
