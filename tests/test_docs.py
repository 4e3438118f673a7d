"""README.md and docs/: commands compose and bind, Python runs, samples are what the program prints, pages are short, links work."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys

import doc_pages
import pytest
import torch
import warm
from doc_pages import PAGES, all_blocks, blocks, commands, missing, samples
from hydra import compose
from lanes import nightly
from paths import ROOT
from PIL import Image
from split_sweep import sweep_jobs

import ftlit
from ftlit.cli import main
from ftlit.cli.command_words import complete
from ftlit.cli.run_again import with_run
from ftlit.cli.train import RECIPES
from ftlit.formats import write_json
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config
from ftlit.run_folder import COMMAND

TRAINING = ("python train.py", "ftlit train", "ftlit advise")
CONTINUED = "# continues the block above"
OWN_TESTS = ("extending.md",)  # Python blocks that test_extending.py runs
MAX_LINES = {"README.md": 250, "modules.md": 420, "reference.md": 320}  # the latter lists every module


@pytest.mark.e2e
@pytest.mark.parametrize("command", commands(*TRAINING))
def test_each_command_composes_and_binds(command, tmp_path, monkeypatch):
    if "launcher=ray" in command:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs ftlit[ray]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()  # `ftlit train photos`
    (tmp_path / "runs" / "first").mkdir(parents=True)  # `again=runs/first`
    write_json(tmp_path / "runs" / "first" / COMMAND, {"words": ["scenario=large_similar", "head=linear", "seed=0"]})
    words = shlex.split(command.split("&&")[-1])
    jobs = sweep_jobs([word for word in complete(with_run(words[2:])) if word not in ("-m", "hydra.mode=MULTIRUN")])
    assert jobs
    seen: set[str] = set()
    with initialize_hydra():
        for job in jobs:
            if seen.issuperset(job):
                continue  # each of its words was in another job
            seen.update(job)
            cfg = compose("train", overrides=[*job, "paths.run=/tmp/run"], return_hydra_config=True)
            with use_hydra_config(cfg):
                bind(cfg)  # raises UserError for a name or value that no factory accepts
            assert cfg.recipe in RECIPES


@pytest.mark.parametrize("command", [command for command in commands("ftlit ") if not command.startswith(TRAINING)])
def test_each_other_command_is_understood(command, monkeypatch):
    class UnderstoodError(Exception):
        pass

    for parse in ("parse_args", "parse_intermixed_args"):
        understand = getattr(argparse.ArgumentParser, parse)

        def stop(parser, words=None, understand=understand):
            understand(parser, words)  # raises for words that it does not know
            raise UnderstoodError

        monkeypatch.setattr(argparse.ArgumentParser, parse, stop)
    words = shlex.split(command)
    with pytest.raises(UnderstoodError):
        main.COMMANDS[words[1]](words[2:])


def test_every_command_is_one_that_is_tested():
    others = [command for command in commands("") if command and not command.startswith((*TRAINING, "ftlit "))]
    assert all(command.startswith(("pip install -e ", doc_pages.WRITES_DIGIT)) for command in others), others
    assert len(commands("python train.py")) > 80


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the Python blocks read: runs, an image, folders of images."""
    folder = tmp_path_factory.mktemp("workplace")
    doc_pages.write_digit(folder)
    (folder / "new_photos").mkdir()
    for number in (1, 2):
        Image.new("RGB", (40, 30), (200, 100 * number, 0)).save(folder / f"new_photos/{number}.jpg")
    for name, colour in (("ants", (120, 40, 20)), ("bees", (200, 160, 30))):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 30), (colour[0] + number, *colour[1:])).save(folder / f"photos/{name}/{number}.png")
    done = warm.run(
        [sys.executable, ROOT / "train.py", "hydra.run.dir=runs/example", "debug=fast", "trainer=cpu", "head.cuts=null"], cwd=folder
    )
    assert done.returncode == 0, done.stderr
    for run in ("photos", "photos2"):
        shutil.copytree(folder / "runs/example", folder / "runs" / run)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN_TESTS], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("FTLIT_CACHE", str(workplace / "store"))
    namespace: dict = {}
    for block in blocks(page):
        if block.language == "python":
            namespace = namespace if block.text.startswith(CONTINUED) else {"__name__": "block"}
            exec(compile(block.text, block.name, "exec"), namespace)


