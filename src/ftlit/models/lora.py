"""Low-rank adaptation (LoRA): a frozen weight W becomes W + (alpha / rank) B A, and only the small matrices A and B train.

Hu et al. 2021 (LoRA: Low-Rank Adaptation of Large Language Models), section 4.1. It is a parametrization of torch: the sum is computed
wherever a module reads the weight, also in attention that does not call its linear layers.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ftlit.errors import UserError
from ftlit.identity.code_identity import versioned
from ftlit.patterns import covers, idle, names_of
from ftlit.plain_arguments import plain_arguments

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
POSITION = re.compile(r"pos|cpb|bias", re.IGNORECASE)  # small networks for positions inside attention: no projection of tokens
WEIGHTS = ("weight", "in_proj_weight")
Target = tuple[str, nn.Module, str]  # name of the weight, its module, its name there


@dataclass(frozen=True)
class Lora:
    """Which weights get low-rank matrices, and of what size.

    Args:
        rank: of the product B A, 1 or more; at most the smaller side of a weight is used.
        alpha: the product is multiplied by alpha / rank; `None`: by 1.
        targets: pattern, or patterns (see `ftlit.patterns`) of weights of linear layers and convolutions without groups; empty: the
            projections of attention, or, in a network without attention, all linear layers and convolutions without groups.

    Raises:
        UserError: a rank below 1, or an alpha that is not above 0.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise UserError(f"LoRA with rank={self.rank!r}: give a whole number, 1 or more, such as 8")
        if self.alpha is not None and not (isinstance(self.alpha, int | float) and 0 < self.alpha < math.inf):
            raise UserError(f"LoRA with alpha={self.alpha!r}: give a number above 0, or leave it out for alpha = rank")
        object.__setattr__(self, "targets", names_of(self.targets))

    @property
    def scale(self) -> float:
        """The factor of the product B A."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@versioned("low_rank", 1)
class LowRank(nn.Module):
    """The parametrization W -> W + scale B A, with A random and B zero, so that the function is unchanged at the beginning.

    Args:
        weight: W, of shape (out, in, ...); trailing dimensions count as input.
        rank: of B A.
        scale: of B A.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as nn.Linear begins

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum, of the shape of W."""
        return weight + self.scale * (self.b @ self.a).view_as(weight)


@plain_arguments
def add_lora(module: nn.Module, lora: Lora = Lora(), within: str | Sequence[str] = "*") -> list[str]:
    """Give weights of `module` low-rank matrices, in place; its output stays the same. Build the optimizer afterwards.

    Applied twice it changes nothing the second time. The names of the weights in a state dict change, see
    `torch.nn.utils.parametrize.register_parametrization`; `merge_lora` undoes this.

    Args:
        module: any module.
        lora: the weights and the size.
        within: pattern, or patterns, of layers of `module` that get matrices.

    Returns:
        The names of the weights that have matrices now.

    Raises:
        UserError: a pattern that covers no such weight, or a weight that has matrices of another size.

    >>> add_lora(net := nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), Lora(rank=2), within=["2"])
    ['2.weight']
    """
    found = list(_targets(module))
    within = names_of(within)
    for pattern in (*within, *lora.targets):
        if not found:
            raise UserError(f"LoRA needs linear layers or convolutions, but {type(module).__name__} has none: use another network")
        if not any(covers(pattern, name) for name, _, _ in found):
            raise idle(pattern, [name for name, _, _ in found])
    chosen = [target for target in found if any(covers(pattern, target[0]) for pattern in within)]
    attention = [target for target in chosen if _in_attention(target[0])]
    if lora.targets:
        chosen = [target for target in chosen if any(covers(pattern, target[0]) for pattern in lora.targets)]
    elif attention:
        chosen = attention
    for name, owner, leaf in chosen:
        if own := _low_rank(owner, leaf):
            if not _is_of(own, lora):
                raise UserError(f"{name} already has LoRA matrices of another rank or alpha: call ftlit.merge_lora(module) first")
        else:
            weight = getattr(owner, leaf)
            parametrize.register_parametrization(owner, leaf, LowRank(weight, lora.rank, lora.scale))
    return [name for name, _, _ in chosen]


@plain_arguments
def merge_lora(module: nn.Module) -> nn.Module:
    """Add the products of the low-rank matrices to their weights and remove the matrices, in place. Returns `module`."""
    for part in list(module.modules()):
        for leaf in WEIGHTS:
            if _low_rank(part, leaf):
                parametrize.remove_parametrizations(part, leaf, leave_parametrized=True)
    return module


def check_lora(module: nn.Module, lora: Lora | None) -> None:
    """Raise `UserError` for matrices in a module that have not the rank and the alpha of the schedule's `lora`; `None`: any will do."""
    for name, part in module.named_modules():
        if lora is not None and isinstance(part, LowRank) and not _is_of(part, lora):
            own = f"Lora(rank={lora.rank}, alpha={lora.alpha})"
            raise UserError(
                f"the schedule has {own}, but {name.partition('.parametrizations')[0]} has LoRA matrices of another rank or alpha: leave "
                f"lora out of the Schedule, or give ftlit.add_lora the same {own}"
            )


def lora_parameters(module: nn.Module) -> set[nn.Parameter]:
    """The matrices A and B in a module."""
    return {parameter for part in module.modules() if isinstance(part, LowRank) for parameter in part.parameters()}


def _targets(module: nn.Module) -> Iterator[Target]:
    """The weights that may have low-rank matrices: of linear layers, of convolutions without groups, and of torch's attention."""
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        plain = isinstance(part, nn.Linear) or (isinstance(part, nn.modules.conv._ConvNd) and part.groups == 1 and not part.transposed)
        if plain:
            yield f"{prefix}weight", part, "weight"
        elif isinstance(part, nn.MultiheadAttention) and part._qkv_same_embed_dim:
            yield f"{prefix}in_proj_weight", part, "in_proj_weight"


def _in_attention(name: str) -> bool:
    modules = name.split(".")[:-1]
    inner = next((i for i, module in enumerate(modules) if ATTENTION.search(module)), None)
    return inner is not None and not any(POSITION.search(module) for module in modules[inner + 1 :])


def _is_of(own: LowRank, lora: Lora) -> bool:
    """Whether matrices have the rank, as far as their weight allows it, and the scale of `lora`."""
    return (own.scale, len(own.a)) == (lora.scale, min(lora.rank, len(own.b), own.a.shape[1]))


def _low_rank(part: nn.Module, leaf: str) -> LowRank | None:
    applied: Any = getattr(part.parametrizations, leaf) if parametrize.is_parametrized(part, leaf) else ()
    return next((own for own in applied if isinstance(own, LowRank)), None)
