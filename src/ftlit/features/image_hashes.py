"""Hashes of images, by which their features are found, and headers of their files: a second run reads no file."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ftlit.data.dataset import Examples
from ftlit.data.file_paths import FilePaths, are_files
from ftlit.data.sources.image_headers import ImageHeader, read_one
from ftlit.data.splitting.duplicates import content_hash, content_hashes
from ftlit.features.file_cache import FileCache
from ftlit.features.spec import HASH_DTYPE, ImageHashes
from ftlit.features.store import Store
from ftlit.identity.fingerprint import fingerprint, of_array

HASHES = "digests"
PILLOW = PIL.__version__.replace(".", "_")  # which formats open depends on it
HEADERS, DECODED = f"headers_1_{PILLOW}", f"decoded_1_{PILLOW}"  # another number where ImageHeader changes


class HashCache(FileCache):
    """The hashes of files; see `FileCache`."""

    def __init__(self, folder: Path, *, trust: bool = False) -> None:
        super().__init__(folder, HASHES, trust=trust)


def image_hashes(examples: Examples, hash_cache: HashCache) -> ImageHashes:
    """Return the hash of each image (N,): of its file's bytes or its array's values, or if it has neither, of its pixels."""
    if examples.contents is None:
        pixels = (np.asarray(examples.load(source)) for source in examples.sources)
        return np.array([of_array(array) for array in pixels], HASH_DTYPE)
    if examples.contents is examples.sources and are_files(examples.contents):
        return np.array(hash_cache.texts(examples.contents, content_hash), HASH_DTYPE)
    paths = [_absolute(content) if isinstance(content, str | Path) else None for content in examples.contents]
    files = Counter(filter(None, paths))
    file_hashes = dict(zip(files, hash_cache.texts(list(files), content_hash), strict=True))
    found = []
    for source, content, path in zip(examples.sources, examples.contents, paths, strict=True):
        own = file_hashes[path] if path else of_array(content)  # type: ignore[arg-type]
        is_whole = source is content or _is_whole_content(source, path, files)
        found.append(own if is_whole else fingerprint(own, source))
    return np.array(found, HASH_DTYPE)


def _absolute(path: str | Path) -> Path:
    return (path if isinstance(path, Path) else Path(path)).absolute()  # to parse a path again takes longer than all else


def cached_hashes(examples: Examples) -> list[str]:
    """The hash of each image as `data.splitting.duplicates.content_hashes` gives it; of files, from the cache in the default store.

    The hashes of files are kept in `examples`, in place: they say which images the data set had when it was listed. `image_hashes`, by
    which features are found, looks at the files each time.
    """
    files = examples.contents
    if not are_files(files):
        return content_hashes(examples)
    keeper: Any = files if isinstance(files, FilePaths) else examples
    if keeper.hashes is None:
        hashes = np.array(HashCache(Store().folder).texts(files, content_hash), HASH_DTYPE)
        object.__setattr__(keeper, "hashes", hashes)
    return [image.decode() for image in keeper.hashes.tolist()]


def _is_whole_content(source: Any, path: Path | None, files: Mapping[Path, int]) -> bool:
    """Whether the content alone decides the image. A source may also be a part of a file: a page, a frame, a box."""
    if path is None or isinstance(source, int):
        return isinstance(source, int | np.ndarray) and (path is None or files[path] == 1)
    return isinstance(source, str | Path) and _absolute(source) == path


def cached_headers(paths: Sequence[Path], *, decode: bool = False) -> list[ImageHeader]:
    """The headers of files as `data.sources.image_headers.read_headers` gives them, from the cache in the default store.

    Files that do not open are read again each time. Where the hashes of all files are in the cache too, `FilePaths` get them in place.
    """

    def read(path: Path) -> str:
        header = read_one(path, decode=decode)
        if header.fault is not None:
            faults[path] = header
            return ""
        return json.dumps(asdict(header))

    faults: dict[Path, ImageHeader] = {}
    cache = FileCache(Store().folder, DECODED if decode else HEADERS)
    known = cache.recall_both(paths, HASHES) if paths else []
    if isinstance(paths, FilePaths) and all(image for _, image in known):
        paths.hashes = np.array([image for _, image in known], HASH_DTYPE)
    texts = cache.completed(paths, [text for text, _ in known], read)
    shared = {text: ImageHeader(**json.loads(text)) for text in set(texts) - {""}}  # most headers are equal
    return [shared[text] if text else faults[paths[place]] for place, text in enumerate(texts)]
