"""Registries: the built-in parts of one group (heads, losses, probe kinds, ...) by the names that files and messages use."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar, cast

from ftlit.errors import unknown

Part = TypeVar("Part")
Registered = TypeVar("Registered")


class Registry(Mapping[str, Part]):
    """Name -> part, in the order of registration. A part registers where it is defined, so that its class may be renamed or moved.

    Args:
        noun: what a part is called in messages.

    >>> fruits: Registry[object] = Registry("fruit")
    >>> @fruits.register("apple")
    ... class Apple: ...
    >>> fruits["apple"] is Apple, fruits.name_of(Apple), fruits.name_of(int)
    (True, 'apple', None)
    >>> fruits["aple"]
    Traceback (most recent call last):
    ftlit.errors.UserError: there is no fruit 'aple': did you mean 'apple'?
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that registers a class or function. Raises `ValueError` for a name that another part has."""

        def add(part: Registered) -> Registered:
            if name in self._parts:
                raise ValueError(f"there is a {self.noun} {name!r} already: {self._parts[name]}")
            self._parts[name] = cast(Part, part)
            return part

        return add

    def name_of(self, part: object) -> str | None:
        """The name under which a part is registered; `None` where it is not."""
        return next((name for name, known in self._parts.items() if known is part), None)

    def __getitem__(self, name: str) -> Part:
        """The part of this name. Raises `UserError` for an unknown one, with those that there are."""
        if name not in self._parts:
            raise unknown(self.noun, name, self._parts)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
