"""The features of training images, computed in a thread, so that the page of `ftlit demo` opens at once."""

import sys
from threading import Event, Thread

from ftlit.data.dataset import Examples
from ftlit.demo.answers import MOST_TRAIN, TrainPictures, train_pictures
from ftlit.errors import one_line
from ftlit.formatting import count
from ftlit.inference.network import Network


class BackgroundPictures:
    """Training images whose features are computed in a thread, which begins at once.

    Args:
        network: of the run.
        examples: its training images.

    Attributes:
        found: the images with their features; `None` as long as they are computed, and where there are none.
        why: there are none; empty as long as that is not known.
    """

    def __init__(self, network: Network, examples: Examples) -> None:
        self.found: TrainPictures | None = None
        self.why = ""
        self._network, self._examples = network, examples
        self._done, self._total, self._stopped = 0, min(len(examples), MOST_TRAIN), Event()
        self._thread = Thread(target=self._compute, daemon=True)
        self._thread.start()

    @property
    def pending(self) -> str:
        """How many images are done, such as `64 of 188`; empty when all are."""
        return f"{self._done:,} of {self._total:,}" if self._thread.is_alive() else ""

    def wait(self) -> None:
        """Wait until all features are computed."""
        self._thread.join()

    def stop(self) -> None:
        """Leave the other images out."""
        self._stopped.set()
        self.wait()

    def _compute(self) -> None:
        try:
            self.found = train_pictures(self._network, self._examples, self._advance)
            self.why = "" if self.found else "none of them can be read"
        except Exception as error:  # the page works without them
            self.why = f"their features cannot be computed ({one_line(error)})"
        if not self._stopped.is_set():
            ready = f"the features of {count(self._total, 'training image')} are computed: the page now shows the nearest ones"
            print(f"ftlit: {f'no training images are shown: {self.why}' if self.why else ready}", file=sys.stderr)

    def _advance(self) -> bool:
        self._done += 1
        return not self._stopped.is_set()
