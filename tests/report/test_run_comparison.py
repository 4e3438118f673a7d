"""The comparison of two runs is paired image by image, whatever their order, and only on the test images that both have."""

import numpy as np
import pytest
import torch

from ftlit import UserError
from ftlit.cli import main
from ftlit.data.splitting.stored_split import FILE
from ftlit.formats import write_json
from ftlit.intervals import paired_interval
from ftlit.lit.metrics import SplitMetrics
from ftlit.report.contents import Predictions
from ftlit.report.run_comparison import compare_runs, macro_f1
from ftlit.report.run_files import write_predictions, write_run

NAMES = ["ants", "bees"]
HASHES = [f"hash{i}" for i in range(40)]


def run_of(folder, wrong, hashes=HASHES, labels=None, *, names=NAMES, stored=True, multilabel=False, train=()):
    """The folder of a run whose predictions are wrong on the images with these hashes, and which trained on others."""
    labels = labels or {image: names.index("ants") for image in hashes}
    predicted = [(1 - labels[image],) if image in wrong else (labels[image],) for image in hashes]
    true = [(labels[image],) for image in hashes]
    write_run(folder, {"class_names": names, "multilabel": multilabel, "noun": "images"})
    items = [str(i) for i in range(len(hashes))] if stored else list(hashes)
    write_predictions(folder, Predictions(items, true, predicted, np.full(len(hashes), 0.9)), names)
    if stored:
        test = {"hashes": list(hashes), "labels": true, "names": items}
        empty = {"hashes": [], "labels": [], "names": []}
        fitted = {"hashes": list(train), "labels": [(names.index("ants"),)] * len(train), "names": list(train)}
        write_json(folder / FILE, {"class_names": names, "grouped": False, "splits": {"train": fitted, "val": empty, "test": test}})
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
    assert back.rows()[2][1:3] == ("-0.1750", f"{-high:+.3f} to {-low:+.3f}")
    assert f"Only {other} is right on 2 of them, only {first} on 9." in back.describe()


def test_a_difference_is_established_only_if_its_interval_leaves_0_out(tmp_path):
    first, near, far = (run_of(tmp_path / str(number), HASHES[:number]) for number in (3, 5, 20))
    assert "contains 0: the difference is not established" in compare_runs(first, near).describe()
    assert "does not contain 0: the difference is established" in compare_runs(first, far).describe()


@pytest.mark.parametrize(
    ("options", "number", "of"),
    [
        ({"hashes": HASHES[:30]}, 30, 30),
        ({"hashes": [*HASHES, *map("new{}".format, range(19))]}, 40, 59),
        ({"hashes": [*HASHES[:39], HASHES[0]]}, 39, 40),
        ({"labels": dict.fromkeys(HASHES, 0) | {HASHES[0]: 1}}, 39, 40),
        ({"train": HASHES[:4]}, 36, 40),
    ],
    ids=["fewer", "more", "a copy", "another label", "a copy in train"],
)
def test_other_test_sets_are_compared_on_the_images_that_both_have(tmp_path, options, number, of):
    first, other = run_of(tmp_path / "first", HASHES[20:24]), run_of(tmp_path / "other", [], **options)
    for compared in (compare_runs(first, other), compare_runs(other, first)):
        assert len(compared.labels) == number and f"on the {number} test images that both runs have" in compared.scope
        assert {row[1] for row in compared.rows()[:2]} == {f"{1 - 4 / number:.4f}", "1.0000"}
    left = ", without 4 that only one of them had in train or val." if "train" in options else "."
    assert compare_runs(first, other).scope.endswith(f"that both runs have, of 40 and {of}{left}")


def test_copies_that_both_runs_trained_on_stay_and_equal_test_sets_have_no_scope(tmp_path):
    first, other = (run_of(tmp_path / name, [], train=HASHES[:4]) for name in ("first", "other"))
    compared = compare_runs(first, other)
    assert len(compared.labels) == 40 and compared.scope == ""


def test_runs_with_few_test_images_in_common_are_refused_with_a_command_that_gives_more(tmp_path):
    first = run_of(tmp_path / "first", [])
    rest = [f"new{i}" for i in range(30)]
    holds = run_of(tmp_path / "holds", [], [*HASHES[:5], *rest], train=HASHES[5:])  # the test images of the first one are in its data
    other = run_of(tmp_path / "other", [], rest)
    few = rf"first \(40 test images\) and {holds} \(35\) have 5 test images in common that .*, but a comparison needs 20: train"
    with pytest.raises(UserError, match=rf"{few} {holds} again .*\(ftlit train again={holds} data\.split_from={first}\)$"):
        compare_runs(first, holds)
    with pytest.raises(UserError, match=rf"\(ftlit train again={holds} data\.split_from={first}\)$"):
        compare_runs(holds, first)
    with pytest.raises(
        UserError, match=rf"have no test images in common .*: train {other} again on the data of {first}, with data\.split_from={first}$"
    ):
        compare_runs(first, other)


def test_names_that_may_be_numbers_identify_images_of_equal_test_sets_only(tmp_path):
    first = run_of(tmp_path / "first", [], HASHES[:30], stored=False)
    with pytest.raises(
        UserError, match=r"first has 30 test images and .*other 40, and which .* unknown, because .*first has no split\.json: give two"
    ):
        compare_runs(first, run_of(tmp_path / "other", []))
    whole, part = run_of(tmp_path / "whole", []), run_of(tmp_path / "part", [], HASHES[:30])
    (part / FILE).write_bytes((whole / FILE).read_bytes())
    with pytest.raises(UserError, match=r"part has tested only some of its images: .*trainer\.limit_test_batches=1\.0\)$"):
        compare_runs(whole, part)


def test_macro_f1_is_that_of_the_results_of_a_run():
    labels, predicted = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2, 3])
    metrics = SplitMetrics(6)  # classes 4 and 5 are neither present nor predicted
    metrics.update(torch.nn.functional.one_hot(predicted, 6).float(), labels, torch.tensor(0.0))
    found = macro_f1([str(label) for label in labels.tolist()], [str(label) for label in predicted.tolist()])
    assert found == pytest.approx(float(metrics.compute()["f1"]))


def test_the_command_prints_the_comparison_and_writes_nothing(tmp_path, capsys):
    first, other = run_of(tmp_path / "first", HASHES[:3]), run_of(tmp_path / "other", HASHES[:9])
    before = sorted(tmp_path.rglob("*"))
    main.report([str(first), "--against", str(other)])
    printed = capsys.readouterr().out
    assert "+0.1500" in printed and sorted(tmp_path.rglob("*")) == before
    for words in (["head=linear"], [str(other), str(first)], [""]):
        with pytest.raises(
            UserError, match=f"^--against '{' '.join(words)}': {first} is a single run, and this is not the folder of another one"
        ):
            main.report([str(first), "--against", *words])
    with pytest.raises(UserError, match=r"there is no file or folder .*/otter: did you mean .*/other"):
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
