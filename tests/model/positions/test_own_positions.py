"""A user's own kinds of positions: no file of the package names them, and everything works with them."""

import pytest
import torch

from gptstar.checkpoint.huggingface.standalone import standalone
from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.errors import CheckpointError, ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import causal_attention
from gptstar.model.kernels import bias as bias_kernel
from gptstar.model.positions import POSITIONS, Alibi, Positions
from gptstar.training.settings import settings_of
from own_positions import ForgetfulPositions, TablePositions
from support.attention import reference_attention
from support.positions import SIZES, build, trained_and_read_again

KINDS: list[Positions] = [TablePositions(5, scale=0.5), ForgetfulPositions()]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)


@by_kind
def test_parameters_are_counted_named_and_kept_out_of_the_products(kind):
    model = build(kind)
    config, plain = model.config, GPTConfig(**SIZES)
    assert config.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert config.training_flops(17) == plain.training_flops(17)
    names = set(model.state_dict()) - set(GPT(plain).state_dict())
    table = {"position_parameters.table"}
    gates = {
        f"blocks.{layer}.attention.position_parameters.gate.{leaf}" for layer in (0, 1) for leaf in ("weight", "bias")
    }
    assert names == (gates if kind.per_layer else table)
    assert config.n_params - plain.n_params == (2 * (30 + 1) * 3 if kind.per_layer else 6 * 3)


def test_a_kind_draws_its_parameters_or_leaves_that_to_the_model():
    torch.manual_seed(0)
    table = GPT(GPTConfig(**SIZES, positions=TablePositions(300))).position_parameters.table
    assert table.abs().max() > 1.9
    gate = GPT(GPTConfig(**SIZES, positions=ForgetfulPositions())).blocks[1].attention.position_parameters.gate
    assert gate.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not gate.bias.any()


def test_a_bias_of_pairs_agrees_with_the_reference(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 37, 7)
    kind, table = TablePositions(11), build(TablePositions(11)).position_parameters
    bias = lambda pairs: kind.bias(pairs, 3, table, None)  # noqa: E731
    distance = torch.arange(37)[:, None] - torch.arange(37)
    whole = table.table[distance.clamp(0, 11)].permute(2, 0, 1).masked_fill(distance < 0, -torch.inf)
    documents = (torch.arange(37) > torch.tensor([[9], [20]])).long()
    apart = whole.masked_fill((documents[:, :, None] != documents[:, None])[:, None], -torch.inf)
    monkeypatch.setattr(bias_kernel, "QUERY_BLOCK", 16)
    for given, expected_bias in ((None, whole), (documents, apart)):
        found = causal_attention(query, key, value, bias, documents=given)
        torch.testing.assert_close(found, reference_attention(query, key, value, expected_bias), atol=1e-5, rtol=1e-5)
    gradients = []
    for mixed in (found, reference_attention(query, key, value, apart)):
        table.zero_grad()
        mixed.square().sum().backward()
        gradients.append(table.table.grad.clone())
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@by_kind
def test_two_steps_a_checkpoint_and_the_same_model_again(kind, tmp_path, monkeypatch):
    again = trained_and_read_again(kind, tmp_path / "x.ckpt")
    assert again.model.as_dict()["positions"]["plugin"] == "own_positions"
    monkeypatch.delitem(POSITIONS._classes, POSITIONS.name_of(kind))
    with pytest.raises(CheckpointError, match=r"is not known: .*add plugins=\[own_positions\]$") as refused:
        read(tmp_path / "x.ckpt")
    assert "\n" not in str(refused.value)


KIND_IMPORT = "from gptstar.model.positions.alibi import Alibi as Kind\n"


def test_a_kind_without_a_file_is_not_exported():
    class Here(Alibi):
        __module__ = "__main__"

    with pytest.raises(CheckpointError, match="Here is defined in a script"):
        standalone(KIND_IMPORT, Here())


@pytest.mark.parametrize("line", ["import math, numpy", "from yaml import safe_load", "import gptstar.model.view"])
def test_a_kind_that_imports_what_others_may_lack_is_not_exported(line):
    modelling = f"import math\nfrom transformers import PreTrainedModel\n{KIND_IMPORT}"
    assert set(standalone(modelling, Alibi())) == {"modeling_gptstar.py", "alibi.py", "base.py"}
    with pytest.raises(CheckpointError, match=f"can't be exported with `{line}`: import only torch"):
        standalone(f"{line}\n{KIND_IMPORT}", Alibi())


@pytest.mark.parametrize(
    ("given", "kind"),
    [("forgets", ForgetfulPositions()), ({"kind": "table", "reach": 4, "scale": 2}, TablePositions(4, 2.0))],
)
def test_a_name_or_a_mapping_becomes_the_kind(given, kind):
    assert GPTConfig(**SIZES, positions=given).positions == kind
    written = given if isinstance(given, str) else "{kind: table, reach: 4, scale: 2}"
    parsed = TrainConfig.parse(compose("train", [f"model.positions={written}"]))
    assert parsed.recipe.model.positions == kind
    assert settings_of(parsed.recipe, parsed.hardware).items() >= {"model.n_layers": 2}.items()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tabel", "model.positions=tabel is not known: did you mean table?"),
        ("{kind: table}", "model.positions.reach has no value"),
        ("{kind: table, reach: 0}", "model.positions.reach=0 is below 1"),
        ("{kind: table, reech: 1}", "model.positions.reech is not a key of model.positions=table: did you mean"),
    ],
)
def test_mistakes_are_named(given, says):
    with pytest.raises(ConfigError) as refused:
        TrainConfig.parse(compose("train", [f"model.positions={given}"]))
    assert says in str(refused.value)
