"""Attention cut at the training context: the model reads a long text, but does not attend farther than in training."""

import contextlib
from collections.abc import Iterator

from gptstar.model import GPT
from gptstar.model.attention import Attention
from gptstar.model.mask import Mask


def cut_mask(mask: Mask, window: int, sinks: int) -> Mask:
    """Return a model's mask cut to a window and a number of sinks.

    A model whose own window is no longer than the cut keeps at most the sinks that it has. One whose window is longer
    saw the text's first tokens throughout its training context, so it gets the sinks of the control.
    """
    if mask.window is None or mask.window > window:
        return Mask(window, sinks)
    return mask if sinks else Mask(mask.window)


@contextlib.contextmanager
def attention_cut(model: GPT, mask: Mask) -> Iterator[None]:
    """Replace a model's mask within the context; everything else stays the same."""
    before = model.mask
    (form, *_) = (module.form for module in model.modules() if isinstance(module, Attention))

    def use(mask: Mask) -> None:
        model.use(
            attention=form,
            logits_at_once=model.logits_at_once,
            attention_window=mask.window,
            attention_sinks=mask.sinks,
        )

    use(mask)
    try:
        yield
    finally:
        use(before)
