"""`gptstar import`, `export`, `download` and `consolidate`: models on their way in and out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.checkpoint.published.registry import MODELS
from gptstar.cli.plugins import add_plugins
from gptstar.errors import CheckpointError

if TYPE_CHECKING:
    from gptstar.checkpoint.published.registry import File


def add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add them to the `gptstar` command."""
    command = commands.add_parser(
        "import",
        help="turn a model of elsewhere into a checkpoint: Hugging Face folders, the original GPT* code's files",
        description="Read SOURCE and write OUT. SOURCE is a file of the original code, in either of its layouts: the "
        "shape is inferred, and the optimizer's state comes along where it is there, so that training can go on: "
        "train.py resume=OUT. Or it is a Hugging Face folder: one that gptstar exported, or a GPT-2.",
    )
    command.add_argument("source", type=Path, metavar="SOURCE", help="a .pth.tar of the original code, or a folder")
    command.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    command.add_argument("--heads", type=int, metavar="H", help="attention heads, where a file has no ALiBi slopes")
    command.add_argument("--tokenizer", type=Path, metavar="FILE", help="`tokenizers` JSON to store with the model")
    add_plugins(command)
    command.set_defaults(run=_import)

    command = commands.add_parser(
        "export",
        help="write a model as a Hugging Face folder, with a model card",
        description="Write CHECKPOINT to FOLDER for `AutoModelForCausalLM.from_pretrained(FOLDER, "
        "trust_remote_code=True)`; a GPT-2 in Hugging Face's own layout, which needs no trust. FOLDER is what "
        "`hf upload` takes.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="must not exist")
    command.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="tokens that its users may read at once (default: twice the training context, or what positions hold)",
    )
    command.add_argument("--name", help="of the model, in its card (default: the folder's)")
    command.add_argument("--licence", metavar="ID", help="of the weights, as the Hub abbreviates it: apache-2.0, mit …")
    command.add_argument(
        "--evaluations",
        type=Path,
        nargs="*",
        metavar="DIR",
        help="where results are, of which the card tells those of this checkpoint (default: beside it, and "
        "runs/evaluations)",
    )
    add_plugins(command)
    command.set_defaults(run=_export)

    command = commands.add_parser(
        "download",
        help="get the weights that the original authors published",
        description="Download NAME, which goes on where it was cut, and import it. " + _names(),
    )
    command.add_argument("name", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    command.add_argument(
        "out", type=Path, nargs="?", metavar="OUT", help="the checkpoint to write (default: NAME.ckpt)"
    )
    command.add_argument(
        "--full-state", action="store_true", help="with the optimizer's state, to train on: three times"
    )
    command.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="GPT-2's tokenizer.json (default: from the Hub)"
    )
    command.add_argument("--url", metavar="URL", help="another address of the same file")
    command.add_argument("--keep", action="store_true", help="keep the file that was downloaded, beside OUT")
    command.set_defaults(run=_download)

    command = commands.add_parser(
        "consolidate",
        help="make one file of a checkpoint that several ranks wrote",
        description="Read CHECKPOINT, verified, and write OUT: a file, with nothing lost.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory")
    command.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write; must not exist")
    command.add_argument("--weights-only", action="store_true", help="leave out what only training needs: two thirds")
    add_plugins(command)
    command.set_defaults(run=_consolidate)


def _names() -> str:
    return "; ".join(f"{name}: {published.what}" for name, published in MODELS.items())


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
        f"{model.n_heads} heads, {model.residual}, {POSITIONS.name_of(model.positions)}, vocabulary {model.n_vocab:,}; "
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
    print(f"{options.folder}: {checkpoint.model.n_params:,} parameters, context {length:,}")
    print(f"next: read {options.folder / 'README.md'}, then hf upload YOUR_NAME/{name} {options.folder}")


def _download(options: argparse.Namespace) -> None:
    from gptstar.checkpoint.published.registry import TOKENIZER_FINGERPRINT, TOKENIZER_URL, File
    from gptstar.data.tokenizer import Tokenizer

    published = MODELS[options.name]
    file = published.full_state if options.full_state else published.weights
    if file is None:
        raise CheckpointError(f"of {options.name} only the weights were published: drop --full-state")
    if options.url:
        file = File(options.url, file.size, file.sha256)
    out = options.out or Path(f"{options.name}.ckpt")
    _refuse_existing(out)
    tokenizer = options.tokenizer or out.parent / "gpt2-tokenizer.json"
    if options.tokenizer is None:
        _with_a_bar(File(TOKENIZER_URL), tokenizer, otherwise="give GPT-2's tokenizer.json as --tokenizer FILE")
    if Tokenizer.from_file(tokenizer).fingerprint != TOKENIZER_FINGERPRINT:
        raise CheckpointError(
            f"{tokenizer} is not GPT-2's tokenizer, which {options.name} was trained with: replace it"
        )
    fetched = out.parent / file.url.rpartition("/")[2]
    sha256 = _with_a_bar(file, fetched)
    print(
        f"{fetched}: {fetched.stat().st_size:,} bytes, sha256 {sha256}" + ("" if file.sha256 else ", never published")
    )
    _import_to(fetched, out, n_heads=published.n_heads, tokenizer=tokenizer)
    if not options.keep:
        fetched.unlink()


def _with_a_bar(file: "File", path: Path, otherwise: str | None = None) -> str:
    """Download a file, and show how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from gptstar.checkpoint.published.fetch import OTHERWISE, fetch

    columns = (TextColumn(path.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        return fetch(
            file,
            path,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            otherwise=otherwise or OTHERWISE,
        )


def _consolidate(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from gptstar.checkpoint.format import write
    from gptstar.checkpoint.read import find, read

    _refuse_existing(options.out)
    checkpoint = read(path := find(options.checkpoint))
    write(options.out, replace(checkpoint, training=None) if options.weights_only else checkpoint)
    print(f"{options.out}: {checkpoint.model.n_params:,} parameters of {path}, {options.out.stat().st_size:,} bytes")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists: nothing is overwritten; choose another name or remove it")