@pytest.mark.e2e
def test_the_script_without_ftlit_prepares_an_image_of_any_shape_as_a_run_does(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(workplace / "runs")
    Image.fromarray(torch.randint(256, (31, 75, 3), dtype=torch.uint8).numpy()).save("digit.png")
    namespace: dict = {"__name__": "block"}
    exec(next(block.text for block in all_blocks("python") if "onnxruntime" in block.text), namespace)
    network = ftlit.load("runs/example")
    probabilities = network("digit.png").probabilities
    wanted = torch.tensor([probabilities[name] for name in network.class_names])
    assert torch.allclose(torch.tensor(namespace["logits"]).softmax(0), wanted, atol=1e-5)


@pytest.mark.e2e
def test_the_module_of_the_lightning_page_trains_every_layer(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace: dict = {}
    exec(next(block.text for block in all_blocks("python") if "class Mine" in block.text), namespace)
    model, trainer = namespace["Mine"](), namespace["trainer"]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    images = [(torch.randn(3, 32, 32), i % 10) for i in range(8)]
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, torch.utils.data.DataLoader(images, batch_size=4))
    assert trainer.callbacks[0].stage.train == ("*",)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder in which the commands of the samples run."""
    folder = tmp_path_factory.mktemp("samples")
    doc_pages.prepare(folder)
    return folder


LONG = [sample for sample in samples() if any(word in sample.command for word in (" -m ", "hparams_search=", "probe=all"))]
PRINTED: dict[str, list[str]] = {}  # by command: two pages may show one


@pytest.mark.e2e
@pytest.mark.parametrize("sample", nightly(samples(), LONG), ids=lambda sample: sample.block.name)
@pytest.mark.xdist_group("samples")
def test_a_page_shows_what_the_command_prints(sample, workspace):
    if "weights/" in sample.command and "FTLIT_TEST_DATA" not in os.environ:
        pytest.skip("needs the test data")
    if sample.command.startswith("ftlit ") and not (workspace / "runs/example").exists():
        doc_pages.run("python train.py hydra.run.dir=runs/example", workspace, workspace / "store")
    if sample.command not in PRINTED:
        PRINTED[sample.command] = doc_pages.run(sample.command, workspace, workspace / "store")
    lacking = missing(sample, PRINTED[sample.command])
    assert not lacking, f"not printed: {lacking}; run: python tests/support/doc_pages.py"


def test_every_sample_shows_something():
    assert samples() and all(sample.block.text.strip() for sample in samples())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_and_its_prose_is_narrow(page):
    text = page.read_text()
    assert text.count("\n") <= MAX_LINES.get(page.name, 300)
    prose = doc_pages.FENCE.sub("", text).splitlines()
    assert not [line for line in prose if len(line) > 200 and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", doc_pages.FENCE.sub("", page.read_text())):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            anchors = [re.sub(r"[^\w -]", "", text.lower()) for text in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)]
            assert heading.replace("-", " ") in [anchor.replace("-", " ") for anchor in anchors], f"{page.name}: {target}#{heading}"


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^::: ftlit\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(ftlit.__all__)


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    loaded = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?https?://(?!\S+rel=)""")
    assert not [page for page in pages if loaded.search(page.read_text())], "the site loads something from another host"


def test_a_row_of_the_plan_that_wraps_otherwise_today_is_written_whole(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```text\nhead      a probe of all cuts, so give\nrun       seed 0\n```\n")
    (block,) = blocks(page)
    printed = ["backbone  glyph", "head      a probe of all cuts, so give", "          scenario=large_similar", "run       seed 0"]
    assert doc_pages.updated(doc_pages.Sample("", block), printed).splitlines() == printed[1:]
