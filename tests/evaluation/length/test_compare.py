"""Losses at context lengths of several models: paired where they scored the same targets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gptstar.data.storage.stream import TokenStream
from gptstar.errors import ConfigError
from gptstar.evaluation.compare import Comparisons
from gptstar.evaluation.comparison_tables import comparison_markdown
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.compare import Reading, compare_curves
from gptstar.evaluation.length.curve import Plan, Read, read_curve
from gptstar.evaluation.length.reading import Cost, Reader
from gptstar.evaluation.length.text import Text
from gptstar.evaluation.results import to_json
from gptstar.evaluation.statistics.paired import holm, paired_ratio

STUDY = "fixed_targets, text 0"


def reading(seed: int, better: float = 0.0, lengths: tuple[int, ...] = (16, 32), documents: int = 40) -> Reading:
    """The curve of a model on documents of one text, by losses that are drawn, `better` by so many nats a token."""
    random = np.random.default_rng(5)
    sizes = random.integers(40, 90, documents)
    text = Text("text", {}, tuple(TokenStream([random.integers(0, 97, size + 1)]) for size in sizes), np.ones(97))
    plan = Plan(text, LengthConfig(protocol="fixed_targets", targets=8, room=32), lengths)
    hard = random.normal(4, 1, plan.n_targets)
    noise = np.random.default_rng(seed).normal(0, 0.2, plan.n_targets)
    known: dict[int, Read] = {length: (hard + noise - better, Cost(1.0, 0, 0)) for length in plan.lengths}
    reader = Reader(lambda *_: torch.empty(0), torch.device("cpu"), 64)
    curve = read_curve(reader, plan, name=f"model{seed}", trained_at=16, known=known)
    return Reading.parse("fixed_targets", STUDY, json.loads(to_json(asdict(curve))), {"name": f"model{seed}"})


def test_losses_are_paired_by_document() -> None:
    a, b, c = reading(1), reading(2, better=0.1), reading(3)
    found: Comparisons = compare_curves([a, b, c])
    assert found.names == ("model1", "model2", "model3")
    assert [[row.task for row in rows] for rows in found.rows] == [["16", "32"]] * 2
    first = found.rows[0][0]
    sums = [np.asarray(each.lengths[0].sums) for each in (a, b)]
    counts = np.asarray(a.counts)
    theirs = paired_ratio(*sums, counts)
    assert (first.difference, first.low, first.high, first.p) == pytest.approx(
        (theirs.difference, theirs.low, theirs.high, theirs.p)
    )
    assert first.a == pytest.approx(sums[0].sum() / counts.sum())
    assert first.verdict == "better, significant"
    family = [row for rows in found.rows for row in rows]
    assert [row.p_holm for row in family] == pytest.approx(holm([row.p or 0 for row in family]))
    assert any("4 tests" in note for note in found.notes)


def test_unpaired_differences_have_no_interval_and_say_why() -> None:
    a, b, other = reading(1), reading(2), reading(3, documents=30)
    older = replace(b, counts=())
    found = compare_curves([a, older, other])
    assert {(row.p, row.low, row.verdict) for rows in found.rows for row in rows} == {(None, None, "not tested")}
    assert any(note.startswith("B: without") and "evaluate again" in note for note in found.notes)
    (on_other_tokens,) = [note for note in found.notes if note.startswith("C: without")]
    assert "because other tokens were scored" in on_other_tokens
    keys = "evaluation.protocol=fixed_targets evaluation.room=32 evaluation.targets=8"
    assert f"`gptstar evaluate evaluation=length {keys} checkpoint=[RUN,RUN]`" in on_other_tokens
    assert not any("Intervals and p" in note for note in found.notes)
    assert "ignificant" not in comparison_markdown(found)
    assert "ignificant" in comparison_markdown(compare_curves([a, b]))
    assert found.rows[1][0].metric == "bits_per_byte"  # as other tokens were scored
    assert found.rows[0][0].metric == "loss"


def test_what_can_not_be_compared_is_refused() -> None:
    a = reading(1)
    with pytest.raises(ConfigError, match="A was read as fixed_targets, text 0, and B as sliding"):
        compare_curves([a, replace(a, study="sliding")])
    undefined = tuple(replace(each, loss=None) for each in a.lengths)
    with pytest.raises(ConfigError, match="no context length is in both A and B"):
        compare_curves([a, replace(a, lengths=undefined)])


def test_losses_on_other_tokens_are_compared_in_bits_per_byte_at_every_length() -> None:
    """Two tokenizers may make as many tokens of a text, at one length or at all."""
    a, b = reading(1), reading(2)
    found = compare_curves([a, replace(b, targets="another tokenizer's")])
    assert {row.metric for row in found.rows[0]} == {"bits_per_byte"}
    fewer = tuple(replace(point, tokens=point.tokens - 1) for point in b.lengths[1:])
    found = compare_curves([a, replace(b, targets="", lengths=(b.lengths[0], *fewer))])
    assert [row.metric for row in found.rows[0]] == ["bits_per_byte"] * 2


def test_the_protocol_is_no_word_in_the_name_of_a_text() -> None:
    a, b = (replace(reading(seed), study="fixed_targets, text legacy") for seed in (1, 2))
    assert all(row.p is not None for row in compare_curves([a, b]).rows[0])
    published = compare_curves([replace(each, protocol="legacy") for each in (a, b)])
    assert any("the published estimator has none" in note for note in published.notes)
