"""Defaults by scale: the quickstart's settings are the quickstart's alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gptstar.cli import main
from gptstar.config import TrainConfig
from gptstar.data.tokenizer import Tokenizer
from gptstar.defaults import NEUTRAL, defaults_line, run_name, with_neutral_defaults
from gptstar.entry import compose
from support import ROOT
from support.runs import run_here, run_script_here

Overrides = Callable[..., list[str]]
LOCAL = ("data=local", "data.files=books/*.jsonl")


def parse(*overrides: str) -> TrainConfig:
    return TrainConfig.parse(compose("train", overrides))


@pytest.mark.parametrize("words", [[], ["experiment=quickstart"], ["data.shards=here"], ["optimizer=adamw"]])
def test_without_own_text_or_model_it_is_the_quickstart(words: list[str]) -> None:
    config = parse(*words)
    recipe, record = config.recipe, config.record
    assert (record.name, record.report, recipe.data.source) == ("quickstart", True, "bundled")
    assert (recipe.total_steps, recipe.batch_tokens, recipe.data.context_length) == (850, 4096, 128)
    assert (recipe.optimizer.learning_rate, recipe.schedule.warmup_steps, recipe.model.n_vocab) == (4e-3, 50, 2048)
    assert recipe.schedule.final_fraction == 0.05
    assert defaults_line(compose("train", words), words) is None


def test_an_override_leaves_the_quickstart_as_it_is() -> None:
    config = parse("total_steps=300", "model.n_layers=3")
    assert (config.record.name, config.record.report, config.recipe.optimizer.learning_rate) == (
        "quickstart",
        True,
        4e-3,
    )
    assert (config.recipe.total_steps, config.recipe.schedule.warmup_steps) == (300, 50)


@pytest.mark.parametrize(
    ("words", "sizes"), [([], (2, 256, 2048)), (["model=gpt127"], (6, 1024, 50257)), (["model=tiny"], (2, 256, 2048))]
)
def test_own_text_has_neutral_defaults(words: list[str], sizes: tuple[int, ...]) -> None:
    config = parse(*words, *LOCAL)
    recipe, record = config.recipe, config.record
    assert (record.name, record.report) == ("books", False)
    assert (recipe.total_steps, recipe.batch_tokens, recipe.data.context_length) == (1000, 8192, 512)
    assert (recipe.optimizer.learning_rate, recipe.schedule.warmup_steps) == (6e-4, 100)
    assert (recipe.model.n_layers, recipe.model.d_model, recipe.model.n_vocab) == sizes


def test_an_experiment_wins_over_neutral_defaults() -> None:
    config = parse("experiment=quickstart", *LOCAL)  # as every run had them once that gave no experiment
    assert (config.record.name, config.record.report) == ("quickstart", True)
    assert (config.recipe.total_steps, config.recipe.data.source) == (850, "local")
    assert parse("experiment=gpt127", *LOCAL).recipe.total_steps == 51_000


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        (["-m", "data=bookcorpus,books3", "seed=0,1"], ["-m", "data=bookcorpus,books3", NEUTRAL, "seed=0,1"]),
        (["data=local", "--cfg", "job"], ["data=local", NEUTRAL, "--cfg", "job"]),  # flags may not stand between
        (["+data.corpora.x.files=a"], ["+data.corpora.x.files=a", NEUTRAL]),
        (["corpus@data.corpora.x=books3"], ["corpus@data.corpora.x=books3", NEUTRAL]),
        (["init_from=runs/mine"], ["init_from=runs/mine", NEUTRAL]),
        *((words, words) for words in (["-m", "data=local", "experiment=quickstart,gpt127"], ["seed=3"], [])),
        *((words, words) for words in (["~experiment", "data=local"], ["data.shards=x"], ["model.n_layers=3"])),
    ],
)
def test_the_choice_is_a_word_of_the_command_line(typed: list[str], becomes: list[str]) -> None:
    assert with_neutral_defaults(typed) == becomes


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"source": "bundled"}, "bundled"),
        ({"source": "local", "files": "/data/my books/*/*.jsonl.zst"}, "my-books"),
        ({"source": "local", "files": ["s3://bucket/web/part-*.parquet", "x/y.txt"]}, "web"),
        ({"source": "local", "files": "notes.txt"}, "notes"),
        ({"source": "local", "files": "../*.txt"}, "run"),
        ({"source": "local", "shards": "runs/shards/"}, "shards"),
        ({"source": "corpora", "corpora": {"books3": {}}}, "books3"),
        ({"source": "corpora", "corpora": {"openwebtext": {}, "books3": {}, "pes2o": {}}}, "openwebtext-and-2-more"),
    ],
)
def test_a_run_is_named_after_its_text(data: dict[str, object], name: str) -> None:
    assert run_name(OmegaConf.create(data)) == name


def test_the_vocabulary_is_the_tokenizers_unless_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(Tokenizer.train(iter(["to be or not to be, that is the question"]), 263).json_text)
    words = (*LOCAL, f"data.tokenizer={file}")
    assert parse(*words).recipe.model.n_vocab == 263
    assert "model.n_vocab=263 (the tokenizer's vocabulary)" in str(
        defaults_line(compose("train", words), with_neutral_defaults(words))
    )
    assert parse(*words, "model.n_vocab=300").recipe.model.n_vocab == 300
    assert parse("experiment=gpt127", *words).recipe.model.n_vocab == 50257


def test_the_warm_up_fits_a_short_run_unless_it_is_given() -> None:
    assert parse(*LOCAL, "total_steps=30").recipe.schedule.warmup_steps == 3
    assert parse(*LOCAL, "total_steps=5000").recipe.schedule.warmup_steps == 100
    assert parse(*LOCAL, "total_steps=30", "schedule.warmup_steps=7").recipe.schedule.warmup_steps == 7


def test_config_and_a_run_say_what_was_chosen(
    overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["config", *LOCAL])
    said = (
        "# no experiment given: defaults are model=tiny, total_steps=1000, batch_tokens=8192, data.context_length=512, "
    )
    assert said in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    words = [word for word in overrides("total_steps=3", "schedule.warmup_steps=1") if not word.startswith("output=")]
    run_script_here("train.py", *words)
    said = capsys.readouterr().out
    assert (
        "no experiment given: defaults are model=tiny, optimizer.learning_rate=0.0006; change them by KEY=VALUE" in said
    )
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("text")  # where its files lie
    (run,) = folder.iterdir()
    assert "experiment=none" in (run / "versions.json").read_text()
    assert said.strip().splitlines()[-1].startswith("validation loss ")


def test_prepared_shards_bring_their_vocabulary(overrides: Overrides, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    run_here(overrides(f"data.shards={shards}", "total_steps=1", "schedule.warmup_steps=0"))
    config = parse("data=local", f"data.shards={shards}")
    assert (config.recipe.model.n_vocab, config.record.name) == (300, "shards")


def test_help_names_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_script_here("train.py", "--help")
    shown = capsys.readouterr().out
    assert "(experiment=none)" in shown
    assert (ROOT / "conf/experiment/none.yaml").exists()
