"""A batch of features in place of a batch of images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.errors import UserError

IN_PLACE_OF_IMAGES = (
    "the batch contains stored features of {cut!r} in place of images, so {what} cannot be applied to it: apply it to the images in the "
    "data set, or name another module in FeatureData(cut=...)"
)


class FeatureBatch:
    """A batch of features at one or several cuts. A backbone that takes it runs only the layers above the highest of them.

    Like a tensor it has a length N, a shape and a device, and moves to another; any computation with it is an error that says why.

    Args:
        features: cut -> the features there, (N, ...), the lowest cut first; at least one.
    """

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self.features = dict(features)
        *_, self.cut = self.features

    @property
    def values(self) -> Tensor:
        """The features at the highest cut."""
        return self.features[self.cut]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return self.values.shape

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "FeatureBatch":
        """Move the features to a device, as Lightning does with a batch."""
        return FeatureBatch({cut: values.to(device, non_blocking=non_blocking) for cut, values in self.features.items()})

    def size(self, dim: int | None = None) -> Any:
        """The shape of the values, or one number of it."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise `UserError`: images are expected here."""
        values = [*args, *(kwargs or {}).values()]
        parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
        batch = next(part for part in parts if isinstance(part, cls))
        raise batch._refused(getattr(func, "__name__", "a function of torch"))

    def _refused(self, what: str) -> UserError:
        return UserError(IN_PLACE_OF_IMAGES.format(cut=self.cut, what=what))

    def _operator(self, *_: Any) -> Any:
        raise self._refused("arithmetic, such as images * 2,")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __getitem__ = _operator

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "features":
            raise AttributeError(name)
        raise AttributeError(IN_PLACE_OF_IMAGES.format(cut=self.__dict__.get("cut"), what=f".{name}"))


def accept_features(way: Sequence[nn.Module]) -> None:
    """Let the last of these modules return the values of a `FeatureBatch` that it gets, and those before it, which images pass before, pass
    it on; until `release_features`. A `Backbone` takes features by itself.
    """
    for module in way:
        if not getattr(module, "takes_features", False) and "forward" not in vars(module):
            vars(module)["forward"] = partial(_return_values if module is way[-1] else _pass_on, module)


def release_features(way: Sequence[nn.Module]) -> None:
    """Undo `accept_features`."""
    for module in filter(_accepts, way):
        del vars(module)["forward"]


@contextmanager
def images_only(way: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which `accept_features` has no effect: fingerprints are those of the modules as they were given."""
    accepting = any(map(_accepts, way))
    release_features(way)
    try:
        yield
    finally:
        if accepting:
            accept_features(way)


def _accepts(module: nn.Module) -> bool:
    return getattr(vars(module).get("forward"), "func", None) in (_return_values, _pass_on)


def _return_values(module: nn.Module, images: Any, *args: Any, **kwargs: Any) -> Any:
    return images.values if isinstance(images, FeatureBatch) else type(module).forward(module, images, *args, **kwargs)


def _pass_on(module: nn.Module, images: Any, *args: Any, **kwargs: Any) -> Any:
    return images if isinstance(images, FeatureBatch) else type(module).forward(module, images, *args, **kwargs)
