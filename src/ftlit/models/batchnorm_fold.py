"""Fold BatchNorm into y = a x + b per channel, which it is in evaluation mode, and convert it back for export (invariant 7).

Statistics of small batches are noisy. With the pretrained statistics folded into a and b, the output does not depend on the other images
of the batch, a and b still train, and there are no buffers to synchronise between processes.
"""

from collections.abc import Callable, Collection, Mapping
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.errors import UserError, shorten
from ftlit.identity.code_identity import versioned
from ftlit.plain_arguments import plain_arguments

SourceT = TypeVar("SourceT", bound=nn.Module)
ResultT = TypeVar("ResultT", bound=nn.Module)

# Exact classes: a subclass may compute something else (timm's BatchNormAct2d includes an activation).
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@versioned("affine_norm", 1)
class AffineNorm(nn.Module):
    """y = weight x + bias per channel; x is (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W). The initial value is the identity.

    The same in training and in evaluation mode, without buffers. `load_state_dict` accepts its own state and the state of a BatchNorm,
    which it folds (also with `strict=True`).

    Args:
        num_features: C.
        kind: class of the original BatchNorm, which `affine_to_batchnorm` builds again.
        eps: of that BatchNorm.
        momentum: of that BatchNorm.
        implied: those of "weight" and "bias" that the BatchNorm did not have (`affine=False`); they are 1 and 0 when its state is loaded.
    """

    def __init__(
        self,
        num_features: int,
        *,
        kind: type[_BatchNorm] = nn.BatchNorm2d,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        implied: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.num_features, self.kind, self.eps, self.momentum = num_features, kind, eps, momentum
        self.implied = tuple(implied)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Compute a x + b per channel, in the dtype of x."""
        # BatchNorm's kernel with mean 0, variance 1, eps 0 makes one pass over x, `a * x + b` makes two and keeps a copy.
        # Under autocast its output has the dtype of its input, as that of a BatchNorm.
        mean, var = torch.zeros_like(self.bias), torch.ones_like(self.weight)
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=0.0)

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        return f"{self.num_features}, was {self.kind.__name__}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any) -> None:
        """Fold a BatchNorm's state, then load as torch does, which calls this from `load_state_dict`."""
        state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        # An incomplete state is not folded, so that torch's error names the missing keys.
        if {"running_mean", "running_var", *_absent(self.implied)} <= set(state):
            state |= _fold(state, self.eps, torch.promote_types(state["running_mean"].dtype, self.weight.dtype))
            state_dict = {prefix + key: value for key, value in state.items() if key not in STATISTICS}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@plain_arguments
def batchnorm_to_affine(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm in `module` by the a x + b that it is in evaluation mode; exact to rounding, idempotent.

    a = weight / sqrt(running_var + eps) and b = bias - running_mean a, computed in float64. Names of parameters, device, dtype,
    `requires_grad` and mode are kept; parameters that `affine=False` lacked are new and train. All parameters are new objects: rewrite
    before the optimizer is built. Hooks on a BatchNorm are lost.

    Returns:
        `module`, changed in place; the new module if `module` itself is a BatchNorm.

    Raises:
        UserError: a BatchNorm without running statistics, or of a custom class; then nothing is changed.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            _check(norm, f"{name!r} ({type(norm).__name__})" if name else type(norm).__name__)
    return _replace(module, _BatchNorm, _affine)


@plain_arguments
def affine_to_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every `AffineNorm` in `module` by a BatchNorm of its original class, for export; the same function in evaluation mode.

    running_mean = 0, running_var = 1 - eps, weight = a, bias = b; `batchnorm_to_affine` then gives the same a and b, bit for bit. Class,
    eps and momentum are the original ones; `affine=False` becomes `affine=True`, and a SyncBatchNorm uses the default process group. Do
    not continue to train it: its statistics are not those of the data.

    Returns:
        `module`, changed in place; the new module if `module` itself is an `AffineNorm`.
    """
    return _replace(module, AffineNorm, _batchnorm)


def load_either(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict with BatchNorms or `AffineNorm`s into `module`, which has either of them, as `strict=True` does.

    Loading into an `AffineNorm` is the work of torch's `load_state_dict`. This function adds the other direction: a BatchNorm for which
    `state` has a weight but no running statistics gets mean 0 and variance 1 - eps. A BatchNorm with `affine=False` cannot represent a
    and b. `state` is not changed.

    Raises:
        RuntimeError: torch's error with the missing or unexpected keys.
    """
    whole: Any = copy(state)  # keeps `_metadata`, in which torch stores the version of each module's state
    for name, norm in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        affine = prefix + "weight" in state and not any(prefix + key in state for key in STATISTICS)
        if affine and isinstance(norm, _BatchNorm) and norm.running_var is not None:
            identity = {key: torch.zeros_like(norm.get_buffer(key)) for key in STATISTICS}
            identity["running_var"] += 1 - norm.eps
            whole |= {prefix + key: value for key, value in identity.items()}
    module.load_state_dict(whole)


def _check(norm: _BatchNorm, what: str) -> None:
    if type(norm) not in BATCHNORMS:
        known = shorten(kind.__name__ for kind in BATCHNORMS)
        raise UserError(f"{what} cannot be folded into a scale and a shift: replace it by one of {known}")
    if norm.running_mean is None:
        raise UserError(
            f"{what} has no running statistics, so it cannot be folded into a scale and a shift: build it with track_running_stats=True"
        )


def _replace(module: nn.Module, old: type[SourceT], make: Callable[[SourceT], nn.Module]) -> nn.Module:
    """Replace each module m of class `old` by `make(m)`, called once for each, so that a shared module stays shared."""
    new: dict[nn.Module | None, nn.Module] = {child: make(child) for child in module.modules() if isinstance(child, old)}
    for parent in module.modules():
        parent._modules.update({name: new[child] for name, child in parent._modules.items() if child in new})
    return new.get(module, module)


def _affine(norm: _BatchNorm) -> AffineNorm:
    state = norm.state_dict()
    new = AffineNorm(norm.num_features, kind=type(norm), eps=norm.eps, momentum=norm.momentum, implied=_absent(state))
    new.to(state.get("weight", state["running_mean"])).load_state_dict(state)
    return _with_state_of(norm, new)


def _batchnorm(affine: AffineNorm) -> _BatchNorm:
    new = affine.kind(affine.num_features, eps=affine.eps, momentum=affine.momentum).to(affine.weight)
    load_either(new, affine.state_dict())
    return _with_state_of(affine, new)


def _with_state_of(old: nn.Module, new: ResultT) -> ResultT:
    """Give `new` the mode of `old`, and each parameter the `requires_grad` that it has in `old`."""
    for name, parameter in old.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(old.training)


def _absent(names: Collection[str]) -> tuple[str, ...]:
    """Select those of weight and bias that are not in `names`."""
    return tuple(name for name in ("weight", "bias") if name not in names)


def _fold(state: Mapping[str, Tensor], eps: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute a and b of a BatchNorm's state in float64, with weight 1 and bias 0 if the state has none."""
    device = state["running_mean"].device
    fold_device = device if device.type == "meta" else "cpu"  # not every accelerator has float64
    wide = {key: value.detach().to(fold_device, torch.float64) for key, value in state.items()}
    a = wide.get("weight", torch.ones(())) / torch.sqrt(wide["running_var"] + eps)
    b = wide.get("bias", torch.zeros(())) - wide["running_mean"] * a
    return {"weight": a.to(device, dtype), "bias": b.to(device, dtype)}
