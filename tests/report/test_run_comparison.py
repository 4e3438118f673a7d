"""The comparison of two runs is paired image by image, whatever their order, and only on the same test images."""

import numpy as np
import pytest

from ftlit import UserError
from ftlit.cli import main
from ftlit.data.splitting.stored_split import FILE
from ftlit.formats import write_json
from ftlit.intervals import paired_interval
from ftlit.report.contents import Predictions
from ftlit.report.run_comparison import compare_runs
from ftlit.report.run_files import write_predictions, write_run

NAMES = ["ants", "bees"]
HASHES = [f"hash{i}" for i in range(40)]


def run_of(folder, wrong, hashes=HASHES, labels=None, *, names=NAMES, stored=True, multilabel=False):
    """The folder of a run whose predictions are wrong on the images with these hashes."""
    labels = labels or {image: names.index("ants") for image in hashes}
    predicted = [(1 - labels[image],) if image in wrong else (labels[image],) for image in hashes]
    true = [(labels[image],) for image in hashes]
    write_run(folder, {"class_names": names, "multilabel": multilabel, "noun": "images"})
    items = [str(i) for i in range(len(hashes))] if stored else list(hashes)
    write_predictions(folder, Predictions(items, true, predicted, np.full(len(hashes), 0.9)), names)
    if stored:
        test = {"hashes": list(hashes), "labels": true, "names": items}
        empty = {"hashes": [], "labels": [], "names": []}
        write_json(folder / FILE, {"class_names": names, "grouped": False, "splits": {"train": empty, "val": empty, "test": test}})
    return folder


@pytest.mark.parametrize("stored", [True, False], ids=["by content", "by name"])
def test_answers_are_paired_by_image_whatever_the_order_and_the_class_numbers(tmp_path, stored):
    first = run_of(tmp_path / "first", HASHES[:3], stored=stored)
    other = run_of(tmp_path / "other", HASHES[2:12], HASHES[::-1], names=NAMES[::-1], stored=stored)
    rows = compare_runs(first, other).rows()
    low, high = paired_interval(9, 2, 40)
    assert [row[:2] for row in rows] == [(str(first), "0.9250"), (str(other), "0.7500"), ("difference", "+0.1750")]
    assert rows[2][2] == f"{low:+.3f} to {high:+.3f}"
    back = compare_runs(other, first)
    assert back.rows()[2][1:] == ("-0.1750", f"{-high:+.3f} to {-low:+.3f}")
    assert f"Only {other} is right on 2 of them, only {first} on 9." in back.describe()


def test_a_difference_is_established_only_if_its_interval_leaves_0_out(tmp_path):
    first, near, far = (run_of(tmp_path / str(number), HASHES[:number]) for number in (3, 5, 20))
    assert "contains 0: the difference is not established" in compare_runs(first, near).describe()
    assert "does not contain 0: the difference is established" in compare_runs(first, far).describe()


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"hashes": HASHES[:30]}, "40 and 30, 30 in both"),
        ({"hashes": [*HASHES[:39], "another"]}, "40 and 40, 39 in both"),
        ({"hashes": [*HASHES[:39], HASHES[0]]}, "40 and 40, 39 in both"),
        ({"labels": dict.fromkeys(HASHES, 0) | {HASHES[0]: 1}}, "40 and 40, 39 in both"),
    ],
    ids=["fewer", "others", "a copy", "another label"],
)
def test_runs_with_other_test_images_or_labels_are_not_compared(tmp_path, options, numbers):
    first, other = run_of(tmp_path / "first", []), run_of(tmp_path / "other", [], **options)
    with pytest.raises(UserError, match=rf"different test images or labels \({numbers}\): .*data\.split_from={first}$"):
        compare_runs(first, other)


def test_the_command_prints_the_comparison_and_writes_nothing(tmp_path, capsys):
    first, other = run_of(tmp_path / "first", HASHES[:3]), run_of(tmp_path / "other", HASHES[:9])
    before = sorted(tmp_path.rglob("*"))
    main.report([str(first), "--against", str(other)])
    printed = capsys.readouterr().out
    assert "+0.1500" in printed and sorted(tmp_path.rglob("*")) == before
    for words in (["head=linear"], [str(other), str(first)], [""]):
        with pytest.raises(UserError, match=f"^--against '{' '.join(words)}': {first} is not a sweep, so give the folder of one other run"):
            main.report([str(first), "--against", *words])
    with pytest.raises(UserError, match=r"there is no file or folder .*/otter; did you mean .*/other"):
        (other / "config.yaml").write_text("_target_: ftlit.load_backbone")
        main.report([str(first), "--against", str(tmp_path / "otter")])
    with pytest.raises(UserError, match="leave one of them out"):
        main.report([str(first), "--against", str(other), "--plots", "pdf"])
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "0" / "job.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep is a sweep: give the folder of one of its jobs, such as --against .*sweep/0"):
        main.report([str(first), "--against", str(tmp_path / "sweep")])


def test_runs_without_one_answer_per_image_are_refused(tmp_path):
    first, other = run_of(tmp_path / "first", []), run_of(tmp_path / "other", [], multilabel=True)
    with pytest.raises(UserError, match="other has several labels per image"):
        compare_runs(first, other)
    write_run(tmp_path / "untested", {"class_names": NAMES})
    with pytest.raises(UserError, match=r"untested has no predictions on test images \(report/test.csv\)"):
        compare_runs(tmp_path / "untested", first)
