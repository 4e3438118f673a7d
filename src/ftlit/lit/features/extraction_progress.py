"""Progress of a pass over images: a bar on a terminal, otherwise a line every 30 seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.errors import LiveError
from rich.progress import Progress

from ftlit.formatting import count, duration_in_words

LINE_SECONDS = 30.0  # between two lines


@contextmanager
def progress_of_features(
    images: int, noun: str, cuts: str, *, shown: bool, processes: int, all_missing: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show the progress of feature extraction.

    Args:
        images: number of images that all processes compute together.
        noun: plural of one input: images or texts.
        cuts: names of the cuts, for the text; empty for pixels.
        shown: whether this process prints.
        processes: number of processes, which are assumed to be equally fast.
        all_missing: whether the features of these images are known to be missing; otherwise they are found while the images are read.

    Yields:
        A function that advances the progress by a number of images of this process.
    """
    if not (shown and images):
        yield lambda done: None
    elif sys.stdout.isatty():
        with _bar(-(-images // processes)) as advance:
            yield advance
    else:
        several = count(images, noun.removesuffix("s"))
        computed = f"computing features of {several} at {cuts}"
        looked_up = f"reading {several}: their features at {cuts} are taken from the cache or computed"
        print((computed if all_missing else looked_up) if cuts else f"storing pixels of {several}", flush=True)
        yield _Lines(images, noun, processes)


class _Lines:
    """Prints a line at intervals: how many images are done, and how long the rest will take."""

    def __init__(self, images: int, noun: str, processes: int) -> None:
        self._images, self._noun, self._processes, self._done = images, noun, processes, 0
        self._started = self._last_line = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        self._done = min(self._images, self._done + done * self._processes)
        if now - self._last_line > LINE_SECONDS:
            left = (now - self._started) * (self._images / self._done - 1)
            print(f"features: {self._done:,} of {self._images:,} {self._noun}, about {duration_in_words(left)} left", flush=True)
            self._last_line = now


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
