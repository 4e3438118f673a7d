"""The wheel contains `ftlit train`, the conf groups and the shipped weights."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import warm
from paths import ROOT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the contents of the wheel, which is built from a copy to keep the checkout clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("src", "conf", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    wheel = next(out.glob("*.whl"))
    assert wheel.stat().st_size < 2.5e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_the_wheel_contains_all_files(site):
    contents = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert "ftlit/zoo/glyph.safetensors" in contents
    assert {f"ftlit/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")} <= contents
    assert "ftlit = ftlit.__main__:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


def test_ftlit_train_runs_from_the_wheel(site, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys, ftlit; assert ftlit.__file__.startswith(sys.argv.pop(1)); from ftlit.cli.main import main; main()")
    command = [sys.executable, program, site, "train", "debug=fast", "trainer.max_epochs=3", "paths.runs=runs"]
    done = warm.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/*/checkpoints/best.ckpt"))) == 1


def test_a_folder_named_ftlit_does_not_hide_the_package(tmp_path):
    """Such as a checkout, for a script beside it: Python would take the folder for a namespace package before an import hook."""
    (tmp_path / "ftlit").mkdir()
    done = subprocess.run([sys.executable, "-c", "import ftlit; print(ftlit.__file__)"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("ftlit/__init__.py\n"), done.stderr
