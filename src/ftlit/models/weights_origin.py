"""The origin of a backbone's weights: random, published by a library, shipped with ftlit, of an installed package, or a file."""

from dataclasses import dataclass
from typing import Literal, get_args

from ftlit.errors import UserError, unknown

WeightsKind = Literal["random", "shipped", "package", "torchvision", "timm", "transformers", "file", "custom"]


@dataclass(frozen=True)
class WeightsOrigin:
    """Where the weights of a backbone come from, and what was changed to make them fit.

    Args:
        kind: `random`: no pretrained weights. `torchvision`, `timm`, `transformers`: published for that library. `shipped`: part of this
            package. `package`: part of another installed package. `file`: a file that the user named. `custom`: from the user's own code.
        name: name of the weights or path of the file; empty for random weights.
        file: file name under which they are published, if that is not the name.
        resized: tensors whose shape was adapted to the network, position embeddings for instance.
        note: a remark for the plan; no code reads it.

    Raises:
        UserError: an unknown kind.
    """

    kind: WeightsKind = "random"
    name: str = ""
    file: str = ""
    resized: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(WeightsKind):
            raise unknown("kind of weights", self.kind, get_args(WeightsKind))

    @property
    def pretrained(self) -> bool:
        """Whether the weights were trained before; `False` for random ones."""
        return self.kind != "random"

    def describe(self) -> str:
        """One line for the plan and for error messages.

        >>> WeightsOrigin("torchvision", "IMAGENET1K_V1", file="resnet18-f37072fd.pth").describe()
        'torchvision IMAGENET1K_V1 (resnet18-f37072fd.pth)'
        """
        prefix = "random start" if self.kind == "random" else "" if self.kind in ("transformers", "custom") else self.kind
        name = f"({self.name})" if self.kind == "timm" else self.name
        file = f"({self.file})" if self.file else ""
        text = " ".join(part for part in (prefix, name, file) if part)
        text += "".join(f", {tensor} resized" for tensor in self.resized)
        return f"{text}; {self.note}" if self.note else text


RANDOM = WeightsOrigin()


def check_origin(origin: object) -> None:
    """Raise `UserError` if `origin` is not a `WeightsOrigin`, such as the string that `Backbone` used to take."""
    if not isinstance(origin, WeightsOrigin):
        name = repr(origin) if isinstance(origin, str) and origin else '"my weights"'
        random = "" if isinstance(origin, str) and origin else "; for random weights leave origin out"
        raise UserError(f'Backbone(origin={origin!r}): for pretrained weights give origin=ftlit.WeightsOrigin("custom", {name}){random}')
