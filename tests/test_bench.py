"""The faults planted in ftlit and its peers: what a real run found, and one of them planted anew."""

import json
from pathlib import Path

from bench.planted import FAULTS, PEERS
from bench.planted.fault import CAUGHT

RESULTS = Path(__file__).parent / "bench/results/faults.json"


def test_the_stored_run_answers_for_all_peers_and_ftlit_is_never_silent():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(rows) >= 12 and {row["fault"] for row in rows} <= set(FAULTS)
    assert all(set(row["verdicts"]) == set(PEERS) for row in rows)
    answered = {*CAUGHT, "silent", "crashes", "no such option"}
    assert {verdict["word"] for row in rows for verdict in row["verdicts"].values()} <= answered
    assert {row["verdicts"]["ftlit"]["word"] for row in rows} <= set(CAUGHT)


def test_parameters_of_equal_values_train(tmp_path):
    verdict = FAULTS["equal_values"].run(PEERS["ftlit"](), tmp_path)
    assert (verdict.word, verdict.number) == ("prevented", "4 of 4 tensors train"), verdict.line


def test_the_readme_says_what_the_stored_runs_say(monkeypatch):
    monkeypatch.syspath_prepend(RESULTS.parents[1])
    from readme import README, rendered

    assert rendered(README.read_text()) == README.read_text()
