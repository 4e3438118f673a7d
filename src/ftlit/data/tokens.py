"""The texts that pretrained weights expect (`TextSpec`): token ids from the tokenizer that belongs to the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftlit.data.transforms import Transform
from ftlit.errors import UserError, in_quotes, one_line
from ftlit.identity.code_identity import versioned

FAST = "tokenizer.json"  # the file of a fast tokenizer
PATCH = 16**2  # pixels per token, as in a ViT with patches of 16x16


@versioned("text_spec", 1)
@dataclass(frozen=True)
class TextSpec:
    """The input that pretrained weights of a text encoder expect: token ids, truncated at `max_length` and padded to it with `pad_id`.
    Padding is recognised by its id; there is no separate attention mask.

    Args:
        tokenizer: folder with the files of the tokenizer.
        pad_id: number of the padding token. Where a text holds this token literally, it counts as padding.
        max_length: in tokens, including the special tokens around a text.

    Raises:
        UserError: a length that leaves no room for the text.
    """

    tokenizer: str
    pad_id: int = 0
    max_length: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.max_length, int) or isinstance(self.max_length, bool) or self.max_length < 3:
            accepted = "a whole number of tokens, 3 or more, because two of them are special tokens"
            raise UserError(f"max_length={self.max_length!r}: give {accepted}{in_quotes(self.max_length)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one text."""
        return (self.max_length,)

    noun = "texts"  # the examples of a data set, in messages

    @property
    def pixels(self) -> int:
        """Size of a text in pixels of an image, which limits the batch size of feature extraction."""
        return self.max_length * PATCH

    @property
    def inputs(self) -> str:
        """Short description, for error messages."""
        return f"texts of {self.max_length} tokens"

    @property
    def summary(self) -> str:
        """Description for the plan."""
        return f"{self.max_length} tokens at most, tokenizer {self.tokenizer}"

    def views(self, augment: str = "none") -> tuple[Transform, Transform]:
        """The transforms of training and of evaluation, which are equal. Raises `UserError` for an `augment` other than `none`."""
        if augment != "none":
            raise UserError(f"augment={augment}: texts cannot be augmented, so give augment=none")
        ids = TokenIds(self)
        return ids, ids

    def fitted(self, texts: Sequence[str]) -> tuple["TextSpec", int]:
        """Return a spec with no more tokens than the longest of these texts has, and the number of texts longer than `max_length`."""
        count = tokenizer_of(self.tokenizer)
        lengths = [len(count.encode(text).ids) for text in texts]
        return replace(self, max_length=max(3, min(self.max_length, max(lengths, default=3)))), sum(n > self.max_length for n in lengths)


@versioned("token_ids", 1)
class TokenIds:
    """Text -> token ids, int64 (max_length,). Deterministic; it pickles with the whole tokenizer, which identifies it.

    Args:
        spec: tokenizer and length.
    """

    def __init__(self, spec: TextSpec) -> None:
        self.tokenizer = tokenizer_of(spec.tokenizer)
        self.tokenizer.enable_truncation(spec.max_length)
        self.pad_id, self.max_length = spec.pad_id, spec.max_length

    def __call__(self, text: str) -> Tensor:
        """See the class."""
        ids = self.tokenizer.encode(text).ids
        return torch.tensor(ids + [self.pad_id] * (self.max_length - len(ids)))


def tokenizer_of(folder: str) -> Any:
    """A new `tokenizers.Tokenizer` without truncation and padding. Raises as `load_tokenizer`."""
    known = load_tokenizer(folder).backend_tokenizer
    tokenizer = type(known).from_str(known.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@cache
def load_tokenizer(folder: str) -> Any:
    """Load the tokenizer of a folder with transformers.

    Raises:
        UserError: no tokenizer there, one without a padding token, or a slow one (without tokenizer.json).
    """
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # files that are missing, damaged, or of another version raise anything
        if not Path(folder, FAST).is_file():
            raise UserError(f"{folder} has no {FAST}: add the {FAST} that was published with the pretrained weights") from error
        raise UserError(f"cannot read a tokenizer from {folder}: {one_line(error)}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{folder} has no fast tokenizer: save one there as {FAST} (package tokenizers)")
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {folder} has no padding token: set pad_token in its tokenizer_config.json")
    return tokenizer


def transformers() -> Any:
    """The package transformers, imported on first use. Raises `UserError` if it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise UserError('backbone=bert needs the package transformers: pip install "ftlit[text]"') from error
    return transformers
