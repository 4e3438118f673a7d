"""The backbone: an ordered list of named layers. A cut is the place right after a layer; its output there are the features.

Features have one of three shapes: a map (N, C, H, W), tokens (N, T, C) or vectors (N, C). Layers that compute in another order
(Swin: N, H, W, C) are wrapped so that this holds at every cut.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, unknown
from ftlit.identity.code_identity import versioned
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.pooling import Pooling, TokenPool, pool, pooled_size
from ftlit.models.weights_origin import RANDOM, WeightsOrigin, check_origin
from ftlit.patterns import names_of


@versioned("layers", 1)
class Layers(nn.Module):
    """Named layers that run one after the other.

    `encoder.3` is child `3` of a container `encoder`, so a layer's name is the prefix of its parameters' names.

    Args:
        layers: name -> module, in forward order. No layer may lie inside another or have the name of an attribute of the class (`pool`).

    Raises:
        UserError: an invalid name.
    """

    _fields: tuple[str, ...] = ()  # attributes of instances of a subclass

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.cuts: tuple[str, ...] = tuple(layers)
        _check_names(self.cuts, {*dir(self), *self._fields})
        for name, layer in layers.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(leaf, layer)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over (name, layer) in forward order."""
        return ((name, self.get_submodule(name)) for name in self.cuts)

    def forward(self, x: Tensor) -> Tensor:
        """Run every layer."""
        for name in self.cuts:
            x = self.get_submodule(name)(x)
        return x


def _check_names(names: Sequence[str], taken: set[str]) -> None:
    for name in names:
        first, *inner = name.split(".")
        if not all((first, *inner)):
            raise UserError(
                f"{name!r} is not a valid layer name, because it has an empty part: give a name such as 'layer1' or 'encoder.0'"
            )
        if attribute := first if first in taken else next((part for part in inner if part in dir(nn.Module)), ""):
            owner = "nn.Module" if attribute in dir(nn.Module) else "Backbone"
            raise UserError(
                f"{name!r} is not a valid layer name, because {attribute!r} is the name of an attribute of {owner}: choose another name"
            )
        if inside := [other for other in names if other.startswith(f"{name}.")]:
            raise UserError(f"layer {inside[0]!r} lies inside layer {name!r}: give separate layers, such as {name}.0 and {name}.1")


@versioned("backbone", 1)
class Backbone(Layers):
    """A pretrained network without its classifier: ordered named layers and the input they expect.

    `backbone(x)` takes images (N, 3, size, size), normalised according to `input_spec`, or token ids (N, T) if that is a `TextSpec`, and
    returns the features at the last cut. It also takes a `FeatureBatch` and continues from its cut, unless the features are pooled.
    Invariant 1: `backbone.after(c)(backbone.upto(c)(x)) == backbone(x)` for every cut c.

    Args:
        layers: name -> module, in forward order.
        input_spec: the input that the weights expect: size and normalisation of images, or tokenizer and length of texts.
        token_pool: how tokens are pooled, if this network has any.
        origin: where the weights come from; random weights by default.
        trained_with: the input that the weights were trained with, if known.
        reinit: names of the reinitialized layers, in forward order.
        record: the loader's name and its arguments, plain values, that build the backbone again; `None` for a custom backbone.
    """

    takes_features = True
    _fields = ("input_spec", "token_pool", "origin", "trained_with", "reinit", "record")

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        input_spec: InputSpec | TextSpec,
        *,
        token_pool: TokenPool = "mean",
        origin: WeightsOrigin = RANDOM,
        trained_with: InputSpec | None = None,
        reinit: Sequence[str] = (),
        record: Mapping[str, Any] | None = None,
    ) -> None:
        if not layers:
            raise UserError("a backbone needs at least one layer")
        check_origin(origin)
        super().__init__(layers)
        self.input_spec = input_spec
        self.token_pool: TokenPool = token_pool
        self.origin = origin
        self.trained_with = trained_with
        self.reinit = tuple(reinit)
        self.record = record
        self._on_meta: dict[tuple[int, ...], dict[str, tuple[tuple[int, ...], int]]] = {}

    def forward(self, x: Tensor | FeatureBatch) -> Tensor:
        """Run every layer, or those above the highest cut of a `FeatureBatch`."""
        return self.features_at(x, self.cuts[-1:])[0]

    def features_at(self, x: Tensor | FeatureBatch, cuts: str | Sequence[str]) -> list[Tensor]:
        """Features at each of `cuts` (names), in one pass up to the highest of them.

        Args:
            x: as `forward` takes it. A `FeatureBatch` has the features at all of `cuts` that are not above its highest cut.
            cuts: names of layers.
        """
        cuts, found, features, begin = names_of(cuts), {}, x, 0
        if not isinstance(x, Tensor):
            highest = max(x.features, key=self.index)
            found, features, begin = dict(x.features), x.features[highest], self.index(highest) + 1
        for name in self.cuts[begin : max(map(self.index, cuts)) + 1]:
            features = self.get_submodule(name)(features)
            if name in cuts:
                found[name] = features
        return [found[cut] for cut in cuts]

    def upto(self, cut: str | int) -> "Backbone":
        """Return the layers up to and including `cut` as a backbone. The modules are shared, not copied.

        Args:
            cut: name of a layer, or its index: -1 is the last layer (the whole backbone), -2 the one before.
        """
        kept = self.cuts[: self.index(cut) + 1]
        layers = {name: layer for name, layer in self.items() if name in kept}
        lower = Backbone(
            layers,
            self.input_spec,
            token_pool=self.token_pool,
            origin=self.origin,
            trained_with=self.trained_with,
            reinit=[name for name in self.reinit if name in kept],
            record=self.record and {**self.record, "cut": kept[-1]},
        )
        lower._on_meta = {shape: {name: found[name] for name in kept} for shape, found in self._on_meta.items()}
        return lower

    def after(self, cut: str | int) -> Layers:
        """Return the layers above `cut` (none for the last cut). The modules are shared, not copied."""
        kept = self.cuts[self.index(cut) + 1 :]
        return Layers({name: layer for name, layer in self.items() if name in kept})

    def index(self, cut: str | int) -> int:
        """Return the index of a cut, from 0. Raises `UserError` with the closest name if there is no such layer."""
        if isinstance(cut, int) and -len(self.cuts) <= cut < len(self.cuts):
            return cut % len(self.cuts)
        if cut not in self.cuts:
            raise unknown("layer", cut, self.cuts)
        return self.cuts.index(str(cut))

    def pool(self, features: Tensor, pooling: Pooling = "average") -> Tensor:
        """Pool features at any cut to vectors (N, C); see `ftlit.models.pooling.pool`."""
        return pool(features, self.token_pool, pooling)

    @cached_property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Cut -> shape of one image's features there, at the size of `input_spec`; found on the `meta` device, without computation."""
        return {cut: shape for cut, (shape, _) in self.on_meta(self.input_spec.shape).items()}

    def on_meta(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], int]]:
        """Find the shape of one input's features at each cut, and the number of floating-point operations up to it, without computation.

        Args:
            shape: shape of one input: (3, H, W) of an image, (T,) of the token ids of a text.

        Returns:
            Cut -> (shape, operations).
        """
        if tuple(shape) in self._on_meta:
            return self._on_meta[tuple(shape)]
        found = {}
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        features = torch.empty(1, *shape, dtype=torch.int64 if len(shape) == 1 else dtype, device="meta")
        with FlopCounterMode(display=False) as counter:
            for name, layer in self.items():
                features = run_on_meta(layer, features)
                found[name] = tuple(features.shape[1:]), counter.get_total_flops()
        self._on_meta[tuple(shape)] = found
        return found

    @property
    def layers_with_parameters(self) -> tuple[str, ...]:
        """Names of the layers that have parameters, lowest first: the layers of a schedule."""
        return tuple(name for name, layer in self.items() if any(True for _ in layer.parameters()))

    @property
    def pretrained(self) -> bool:
        """Whether the weights were trained before, except those of reinitialized layers."""
        return self.origin.pretrained

    @property
    def random_layers(self) -> tuple[str, ...]:
        """Names of the layers that start from random weights, lowest first: the reinitialized ones, or all of a random start."""
        return self.reinit if self.pretrained else self.cuts

    @property
    def num_features(self) -> int:
        """Length of the pooled features at the last cut."""
        return pooled_size(self.feature_shapes[self.cuts[-1]], self.token_pool)


def compiled_parts(module: nn.Module) -> int:
    """The number of modules in `module`, itself included, that run compiled by `Module.compile`; torch has no function for it."""
    return sum(part._compiled_call_impl is not None for part in module.modules())


def run_on_meta(layer: nn.Module, features: Tensor) -> Tensor:
    """Run `layer` on the `meta` device, which gives shapes only. The layer stays as it is, including any state of a forward pass."""
    before = {module: dict(vars(module)) for module in layer.modules()}
    state = {name: torch.empty_like(t, device="meta") for name, t in [*layer.named_parameters(), *layer.named_buffers()]}
    try:
        # nothing to gain for a compiled layer; without torch's compiler, which takes long to import, there is none
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo.eval_frame" in sys.modules else nullcontext()
        with torch.no_grad(), eager:
            return torch.func.functional_call(layer.eval(), state, (features,))  # type: ignore[no-any-return]
    finally:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
