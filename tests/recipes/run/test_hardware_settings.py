"""`auto` in settings of the hardware is a function of device and network, is written to the config, and survives a resume elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from composed_configs import composed
from omegaconf import OmegaConf

from ftlit import load_backbone
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.precision import Device
from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate
from ftlit.recipes.resuming import resume
from ftlit.recipes.resuming.resume import check_settings, write_config
from ftlit.recipes.run import hardware_settings
from ftlit.recipes.run.hardware_settings import resolve_checkpoint, resolve_hardware_settings


@pytest.fixture(scope="module", autouse=True)
def hydra():
    """Initialize Hydra as the command line does."""
    with fresh_hydra():
        yield


LARGE = SimpleNamespace(input_spec=InputSpec(), cuts=("top",), on_meta=lambda _: {"top": ((8,), 1e9)})
A100, T4, OLD_CPU, NEW_CPU = Device("cuda", (8, 0)), Device("cuda", (7, 5)), Device("cpu"), Device("cpu", bf16=True)


def with_values(*words):
    return OmegaConf.merge(composed(), OmegaConf.from_dotlist(list(words)))


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Resolve a config as on a device. Returns the values, and the notes."""
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(resume, "chosen_options", dict)  # Hydra knows them in a program only

    def resolve(device, *words):
        cfg = with_values(f"paths.run={tmp_path}", *words)
        monkeypatch.setattr(hardware_settings, "device_of", lambda accelerator: device)
        notes = resolve_hardware_settings(cfg, LARGE)
        return cfg, (cfg.trainer.precision, cfg.float32, cfg.optimizer.fused), notes

    yield resolve
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "words", "expected"),
    [
        (A100, [], ("bf16-mixed", "high", True)),
        (T4, [], ("16-mixed", "highest", True)),
        (OLD_CPU, [], ("32-true", "highest", True)),
        (NEW_CPU, [], ("bf16-mixed", "highest", True)),
        (Device("mps"), [], ("32-true", "highest", None)),
        (A100, ["trainer.precision=32-true", "float32=highest", "optimizer.fused=false"], ("32-true", "highest", False)),
        (A100, ["trainer.gradient_clip_val=1"], ("bf16-mixed", "high", None)),
        (A100, ["trainer.gradient_clip_val=1", "trainer.precision=32-true"], ("32-true", "high", True)),
        (A100, ["recipe=pretrain"], ("32-true", "high", True)),
    ],
)
def test_auto_is_what_suits_the_device(on, device, words, expected):
    _, values, notes = on(device, *words)
    assert values == expected and notes == []
    assert torch.get_float32_matmul_precision() == expected[1]


def test_a_resumed_run_keeps_its_values_on_other_hardware_and_says_so(on):
    cfg, began, _ = on(A100)
    write_config(cfg)
    again = with_values("resume=true", f"paths.run={cfg.paths.run}")
    check_settings(again)  # as composed, before `auto` is replaced
    resumed, values, notes = on(OLD_CPU, "resume=true")
    assert values == began and len(notes) == 2
    assert "the resumed run keeps trainer.precision=bf16-mixed; a new run on this machine would use 32-true" in notes
    check_settings(resumed)
    with pytest.raises(UserError, match=r"trainer\.precision was bf16-mixed and is now 32-true"):
        check_settings(on(A100, "resume=true", "trainer.precision=32-true")[0])


def test_a_run_of_an_earlier_release_goes_on_with_its_values(on):
    cfg, _, _ = on(OLD_CPU, "optimizer.fused=null")
    del cfg.float32, cfg.optimizer.fused, cfg.cache.pixels
    write_config(cfg)
    resumed, values, _ = on(A100, "resume=true")
    assert values == ("32-true", "highest", None) and resumed.cache.pixels is False
    check_settings(resumed)


def test_a_fused_optimizer_that_clips_under_mixed_precision_is_an_error(on):
    words = ["trainer.gradient_clip_val=1", "optimizer.fused=true"]
    with pytest.raises(UserError, match=r"cannot be clipped with optimizer\.fused=true and trainer\.precision=bf16-mixed: give"):
        on(A100, *words)
    assert on(A100, *words, "trainer.precision=32-true")[1] == ("32-true", "high", True)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fused_optimizer_takes_the_same_steps(optimizer):
    def steps(fused):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        node = composed(f"optimizer={optimizer}", f"optimizer.fused={fused}").optimizer
        built = instantiate(node)(list(layer.parameters()))
        for _ in range(5):
            layer(torch.randn(4, 5)).square().mean().backward()
            built.step()
            built.zero_grad()
        return layer.weight

    torch.testing.assert_close(steps("true"), steps("false"), rtol=1e-6, atol=1e-7)
    assert composed(f"optimizer={optimizer}").optimizer.fused == "auto"


@pytest.mark.parametrize(
    ("settings", "weights", "frozen", "expected"),
    [
        ({}, "default", True, "slim"),
        ({}, "default", False, "full"),
        ({}, None, True, "full"),
        ({"trainer": {"strategy": "fsdp"}}, "default", True, "full"),
        ({"trainer": {"strategy": {"_target_": "ftlit.Fsdp2Strategy"}}}, "default", True, "full"),
        ({"checkpoint": "full"}, "default", True, "full"),
    ],
)
def test_checkpoints_are_slim_where_the_backbone_never_trains_and_its_weights_are_published(tmp_path, settings, weights, frozen, expected):
    given = {"checkpoint": "auto", "resume": False, "paths": {"run": str(tmp_path)}, "trainer": {"strategy": "auto"}}
    cfg = OmegaConf.create({**given, **settings})
    resolve_checkpoint(cfg, load_backbone("glyph", weights=weights), few=frozen)
    assert cfg.checkpoint == expected
