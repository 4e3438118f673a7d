"""Digests of bytecode that do not depend on comments, docstrings and line numbers."""

import dis
from bisect import bisect_left
from functools import cache
from types import CodeType
from typing import Any

from xxhash import xxh3_128

HAS_DOCSTRING = 0x4000000  # flag of a code object since Python 3.13
JUMPS = {*dis.hasjrel, *dis.hasjabs}
UNCOUNTED_NAMES = ("__doc__", "__firstlineno__", "__qualname__")  # set by the body of a class


@cache
def names_in(code: CodeType) -> frozenset[str]:
    """Names of the globals and attributes that a function and its inner functions use, without `__name__`, which every class reads."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, CodeType)]
    return frozenset(code.co_names).union(*inner) - {"__name__"}


@cache
def code_digest(code: CodeType) -> str:
    """32 hexadecimal digits for instructions, constants and parameters. Docstrings, line numbers and the name do not count."""
    count = code.co_argcount + code.co_kwonlyargcount
    lines = [f"{code.co_argcount} {code.co_kwonlyargcount} {code.co_flags & ~HAS_DOCSTRING} {code.co_varnames[:count]}"]
    steps = _steps(code)
    offsets = [step.offset for step in steps]
    lines += [f"{step.opname} {_argument(step, code, offsets)}" for step in steps]
    return xxh3_128("\n".join([*lines, code.co_exceptiontable.hex()]).encode()).hexdigest()


def _steps(code: CodeType) -> list[dis.Instruction]:
    """Instructions without the prefixes of long arguments, and without those that set the docstring, line and name of a class."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    stores = {i for i, step in enumerate(steps) if step.opname == "STORE_NAME" and step.argval in UNCOUNTED_NAMES}
    constants = {i - 1 for i in stores if steps[i - 1].opname == "LOAD_CONST"}
    return [step for i, step in enumerate(steps) if i not in stores | constants]


def _argument(step: dis.Instruction, code: CodeType, offsets: list[int]) -> str:
    """The argument of an instruction: a constant, the number of the instruction to jump to, a name, or else the bare number."""
    if step.opcode in dis.hasconst and step.arg is not None:
        return _constant(code.co_consts[step.arg])  # `dis` does not resolve KW_NAMES of Python 3.11
    if step.opcode in JUMPS:
        return str(bisect_left(offsets, step.argval))
    return step.argrepr or str(step.arg)


def _constant(value: Any) -> str:
    """A constant as text, the same in each process."""
    if isinstance(value, CodeType):
        return code_digest(value)
    if isinstance(value, tuple | frozenset):
        texts = [_constant(item) for item in value]
        return f"{type(value).__name__} {sorted(texts) if isinstance(value, frozenset) else texts}"
    return f"{type(value).__name__} {value!r}"
