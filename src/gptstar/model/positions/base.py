"""What a kind of positions may do. Exported models carry this file: it needs torch and the standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


class Sizes(Protocol):
    """Sizes of a model that parameters may depend on."""

    @property
    def n_layers(self) -> int: ...  # noqa: D102  # the names say it
    @property
    def d_model(self) -> int: ...  # noqa: D102
    @property
    def n_heads(self) -> int: ...  # noqa: D102
    @property
    def head_width(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries, and the keys that they may attend to.

    Attributes:
        queries: `(batch or 1, query)`, int64: position of each query in its text.
        keys: `(batch or 1, key)`, int64: position of each key. A query's own token is among the keys.
        allowed: `(batch or 1, query, key)`, bool: whether a query attends to a key; None where each attends to all.
        places: `(batch, query)`, int64: position of each query in its document, where a window may hold several.
        is_run: whether the keys are all tokens from position 0 on, in order, and the queries the last of them.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor | None = None
    places: Tensor | None = None
    is_run: bool = False

    @property
    def distance(self) -> Tensor:
        """Distance from each query back to each key: `(batch or 1, 1, query, key)`, int64."""
        return self.queries[:, None, :, None] - self.keys[:, None, None, :]

    @property
    def mask(self) -> Tensor:
        """Attention mask, `(batch or 1, query, key)`, bool: True where a query attends to a key."""
        if self.allowed is not None:
            return self.allowed
        shape = (1, self.queries.shape[1], self.keys.shape[1])
        return torch.ones(shape, dtype=torch.bool, device=self.keys.device)


def places_in_documents(documents: Tensor) -> Tensor:
    """Position of each token in its document, by the documents of a window: `(batch, position)`, int64, both."""
    at = torch.arange(documents.shape[1], device=documents.device)
    begins = nn.functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return at - torch.where(begins, at, 0).cummax(dim=1).values


def by_diagonal(table: Tensor, n_queries: int) -> Tensor:
    """Values of distances for the last queries of a run; later keys get zeros.

    No indices are gathered, so that a table's gradient is summed in the same order each time.

    Args:
        table: `(head, distance)`, from distance 0 to the length less one.

    Returns:
        `(1, head, query, key)`.
    """
    n_keys = table.shape[1]
    from_far = nn.functional.pad(table.flip(1), (0, n_queries - 1))
    return from_far.unfold(1, n_keys, 1).flip(1)[None]


Bias = Callable[[Pairs], Tensor]
"""A function that returns what is added to the scores of pairs: `(batch or 1, head, query, key)`, float32."""


@dataclass(frozen=True)
class Scaling:
    """How positions are stretched to read further than in training.

    Attributes:
        method: one of the kind's `scalings`.
        factor: the context length over that of training, 1 or more; 1 changes nothing.
        trained_at: the context length in training.
    """

    method: str
    factor: float
    trained_at: int


@dataclass(frozen=True)
class Positions:
    """A kind of positions: a frozen dataclass whose fields are its keys in a configuration.

    A kind overrides what it does:

    - `embed` adds to embedded tokens.
    - `rotate` turns queries and keys.
    - `slopes` adds to scores what is linear in the distance, `by_distance` any other function of it; `bias` adds
      anything else.
    - `parameters` makes parameters, and `initial` draws them.
    - `per_token` reads from a layer's input what the KV cache keeps of each token.

    Weight decay applies to the weights of a kind's `nn.Linear` modules and to nothing else of it. A number per head
    belongs into an `nn.Parameter` of a module of the kind's own.

    Attributes:
        name_in_model: the beginning of the parameters' names in the state dict: `NAME.…` where layers share them, else
            `blocks.0.attention.NAME.…`.
        per_layer: whether each layer has parameters of its own.
        restarts: whether `embed` counts anew in each document of a window that holds several.
        scalings: methods of `Scaling` that the kind knows.
        scaling_key: the key of a study of context length that chooses among them.
        adds_bias, reads_input: whether the class overrides one that adds to scores, and `per_token`.
        is_of_distance: whether the class overrides `by_distance`.
    """

    name_in_model: ClassVar[str] = "position_parameters"
    per_layer: ClassVar[bool] = False
    restarts: ClassVar[bool] = False
    scalings: ClassVar[tuple[str, ...]] = ()
    scaling_key: ClassVar[str] = ""
    adds_bias: ClassVar[bool] = False
    reads_input: ClassVar[bool] = False
    is_of_distance: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.is_of_distance = cls.by_distance is not Positions.by_distance
        cls.adds_bias = cls.is_of_distance or cls.slopes is not Positions.slopes or cls.bias is not Positions.bias
        cls.reads_input = cls.per_token is not Positions.per_token

    @property
    def capacity(self) -> int | None:
        """The number of positions; None where there is no limit."""
        return None

    @property
    def extrapolates(self) -> bool:
        """Whether a model reads more tokens than it was trained with."""
        return self.capacity is None

    @property
    def needs_capacity(self) -> bool:
        """Whether `with_capacity` has to be called before use."""
        return False

    def with_capacity(self, n_ctx: int) -> "Positions":
        """Return the same kind with `n_ctx` positions, where it `needs_capacity`."""
        raise NotImplementedError

    def trained_with(self, context_length: int) -> "Positions":
        """Return the same kind for a training context of so many tokens, where it depends on that."""
        return self

    def check(self, sizes: Sizes) -> None:
        """Raise a ValueError, with key, value, rule and fix, for sizes that the kind can't work with."""

    def parameters(self, sizes: Sizes) -> nn.Module | None:
        """Make the parameters: once, or with `per_layer` for each layer."""
        return None

    def n_params(self, sizes: Sizes) -> int:
        """Count the parameters in the whole model."""
        with torch.device("meta"):
            module = self.parameters(sizes)
        count = 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
        return count * (sizes.n_layers if self.per_layer else 1)

    def initial(self, name: str, shape: torch.Size) -> Tensor | None:
        """Draw a parameter on the CPU, by its name within `parameters`.

        None leaves it to the model: zeros where the name ends with `bias`, else N(0, 0.02).
        """
        return None

    def embed(self, x: Tensor, at: Tensor | None, parameters: nn.Module | None) -> Tensor:
        """Add positions to embedded tokens.

        Args:
            x: `(batch, position, d_model)`; the result has its shape and type.
            at: `(batch or 1, position)`, int64: positions in the text; None means 0, 1, 2 ….
            parameters: those that layers share.
        """
        return x

    def rotate(self, query: Tensor, key: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys by their positions, in their shapes and types.

        Args:
            query: `(batch, head, query, d_head)`.
            key: `(batch, head, position, d_head)`.
            query_at: `(batch or 1, query)`, int64: positions in the text.
            key_at: `(batch or 1, position)`, int64; the same object as `query_at` where each token is a query.
        """
        return query, key

    def per_token(self, x: Tensor, parameters: nn.Module | None) -> Tensor | None:
        """Read from a layer's input what the KV cache keeps of each token, beside keys and values.

        Args:
            x: `(batch, position, d_model)`, the normed input of the layer's attention.

        Returns:
            `(batch, head, position, width)`, float32, or None. `bias` gets it for all keys.
        """
        return None

    def slopes(self, n_heads: int, device: torch.device) -> Tensor | None:
        """Slope of each head, `(head,)`, float32, where a score gets `-slope * distance`; None where it does not.

        Fast kernels need no more than these. A compiled graph must hold neither a constant nor a copy from the host, so
        compute them on the device.
        """
        return None

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Return what a score gets at a distance, where nothing else counts.

        FlexAttention reads it as a table. It does not train such a table: it would sum the gradient in another order
        each time.

        Args:
            distance: any shape, int64, 0 or more.
            parameters: those of the layer, or those that layers share.

        Returns:
            `(head, …)`, float32.
        """
        raise NotImplementedError

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Return what is added to scores, by blocks of queries where a text is long.

        A kind that overrides it has no form in FlexAttention. The attention mask is applied afterwards.

        Args:
            pairs: some queries and their keys.
            parameters: those of the layer, or those that layers share.
            per_token: `(batch, head, key, width)`, what `per_token` returned for each of the keys.

        Returns:
            `(batch or 1, head, query, key)`, float32 whatever the model computes in: bfloat16 can't tell 256 from 257.
        """
        if self.is_of_distance and pairs.is_run:
            distance = torch.arange(pairs.keys.shape[1], device=pairs.keys.device)
            return by_diagonal(self.by_distance(distance, n_heads, parameters), pairs.queries.shape[1])
        if self.is_of_distance:
            distance = pairs.distance[:, 0].clamp(min=0)  # that of a hidden key may be below
            return self.by_distance(distance, n_heads, parameters).transpose(0, 1)
        slopes = self.slopes(n_heads, pairs.keys.device)
        assert slopes is not None
        return -slopes[:, None, None] * pairs.distance

    def scaled(self, scaling: Scaling) -> "Positions":
        """Return the same kind, stretched to read further than in training.

        Raises:
            ValueError: the kind doesn't know the method.
        """
        known = ", ".join(self.scalings) or "none"
        raise ValueError(f"{scaling.method} is not a scaling of {type(self).__name__}: choose one of these: {known}")
