"""How far a pass over images is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.errors import LiveError
from rich.progress import Progress

EVERY = 30.0  # seconds between two lines


@contextmanager
def progress_of_features(images: int, noun: str, cuts: str, *, shown: bool, processes: int) -> Iterator[Callable[[int], None]]:
    """Tell of the computing of features; gives what counts so many images of this process on.

    Args:
        images: to be computed, by all processes.
        noun: what they are called.
        cuts: where, in words.
        shown: whether this process tells.
        processes: that compute at the same pace.
    """
    if not (shown and images):
        yield lambda done: None
    elif sys.stdout.isatty():
        with _bar(-(-images // processes)) as advance:
            yield advance
    else:
        print(f"computing features of {images:,} {noun} at {cuts}", flush=True)
        yield _Lines(images, noun, processes)


class _Lines:
    """A line every now and then: how many are done, and how long the rest will take."""

    def __init__(self, images: int, noun: str, processes: int) -> None:
        self._images, self._noun, self._processes, self._done = images, noun, processes, 0
        self._started = self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        self._done = min(self._images, self._done + done * self._processes)
        if now - self._said > EVERY:
            left = (now - self._started) * (self._images / self._done - 1)
            print(f"features: {self._done:,} of {self._images:,} {self._noun}, about {left / 60:.0f} min left", flush=True)
            self._said = now


@contextmanager
def _bar(images: int) -> Iterator[Callable[[int], None]]:
    progress = Progress(transient=True)
    try:
        progress.start()
    except LiveError:  # another bar is there
        progress.disable = True
    task = progress.add_task("features", total=images)
    try:
        yield lambda done: progress.advance(task, done)
    finally:
        progress.stop()
