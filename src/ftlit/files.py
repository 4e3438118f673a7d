"""The one writer of the files that a run leaves: each is complete at any moment, whatever stops the program, and an error names it."""

import csv
import errno
import fcntl
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from traceback import walk_tb
from typing import IO, Any

from ftlit.errors import UserError, one_line

PART = ".ftlit-part"  # end of the name of a file that is being written
UNNAMED_SECONDS = 3600  # a scratch folder gets its name at once: an older one was left by a program that was killed
REMEDIES = {  # of errors that a user can mend -> what to do
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EACCES: "make the file and its folder writable",
    errno.EPERM: "make the file and its folder writable",
    errno.EROFS: "make the disk writable",
    errno.EIO: "check the disk",
    errno.EISDIR: "remove the folder that has this name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit on open files",
    errno.ESTALE: "check the disk",
}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)  # never a fault of the program
PERMISSION_ERRORS = (errno.EACCES, errno.EPERM)  # nor these, if they name a file

# of torch: its allocation, of older versions too, and a process that writes more than there is
SHARED_MEMORY_FULL = ("unable to allocate shared memory", "unable to write to file </torch_", "out of shared memory")


class WriteError(UserError):
    """A file that cannot be written; the one that it would have replaced is as it was."""


def disk_error(error: BaseException) -> WriteError | None:
    """The error for a full, broken or protected disk or file, whatever was read or written there; `None` for any other error."""
    if not isinstance(error, OSError) or error.errno not in (*DISK_ERRORS, *(PERMISSION_ERRORS if error.filename else ())):
        return None
    name = error.filename or _open_file(error) or "a file"
    return WriteError(f"cannot access {name} ({error.strerror}): {REMEDIES[error.errno or 0]}")


def shared_memory_error(error: BaseException, remedy: str) -> UserError | None:
    """The error for a full shared memory, through which processes pass images on, by torch's messages; `None` for any other error.

    Args:
        error: of the process, or of one that loads images, which torch repeats as a text.
        remedy: the option that loads images without other processes.
    """
    if not isinstance(error, RuntimeError) or not any(text in str(error) for text in SHARED_MEMORY_FULL):
        return None
    return UserError(
        f"the shared memory (/dev/shm) is full; the processes that load images pass the images through it: give {remedy}, or, in a "
        "container, more shared memory, as in docker run --shm-size=8g"
    )


def _open_file(error: OSError) -> str | None:
    """The name of the file that was open where the error was raised: an error of `write` does not name it."""
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", None), str):
                return name
    return None


def write_error(path: str | Path, error: OSError) -> WriteError:
    """The error for a file that cannot be written: its name, the reason, and what to do."""
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        for place in (Path(path), *Path(path).parents):
            if os.path.lexists(place) and not place.is_dir():
                return WriteError(f"cannot make the folder {place}, because a file has that name: remove or rename this file")
    remedy = REMEDIES.get(error.errno or 0)
    return WriteError(f"cannot write {path} ({error.strerror or one_line(error)})" + (f": {remedy}" if remedy else ""))


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn an error of the file system in this block into one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside `path` that gets its name at the end of the block, when it is on the disk. Creates the folder.

    Raises:
        WriteError: the file cannot be written. As after any other error, nothing is left of it.
    """
    beside = part_of(path, os.getpid())
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(beside)
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def part_of(path: Path, writer: int | None = None) -> Path:
    """The name under which a file is written before it gets its own.

    Args:
        path: of the file.
        writer: number of the process that writes; `None` where several processes write it together.
    """
    return path.with_name(f".{path.name}{'' if writer is None else f'.{writer}'}{PART}")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file, see `replacing`; text as UTF-8."""
    with replacing(path) as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a csv file, see `replacing`. The header is the first of the rows."""
    csv.writer(stream := io.StringIO(newline="")).writerows(rows)
    write_atomically(path, stream.getvalue())


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a figure of matplotlib as PNG, see `replacing`."""
    figure.savefig(stream := io.BytesIO(), dpi=dpi, format="png")
    write_atomically(path, stream.getvalue())


def is_foreign(path: Path) -> bool:
    """Whether a file that exists belongs to another user."""
    return path.stat().st_uid != os.getuid()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files that a killed program left in this folder."""
    for part in folder.glob(f".*{PART}"):
        with suppress(OSError):
            remove(part)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a folder in `parent` that is removed at the end. First removes those of programs that were killed before theirs.

    A kernel lock on the folder, which ends with the program, marks it as in use. It gets its name only once it is locked, so that nobody
    takes it for one that was left. Where the file system has no locks, nothing is removed but the program's own.
    """
    for left in (*parent.glob(f"{prefix}*"), *filter(_is_old, parent.glob(f"new-{prefix}*"))):
        _remove_unlocked(left)
    new = Path(mkdtemp(prefix=f"new-{prefix}", dir=parent))
    handle = os.open(new, os.O_RDONLY)
    folder = new.with_name(new.name.removeprefix("new-"))
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        new.rename(folder)
        yield folder
    finally:
        for name in (folder, new):
            shutil.rmtree(name, ignore_errors=True)
        os.close(handle)


def temporary_folder() -> AbstractContextManager[Path]:
    """A `scratch_folder` in the folder for temporary files."""
    return scratch_folder(Path(gettempdir()), "ftlit_temporary-")


def _is_old(unnamed: Path) -> bool:
    try:
        return time.time() - unnamed.lstat().st_mtime > UNNAMED_SECONDS
    except OSError:  # it has its name now
        return False


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):  # in use (BlockingIOError), or another user's
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too. Some file systems cannot; the file is then as safe as they make it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def removed_unless(begun: Path, new: Path) -> Iterator[None]:
    """Remove the file `new`, if it is written in the block and the block ends with an error before the file `begun` exists."""
    is_new = not new.exists()
    try:
        yield
    except BaseException:
        if is_new and not begun.exists():
            new.unlink(missing_ok=True)
        raise
