"""Number formats that suit a device, and the precision of float32 matrix products and convolutions.

torch has two interfaces to TF32 and the like. Once the newer one (`torch.backends.cuda.matmul.fp32_precision`, torch 2.9) was used, the
older one (`torch.get_float32_matmul_precision`) raises, so settings are read with the newer one where it exists.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ftlit.data.tokens import TextSpec
from ftlit.models.backbone import Backbone

MIN_BF16_OPERATIONS = 2e8  # per input on a CPU: the casts of a smaller network cost as much as bfloat16 gains
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
BACKENDS = {"cuda": ("cuda.matmul", "cudnn.conv"), "cpu": ("mkldnn.matmul", "mkldnn.conv")}  # device type -> products, convolutions
NAMES = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}  # torch's names for products


@dataclass(frozen=True)
class Device:
    """What decides on the number format of a network.

    Args:
        type: `cpu`, `cuda`, `mps`, ...
        capability: of a CUDA device: (8, 0) for an A100.
        bf16: whether a CPU multiplies matrices of bfloat16 faster than those of float32.
    """

    type: str
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False


def device_of(accelerator: str = "auto") -> Device:
    """The device that Lightning takes for an accelerator (`auto`, `cpu`, `gpu`, ...), the first one of several."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return Device("cuda", torch.cuda.get_device_capability())
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return Device("mps")
    if accelerator not in ("auto", "cpu"):
        return Device(accelerator)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # earlier releases of torch lack it
    return Device("cpu", bf16=bool(known.get("avx512_bf16") or known.get("amx_tile")))


def precision_of(device: Device, operations: float) -> str:
    """The fastest precision, in Lightning's names, that keeps accuracy. Depends on the device and the network only, not on a clock.

    On CUDA bfloat16 from capability 8.0 (`torch.cuda.is_bf16_supported` is true also where it is emulated), float16 from 7.0.

    Args:
        device: that the network runs on.
        operations: floating-point operations of the network for one input, see `Backbone.on_meta`.
    """
    if device.type == "cuda" and device.capability >= (7, 0):
        return "bf16-mixed" if device.capability >= (8, 0) else "16-mixed"
    if device.type == "cpu" and device.bf16 and operations >= MIN_BF16_OPERATIONS:
        return "bf16-mixed"
    return "32-true"


def precision_for(backbone: Backbone, device: Device) -> str:
    """See `precision_of`. Networks of texts compute in float32 on a CPU: bfloat16 has not been measured there."""
    if device.type == "cpu" and isinstance(backbone.input_spec, TextSpec):
        return "32-true"
    return precision_of(device, backbone.on_meta(backbone.input_spec.shape)[backbone.cuts[-1]][1])


def matmul_precision_of(device: Device) -> str:
    """`high` (TF32) where a CUDA device has it, else `highest`; see `torch.set_float32_matmul_precision`."""
    return "high" if device.type == "cuda" and device.capability >= (8, 0) else "highest"


def autocast_of(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context in which a network runs on a type of device with a precision of Lightning's names; of others than mixed ones none."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context without autocast; nothing where there is none, so that an exported graph has no trace of it."""
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def describe_float32(device: str) -> str:
    """The precision of float32 computations on a type of device: `highest` for IEEE float32 everywhere, `highest, tf32` for instance where
    convolutions use TF32. Never raises.
    """
    if device not in BACKENDS:
        return "highest"
    convolutions = _precision(BACKENDS[device][1])
    return matmul_precision(device) + ("" if NAMES.get(convolutions) == "highest" else f", {convolutions}")


def matmul_precision(device: str) -> str:
    """The precision of matrix products on `cpu` or `cuda`: `highest`, `high` (TF32) or `medium` (bfloat16). Never raises."""
    products = _precision(BACKENDS[device][0])
    return NAMES.get(products, products)


def _precision(name: str) -> str:
    backend: Any = torch.backends
    for part in name.split("."):
        backend = getattr(backend, part, None)
    if (precision := getattr(backend, "fp32_precision", None)) is not None:
        return str(precision)
    if name == "cudnn.conv":  # torch before 2.9
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    return {"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision(), "ieee") if name.endswith("matmul") else "ieee"


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products, unless the user has set it with torch's newer interface."""
    if _set_by_older_interface() not in (None, precision):
        torch.set_float32_matmul_precision(precision)


@contextmanager
def kept_matmul_precision(precision: str | None = None) -> Iterator[None]:
    """Restore the precision of float32 matrix products afterwards; within the block it is `precision`, if given."""
    before = _set_by_older_interface()
    if precision is not None:
        set_matmul_precision(precision)
    try:
        yield
    finally:
        if before is not None:
            set_matmul_precision(before)


def _set_by_older_interface() -> str | None:
    with suppress(RuntimeError):  # torch: the newer interface was used
        return torch.get_float32_matmul_precision()
    return None
