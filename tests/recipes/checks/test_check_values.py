"""Values of a config that are out of range, or that nothing provides, are errors before training."""

import pytest
from composed_configs import composed, error_text

from ftlit.errors import UserError
from ftlit.recipes.checks.validate import bind, check_labelled
from ftlit.recipes.config import option_names
from ftlit.recipes.config.hydra_internals import fresh_hydra


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "head._target_=no_such.Module",
            "head._target_=no_such.Module cannot be imported: No module named 'no_such': run the command in the folder that holds "
            "no_such, or add that folder to PYTHONPATH",
        ),
        ("head._target_=ftlit.no_such.Head", "head._target_=ftlit.no_such.Head cannot be imported: there is no head 'ftlit.no_such.Head'"),
        ("loss._target_=json.no_such.Loss", "loss._target_=json.no_such.Loss cannot be imported: No module named 'json.no_such'"),
        ("head._target_=Head", "head._target_=Head cannot be imported: give its module too, such as head._target_=my_module.Head"),
        (
            "head._target_=ftlit.head.MLPHead",
            "head._target_=ftlit.head.MLPHead cannot be imported: it has moved; give head._target_=ftlit.models.heads.MLPHead",
        ),
        ("schedule._target_=ftlit.finetuning.presets.top_dwn", "did you mean 'ftlit.finetuning.presets.top_down'? There are: ftlit."),
        ("head._target_=torch.nn.NoSuch", "torch.nn has no class or function 'NoSuch'"),
        ("optimizer.lr=-1", "optimizer.lr=-1: give a number above 0 and at most 1000"),
        ("+lr_scheduler.stage_factors=[1,0]", "lr_scheduler.stage_factors[1]=0: give a number above 0"),
        (
            "+lr_scheduler.stage_factors=[1,0.1,0.1]",
            "lr_scheduler.stage_factors=[1, 0.1, 0.1] has 3 numbers, but the schedule has 1 stage: give one number for each stage",
        ),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1: give a number from 0 to 1000"),
        ("checkpoint=slm", "checkpoint=slm: give auto, full or slim"),
        ("report=yep", "report=yep: give true or false"),
        ("resume=1", "resume=1: give true, false or auto"),
        ("sweep.resume=trie", "sweep.resume=trie: give true or false"),
        ("seed=-1", "seed=-1: give a whole number from 0 to 4294967295"),
        ("callbacks.best.monitor=val/acc", "callbacks.best.monitor: there is no metric 'val/acc': did you mean 'val/accuracy'?"),
        ("~lr_scheduler.curve", "lr_scheduler has no curve, which it needs: leave ~lr_scheduler.curve out, or choose another scheduler"),
        ("+trainer.logger=false", "give logger=csv or logger=tensorboard"),
        ("+trainer.callbacks=[]", "give +callbacks.NAME._target_=..."),
        ("+trainer.fast_dev_run=true", "give debug=fast"),
        ("+trainer.barebones=true", "give debug=fast"),
        ("trainer.limit_val_batches=0", "give 1 or more"),
        ("trainer.limit_test_batches=0.0", "give 1 or more"),
        ("trainer.precision=17", "trainer.precision=17: give "),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp (FSDP1) is not supported: give trainer=fsdp2 in its place"),
        ("trainer.strategy=fsdp2", "trainer.strategy=fsdp2 alone lacks the other settings of FSDP2: give trainer=fsdp2 in its place"),
        ("trainer.strategy=ddp_spawn", "is not supported (a run cannot be pickled): give trainer.strategy=ddp"),
        ("trainer.strategy=dpp", "trainer.strategy=dpp is not valid: did you mean 'ddp'? There are: auto, ddp, ddp_fork, "),
        ("+trainer.max_time={days: -1}", "trainer.max_time.days=-1: give a whole number from 0"),
        ("trainer.num_nodes=2", "the rank of this machine is unknown: start the command with torchrun or srun"),
        (
            "backbone.input_spec.size='32'",
            "input_spec.size='32': give one whole number of pixels, the side of the square input ('32' is a text: give 32",
        ),
        ("backbone.input_spec.size=[32,32]", "input_spec.size=[32, 32]: give one whole number of pixels"),
        (
            "schedule.until={metric: val/acc, patience: 1}",
            "no metric 'val/acc': did you mean 'val/accuracy'?",
        ),
        ("trainer.devices=0", "trainer.devices=0: give 1 or more, or -1"),
        ("+optimizer.eps=-1", "optimizer.eps=-1: Invalid epsilon value: -1"),
        ("trainer.check_val_every_n_epoch=11", "is more than trainer.max_epochs=10: no epoch would be validated; give 1 to 10"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 never ends: add +trainer.max_steps=..., or give a number of epochs"),
        (
            "head.hiden=3",
            "there is no option 'head.hiden': did you mean head.hidden, an option of head=mlp",
        ),
        ("data.val_fraction=1.5", "data.val_fraction=1.5: give a number above 0 and below 1"),
        ("data.val_fraction=20", "data.val_fraction=20: give a number above 0 and below 1 (20 % is 0.2)"),
        ("data.test_fraction=0", "data.test_fraction=0: give a number above 0 and below 1, such as 0.05: every run needs val"),
        ("optimizer.lr=[0.1]", "optimizer.lr=[0.1]: give a number"),
        ("optimizer.lr=[0.1,1]", "optimizer.lr=[0.1, 1]: give a number; for a sweep over these values, give -m optimizer.lr=0.1,1"),
        ("+optimizer.betas=[0.9]", "optimizer.betas=[0.9]: give two values, such as [0.9, 0.999]"),
        (
            "callbacks.best.mode=min",
            "callbacks.best.mode=min would keep the epoch with the worst val/accuracy: leave this option out, or give max",
        ),
        ("seed='1'", "seed='1': give a whole number"),
        (
            "+trainer.val_check_interval=5000",
            " batches; give a number from 1 to 34, a share of an epoch such as 0.5, or trainer.check_val_every_n_epoch=null",
        ),
        ("trainer.limit_train_batches=0.001", "trainer.limit_train_batches=0.001 leaves less than one batch of an epoch: give a number of"),
        ("backbone.input_spec.size=32.0", "backbone.input_spec.size=32.0: give a whole number from 1 to 4096"),
    ],
)
def test_an_unusable_value_is_one_line_before_training(override, message, monkeypatch):
    assert message in error_text(monkeypatch, override)


@pytest.mark.parametrize(
    ("words", "owners", "what"),
    [
        (["data=unlabelled", "data.root=.", "data.per_class=5"], "data=folder, csv, digits, ... (6 in all)", "one of these"),
        (["loss=bce", "loss.label_smoothing=0.1"], "loss=cross_entropy", "loss=cross_entropy too"),
    ],
)
def test_an_option_of_other_choices_names_the_usual_ones_and_advises_one_only_where_no_other_has_it(words, owners, what, monkeypatch):
    name = words[-1].partition("=")[0]
    text = error_text(monkeypatch, *words)
    assert text == f"{name} is an option of {owners}, not of {words[0]}: leave {name} out, or give {what}"


def test_a_scheduler_waits_for_a_metric_that_is_logged(monkeypatch):
    text = error_text(monkeypatch, "lr_scheduler=plateau", "lr_scheduler.monitor=val/los")
    assert text.startswith("lr_scheduler.monitor: there is no metric 'val/los': did you mean 'val/loss'?")


def test_a_custom_callback_may_log_an_unknown_metric():
    cfg = composed("callbacks.best.monitor=val/top5", "+callbacks.custom={_target_: string.Formatter}")
    bind(cfg)
    del cfg.callbacks.custom
    with pytest.raises(UserError, match="val/top5"):  # without the custom callback nothing logs it
        bind(cfg)


def test_the_names_of_train_yaml_are_the_known_names():
    assert set(option_names.known_names()) == set(map(str, composed("pretrain=rbm")))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["ant", "bee", "ant"], "class_names of Data has 'ant' more than once: give each class another name"),
        (["1", 2, 3.0], "class_names of Data must be texts (str), but 2, 3.0 are not"),
        (["ant", "bee"], "class_names of Data has 2 names for 3 classes: give one name per class"),
    ],
)
def test_class_names_that_prediction_would_refuse_are_an_error_before_training(names, text):
    data = type("Data", (), {"num_classes": 3, "class_names": names})()
    with pytest.raises(UserError) as caught:
        check_labelled(data)
    assert str(caught.value) == text
    check_labelled(type("Data", (), {"num_classes": 3, "class_names": ("Ant", "ant", "ant ")})())
