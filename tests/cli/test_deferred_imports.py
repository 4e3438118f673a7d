"""Packages are imported as far as a run needs them."""

import atexit
import gc
import subprocess
import sys
from contextlib import nullcontext
from importlib.abc import Loader
from types import ModuleType

import pytest

from ftlit.cli import deferred_imports

PACKAGE = {
    "__init__": "RAN = True\nfrom torchmetrics.metric import Metric\nclass Accuracy: ...\n",
    "__about__": '__version__ = "1.0"\n',
    "metric": "from torchmetrics import _logger\nclass Metric: ...\n",
    "utilities": "",
}


def test_a_package_runs_its_init_when_more_than_its_base_classes_is_asked_for(monkeypatch, tmp_path):
    (tmp_path / "torchmetrics").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "torchmetrics" / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    deferred_imports.defer_imports()
    import torchmetrics
    from torchmetrics import Metric

    assert torchmetrics.__version__ == "1.0" and not hasattr(torchmetrics, "__wrapped__") and "RAN" not in vars(torchmetrics)
    assert torchmetrics.Accuracy and torchmetrics.RAN and torchmetrics.Metric is Metric
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
def test_lightning_needs_the_base_classes_only():
    program = (
        "from ftlit.cli.deferred_imports import defer_imports; defer_imports(); import sys, lightning.pytorch\n"
        "assert 'torchmetrics.metric' in sys.modules and 'torchmetrics.functional' not in sys.modules\n"
        "import torchmetrics; torchmetrics.Accuracy(task='binary'); assert 'torchmetrics.functional' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


HEAVY = (
    "torch._dynamo.eval_frame",
    "torch.distributed.fsdp",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "timm",
    "transformers",
    "torchmetrics.functional",
    "onnxruntime",
    "tensorboard",
)


@pytest.mark.e2e
@pytest.mark.parametrize("more", [(), ("scenario=large_similar", "trainer.max_epochs=1")])
def test_a_run_and_its_report_import_no_package_that_they_do_not_need(tmp_path, more):
    program = (
        "import sys; from ftlit.cli.train import main; main(); from pathlib import Path; assert Path('run/report.html').exists()\n"
        f"heavy = {HEAVY}\n"
        "assert not (found := [name for name in heavy if name in sys.modules]), found"
    )
    words = [sys.executable, "-c", program, "data.per_class=5", "trainer=cpu", "hydra.run.dir=run", *more]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("triton", [False, True])
def test_modules_are_imported_without_collections_and_left_out_of_later_ones_only_once(monkeypatch, triton):
    imported, registered = [], []
    monkeypatch.setattr(deferred_imports, "import_module", lambda name: imported.append((name, gc.isenabled())))
    monkeypatch.setattr(deferred_imports, "_no_triton", nullcontext)
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if triton:
        monkeypatch.setitem(sys.modules, "triton", sys)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.unfreeze()
    try:
        with deferred_imports.quick_imports():
            deferred_imports.import_module("a.recipe")
        assert imported == [("torch", False), ("a.recipe", False)] and gc.isenabled()
        assert gc.get_freeze_count() and registered == [gc.unfreeze] * triton
    finally:
        gc.unfreeze()
    monkeypatch.setitem(sys.modules, "torch", sys)
    with deferred_imports.quick_imports():  # the next job of a sweep
        assert gc.isenabled()
    assert len(imported) == 2 and not gc.get_freeze_count()


COMPILER = """
import sys
from ftlit.cli.deferred_imports import defer_imports
defer_imports()
import torch, torchvision, lightning.pytorch
from lightning.pytorch.utilities.compile import to_uncompiled
from torchvision.ops.roi_align import is_compile_supported

@torch.compiler.disable
def plus_one(x): return x + 1
class Several:
    @torch.compiler.disable
    def method(self, x): return x + 1
one = torch.nn.Parameter(torch.ones(1))
one.grad = torch.ones(1)
optimizers = [torch.optim.SGD([one], 0.5), torch.optim.AdamW([one], 0.5, weight_decay=0.0)]
for optimizer in optimizers: optimizer.step()
assert plus_one(1) == 2 and abs(one.item()) < 1e-6
module = lightning.pytorch.LightningModule()
module.fc = torch.nn.Linear(1, 1)
try: to_uncompiled(module)
except ValueError: pass
assert "torch._dynamo.eval_frame" not in sys.modules, "loaded by what asks whether something is compiled"
ASK
import torch._dynamo.config
assert "torch._dynamo.eval_frame" in sys.modules and torch._dynamo.config is sys.modules["torch._dynamo.config"]
from torch._dynamo import eval_frame, utils
assert eval_frame.config is torch._dynamo.config and utils is sys.modules["torch._dynamo.utils"] and utils.counters is not None
assert is_compile_supported("cpu") == utils.is_compile_supported("cpu")
module.compiled = torch.compile(torch.nn.Linear(1, 1), backend="eager")
from lightning.fabric.wrappers import _unwrap_compiled
assert _unwrap_compiled(module.compiled)[0] is module.compiled._orig_mod
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2] and plus_one(1) == 2
try: torch.compile(lambda x: plus_one(x) * 2, backend="eager", fullgraph=True)(torch.ones(1))
except torch._dynamo.exc.Unsupported: pass
else: raise AssertionError("the compiler looked into a disabled function")
assert torch._dynamo.disable(reason="tried")(lambda x: x)(1) == 1
several = [torch.compiler.disable(lambda x, i=i: x + i) for i in range(12)]
torch._dynamo.config.recompile_limit = 2
torch._dynamo.config.fail_on_recompile_limit_hit = True
assert torch.compile(lambda x: sum(f(plus_one(x)) for f in several), backend="eager")(torch.ones(1)).item() == 2 * 12 + 66
assert torch.compile(lambda x: Several().method(x) * 2, backend="eager")(torch.ones(1)).item() == 4
for optimizer in optimizers: optimizer.step()
assert abs(one.item() + 1) < 1e-6
"""


@pytest.mark.parametrize("ask", ["", "import torch._dynamo.utils; torch._dynamo.utils.counters", "torch._dynamo.config.recompile_limit"])
def test_the_compiler_is_loaded_when_something_is_compiled_and_is_then_the_only_one(ask):
    done = subprocess.run([sys.executable, "-c", COMPILER.replace("ASK", ask)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_load_of_the_compiler_that_fails_is_tried_again_by_the_next_one_who_asks(monkeypatch):
    class Once(Loader):
        tries = 0

        def exec_module(self, module):
            self.tries += 1
            if self.tries == 1:
                raise ImportError("broken")
            module.answer = 42

    monkeypatch.setattr(deferred_imports, "_no_triton", nullcontext)
    monkeypatch.setattr(deferred_imports, "COMPILER_UTILS", "compiler.utils")
    loader, module = deferred_imports._CompilerLoader(Once()), ModuleType("compiler")
    loader.exec_module(module)
    with pytest.raises(ImportError, match="broken"):
        _ = module.answer
    assert not loader.is_loaded and module.answer == 42 and loader.is_loaded


NO_TRITON = """
import sys
import torch
torch.cuda.device_count = lambda: GPUS
from ftlit.cli.deferred_imports import _no_triton
with _no_triton():
    import torchvision
    from torch.utils import flop_counter
    blocked = "triton" in sys.modules and sys.modules["triton"] is None
assert blocked == (not GPUS), blocked
assert sys.modules.get("triton", 1) is not None  # later imports find it again
if not GPUS:  # nor can there be one
    function = torch.compile(lambda x: x + 1, backend="aot_eager")
    assert function(torch.ones(2)).tolist() == [2, 2]
"""


@pytest.mark.parametrize("gpus", [0, 1])
def test_triton_is_imported_where_there_is_a_gpu_only(gpus):
    done = subprocess.run([sys.executable, "-c", NO_TRITON.replace("GPUS", str(gpus))], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
