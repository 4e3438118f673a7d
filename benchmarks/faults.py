"""Silent faults of transfer learning, planted in Lightning's BackboneFinetuning, finetuning-scheduler and ftlit, as a markdown table.

python benchmarks/faults.py [--only NAME] [--out FILE]

Each fault runs for each library in separate processes on the CPU, with a time limit. A cell is `prevented` (no harm), `reported` (a
warning or error names the fault), `silent`, `crashes` (an error that does not name it) or `no such option`. Needs finetuning-scheduler in
the same environment; without it the cells of its column are "not installed".
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

TIME_LIMIT = 240  # seconds


@dataclass(frozen=True)
class Row:
    """A row of the table: the verdict on each library for a fault."""

    fault: str
    title: str
    planted: str
    verdicts: dict[str, Verdict]


def measure(fault: Fault, peer: str) -> Verdict:
    """Run a fault in a forked process (importing again would take longer than most faults)."""
    if peer in fault.without:
        return Verdict(NO_OPTION)
    if installed(peer) is None:
        return Verdict("not installed")
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            run_in_child(fault, peer, folder)
        status = wait(child)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that the child has left
        result = Path(folder, "verdict.json")
        return Verdict(**json.loads(result.read_text())) if result.exists() else Verdict("crashes", status)


def run_in_child(fault: Fault, peer: str, folder: str) -> NoReturn:
    """Plant a fault in a new session. Lightning starts further processes with the command line in `sys.argv`, which is set here."""
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
    """Wait for a child until the time limit; describe how it ended."""
    deadline = time.monotonic() + TIME_LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"exit status {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"stopped after {TIME_LIMIT} s"


def installed(peer: str) -> str | None:
    """The version of a library; `None` if it is not installed."""
    try:
        return version(PEERS[peer].distribution)
    except PackageNotFoundError:
        return None


def plant(name: str, peer: str, folder: Path) -> None:
    """Run one fault in this process and write the verdict."""
    verdict = FAULTS[name].run(PEERS[peer](), folder)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        (folder / "verdict.json").write_text(json.dumps(asdict(verdict)))


def table(rows: list[Row]) -> str:
    """The rows, and the number of faults that each library prevents or reports."""
    lines = [f"| fault | {' | '.join(PEERS)} |", "|---|" + "---|" * len(PEERS)]
    lines += [f"| {row.title} | {' | '.join(str(row.verdicts[peer]) for peer in PEERS)} |" for row in rows]
    caught = {peer: sum(row.verdicts[peer].outcome in CAUGHT for row in rows) for peer in PEERS}
    totals = ", ".join(f"{peer} {number} of {len(rows)}" for peer, number in caught.items())
    return "\n".join([*lines, "", f"Prevented or reported: {totals}."])


def main() -> None:
    """Run the faults, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, action="append", help="one fault; may be repeated")
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
