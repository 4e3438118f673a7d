"""The package graph (the contracts of import-linter in pyproject.toml), module names, and what an import loads."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from importlinter.cli import lint_imports
from paths import ROOT, TESTS

import ftlit

SOURCE = Path(ftlit.__file__).parent
MAX_MODULES, MAX_LINES = 16, 250  # of a folder, without __init__.py; of a file
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py" and "conf" not in path.parts
}

PROGRAMS = {"cli", "api", "__main__"}  # may import all packages


def imports(path: Path) -> set[str]:
    """Modules of ftlit that a file imports when it is run: `from a import b` is a.b where that is a module, else a."""
    tree, found = ast.parse(path.read_text()), set()
    unused = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in unused:
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}".removeprefix("ftlit.")
                found.add(name if name in MODULES else str(node.module).removeprefix("ftlit."))
    return found & set(MODULES)


def test_the_import_contracts_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


@pytest.mark.parametrize(("library", "allowed"), [("Lightning", {"lit", "recipes"} | PROGRAMS), ("Hydra", {"recipes"} | PROGRAMS)])
def test_a_contract_that_forbids_a_library_covers_all_other_packages_and_modules(library, allowed):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(contract for contract in contracts if contract["type"] == "forbidden" and library in contract["name"])
    assert set(contract["source_modules"]) == {f"ftlit.{name}" for name in MODULES if "." not in name and name not in allowed}


def test_there_is_no_import_cycle():
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


def test_no_file_name_occurs_twice():
    counts = Counter(path.stem for path in MODULES.values() if path.stem not in ("__init__",))
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_folder_has_more_modules_and_no_file_more_lines_than_a_reader_takes_in():
    modules = [path for path in SOURCE.rglob("*.py") if "conf" not in path.parts]
    folders = Counter(path.parent.relative_to(SOURCE).as_posix() for path in modules if path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > MAX_MODULES} == {}
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text().splitlines()) for path in modules}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def types_of(path: Path) -> dict[str, str]:
    """Names of classes and type aliases that a module defines, with the text of an alias."""
    tree = ast.parse(path.read_text())
    classes = {node.name: str(path) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assigned = [(node.targets[0], node.value) for node in tree.body if isinstance(node, ast.Assign)]
    aliases = {name.id: ast.unparse(value) for name, value in assigned if isinstance(name, ast.Name) and re.match("[A-Z][a-z]", name.id)}
    return {name: text for name, text in {**classes, **aliases}.items() if not name.startswith("_")}


def test_no_type_name_has_two_meanings():
    meanings: dict[str, set[str]] = {}
    for path in MODULES.values():
        for name, text in types_of(path).items():
            meanings.setdefault(name, set()).add(text)
    assert {name: texts for name, texts in meanings.items() if len(texts) > 1} == {}


def test_every_folder_of_tests_mirrors_a_package():
    for path in TESTS.glob("*/**/test_*.py"):
        package = ".".join(path.relative_to(TESTS).parent.parts)
        assert package in MODULES, f"{path} mirrors no package"


def test_the_modules_page_lists_every_module():
    page = (ROOT / "docs/modules.md").read_text()
    listed = Counter(re.findall(r"^ +(\w+\.py) ", page, flags=re.MULTILINE))
    assert listed == Counter(path.name for name, path in MODULES.items() if path.name != "__init__.py")


def test_a_public_name_is_the_same_to_a_type_checker_and_at_run_time():
    declared = [node for node in ast.walk(ast.parse((SOURCE / "__init__.py").read_text())) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname: node.module for node in declared for alias in node.names if alias.asname}
    assert set(names) == set(ftlit.__all__) <= set(dir(ftlit))
    for name, module in names.items():
        assert getattr(ftlit, name) is getattr(import_module(module), name)


def test_importing_ftlit_loads_no_large_package_and_its_command_line_loads_no_torch():
    code = "import sys, {0}; print(*sorted({{'hydra', 'omegaconf', 'lightning', 'torch'}} & set(sys.modules)))"
    for module, loaded in (("ftlit", ""), ("ftlit.cli.main", ""), ("ftlit.cli.train", "hydra omegaconf")):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded
