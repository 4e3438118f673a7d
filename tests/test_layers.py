"""Imports flow down only, and only lit/ knows Lightning, only recipes/ knows Hydra: read from the source with `ast`."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import ftlit

# Lowest first; the modules of one row do not import each other. A new module gets a place here.
ROWS = """
errors atomic
patterns transform advice pooling jobs
text sweep
backbone head loss rewrite until grouping rates lr_find seeding glyphs dataset freezing
trainable dense layerwise
stage
schedule
doctor
splitting order
listing published zoo.parts lbfgs linear_loss
fingerprint shard solve texts
column
store
digests sources
kinds
features cache
probe
probing
zoo.transformers zoo.glyph zoo.mlp zoo.weights zoo.tracing zoo.twins
zoo.families zoo.fitting zoo.chain
zoo.assembling
zoo.load zoo.timm_nets
zoo.bert
zoo
slim
network
predict report report.evidence original
report.scores report.files export
report.figures report.reading
report.page
lit.clock lit.judging lit.strategies lit.images lit.seeding lit.resuming lit.lr_find lit.telling lit.rate_monitor
lit.staging lit.finetuner lit.datamodules lit.texts lit.glyphs lit.extracting lit.pretrainer
lit.caching lit.layerwise lit.predicting
lit.solving lit.recording
lit lit.progress
cli
recipes.limits
recipes.binding recipes.mistakes recipes.command recipes.resuming recipes.overlays
recipes.words recipes.isolation recipes.extracting recipes.loggers
recipes.reporting
recipes.finetune
recipes.lr_find recipes.probe recipes.advise recipes.layerwise
recipes.pretrain recipes.sweeping
recipes recipes.main
"""
ROW = {name: number for number, row in enumerate(ROWS.split("\n")) for name in row.split()}
SOURCE = Path(ftlit.__file__).parent
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports anywhere; `from a import b` is a.b where that is a module of ftlit, else a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name.removeprefix("ftlit.") in MODULES else str(node.module))
    return found


def own(path: Path) -> set[str]:
    """The modules of ftlit that a file imports."""
    return {name.removeprefix("ftlit.") for name in imports(path)} & set(MODULES)


def importers(*packages: str) -> set[str]:
    """The modules of ftlit that import one of `packages`."""
    return {name for name, path in MODULES.items() if any(i.split(".")[0] in packages for i in imports(path))}


def test_every_module_has_a_place_and_every_place_a_module():
    assert set(ROW) == set(MODULES)


def test_imports_flow_down_only():
    assert [f"{name} -> {used}" for name, path in MODULES.items() for used in own(path) if ROW[used] >= ROW[name]] == []


def test_there_is_no_import_cycle():
    assert set(TopologicalSorter({name: own(path) for name, path in MODULES.items()}).static_order()) == set(MODULES)


def test_nothing_imports_the_package_itself_whose_names_are_for_strangers():
    assert {name for name, path in MODULES.items() if "ftlit" in imports(path)} == set()


def test_only_lit_and_recipes_know_lightning():
    users = importers("lightning", "pytorch_lightning", "torchmetrics")
    assert users and all(name.startswith(("lit.", "recipes.")) for name in users)


def test_only_recipes_know_hydra():
    users = importers("hydra", "omegaconf")
    assert users and all(name.startswith("recipes.") for name in users)


def test_neither_cli_nor_recipes_import_the_other():
    assert not any(name.startswith("recipes") for name in own(MODULES["cli"]))
    assert not any("cli" in own(path) for name, path in MODULES.items() if name.startswith("recipes"))


def test_a_public_name_is_the_same_to_a_type_checker_and_at_run_time():
    declared = [node for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text())) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname: node.module for node in declared for alias in node.names if str(node.module).startswith("ftlit.")}
    assert set(names) == set(ftlit.__all__) <= set(dir(ftlit))
    for name, module in names.items():
        assert getattr(ftlit, name) is getattr(import_module(module), name)


def test_importing_ftlit_loads_none_of_the_big_packages_and_its_command_line_no_torch():
    code = "import sys, {0}; print(*sorted({{'hydra', 'omegaconf', 'lightning', 'torch'}} & set(sys.modules)))"
    for module, loaded in (("ftlit", ""), ("ftlit.cli.main", ""), ("ftlit.cli.train", "hydra omegaconf")):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded
