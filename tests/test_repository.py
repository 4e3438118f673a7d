"""Files of the repository for people and services: they parse, and agree with the package, noxfile.py and .ci/run."""

import re
import subprocess
import sys
import tomllib

import nox.registry
import pytest
import yaml
from paths import ROOT

import ftlit
import noxfile

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
YAML_FILES = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
LANES = set(nox.registry.get())  # the import of noxfile registers them


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_a_yaml_file_parses(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_workflow_runs_every_lane_and_the_tests_with_every_python():
    matrix = read(".github/workflows/tests.yml")["jobs"]["lane"]["strategy"]["matrix"]
    jobs = {(lane, python) for lane in matrix["lane"] for python in matrix["python"]}
    jobs |= {(job["lane"], job["python"]) for job in matrix["include"]}
    steps = read(".github/workflows/nightly.yml")["jobs"]["slow"]["steps"]
    nightly = {step["run"].removeprefix("nox -s ") for step in steps if "run" in step}
    assert {lane for lane, _ in jobs} == LANES - nightly >= {"fast", "tests", "lint", "hydra14"} and "slow" in LANES & nightly
    pythons = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert {python for lane, python in jobs if lane == "tests"} == pythons and f">={min(pythons)}" == PROJECT["requires-python"]


def test_lint_is_the_same_in_nox_in_the_hooks_and_in_ci():
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert [command for command in noxfile.LINT if command not in ci] == []
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["language"] for hook in hooks] == ["system"] * len(noxfile.LINT)  # nothing is downloaded
    tools = [re.sub(r" (\.|--.*)", "", command) for command in noxfile.LINT]
    assert [re.sub(r" --.*", "", hook["entry"]) for hook in hooks] == tools


def test_the_citation_is_of_this_package():
    citation = read("CITATION.cff")
    assert citation["version"] == ftlit.__version__ and citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"] == [{"name": "The ftlit developers"}]


def test_the_changelog_has_the_groups_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert set(re.findall(r"^### (.*)", text, re.MULTILINE)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    versions = re.findall(r"^## \[(.*?)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased" or versions[0] == ftlit.__version__


def test_a_bug_report_asks_for_the_config_the_plan_and_the_versions():
    fields = {field["id"]: field["validations"]["required"] for field in read(".github/ISSUE_TEMPLATE/bug.yml")["body"] if "id" in field}
    assert {"command", "config", "plan", "versions"} <= {name for name, required in fields.items() if required}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_the_files_that_a_page_links_to_exist(name):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_ftlit_version_prints_the_version_and_those_of_the_libraries():
    done = subprocess.run([sys.executable, "-m", "ftlit", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"ftlit {ftlit.__version__} (Python 3.") and "torch 2." in done.stdout


def test_the_files_that_ci_tests_twice_exist():
    [files] = re.findall(r"^pytest -q (tests/(?:\\\n|.)+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    done = subprocess.run(["bash", "-c", f"ls {files}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.split()) > 5, done.stderr
