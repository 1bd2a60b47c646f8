"""Attention cut at the training context: the model reads a long text, but does not attend farther than in training."""

import contextlib
from collections.abc import Iterator

from gptstar.model import GPT
from gptstar.model.attention import Attention
from gptstar.model.mask import Mask


def cut_mask(mask: Mask, window: int, sinks: int) -> Mask:
    """Return a model's mask cut to a window and a number of sinks; a query never sees more than under its own mask."""
    if mask.window is None:
        return Mask(window, sinks)
    if mask.window <= window and (mask.sinks == 0 or sinks):
        return mask
    return Mask(min(mask.window, window), min(mask.sinks, sinks))


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
