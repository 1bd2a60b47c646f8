import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.cli import main
from gptstar.config import EvaluateConfig, TrainConfig
from gptstar.entry import compose, conf_folder, one_line_errors
from gptstar.errors import ConfigError
from gptstar.keys import valid_keys
from gptstar.training.plan import free_device
from support import ROOT
from support.runs import SMALL, run_here

FOLDER = ROOT / "conf/experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def parse(*overrides: str) -> TrainConfig:
    return TrainConfig.parse(compose("train", overrides)).check_here()


@pytest.mark.parametrize(
    ("experiment", "debug"),
    [*((each, "none") for each in EXPERIMENTS), *(("gpt127", each) for each in ("fast", "overfit", "profile"))],
)
def test_every_experiment_composes(experiment: str, debug: str) -> None:
    text = {"quickstart": [], "recall": [], "none": ["data=local", "data.files=x"]}.get(experiment, ["data.files=x"])
    name = "x" if experiment in ("none", "ablation/small") else experiment.replace("/", "-")  # those two name none
    assert parse(f"experiment={experiment}", f"debug={debug}", *text).record.name == name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_choice_of_every_group_composes_and_datasets_are_pinned(path: Path) -> None:
    if path.parent.name == "evaluation":
        EvaluateConfig.parse(compose("evaluate", [f"evaluation={path.stem}", "checkpoint=x"]))
    elif path.parent.name == "corpus":
        config = parse("data=local", f"+corpus@data.corpora.x={path.stem}", "data.shards=x")
        corpus = config.recipe.data.corpora["x"]
        assert corpus.licence != "not stated"
        if corpus.hub or corpus.files:
            pinned = corpus.revision or str(corpus.files)
            unknown = "No commit of this dataset could be established"
            assert re.search(r"[0-9a-f]{40}", pinned) or unknown in path.read_text()
    elif path.name != "gpu.yaml":
        parse(f"{path.parent.name}={path.stem}", "data.shards=x")


def test_learned_positions_hold_the_training_context_unless_told_more() -> None:
    assert parse("model.positions=learned", "data.context_length=64", "data.shards=x").recipe.model.n_ctx == 64
    more = ("model.positions=learned", "model.n_ctx=256", "data.context_length=64", "data.shards=x")
    assert parse(*more).recipe.model.n_ctx == 256


def test_a_reading_at_the_end_is_checked_before_the_beginning() -> None:
    words = ("reading.protocol=fixed_targets", "reading.multiples=[1,4]", "data.context_length=128", "data.shards=x")
    assert parse(*words, "reading.room=512").record.reading.lengths(128) == (128, 512)
    with pytest.raises(ConfigError, match="room=256 is less than the longest context, 512"):
        parse(*words, "reading.room=256")
    with pytest.raises(ConfigError, match="targets=100 exceeds half the shortest context"):
        parse(*words, "reading.targets=100")
    assert not parse("data.shards=x").record.reading.reads


@pytest.mark.parametrize("place", ["text/lang=en/*.jsonl", "s3://bucket/a=1/b=2/x-*.parquet"])
def test_a_path_may_hold_an_equals_sign(place: str) -> None:
    assert parse("data=local", f"data.files={place}").recipe.data.files == place
    assert parse("data.shards=x", f"output={place.partition('*')[0]}").record.output == Path(place.partition("*")[0])


def test_the_sizes_are_those_published() -> None:
    wide = parse("experiment=gpt127", "data.files=x").recipe.model
    assert (wide.n_layers, wide.d_model, wide.n_heads, wide.head_width, wide.mlp_width) == (6, 1024, 8, 128, 4096)


