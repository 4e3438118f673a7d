"""Invariant 4, and the presets: when parameters train, and at which factor of the base rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftlit.errors import UserError
from ftlit.finetuning.presets import all_at_once, explicit, head_only, head_then_all, last_k, lr_factors, top_down, with_reinit
from ftlit.finetuning.schedule import Schedule, with_batchnorm
from ftlit.finetuning.stage import Stage, Until

LAYERS = ["stem", "layer1", "layer2", "layer3", "encoder.4"]
EVEN = [("head", 1.0), *((f"backbone.{layer}", 0.1) for layer in reversed(LAYERS))]
HALVED = [("head", 1.0), *((f"backbone.{layer}", 0.4 * 0.5**depth) for depth, layer in enumerate(reversed(LAYERS)))]


def stages(schedule: Schedule) -> list[tuple[int, list[str]]]:
    return [(stage.epoch, [pattern.removeprefix("backbone.") for pattern in stage.train]) for stage in schedule.stages]


@given(st.lists(st.integers(1, 30), unique=True, max_size=6).map(sorted), st.integers(0, 40))
def test_the_current_stage_depends_on_the_epoch_and_not_on_earlier_calls(later, epoch):
    epochs = [0, *later]
    schedule = Schedule([Stage(["*"], epoch=e) for e in epochs])
    expected = sum(e <= epoch for e in epochs) - 1
    asked = [schedule.stage_at(e) for e in (epoch, 40, 0, epoch)]
    assert asked == [expected, len(later), 0, expected]


def test_head_only():
    schedule = head_only(LAYERS)
    assert stages(schedule) == [(0, ["head"])]
    assert list(schedule.lr_scale) == [("head", 1.0), *((f"backbone.{layer}", 1.0) for layer in reversed(LAYERS))]


def test_all_at_once():
    schedule = all_at_once(LAYERS, scale=0.4, decay=0.5)
    assert stages(schedule) == [(0, ["*"])]
    assert list(schedule.lr_scale) == HALVED


def test_head_then_all():
    schedule = head_then_all(LAYERS, epoch=3, scale=0.4, decay=0.5)
    assert stages(schedule) == [(0, ["head"]), (3, ["*"])]
    assert list(schedule.lr_scale) == HALVED


def test_last_k():
    schedule = last_k(LAYERS, k=2, epoch=4, scale=0.1, decay=1.0)
    assert stages(schedule) == [(0, ["head"]), (4, ["head", "layer3", "encoder.4"])]
    assert list(schedule.lr_scale) == EVEN


@pytest.mark.parametrize("k", [-1, 0, 6])
def test_last_k_takes_one_to_all_layers(k):
    assert stages(last_k(LAYERS, k=5))[-1][1] == ["head", *LAYERS]
    with pytest.raises(UserError, match=f"k={k}: this backbone has 5 layers, so give a k from 1 to 5"):
        last_k(LAYERS, k=k)


def test_top_down():
    schedule = top_down(LAYERS, every=2, epoch=3, scale=0.4, decay=0.5)
    assert stages(schedule) == [
        (0, ["head"]),
        (3, ["head", "encoder.4"]),
        (5, ["head", "layer3", "encoder.4"]),
        (7, ["head", "layer2", "layer3", "encoder.4"]),
        (9, ["head", "layer1", "layer2", "layer3", "encoder.4"]),
        (11, ["head", "stem", "layer1", "layer2", "layer3", "encoder.4"]),
    ]
    assert list(schedule.lr_scale) == HALVED


def test_top_down_without_epochs_between_its_stages_is_an_error():
    with pytest.raises(UserError, match=r"\[0, 1, 1, 1, 1, 1\]"):
        top_down(LAYERS, every=0)


def test_lr_factors_decrease_from_the_head_down_and_modules_may_have_other_names():
    assert lr_factors(["a", "b", "c"], 0.5, 0.5, backbone="encoder", head="out") == [
        *[("out", 1.0), ("encoder.c", 0.5), ("encoder.b", 0.25), ("encoder.a", 0.125)]
    ]


@pytest.mark.parametrize(
    ("given_pattern", "meant"),
    [
        ("stem", "backbone.stem"),
        ("encoder.4", "backbone.encoder.4"),
        ("layer1.0.conv1", "backbone.layer1.0.conv1"),
        ("layer[12]", "backbone.layer[12]"),
        ("layer*", "backbone.layer*"),
        ("head", "head"),
        ("*", "*"),
        ("*.bias", "*.bias"),
        ("backbone.stem", "backbone.stem"),
        ("layer", "layer"),
        ("encoder", "backbone.encoder"),
    ],
)
def test_explicit_expands_layer_names_to_layers_of_the_backbone(given_pattern, meant):
    schedule = explicit(LAYERS, stages=[{"train": [given_pattern]}], lr_scale={"head.bias": 1, given_pattern: 0.1})
    assert schedule.stages == (Stage([meant]),)
    assert dict(schedule.lr_scale)[meant] == 0.1


def test_explicit_stages_have_the_fields_of_a_stage():
    schedule = explicit(LAYERS, stages=[{"train": ["head"]}, {"train": ["*"], "epoch": 4, "name": "all"}])
    assert schedule == Schedule([Stage(["head"]), Stage(["*"], epoch=4, name="all")], [("*", 1.0)])


def test_explicit_accepts_one_pattern_without_a_list():
    assert explicit(LAYERS, stages=[{"train": "layer1"}]).stages == (Stage("backbone.layer1"),)


def test_a_factor_that_is_no_number_is_an_error():
    with pytest.raises(UserError, match="learning-rate factor 'abc' of 'head': give a number above 0"):
        explicit(LAYERS, stages=[{"train": ["*"]}], lr_scale={"head": "abc"})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"train": ["head"], "epochs": 2}, "Stage has no field 'epochs': did you mean 'epoch'?"),
        ({"trian": ["head"]}, "Stage has no field 'trian': did you mean 'train'?"),
        ({"name": "warm-up"}, "stage 'warm-up' trains nothing"),
        ({"train": 5}, "train=5 in schedule.stages: give names of layers"),
        (
            {"train": ["*"], "until": 5},
            "until=5 is not valid: give a condition on a metric, such as {metric: val/accuracy, threshold: 0.9}",
        ),
        ({"train": ["*"], "until": {"metric": "val/loss", "threshold": "a"}}, "threshold='a' in `until`: give a number"),
        ({"train": ["*"], "batchnorm": 4}, "batchnorm=4 is not valid: give one of auto, "),
    ],
)
def test_a_misspelt_or_missing_field_of_an_explicit_stage_is_an_error(stage, message):
    with pytest.raises(UserError) as caught:
        explicit(LAYERS, stages=[stage])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("epochs", [[], [1], [0, 0], [0, 3, 2], [0, 2, 2]])
def test_stages_out_of_order_are_an_error(epochs):
    messages = (
        "no stages: give at least one",
        "must begin at epoch 0",
        "begins at epoch 0, as stage 0 does",
        "let each stage begin at a later epoch",
    )
    with pytest.raises(UserError, match="|".join(messages)):
        Schedule([Stage(["*"], epoch=epoch) for epoch in epochs])


def test_a_later_stage_without_a_beginning_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"^stage 1 \('\*'\) begins at epoch 0, as stage 0 does: give it an epoch, a step or `until`"):
        Schedule([Stage(["head"]), Stage(["*"])])


@pytest.mark.parametrize("factor", [0, -1, float("nan")])
def test_a_factor_that_is_not_above_0_is_an_error(factor):
    with pytest.raises(UserError, match="give a number above 0; to freeze layers, remove them from `train`"):
        Schedule([Stage(["*"])], [("head", factor), ("*", 1.0)])


@pytest.mark.parametrize("epoch", [-1, 1.0, "1"])
def test_a_stage_must_begin_at_a_whole_number_from_0(epoch):
    with pytest.raises(UserError, match="give a whole number, 0 or more"):
        Stage(["*"], epoch=epoch)


def test_a_stage_needs_a_pattern_and_one_pattern_needs_no_list():
    assert Stage("head") == Stage(["head"]) and Stage(["head", "*.bias"]).name == "head + *.bias"
    with pytest.raises(UserError, match="trains nothing"):
        Stage([])


@pytest.mark.parametrize("max_epochs", [0, 1, 3])
def test_a_last_stage_that_training_never_reaches_is_an_error(max_epochs):
    with pytest.raises(UserError, match=rf"the last stage 'all' would never begin, because max_epochs={max_epochs}"):
        head_then_all(LAYERS, epoch=3).check_reached(max_epochs)


@pytest.mark.parametrize("max_epochs", [4, 100, -1, None])
def test_a_last_stage_of_one_epoch_is_reached_and_unlimited_training_reaches_all_stages(max_epochs):
    head_then_all(LAYERS, epoch=3).check_reached(max_epochs)


@given(st.integers(0, 40), st.integers(0, 400))
def test_step_and_epoch_together_determine_the_stage(epoch, step):
    schedule = Schedule([Stage(["head"]), Stage(["a"], step=100), Stage(["b"], epoch=20), Stage(["*"], step=300)])
    assert schedule.stage_at(epoch, step) == (3 if step >= 300 else 2 if epoch >= 20 else 1 if step >= 100 else 0)


def test_a_condition_is_an_object_or_its_fields():
    fields = {"metric": "val/loss", "patience": 2}
    assert top_down(LAYERS, epoch=None, until=Until(**fields)) == top_down(LAYERS, epoch=None, until=fields)


@given(st.integers(0, 12), st.none() | st.integers(1, 12))
def test_a_metric_can_begin_a_stage_earlier_but_not_later(epoch, decided):
    schedule = head_then_all(LAYERS, epoch=8, until={"metric": "val/accuracy", "threshold": 0.9})
    begins = 8 if decided is None else min(8, decided)
    assert schedule.stage_at(epoch, 0, {} if decided is None else {1: decided}) == int(epoch >= begins)


@given(st.integers(0, 12), st.none() | st.integers(1, 12))
def test_without_a_latest_epoch_only_the_metric_begins_a_stage(epoch, decided):
    schedule = top_down(LAYERS, epoch=None, until={"metric": "val/loss", "patience": 1})
    assert schedule.stage_at(epoch, 0, {} if decided is None else {1: decided}) == int(decided is not None and decided <= epoch)
    assert {stage.begins for stage in schedule.stages[1:]} == {"if val/loss (lower is better) stalls 1 time"}
    assert [list(span) for span in schedule.spans(9)] == [list(range(9))] * len(schedule.stages)  # it may begin in any epoch


@pytest.mark.parametrize("epoch", [None, 8, 100])
def test_a_stage_that_a_metric_can_begin_before_training_ends_is_accepted(epoch):
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=epoch, until=Until("val_loss", patience=1))])
    for limits in ((8,), (2, -1, 10), (-1, 11, 10), (8, 80, 10)):
        schedule.check_reached(*limits)
    begins = r"if val_loss" if epoch is None else rf"when val_loss .* at epoch {epoch} at the latest"
    for limits, limit in (((1,), "max_epochs=1 "), ((-1, 10, 10), "max_steps=10 ")):  # before the metric can begin it
        with pytest.raises(UserError, match=rf"the last stage '\*' would never begin, because {limit}.* \(now: {begins}"):
            schedule.check_reached(*limits)


@pytest.mark.parametrize(("metric", "mode"), [("val_loss", "min"), ("val/error", "min"), ("val/accuracy", "max"), ("val/score", "max")])
def test_whether_a_metric_is_to_increase_follows_from_its_name(metric, mode):
    assert Until(metric, patience=1) == Until(metric, mode=mode, patience=1)
    assert str(Until(metric, patience=1)) == f"{metric} ({'higher' if mode == 'max' else 'lower'} is better) stalls 1 time"


def test_the_smallest_change_that_counts_is_in_the_text_of_a_condition_where_it_is_not_the_default():
    assert Stage(["*"], until=Until("val/loss", patience=2, min_delta=0.01)).begins == (
        "if val/loss (lower is better) stalls 2 times (min_delta 0.01)"
    )


@pytest.mark.parametrize(("max_epochs", "ways"), [(1, "use fewer stages"), (len(LAYERS), "use fewer stages"), (len(LAYERS) + 1, "let the")])
def test_more_stages_than_epochs_cannot_begin_earlier(max_epochs, ways):
    schedule = top_down(LAYERS, epoch=2)
    last = schedule.stages[-1].epoch
    with pytest.raises(UserError, match=rf"give max_epochs={last + 1} or more, or {ways}"):
        schedule.check_reached(max_epochs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 1, "step": 5}, "has step=5 and also epoch: leave out step, or leave out epoch"),
        (
            {"epoch": 1, "step": 5, "until": Until("val/loss", patience=2)},
            "and also epoch and until: leave out step, or leave out epoch and until",
        ),
        (
            {"epoch": 1, "from_best": True},
            "from_best needs `until`, whose metric selects the best weights: add until={metric: val/accuracy",
        ),
        ({"epoch": 1, "batchnorm": "frozn"}, "no batchnorm policy 'frozn': did you mean 'frozen'?"),
        ({"step": -1}, "has step=-1: give a whole number, 0 or more"),
        ({"epoch": 1, "until": "val/acc"}, "has until='val/acc', which is no condition: give until={metric: val/accuracy, threshold: 0.9}"),
        ({"epoch": "1"}, "has epoch='1': give a whole number, 0 or more ('1' is a text: give 1 without quotes)"),
    ],
)
def test_a_stage_with_contradictory_fields_is_an_error(fields, message):
    with pytest.raises(UserError) as caught:
        Stage(["*"], **fields)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Stage(None), "`train` of a stage has None, which is not the name of a layer"),
        (lambda: Schedule(["head"]), "stages[0] of the Schedule is 'head', not a Stage: give Stage(train=['head'])"),
        (lambda: Schedule("head"), "a Schedule is a list of stages, not 'head': give Schedule([Stage("),
        (
            lambda: Schedule([Stage(["head"]), {"train": ["*"], "epoch": 2}]),
            "stages[1] of the Schedule is {'train': ['*'], 'epoch': 2}, not a Stage: give Stage(train=['*'], epoch=2)",
        ),
        (lambda: Schedule(Stage(["*"])), "a Schedule is a list of stages, not one Stage: give Schedule([Stage("),
        (lambda: Schedule([Stage(["*"])], {"*": 1.0}), "learning-rate factors are a list of pairs (pattern, factor), not {'*': 1.0}: give"),
        (lambda: Schedule([Stage(["*"])], ("head", 1.0)), "learning-rate factors are a list of pairs (pattern, factor), not 'head': give"),
    ],
)
def test_a_value_of_another_type_is_one_line(wrong, message):
    with pytest.raises(UserError) as caught:
        wrong()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "limits", "message"),
    [
        (
            [Stage(["a"]), Stage(["*"], step=40)],
            (4, -1, 10),
            "the last stage '*' would never begin, because max_epochs=4 (10 steps per epoch)",
        ),
        ([Stage(["a"]), Stage(["*"], step=40)], (-1, 40, 10), "the last stage '*' would never begin, because max_steps=40"),
        (
            [Stage(["a"]), Stage(["*"], epoch=3)],
            (None, 30, 10),
            "the last stage '*' would never begin, because max_steps=30 (10 steps per epoch)",
        ),
        (
            [Stage(["a"]), Stage(["b"], step=40), Stage(["*"], epoch=3)],
            (9, -1, 10),
            "stage '*' begins at step 30, which is not after stage 'b' at step 40 (10 steps per epoch): let stage '*' begin at epoch 5",
        ),
        (
            [Stage(["a"]), Stage(["b"], epoch=4), Stage(["*"], step=40)],
            (9, -1, 10),
            "stage '*' begins at step 40, which is not after stage 'b' at step 40 (10 steps per epoch): let stage '*' begin at step 41",
        ),
    ],
)
def test_stages_that_begin_at_a_step_are_checked_if_the_steps_per_epoch_are_known(stages, limits, message):
    with pytest.raises(UserError) as caught:
        Schedule(stages).check_reached(*limits)
    assert str(caught.value).startswith(message)


def test_a_batchnorm_policy_for_all_stages_does_not_override_that_of_a_stage():
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=1, batchnorm="live")])
    assert [stage.batchnorm for stage in with_batchnorm(schedule, "frozen_stats").stages] == ["frozen_stats", "live"]


def test_reinitialized_layers_train_with_the_head_at_its_rate():
    layers = ["stem", "layer1", "layer2"]
    schedule = with_reinit(head_then_all(layers), ["layer2"])
    assert [stage.train for stage in schedule.stages] == [("head", "backbone.layer2"), ("*",)]
    assert schedule.lr_scale == (
        ("head", 1.0),
        ("backbone.layer2", 1.0),
        ("backbone.layer1", pytest.approx(0.08)),
        ("backbone.stem", pytest.approx(0.064)),
    )
    assert with_reinit(head_then_all(layers), []) == head_then_all(layers)


def test_an_explicit_schedule_is_not_changed_for_reinitialized_layers():
    schedule = explicit(["stem", "layer1"], stages=[{"train": ["head"]}], lr_scale={"head": 1, "backbone": 0.1})
    assert with_reinit(schedule, ["layer1"]) is schedule


@pytest.mark.parametrize(
    ("epochs", "until", "line"),
    [
        (
            (1, 5),
            Until("val/loss", mode="min", patience=2),
            "stage 'a' begins at epoch 1 at the latest, before val/loss can go 2 validations without improvement: let the stage begin at "
            "epoch 4 or later (HINT)",
        ),
        (
            (4, 6),
            Until("val/loss", mode="min", patience=2),
            "stage 'b' begins at epoch 6 at the latest, before val/loss can go 2 validations without improvement: let the stage begin at "
            "epoch 7 or later (HINT)",
        ),
        (
            (1, 2),
            Until("val/loss", mode="min", patience=2),
            "stages 'a', 'b' begin at epochs 1, 2 at the latest, before val/loss can go 2 validations without improvement: let them begin "
            "at epochs 4, 7 or later (HINT)",
        ),
        ((4, 7), Until("val/loss", mode="min", patience=2), None),
        ((1, 2), Until("val/loss", mode="min", patience=2, threshold=0.1), None),
        ((1, 2), None, None),
    ],
)
def test_a_patience_that_ends_after_the_latest_epoch_is_noted(epochs, until, line):
    stages = [Stage(["head"]), *(Stage(["*"], epoch=epoch, until=until, name=name) for name, epoch in zip("ab", epochs, strict=True))]
    assert list(Schedule(stages).condition_warnings("HINT")) == ([line] if line else [])
    assert list(Schedule(stages).condition_warnings("HINT", max_epochs=8)) == ([line] if line else [])


def test_a_later_epoch_is_advised_together_with_a_training_that_reaches_it():
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=2, until=Until("val/loss", patience=2))])
    advice = {end: next(schedule.condition_warnings("HINT", max_epochs=end)).partition("without improvement: ")[2] for end in (3, 4, 5)}
    assert advice[5] == "let the stage begin at epoch 4 or later (HINT)"
    assert advice[3] == advice[4] == "let the stage begin at epoch 4 or later (HINT), and give max_epochs=5 or more"
    Schedule([Stage(["head"]), Stage(["*"], epoch=4, until=Until("val/loss", patience=2))]).check_reached(5)


@pytest.mark.parametrize(
    ("until", "known", "line"),
    [
        (
            Until("val_loss", patience=5),
            {"max_epochs": 6},
            "stage 'a' can begin at epoch 6 at the earliest (val_loss (lower is better) stalls",
        ),
        (Until("val_loss", patience=5), {"max_epochs": 6, "validations": 2.0}, None),
        (Until("val_loss", patience=5), {"max_epochs": 7}, None),
        (Until("val_loss", patience=2), {"max_epochs": 7, "validations": 0.25}, "stage 'a' can begin at epoch 12 at the earliest"),
        (Until("val_loss", patience=5), {}, None),
        (Until("val_acc", threshold=0.5), {}, None),
        (Until("val_loss", mode="max", patience=5), {}, "stage 'a': mode='max' lets val_loss rise, but lower values of it are better"),
        (Until("val/accuracy", mode="min", patience=5), {}, "stage 'a': mode='min' lets val/accuracy fall, but higher values of it are"),
        (
            Until("val/accuracy", threshold=90),
            {},
            "stage 'a': val/accuracy can reach 90 only if it is logged in percent; else give threshold=0.9",
        ),
        (Until("val/iou", threshold=90), {}, None),
    ],
)
def test_a_condition_that_is_likely_a_mistake_is_noted(until, known, line):
    found = list(Schedule([Stage(["head"]), Stage(["*"], until=until, name="a")]).condition_warnings("HINT", **known))
    assert len(found) == bool(line) and all(text.startswith(line) for text in found)


def test_stages_with_the_same_doubtful_condition_are_one_line():
    stages = [Stage([name], until=Until("val_loss", mode="max", patience=1)) for name in "abc"]
    lines = list(Schedule([Stage(["head"]), *stages]).condition_warnings("HINT", 3))
    assert [line.partition(":")[0] for line in lines] == [
        "stages 'a', 'b', 'c'",
        "stages 'b', 'c' can begin at epochs 4, 6 at the earliest (val_loss (higher is better) stalls 1 time), but training has 3 epochs",
    ]


def test_stages_and_factors_may_come_from_iterators_which_can_be_read_once():
    schedule = Schedule((Stage([pattern], epoch=epoch) for epoch, pattern in enumerate("h*")), zip("h*", (1, 0.1), strict=True))
    assert schedule == Schedule([Stage(["h"]), Stage(["*"], epoch=1)], [("h", 1.0), ("*", 0.1)])
