"""Names of splits, as data sets spell them."""

import re
from collections.abc import Collection

from ftlit.data.dataset import Split

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "samples", "split"}


def split_named(name: str, *, common: Collection[str] = ()) -> Split | None:
    """Return the split of a name such as `Training`, `test_set` or `dev`; `None` if it is not that of a split.

    Args:
        name: of a folder, or the value of a cell.
        common: words that are in all names beside it too, such as `seg` in `seg_train` and `seg_test`.
    """
    found = words_of(name)
    splits = {SPLIT_WORDS[word] for word in found if word in SPLIT_WORDS}
    others = [word for word in found if word not in SPLIT_WORDS and word not in FILLERS and word not in common]
    return splits.pop() if len(splits) == 1 and not others else None


def is_filler(name: str) -> bool:
    """Whether a name has only words such as `images` or `data`."""
    return FILLERS.issuperset(words_of(name)) and bool(words_of(name))


def words_of(name: str) -> list[str]:
    """Return the words of letters in a name, in lower case; `trainset` is two words."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(set|data)$", r" \1", name.lower()))
