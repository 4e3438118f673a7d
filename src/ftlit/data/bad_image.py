"""The error for an image that cannot be decoded."""

from ftlit.errors import UserError


class BadImage(UserError):
    """An image that cannot be decoded, with a message of one line, also from a DataLoader's worker process."""

    def __init__(self, text: str) -> None:
        # torch rebuilds a worker's exception from the text of its traceback; the last line of that is our message
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.BadImage: "))