def test_a_number_is_written_once() -> None:
    config = parse(*SMALL)
    assert config.recipe.sequences_per_step == 256 // 32
    assert config.micro_batches(free_device(config.hardware)).accumulate == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["data.contxt_length=3"],
            "data.contxt_length is not a key of the configuration: did you mean data.context_length?",
        ),
        (["context_length=3"], "did you mean data.context_length or evaluation.context_length?"),
        (["model.n_layer=3"], "did you mean model.n_layers?"),
        (["modle=gpt127"], "modle is not a key of the configuration: did you mean model?"),
        (["+model.n_layer=3"], "model.n_layer is not a key of the configuration: did you mean model.n_layers?"),
        (["data.files=a (1).txt"], "'data.files=a (1).txt' is not a valid KEY=VALUE for Hydra: put two pairs of"),
        (["experiment=gpt12"], "experiment=gpt12 does not exist: did you mean experiment=gpt127?"),
        (["model=xyz"], "model=xyz does not exist: choose from gpt127, gpt2_medium, gpt2_small, gpt303, gpt_1b3, tiny"),
        (["model.residual=paralel"], "model.residual=paralel is not known: did you mean parallel?"),
        (["total_steps=lr=3"], "total_steps=lr=3: input should be a valid integer"),
        (["init_from=[-1]"], "init_from=[-1] is not a path: give the path of a checkpoint"),
        (["total_steps=many"], "total_steps=many: input should be a valid integer"),
        (["seed=1.5"], "seed=1.5: input should be a valid integer"),
        (["total_steps=0"], "total_steps=0 is below 1"),
        (["total_steps=true"], "total_steps=True: input should be a number"),
        (["seed=-1"], "seed=-1 is not 0 or above"),
        (["experiment=303"], "choose a group by the name of one of its files, as in model=tiny"),
        (["total_steps"], "'total_steps' is not KEY=VALUE"),
        (
            ["model=gpt2_small", "data.block_tokens=2048", "data.context_length=2048"],
            "data.context_length=2048 exceeds model.n_ctx=1024; learned positions cannot extrapolate: shorten the "
            "context or use model.positions=alibi",
        ),
        (["batch_tokens=1000"], "batch_tokens=1000 is not a multiple of data.block_tokens=1024"),
        (["hardware.devices=3"], "32 sequences of 128, which can't be divided among 3 devices"),
        (["hardware.devices=0"], "hardware.devices=0 is below 1"),
        (["checkpoint_keep=0"], "checkpoint_keep=0 is below 1"),
        (["hardware.micro_batch_size=0"], "hardware.micro_batch_size=0 is below 1"),
        (["schedule.warmup_steps=100000"], "leaves no steps of total_steps"),
        (["schedule.decay_until=7"], "schedule.decay_until=7 is not after schedule.warmup_steps"),
        (["optimizer.beta2=1"], "optimizer.beta2=1 is not below 1"),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate=0 is not above 0"),
        (["optimizer.epsilon=inf"], "optimizer.epsilon=inf is not finite"),
        (["optimizer.weight_decay=nan"], "optimizer.weight_decay=nan is not finite"),
        (["resume=nowhere.ckpt"], "resume=nowhere.ckpt is neither auto, never, nor a checkpoint"),
        (["trainer.max_steps=3"], "trainer.max_steps can't be set: it follows from total_steps"),
        (["trainer.sync_batchnorm=false"], "give it as +trainer.sync_batchnorm=VALUE"),
        (["trainer.limit_train_batches=0.5"], "it counts optimizer steps"),
        (["data.block_tokens=0"], "data.block_tokens=0 is below 1"),
        (["trainer.limit_train_batches=0"], "is not a whole number of 1 or more"),
        (["trainer=3"], "trainer=3 is not a group of keys"),
        (["seed=99999999999999999999"], "seed=99999999999999999999 is not below 9223372036854775808"),
        (["total_steps=99999999999999999999"], "is too large to count: give fewer steps"),
        (["+trainer.max_steps=3"], "trainer.max_steps can't be set: it follows from total_steps"),
        (["+trainer.limit_train_batch=3"], "did you mean trainer.limit_train_batches?"),
        (["data=local"], "data=local needs text: give data.files=GLOB"),
        (["hardware=gpu"], "hardware.accelerator=gpu but PyTorch sees no GPU here"),
        (["resume=${nothing}"], "nothing"),
        (["reading.max_tokens=0"], "reading.max_tokens=0 is below 1"),
        (["reading.stride=8"], "reading.stride is for reading.protocol=sliding, not disjoint"),
        (["reading.multiples=[0,2]"], "reading.multiples: 0 is below 1"),
    ],
)
def test_mistakes_get_one_line_that_names_key_and_cure(
    overrides: list[str], says: str, refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert says in refusal(run_here, overrides)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "checkpoint"),
        (["checkpoint=[]"], r"checkpoint=\[\] names no checkpoint"),
        (["checkpoint=[a,b]"], "tasks take one at a time"),
        (["checkpoint=x", "evaluation=length", "evaluation.context_lengths=[0,512]"], r"evaluation\.context_lengths"),
        (["checkpoint=x", "evaluation.limit=0"], r"evaluation\.limit=0 is below 1"),
        (["checkpoint=x", "evaluation.tasks=[]"], r"evaluation\.tasks is empty"),
        (["checkpoint=x", "evaluation.dtype=int8"], r"evaluation\.dtype=int8"),
        (["checkpoint=x", "evaluation.data_dir=nowhere"], r"evaluation\.data_dir=nowhere is not a folder"),
        (["checkpoint=x", "evaluation.overlap=nothing"], r"evaluation\.overlap=nothing is not a file"),
        (["checkpoint=x", "evaluation.every_n_steps=5"], r"evaluation\.every_n_steps is for train\.py"),
        (["checkpoint=x", "evaluation=length", "evaluation.protocol=fixed"], r"evaluation\.protocol=fixed"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, list) else "",
)
def test_an_evaluation_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig.parse(compose("evaluate", overrides)).check_here()


