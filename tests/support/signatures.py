"""The listing of signatures in docs/reference.md. `python tests/support/signatures.py` writes it."""

import inspect
import re
import textwrap
from collections.abc import Iterator

from paths import ROOT

import ftlit

PAGE = ROOT / "docs/reference.md"
LISTING = re.compile(r"(?<=<!-- signatures -->\n```text\n).*?(?=```\n<!-- end -->)", re.DOTALL)

MODULES = ("ftlit", "torch", "lightning", "collections", "pathlib", "typing", "numpy", "PIL")  # left out in front of types
MAX_DEFAULT = 60  # characters


def listing() -> str:
    """The public names with their signatures, in the order of the page; of classes also the methods that no base of another library has."""
    return "".join(f"{line}\n" for name in re.findall(r"^::: ftlit\.(\w+)$", PAGE.read_text(), re.MULTILINE) for line in _lines(name))


def _lines(name: str) -> Iterator[str]:
    part = getattr(ftlit, name)
    if inspect.ismodule(part):
        own = [
            one for one, value in vars(part).items() if inspect.isfunction(value) and value.__module__ == part.__name__ and one[0] != "_"
        ]
        for one in own:
            yield from _wrapped(f"{name}.{one}{_signature(getattr(part, one))}")
        return
    yield from _wrapped(f"{name}{_signature(part)}")
    if inspect.isclass(part):
        inherited = {attribute for base in part.__mro__ if not base.__module__.startswith("ftlit.") for attribute in vars(base)}
        for method, value in vars(part).items():
            if inspect.isfunction(value) and not method.startswith("_") and method not in inherited:
                yield from _wrapped(f"  .{method}{_signature(value, skipped=1)}")


def _signature(part: object, skipped: int = 0) -> str:
    try:
        found = inspect.signature(part)  # type: ignore[arg-type]
    except ValueError:  # an error class without arguments of its own
        return ""
    parameters = [_shortened(parameter) for parameter in list(found.parameters.values())[skipped:]]
    text = str(found.replace(parameters=parameters)).removesuffix(" -> None")
    text = re.sub(r"<(?:function|class) '?([\w.]+)'?(?: at 0x\w+)?>", r"\1", text).replace("Ellipsis", "...")
    text = re.sub(rf"\b({'|'.join(MODULES)})\.(\w+\.)*", "", text)
    return re.sub(r"'([A-Z]\w+)'", r"\1", text)  # a class in its own methods


def _shortened(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter with `...` in place of a long default."""
    return parameter if len(repr(parameter.default)) <= MAX_DEFAULT else parameter.replace(default=...)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(LISTING.sub(lambda _: listing(), PAGE.read_text()))
