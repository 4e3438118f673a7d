"""Silent faults of transfer learning, planted in Lightning's BackboneFinetuning, finetuning-scheduler and ftlit: one table in markdown.

python benchmarks/faults.py [--only NAME] [--out FILE]

Each fault runs for each peer in processes of its own, on the CPU, with a time limit. A cell is `prevented` (no harm), `reported` (harm, or
a refusal, with a warning or error that names it), `silent`, `crashes` (an error that does not name it) or `no such option`. Needs
finetuning-scheduler in the same environment; without it that column says "not installed".
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from _measure import machine, written
from planted import FAULTS, PEERS
from planted.fault import CAUGHT, NO_OPTION, Fault, Verdict
from planted.nets import WORLD

LIMIT = 240  # seconds


@dataclass(frozen=True)
class Row:
    """A line of the table: what each peer made of a fault."""

    fault: str
    title: str
    planted: str
    verdicts: dict[str, Verdict]


def measure(fault: Fault, peer: str) -> Verdict:
    """What a process of its own finds: a fork, since importing takes longer than most faults."""
    if peer in fault.without:
        return Verdict(NO_OPTION)
    if installed(peer) is None:
        return Verdict("not installed")
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            apart(fault, peer, folder)
        ended = wait(child)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what is left of its processes
        told = Path(folder, "verdict.json")
        return Verdict(**json.loads(told.read_text())) if told.exists() else Verdict("crashes", ended)


def apart(fault: Fault, peer: str, folder: str) -> NoReturn:
    """Plant a fault in a session of its own; further processes start by the command line that this one seems to have."""
    os.setsid()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.argv = [__file__, "--plant", fault.name, "--peer", peer, "--folder", folder]
    os.environ |= {WORLD: str(fault.processes), "OMP_NUM_THREADS": "1", "FTLIT_CACHE": f"{folder}/cache"}
    status = 1
    try:
        plant(fault.name, peer, Path(folder))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(child: int) -> str:
    """Until it ends, or the limit; how it ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"exit status {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no end after {LIMIT} s"


def installed(peer: str) -> str | None:
    """The version of a peer."""
    try:
        return version(PEERS[peer].distribution)
    except PackageNotFoundError:
        return None


def plant(name: str, peer: str, folder: Path) -> None:
    """One fault, in this process."""
    verdict = FAULTS[name].run(PEERS[peer](), folder)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        (folder / "verdict.json").write_text(json.dumps(asdict(verdict)))


def table(rows: list[Row]) -> str:
    """The rows, and how many of them each peer catches."""
    lines = [f"| fault | {' | '.join(PEERS)} |", "|---|" + "---|" * len(PEERS)]
    lines += [f"| {row.title} | {' | '.join(str(row.verdicts[peer]) for peer in PEERS)} |" for row in rows]
    caught = {peer: sum(row.verdicts[peer].word in CAUGHT for row in rows) for peer in PEERS}
    return "\n".join([*lines, "", *(f"{peer}: {number} of {len(rows)} prevented or reported" for peer, number in caught.items())])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, action="append", help="may be given several times")
    parser.add_argument("--out", type=Path, help="JSON file")
    for hidden in ("--plant", "--peer", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plant:
        return plant(given.plant, given.peer, Path(given.folder))
    rows = []
    for fault in (FAULTS[name] for name in given.only or FAULTS):
        rows.append(Row(fault.name, fault.title, " ".join((fault.probe.__doc__ or "").split()), {p: measure(fault, p) for p in PEERS}))
        print(fault.name, *(f"{peer}: {verdict}" for peer, verdict in rows[-1].verdicts.items()), sep="\n  ", file=sys.stderr, flush=True)
    print(table(rows))
    if given.out:
        written(given.out, machine(), {"versions": {peer: installed(peer) for peer in PEERS}}, rows)


if __name__ == "__main__":
    main()
