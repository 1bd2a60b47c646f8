"""How large everything is that is compared: shapes of models, batches, contexts, on a CPU and on a GPU."""

from dataclasses import dataclass, replace

from omegaconf import OmegaConf

from gptstar.model import GPTConfig
from speed.worker import ROOT


def shape(name: str) -> GPTConfig:
    """A model of `conf/model`."""
    return GPTConfig(**OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scale:
    """Sizes of everything.

    Attributes:
        batch: sequences of `context` tokens a training step; `large_batch`: where memory is compared.
        prompt, n_new: tokens of decoding; `slow_new`: of what reads all anew for each.
        lengths: of windows whose loss is computed; the first and `far` are compared.
        original_length: the longest that is tried in the original's way, within `address_space` bytes.
        loop: overrides of the run whose loop is measured, and `loop_steps` of a round.
    """

    gpt127: GPTConfig
    gpt303: GPTConfig
    gpt2_small: GPTConfig
    batch: int = 2
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
        """What a device is asked for; `long` adds windows that a CPU takes minutes for."""
        scale = cls(gpt127=shape("gpt127"), gpt303=shape("gpt303"), gpt2_small=shape("gpt2_small"))
        if long:
            scale = replace(scale, lengths=(*scale.lengths, 16384, 32768))
        if device == "cuda":
            micro_batch = ("batch_tokens=65536", "hardware.micro_batch_size=32")
            scale = replace(
                scale,
                batch=32,
                large_batch=64,
                n_new=128,
                slow_new=16,
                address_space=None,
                loop=(*scale.loop, *micro_batch),
                loop_steps=20,
            )
        return scale
