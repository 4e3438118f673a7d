"""One factor scales the rates of all groups: their ratios are constant, and the curves equal those of torch."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from ftlit import UserError
from ftlit.finetuning.lr_schedule import Rates, any_curve, constant, cosine, linear, one_cycle, plateau, step

STEPS = 20
LAMBDA = partial(LambdaLR, lr_lambda=lambda step: 1 / (step + 1))


def sequential(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=5), CosineAnnealingLR(optimizer, STEPS - 5)], milestones=[5])


CURVES = {
    "constant": (constant, lambda o: LambdaLR(o, lambda _: 1.0)),
    "cosine": (cosine, lambda o: CosineAnnealingLR(o, STEPS)),
    "linear": (linear, lambda o: LinearLR(o, 1.0, 0.0, STEPS)),
    "one_cycle": (one_cycle, lambda o: OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=STEPS, cycle_momentum=False)),
    "step": (partial(step, step_size=7), lambda o: StepLR(o, 7)),
    "exponential": (partial(any_curve, scheduler=partial(ExponentialLR, gamma=0.9)), lambda o: ExponentialLR(o, 0.9)),
    "lambda": (partial(any_curve, scheduler=LAMBDA), LAMBDA),
    "sequential": (partial(any_curve, scheduler=sequential), sequential),
    "plateau": (plateau, lambda o: ReduceLROnPlateau(o, patience=2)),
}
METRICS = [1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, *[0.8] * 10]


def optimizer(*rates):
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": str(rate), "lr": rate} for rate in rates], lr=1.0)


def trace(rates, steps=STEPS, first=0):
    seen = []
    for i in range(first, first + steps):
        seen.append(rates.get_last_lr())
        rates.optimizer.step()
        if isinstance(rates, ReduceLROnPlateau) or getattr(rates, "reduce_on_plateau", False):
            rates.step(METRICS[i])
        else:
            rates.step()
    return seen


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # a warning of SequentialLR
@pytest.mark.parametrize("name", CURVES)
def test_rates_equal_those_of_torchs_scheduler_in_all_groups(name):
    curve, torchs = CURVES[name]
    ours, theirs = trace(Rates(optimizer(0.1, 0.002), curve, steps=STEPS, epochs=2)), trace(torchs(optimizer(0.1, 0.002)))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("name", CURVES)
def test_the_ratio_between_groups_is_constant(name, warmup):
    for a, b in trace(Rates(optimizer(0.1, 0.002), CURVES[name][0], steps=STEPS, epochs=2, warmup=warmup)):
        assert b == pytest.approx(a / 50, rel=1e-12, abs=1e-15)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("cut", [0, 3, 5, 6, 19])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("name", CURVES)
def test_resuming_at_any_step_gives_the_same_rates_bit_for_bit(name, warmup, cut):
    make = partial(Rates, curve=CURVES[name][0], steps=STEPS, epochs=2, warmup=warmup)
    whole = trace(make(optimizer(0.1, 0.002)))
    stopped = make(optimizer(0.1, 0.002))
    trace(stopped, cut)
    resumed = make(optimizer(0.1, 0.002))
    resumed.optimizer.load_state_dict(stopped.optimizer.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    assert trace(resumed, STEPS - cut, first=cut) == whole[cut:]


def test_rates_with_warm_up_and_restart_in_each_stage_equal_a_manual_computation():
    """Four steps in the first stage, six in the second; the rate rises during a quarter of each, then it falls linearly."""
    rates = Rates(optimizer(1.0, 0.1), linear, steps=4, epochs=1, warmup=0.25, restart=True)
    first = trace(rates, 4)
    rates.begin_stage(6, 1)
    second = trace(rates, 6)
    assert [a for a, _ in first] == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    assert [a for a, _ in second] == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert [b for _, b in first + second] == pytest.approx([a / 10 for a, _ in first + second])


def test_without_restart_a_stage_does_not_change_the_rates():
    whole, staged = Rates(optimizer(1.0), cosine, steps=10, epochs=1), Rates(optimizer(1.0), cosine, steps=10, epochs=1)
    before = trace(staged, 4)
    staged.begin_stage(6, 1)
    assert before + trace(staged, 6) == trace(whole, 10)


def test_each_stage_has_its_own_factor_beside_the_curve_also_after_a_resume():
    make = partial(Rates, curve=cosine, steps=10, epochs=1, stage_factors=[1, 0.1])
    whole, staged, resumed = Rates(optimizer(1.0), cosine, steps=10, epochs=1), make(optimizer(1.0)), make(optimizer(1.0))
    usual, first = trace(whole, 10), trace(staged, 4)
    staged.set_stage(1)
    resumed.load_state_dict(staged.state_dict())
    assert first == usual[:4] and staged.get_last_lr() == pytest.approx([0.1 * rate for rate in usual[4]])
    assert trace(staged, 6) == trace(resumed, 6) == [pytest.approx([0.1 * rate for rate in rates]) for rates in usual[4:]]


@pytest.mark.parametrize("factors", [[1, 0], [1, -1], [float("nan")], ["0.1"], [None]])
def test_a_factor_of_a_stage_that_is_not_above_0_is_an_error(factors):
    with pytest.raises(UserError, match=r"stage_factors=\[.*\]: give a number above 0 for each stage"):
        Rates(optimizer(1.0), cosine, steps=5, epochs=1, stage_factors=factors)


def test_the_rate_is_constant_after_the_end_of_the_curve():
    rates = Rates(optimizer(1.0), one_cycle, steps=5, epochs=1)
    assert trace(rates, 9)[6:] == [[pytest.approx(1 / 25e4)]] * 3


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_a_warm_up_outside_of_0_to_1_is_an_error(warmup):
    with pytest.raises(UserError, match="at least 0 and below 1"):
        Rates(optimizer(1.0), cosine, steps=5, epochs=1, warmup=warmup)


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize("rise", [0.25, 0.3, 0.5])
def test_one_cycle_gives_valid_rates_for_any_length(length, rise):
    assert all(0 < rate <= 1 for (rate,) in trace(Rates(optimizer(1.0), partial(one_cycle, rise=rise), steps=length, epochs=1), length))


def test_resuming_with_another_training_length_is_an_error():
    with pytest.raises(UserError, match="this checkpoint is from a run of 20 steps, but this run has 30"):
        Rates(optimizer(1.0), cosine, steps=30, epochs=3).load_state_dict(Rates(optimizer(1.0), cosine, steps=20, epochs=2).state_dict())


def test_a_step_size_of_0_is_an_error():
    with pytest.raises(UserError, match=r"curve.step_size=0: give a whole number, 1 or more"):
        Rates(optimizer(1.0), partial(step, step_size=0), steps=5, epochs=1)


def test_a_warm_up_shorter_than_the_unit_is_noted():
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.warns(
        UserWarning, match=r"^lr_scheduler.warmup=0.1, a share of 4 epochs, is less than one epoch, .* give at least 0.25, or"
    ):
        assert Rates(optimizer, constant, steps=40, epochs=4, unit="epoch", warmup=0.1).factor == 1.0
    assert Rates(optimizer, constant, steps=40, epochs=4, unit="epoch", warmup=0.25).factor == 0.5


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30, 300])
def test_the_share_that_the_note_on_a_short_warm_up_gives_is_long_enough(epochs):
    with pytest.warns(UserWarning, match="so there is no warm-up: give ") as caught:
        Rates(optimizer(1.0), constant, steps=900, epochs=epochs, unit="epoch", warmup=0.001)
    least = re.search(r"at least ([\d.]+)", str(caught[0].message))
    assert (least is None) == (epochs == 1)
    if least is not None:
        assert Rates(optimizer(1.0), constant, steps=900, epochs=epochs, unit="epoch", warmup=float(least[1])).factor < 1
