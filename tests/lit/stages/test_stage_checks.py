"""Mistakes that would train the wrong parameters are errors: of the schedule, the optimizer, the scheduler and the checkpoint."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from staged_net import Net, fit
from torch.optim import lr_scheduler

from ftlit import Lora, Rates, Schedule, Stage, StagedFinetuning, Until, UserError, add_lora, build_optimizer, examine
from ftlit.finetuning.lr_schedule import cosine
from ftlit.lit.stages.stage_checks import check_same_schedule, schedule_values


@pytest.mark.parametrize("schedule", [Schedule([Stage(["haed"])]), Schedule([Stage(["head"]), Stage(["*"], epoch=9)])])
def test_a_wrong_schedule_is_an_error_before_training(schedule):
    model = Net()
    with pytest.raises(UserError) as error:
        fit(5, schedule=schedule, model=model)
    assert "\n" not in str(error.value) and model.seen == []


def test_a_checkpoint_of_another_schedule_is_an_error_that_shows_both(tmp_path):
    fit(4, folder=tmp_path)
    other = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=1), Stage(["*"], epoch=3)])
    with pytest.raises(UserError) as error:
        fit(5, schedule=other, ckpt_path=tmp_path / "1.ckpt")
    assert "made with another schedule" in str(error.value) and "epoch=2 in the checkpoint, but epoch=1 here" in str(error.value)


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_rates_that_lightning_would_step_in_another_unit_are_an_error_before_training(unit):
    class Model(Net):
        def configure_optimizers(self):
            rates = Rates(super().configure_optimizers(), cosine, steps=16, epochs=4, unit=unit)
            other = {"scheduler": rates, "interval": "step" if unit == "epoch" else "epoch"}
            return {"optimizer": rates.optimizer, "lr_scheduler": rates.config if self.right else other}

    model, right = Model(), Model()
    model.right, right.right = False, True
    with pytest.raises(UserError, match=f"Rates has unit='{unit}', but Lightning would step it once per .*'lr_scheduler': rates.config"):
        fit(4, model=model)
    assert model.seen == []
    fit(4, model=right)


STALLED = Until("val/score", patience=2, min_delta=0.5)
BY_LAYER = {"body.low": "frozen", "*": "live"}
RICH = Schedule([Stage(["head"]), Stage(["*"], epoch=3, until=STALLED, batchnorm=BY_LAYER, from_best=True)], [("head", 1), ("*", 0.1)])


def test_a_checkpoint_keeps_the_schedule_as_plain_values():
    values = json.loads(json.dumps(schedule_values(RICH)))  # plain values survive JSON
    checkpoint = {"callbacks": {}}
    StagedFinetuning(RICH).on_save_checkpoint(None, None, checkpoint)
    assert values == checkpoint["callbacks"]["StagedFinetuning"]["schedule"]
    check_same_schedule(values, RICH)
    assert values["stages"][1]["until"]["min_delta"] == 0.5 and values["lr_scale"] == [["head", 1.0], ["*", 0.1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": replace(STALLED, min_delta=0.25)}, r"until\.min_delta=0\.5 in the checkpoint, but until\.min_delta=0\.25 here;"),
        ({"batchnorm": "live"}, r"batchnorm={'body.low': 'frozen', '\*': 'live'} in the checkpoint, but batchnorm=live here;"),
        (
            {"from_best": False, "epoch": 4},
            "epoch=3, from_best=True in the checkpoint, but epoch=4, from_best=False here",
        ),
        ({"name": "all"}, r"stage '\*' has name=\* in the checkpoint, but name=all here;"),
        (
            {"epoch": 4},
            r"another schedule: stage '\*' has epoch=3 in the checkpoint, but epoch=4 here; give the schedule of the checkpoint",
        ),
    ],
)
def test_every_change_of_a_stage_is_an_error_that_shows_the_change(change, message):
    other = Schedule([RICH.stages[0], replace(RICH.stages[1], **change)], RICH.lr_scale)
    with pytest.raises(UserError, match=message):
        check_same_schedule(schedule_values(RICH), other)


def test_another_number_of_stages_or_factors_and_an_earlier_release_are_errors():
    with pytest.raises(UserError, match=r"another schedule: the checkpoint has stage '\*'.*, which this run does not have;"):
        check_same_schedule(schedule_values(RICH), Schedule(RICH.stages[:1], RICH.lr_scale))
    with pytest.raises(
        UserError, match=r"schedule: this run has the learning-rate factor 0\.1 for \*, which the checkpoint does not have;"
    ):
        check_same_schedule(schedule_values(Schedule(RICH.stages, RICH.lr_scale[:1])), RICH)
    with pytest.raises(UserError, match="this checkpoint is from an older version of ftlit"):
        check_same_schedule(["stage 'head': head from epoch 0; batchnorm auto"], RICH)


def test_parameter_groups_without_factors_are_an_error_for_a_schedule_with_factors():
    schedule = Schedule([Stage(["*"])], [("head", 1.0), ("*", 0.3)])
    with pytest.raises(
        UserError,
        match=r"body\.low\.0\.weight has the learning-rate factor 0\.1 in the optimizer, but 0\.3 in .*call build_optimizer without",
    ):
        fit(1, schedule=schedule)


@pytest.mark.parametrize(
    "given", [[("head", 0.3), ("*", 1.0)], [("head", 1.0), ("body.low.0", 1.0), ("*", 0.3)]], ids=["swapped", "one layer"]
)
def test_each_parameter_has_the_factor_of_the_schedule(given):
    """The sets of factors are equal."""
    schedule = Schedule([Stage(["*"])], [("head", 1.0), ("*", 0.3)])

    class Mine(Net):
        def configure_optimizers(self):
            return build_optimizer(self, partial(torch.optim.SGD, lr=0.1), self.scales)

    model = Mine()
    model.scales = given
    with pytest.raises(UserError, match=r"body\.low\.0\.weight has the learning-rate factor 1 in the optimizer, but"):
        fit(1, schedule=schedule, model=model)
    model.scales = [("head", 1.0), ("body", 0.3)]  # other patterns, the same factors
    fit(1, schedule=schedule, model=model)


@pytest.mark.parametrize("scheduled", ["one rate", "a list", "no scheduler"])
def test_a_scheduler_that_sets_one_rate_for_all_groups_is_an_error(scheduled):
    schedule = Schedule([Stage(["*"])], [("head*", 1.0), ("*", 0.1)])

    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = build_optimizer(self, partial(torch.optim.SGD, lr=0.1), schedule.lr_scale)
            rates = {"one rate": 0.1, "a list": [0.1, 0.01]}
            if scheduled not in rates:
                return optimizer
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, rates[scheduled], total_steps=100)]

    error = pytest.raises(
        UserError,
        match=r"factors of the parameter groups: 'head\*' \(factor 1\) 0.004, '\*' \(factor 0.1\) 0.004; use ftlit.Rates",
    )
    with error if scheduled == "one rate" else nullcontext():
        fit(1, schedule=schedule, model=Scheduled())


HEAD_AND_REST = Schedule([Stage(["*"])], [("head*", 1.0), ("*", 0.1)])


class WithScheduler(Net):
    def __init__(self, build):
        super().__init__()
        self.build = build

    def configure_optimizers(self):
        optimizer = build_optimizer(self, partial(torch.optim.SGD, lr=0.1), HEAD_AND_REST.lr_scale)
        plateau = {"monitor": "val/score", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.build(optimizer), **plateau}}


COSINE, PLATEAU = partial(lr_scheduler.CosineAnnealingLR, T_max=2), lr_scheduler.ReduceLROnPlateau


@pytest.mark.parametrize(
    ("build", "floor"),
    [
        (partial(COSINE, eta_min=1e-3), "CosineAnnealingLR with eta_min=0.001"),
        (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2, eta_min=1e-3), "CosineAnnealingWarmRestarts with eta_min=0.001"),
        (lambda optimizer: lr_scheduler.SequentialLR(optimizer, [COSINE(optimizer, eta_min=1e-3)], []), "CosineAnnealingLR with eta_min"),
        (partial(PLATEAU, min_lr=1e-4), "ReduceLROnPlateau with min_lr=0.0001"),
        (partial(PLATEAU, min_lr=[1e-4, 1e-5]), None),
        (COSINE, None),
        (partial(Rates, curve=partial(cosine, least=0.1), steps=2, epochs=2, unit="epoch"), None),
    ],
)
def test_a_lowest_rate_that_would_change_the_ratios_of_the_groups_is_a_warning_before_training(build, floor):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(2, schedule=HEAD_AND_REST, model=WithScheduler(build))
    found = [str(warning.message) for warning in caught if "down to the same learning rate" in str(warning.message)]
    assert len(found) == bool(floor)
    if floor:
        assert found[0].startswith(floor) and ("min_lr=[...] with one rate per parameter group" in found[0]) == ("min_lr" in floor)


@pytest.mark.parametrize("last", [1.0, 0.5])
def test_a_scheduler_that_changes_the_ratios_during_training_is_a_warning_once(last):
    build = partial(lr_scheduler.LambdaLR, lr_lambda=[lambda epoch: 1.0, lambda epoch: 1.0 if epoch < 1 else last])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(4, schedule=HEAD_AND_REST, model=WithScheduler(build))
    found = [str(warning.message) for warning in caught if "no longer follow the factors of the parameter groups" in str(warning.message)]
    assert len(found) == (last < 1)


def test_parameter_groups_that_ftlit_did_not_build_are_accepted():
    class TimmGroups(Net):  # as timm builds them: a scale that timm's scheduler applies, no name
        def configure_optimizers(self):
            parts = ((self.head, 1.0), (self.body, 0.5))
            return torch.optim.SGD([{"params": part.parameters(), "lr_scale": scale} for part, scale in parts], lr=0.1)

    _, shots = fit(1, schedule=Schedule([Stage(["*"])]), model=TimmGroups())
    assert shots.stages == [0]


def test_an_optimizer_without_the_parameters_that_are_frozen_at_first_is_an_error():
    class TrainableOnly(Net):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    with pytest.raises(UserError, match=r"stage 'head \+ body.top' trains parameters that are not in the optimizer: body.top.0.weight"):
        fit(5, model=TrainableOnly())


@pytest.mark.parametrize(("given", "alike"), [(Lora(2), True), (None, True), (Lora(3), False), (Lora(2, alpha=4), False)])
def test_a_schedule_whose_matrices_are_not_those_of_the_module_is_one_line_in_training_and_in_the_plan(given, alike):
    model, schedule = Net(), Schedule([Stage(["head", {"body": "lora"}])], lora=given)
    add_lora(model, Lora(2), within="body")
    for use in (lambda: fit(1, schedule=schedule, model=model), lambda: examine(model, schedule, model.configure_optimizers())):
        with nullcontext() if alike else pytest.raises(UserError, match=r"but body\.low\.0 has LoRA matrices of another rank or alpha"):
            use()


def test_weight_averaging_that_recomputes_statistics_is_not_supported():
    with pytest.raises(UserError, match="StochasticWeightAveraging changes the statistics"):
        fit(5, callbacks=[StochasticWeightAveraging(0.1)])


def test_an_optimizer_without_factors_has_those_of_the_schedule():
    class WithoutFactors(Net):
        def configure_optimizers(self):
            return build_optimizer(self, partial(torch.optim.SGD, lr=0.1))

    scaled = Schedule([Stage(["*"])], [("head", 1.0), ("*", 0.3)])
    for schedule in (scaled, lambda _: scaled):
        _, shots = fit(1, schedule=schedule, model=WithoutFactors())
        assert [(name, rate) for name, rate, _ in shots.groups[0]] == [("head", 0.1), ("*", pytest.approx(0.03))]
    assert [group["lr"] for group in WithoutFactors().configure_optimizers().param_groups] == [0.1]  # without a trainer