def test_a_run_keeps_no_cache_of_scores() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.cache can't be used during training"):
        parse("evaluation.every_n_steps=5", "evaluation.cache=somewhere")


def test_a_study_of_length_takes_several_checkpoints() -> None:
    one = EvaluateConfig.parse(compose("evaluate", ["checkpoint=a", "evaluation=length"]))
    two = EvaluateConfig.parse(compose("evaluate", ["checkpoint=[a,b]", "evaluation=length"]))
    assert (one.checkpoints, two.checkpoints) == ((Path("a"),), (Path("a"), Path("b")))


def test_a_key_of_another_choice_is_named_with_it(refusal: Callable[..., str]) -> None:
    def run() -> None:
        with one_line_errors():
            compose("evaluate", ["checkpoint=x", "evaluation.protocol=sliding"])

    assert "evaluation.protocol is a key of evaluation=length: choose that, too" in refusal(run)


def test_yaml_holds_values_only() -> None:
    for path in conf_folder().rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in text
        if path.parent != conf_folder() and path.parent.name != "launcher":  # which sets Hydra's, not ours
            assert "${" not in text, path  # no group reaches into another


def test_every_key_is_in_the_files_so_that_none_needs_a_plus() -> None:
    from omegaconf import OmegaConf

    from gptstar.keys import flatten

    options = ([], ["schedule=wsd"], ["optimizer=muon"], ["tracker=wandb"], ["averaging=ema"], ["averaging=tail"])
    composed = {
        key for words in options for key in flatten(OmegaConf.to_container(compose("train", words), resolve=True))
    }
    composed = {next((each for each in ("trainer", "tracker.to") if key.startswith(each)), key) for key in composed}
    empty = {"evaluation.gen_kwargs", "evaluation.metadata"}  # whose own keys take a plus
    assert composed | empty == {key for key in valid_keys(TrainConfig) if "*" not in key}
    assert all(compose("train", []).evaluation[key.rpartition(".")[2]] == {} for key in empty)


def test_config_prints_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "experiment=gpt127", "data.files=x", "hardware.precision=bf16"])
    printed = capsys.readouterr().out
    assert (
        "127,030,272 parameters; 26,738,688,000 tokens in total; a step is 1024 sequences; "
        "a device computes 8 sequences at once, 128 times a step" in printed
    )
    assert "batch_tokens: 524288" in printed


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["import", "--help"], ["prepare", "--help"], ["generate", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert "usage: gptstar" in capsys.readouterr().out


def test_the_original_mixture_takes_the_users_own_files() -> None:
    names = "openwebtext", "openwebtext2", "bookcorpus", "books3", "philpapers"
    config = parse("data=webtext_plus", *(f"data.corpora.{name}.files=text/{name}/*" for name in names))
    assert {name: corpus.epochs for name, corpus in config.recipe.data.corpora.items()} == {
        "openwebtext": 1.0,
        "openwebtext2": 1.0,
        "bookcorpus": 1.0,
        "books3": 0.5,
        "philpapers": 1.0,
    }
    assert config.recipe.data.corpora["books3"].files == "text/books3/*"
    for name in ("books3", "philpapers"):
        assert "from your own files only" in str(config.recipe.data.corpora[name].note)
        assert config.recipe.data.corpora[name].hub is None
