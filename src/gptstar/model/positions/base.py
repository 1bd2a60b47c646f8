"""The interface of all kinds of positions. Exported models carry this file, so it imports torch only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


class Sizes(Protocol):
    """The sizes of a model on which a kind's parameters may depend."""

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
    """Pairs of queries and keys for which a bias is computed.

    Attributes:
        queries: `(batch or 1, query)`, int64: position of each query in its text.
        keys: `(batch or 1, key)`, int64: position of each key. A query's own token is among the keys.
        allowed: `(batch or 1, query, key)`, bool: whether a query attends to a key; None if each attends to all.
        places: `(batch, query)`, int64: position of each query in its document, if a window may hold several.
        is_run: whether the keys are all tokens from position 0 on, in order, and the queries are the last of them.
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
    """Return each token's position in its document, given each token's document: both `(batch, position)`, int64."""
    at = torch.arange(documents.shape[1], device=documents.device)
    begins = nn.functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return at - torch.where(begins, at, 0).cummax(dim=1).values


def by_diagonal(table: Tensor, n_queries: int) -> Tensor:
    """Expand a table of values by distance to pairs, for the last queries of a text; keys after a query get 0.

    It uses no indexing, so that the table's gradient is summed in the same order each time.

    Args:
        table: `(head, distance)`, for the distances from 0 to the number of keys minus 1.
        n_queries: the number of queries.

    Returns:
        `(1, head, query, key)`.
    """
    n_keys = table.shape[1]
    from_far = nn.functional.pad(table.flip(1), (0, n_queries - 1))
    return from_far.unfold(1, n_keys, 1).flip(1)[None]


Bias = Callable[[Pairs], Tensor]
"""A function that returns the bias of pairs, to be added to scores: `(batch or 1, head, query, key)`, float32."""


@dataclass(frozen=True)
class Scaling:
    """A scaling of positions, to read further than in training.

    Attributes:
        method: one of the kind's `scalings`.
        factor: the context length divided by that of training, 1 or more; 1 changes nothing.
        trained_at: the context length in training.
    """

    method: str
    factor: float
    trained_at: int


@dataclass(frozen=True)
class Positions:
    """A kind of positions: a frozen dataclass whose fields are its keys in a configuration.

    A kind overrides the methods that it needs:

    - `embed` changes the embedded tokens.
    - `rotate` turns queries and keys.
    - `slopes` adds a bias that is linear in the distance, `by_distance` any other function of the distance, and `bias`
      anything else.
    - `parameters` makes the kind's parameters, and `initial` draws their initial values.
    - `per_token` computes from a layer's input what the KV cache stores for each token.

    Weight decay applies only to the weights of a kind's `nn.Linear` modules. A learned number per head should be an
    `nn.Parameter` of the kind's own module.

    Attributes:
        name_in_model: the prefix of the parameters' names in the state dict: `NAME.…` if all layers share them,
            otherwise `blocks.0.attention.NAME.…`.
        per_layer: whether each layer has its own parameters.
        restarts: whether `embed` counts from 0 again in each document of a window.
        scalings: the methods of `Scaling` that the kind supports.
        scaling_key: the key of a study of context length that chooses among `scalings`.
        adds_bias: whether the class overrides `slopes`, `by_distance` or `bias`.
        reads_input: whether the class overrides `per_token`.
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
        """The number of positions; None if there is no limit."""
        return None

    @property
    def extrapolates(self) -> bool:
        """Whether a model can read more tokens than it was trained with."""
        return self.capacity is None

    @property
    def needs_capacity(self) -> bool:
        """Whether `with_capacity` must be called before use."""
        return False

    def with_capacity(self, n_ctx: int) -> "Positions":
        """Return the same kind with `n_ctx` positions; only for kinds that `needs_capacity`."""
        raise NotImplementedError

    def trained_with(self, context_length: int) -> "Positions":
        """Return the same kind for a training context of `context_length` tokens; most kinds do not depend on it."""
        return self

    def check(self, sizes: Sizes) -> None:
        """Raise a ValueError for sizes that the kind can't work with, naming the key, the value, the rule and a fix."""

    def parameters(self, sizes: Sizes) -> nn.Module | None:
        """Make the parameters of the model, or with `per_layer` those of one layer; None if there are none."""
        return None

    def n_params(self, sizes: Sizes) -> int:
        """Count the parameters in the whole model."""
        with torch.device("meta"):
            module = self.parameters(sizes)
        count = 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
        return count * (sizes.n_layers if self.per_layer else 1)

    def initial(self, name: str, shape: torch.Size) -> Tensor | None:
        """Draw a parameter's initial value on the CPU, by its name within `parameters`.

        None means the model's default: zeros if the name ends with `bias`, otherwise N(0, 0.02).
        """
        return None

    def embed(self, x: Tensor, at: Tensor | None, parameters: nn.Module | None) -> Tensor:
        """Add positions to embedded tokens.

        Args:
            x: `(batch, position, d_model)`; the result has its shape and type.
            at: `(batch or 1, position)`, int64: positions in the text; None means 0, 1, 2 ….
            parameters: the parameters that all layers share.
        """
        return x

    def rotate(self, query: Tensor, key: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
        """Turn queries and keys by their positions, in their shapes and types.

        Args:
            query: `(batch, head, query, d_head)`.
            key: `(batch, head, position, d_head)`.
            query_at: `(batch or 1, query)`, int64: positions in the text.
            key_at: `(batch or 1, position)`, int64; the same object as `query_at` if each token is a query.
        """
        return query, key

    def per_token(self, x: Tensor, parameters: nn.Module | None) -> Tensor | None:
        """Compute from a layer's input what the KV cache stores for each token, in addition to keys and values.

        Args:
            x: `(batch, position, d_model)`, the normed input of the layer's attention.
            parameters: the layer's parameters, or those that all layers share.

        Returns:
            `(batch, head, position, width)`, float32, or None. `bias` receives it for all keys.
        """
        return None

    def slopes(self, n_heads: int, device: torch.device) -> Tensor | None:
        """Return the slope of each head, `(head,)`, float32, if the bias is `-slope * distance`; otherwise None.

        The fast kernels take slopes in place of a bias. Compute them on the device, because a compiled graph must hold
        neither a constant nor a copy from the host.
        """
        return None

    def by_distance(self, distance: Tensor, n_heads: int, parameters: nn.Module | None) -> Tensor:
        """Return the bias at each distance, for kinds whose bias depends on nothing else.

        FlexAttention reads it as a table, but can't train it reproducibly: its kernel would sum the table's gradient in
        a different order each time.

        Args:
            distance: any shape, int64, 0 or more.
            parameters: the layer's parameters, or those that all layers share.

        Returns:
            `(head, …)`, float32.
        """
        raise NotImplementedError

    def bias(self, pairs: Pairs, n_heads: int, parameters: nn.Module | None, per_token: Tensor | None) -> Tensor:
        """Return the bias of pairs; in long texts it is called for one block of queries at a time.

        A kind that overrides this method can't use FlexAttention. The attention mask is applied afterwards.

        Args:
            pairs: queries and their keys.
            parameters: the layer's parameters, or those that all layers share.
            per_token: `(batch, head, key, width)`, the result of the method `per_token` for each key.

        Returns:
            `(batch or 1, head, query, key)`, always float32, because bfloat16 can't distinguish 256 from 257.
        """
        if self.is_of_distance and pairs.is_run:
            distance = torch.arange(pairs.keys.shape[1], device=pairs.keys.device)
            return by_diagonal(self.by_distance(distance, n_heads, parameters), pairs.queries.shape[1])
        if self.is_of_distance:
            distance = pairs.distance[:, 0].clamp(min=0)  # it is negative for keys after the query, which are masked
            return self.by_distance(distance, n_heads, parameters).transpose(0, 1)
        slopes = self.slopes(n_heads, pairs.keys.device)
        assert slopes is not None
        return -slopes[:, None, None] * pairs.distance

    def scaled(self, scaling: Scaling) -> "Positions":
        """Return the same kind, scaled to read further than in training.

        Raises:
            ValueError: the kind doesn't support the method.
        """
        known = ", ".join(self.scalings) or "none"
        raise ValueError(f"{scaling.method} is not a scaling of {type(self).__name__}: choose one of these: {known}")
