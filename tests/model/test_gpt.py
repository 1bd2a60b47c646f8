import math

import pytest
import torch

from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.model.kernels.bias import linear_bias
from gptstar.model.positions.alibi import Alibi, alibi_slopes
from gptstar.model.positions.rotary import rotary_angles, rotate

PRIMES = {"n_layers": 2, "d_model": 44, "n_heads": 11, "n_vocab": 97}
VARIANTS = [
    {"residual": residual, "positions": positions, "n_ctx": 64 if positions == "learned" else None}
    for residual in ("parallel", "sequential")
    for positions in ("alibi", "learned", "rotary", "none")
]


def build(**changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**PRIMES, **changes})).eval()


@pytest.mark.parametrize(
    ("size", "n_params"),
    [
        ("gpt127", 127_030_272),
        ("gpt303", 303_825_408),
        ("gpt_1b3", 1_308_733_440),
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
    ],
)
def test_published_sizes_have_their_exact_parameter_counts(size: str, n_params: int) -> None:
    overrides = [f"experiment={size}", "data.files=x"]
    config = TrainConfig.parse(compose("train", overrides)).recipe.model
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in GPT(config).parameters())
    assert config.n_params == built == n_params


@pytest.mark.parametrize("variant", [*VARIANTS, {"d_head": 6, "d_ff": 31}])
def test_arithmetic_counts_every_variant(variant: dict[str, object]) -> None:
    model = build(**variant)
    assert model.config.n_params == sum(parameter.numel() for parameter in model.parameters())


def test_gpt303_has_heads_of_192() -> None:
    config = TrainConfig.parse(compose("train", ["experiment=gpt303", "data.files=x"])).recipe.model
    assert (config.n_layers, config.d_model, config.head_width, config.mlp_width) == (8, 1536, 192, 6144)


def test_slopes_for_8_heads_are_powers_of_two() -> None:
    assert alibi_slopes(8) == tuple(2.0**-exponent for exponent in range(1, 9))


def test_slopes_for_12_heads_interleave_as_in_the_paper() -> None:
    expected = [2.0**-e for e in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(12) == pytest.approx(expected)


@pytest.mark.parametrize("n_heads", [1, 3, 8, 10, 12, 16, 25])
def test_slopes_on_a_device_are_the_papers(n_heads: int) -> None:
    def of_the_paper(n_heads: int) -> list[float]:
        if n_heads & (n_heads - 1) == 0:
            return [2.0 ** (-8.0 * (head + 1) / n_heads) for head in range(n_heads)]
        lower = 2 ** math.floor(math.log2(n_heads))
        return of_the_paper(lower) + of_the_paper(2 * lower)[0::2][: n_heads - lower]

    slopes = Alibi().slopes(n_heads, torch.device("cpu"))
    assert torch.equal(slopes, torch.tensor(of_the_paper(n_heads)))
    assert torch.equal(slopes, torch.tensor(alibi_slopes(n_heads)))


def test_bias_counts_distances_that_bfloat16_cannot() -> None:
    bias = linear_bias(torch.tensor([1.0]), range(600, 601), range(601))
    assert bias[0, 0, :3].tolist() == [-600.0, -599.0, -598.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_position_sees_a_later_one(variant: dict[str, object]) -> None:
    model = build(**variant)
    tokens = torch.randint(97, (2, 19))
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 97
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before[:, 11], after[:, 11])


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none"])
def test_a_prefix_has_equal_logits_in_a_context_8_times_as_long(positions: str) -> None:
    model = build(positions=positions)
    tokens = torch.randint(97, (1, 8 * 163))  # beyond one block of queries
    torch.testing.assert_close(model(tokens)[:, :163], model(tokens[:, :163]), atol=1e-5, rtol=1e-5)


def test_the_context_length_reaches_neither_state_nor_size() -> None:
    model = build()
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model(torch.zeros(1, 50, dtype=torch.int64))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before
    assert not list(model.buffers())


def test_rotary_scores_depend_on_distance_alone() -> None:
    cosines, sines = rotary_angles(torch.arange(60), 10)
    query, key = torch.randn(2, 1, 1, 1, 10)
    at = [rotate(x.expand(1, 1, 60, 10), cosines, sines)[0, 0] for x in (query, key)]
    scores = at[0] @ at[1].T
    torch.testing.assert_close(scores[7, 3], scores[47, 43], atol=1e-4, rtol=1e-4)
    assert abs(scores[7, 3] - scores[7, 4]) > 1e-3


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_the_first_loss_is_that_of_a_uniform_guess(residual: str) -> None:
    model = build(n_vocab=50257, residual=residual)
    tokens = torch.randint(50257, (2, 65))
    first = model(tokens[:, :-1], tokens[:, 1:]).mean().item()
    assert first == pytest.approx(math.log(50257), abs=0.1)  # 10.82


def test_losses_are_those_of_the_logits() -> None:
    model = build()
    tokens = torch.randint(97, (3, 14))
    logits = model(tokens[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(model(tokens[:, :-1], tokens[:, 1:]), expected)


def test_pieces_change_neither_loss_nor_gradient() -> None:
    model = build()
    tokens = torch.randint(97, (3, 14))
    gradients = []
    for at_once in (2**26, 97 * 5):
        model.use(logits_at_once=at_once)
        model.zero_grad()
        losses = model(tokens[:, :-1], tokens[:, 1:])
        losses.mean().backward()
        gradients.append((losses.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize(("init", "projections"), [("gpt2", 2), ("legacy", 1)])
def test_residual_projections_start_smaller(init: str, projections: int) -> None:
    model = build(n_layers=5, d_model=220, residual_init=init)
    expected = 0.02 / math.sqrt(projections * 5)
    for block in model.blocks:
        assert block.attention.out.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert block.mlp.down.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert block.mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_dropout_acts_in_training_only() -> None:
    model = build(dropout=0.3)
    tokens = torch.randint(97, (1, 9))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_heads": 7}, "model.d_model=44 does not divide by model.n_heads=7"),
        ({"positions": "learned"}, "give model.n_ctx"),
        ({"n_ctx": 9}, "the model has no context length"),
        ({"positions": "rotary", "d_head": 5}, "model.d_head=5 is odd"),
        ({"dropout": 1.0}, "model.dropout=1.0 is not below 1"),
        ({"n_layers": 0}, "model.n_layers=0 is below 1"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        GPTConfig(**{**PRIMES, **changes})
    assert says in str(refused.value)


def test_learned_positions_refuse_what_exceeds_them() -> None:
    model = build(positions="learned", n_ctx=13)
    with pytest.raises(ConfigError, match=r"14 tokens exceed model.n_ctx=13"):
        model(torch.zeros(1, 14, dtype=torch.int64))


def test_training_flops_follow_palm() -> None:
    config = GPTConfig(**PRIMES, positions="learned", n_ctx=50)
    assert config.training_flops(31) == 6 * (config.n_params - 50 * 44) + 12 * 2 * 44 * 31
