"""How large everything is that is compared: shapes of models, batches, contexts, on a CPU and on a GPU."""

from dataclasses import dataclass, replace

from gptstar.entry import compose
from gptstar.model import GPTConfig

GPU_LOOP = (
    "data=bundled",
    "model=gpt127",
    "model.n_vocab=4096",  # the bundled text is too short for more
    "data.context_length=512",
    "batch_tokens=131072",
    "hardware.micro_batch_size=64",
    "schedule.warmup_steps=10",
)


def shape(name: str) -> GPTConfig:
    """A model of `conf/model`."""
    return GPTConfig(**compose("train", [f"model={name}"]).model)


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        gpt2_304m: GPT-2's shape with as many parameters as gpt303.
        batch: sequences of `context` tokens a training step; `gpt303_batch`: of gpt303; `large_batch`: where memory is
            compared, and on a GPU where the batch is.
        prompt, n_new: tokens of decoding; `slow_new`: of what decodes slowly.
        rows: that are decoded at once.
        lengths: of windows whose loss is computed; the first and `far` are compared.
        original_length: the longest that is tried in the original's way, within `address_space` bytes.
        loop: overrides of the run whose loop is measured, and `loop_steps` of a round.
    """

    gpt127: GPTConfig
    gpt303: GPTConfig
    gpt2_small: GPTConfig
    gpt2_304m: GPTConfig
    batch: int = 2
    gpt303_batch: int = 2
    large_batch: int = 8
    context: int = 512
    prompt: int = 512
    n_new: int = 32
    slow_new: int = 2
    prefill: int = 1024
    rows: int = 8
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    far: int = 8192
    original_length: int = 8192
    address_space: int | None = 17 * 10**9
    loop: tuple[str, ...] = (
        "data=bundled",
        "model.n_layers=6",
        "model.d_model=512",
        "model.n_heads=4",
        "model.n_vocab=4096",
        "data.context_length=512",
        "batch_tokens=2048",
        "hardware.micro_batch_size=2",
        "schedule.warmup_steps=10",
    )
    loop_steps: int = 4

    @classmethod
    def of(cls, device: str, *, long: bool = False) -> "Scale":
        """The sizes for a device.

        Args:
            long: also read windows that a CPU takes minutes for.
        """
        gpt2 = shape("gpt2_small")
        scale = cls(shape("gpt127"), shape("gpt303"), gpt2, replace(gpt2, n_layers=20, d_model=1024, n_heads=16))
        if device == "cuda":
            return replace(
                scale,
                batch=64,
                gpt303_batch=32,
                large_batch=128,
                n_new=256,
                slow_new=64,
                loop=GPU_LOOP,
            )
        return replace(scale, lengths=(*scale.lengths, 16384, 32768)) if long else scale
