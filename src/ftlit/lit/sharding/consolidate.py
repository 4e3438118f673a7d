"""`ftlit consolidate`: a plain checkpoint of a folder of shards."""

from pathlib import Path

from ftlit.errors import UserError
from ftlit.files import remove
from ftlit.formatting import shown
from ftlit.lit.sharding.shards import consolidated
from ftlit.run_folder import existing_run, is_sharded_checkpoint
from ftlit.tensor_files import save_checkpoint


def consolidate(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the weights of a folder of shards as a plain checkpoint, which `ftlit.load` reads.

    Args:
        run: folder of a run, whose best checkpoint is meant, or its last one if there is no best; or a folder of shards.
        out: file to write. `None`: of a run, `best.ckpt` in place of the folder; of another checkpoint, `NAME-whole.ckpt` beside it.

    Returns:
        The plain checkpoint. Nothing is written where the best checkpoint of a run is one already.

    Raises:
        UserError: nothing to consolidate, damaged files, or a file that cannot be written.
    """
    path = existing_run(run)
    best, last = (path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    if best.is_file():
        if out is None:
            return best
        raise UserError(f"{shown(best)} is a plain checkpoint already: leave --out out, or give {shown(last)} in its place")
    source = next((folder for folder in (path, best, last) if is_sharded_checkpoint(folder)), None)
    if source is None:
        advice = "a plain checkpoint already" if path.is_file() else "no folder of shards, nor a run that wrote one"
        raise UserError(f"{shown(path)} is {advice}: give the folder of a run with trainer=fsdp2, or a checkpoint that it wrote")
    content = consolidated(source)
    beside = source.with_name(f"{source.stem}-whole.ckpt")
    file = Path(out).expanduser() if out is not None else beside
    save_checkpoint(content, file)
    if out is None and source == best:  # the shards are mapped from the folder until here
        remove(best)
        return file.rename(best)
    return file
