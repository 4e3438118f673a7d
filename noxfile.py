"""Lanes: `nox -s fast`, `nox -s tests`, `nox -s slow`, `nox -s hydra14`, whose words after `--` go to pytest, and `nox -s lint`."""

from pathlib import Path

import nox

nox.options.sessions = ["fast"]

COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}  # also where the environment keeps Python from storing what it compiles
FAST = "not slow and not e2e and not ddp and not zoo"
LINT = ("ruff check .", "ruff format --check .", "mypy", "lint-imports --no-logo")
HYDRA_14 = [f"{name}==1.4.0rc3" for name in ("hydra-core", "hydra-optuna-sweeper", "hydra-joblib-launcher", "hydra-submitit-launcher")]
OF_HYDRA = ("hydra", "omegaconf", "optuna", "submitit")  # first words of the lines of constraints.txt that HYDRA_14 replaces


@nox.session(venv_backend="none")
def fast(session: nox.Session) -> None:
    """Run the tests that need neither a program of their own, nor several processes, nor the whole zoo, in the current environment."""
    session.run("pytest", "-m", FAST, *session.posargs, env=COMPILED_ONCE)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run all tests but the slow ones in the current environment."""
    session.run("pytest", *session.posargs, env=COMPILED_ONCE)


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """Run the tests that only the nightly workflow runs in the current environment."""
    session.run("pytest", "-m", "slow", *session.posargs, env=COMPILED_ONCE)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, format, types and the package graph in the current environment."""
    for command in LINT:
        session.run(*command.split())


@nox.session
def hydra14(session: nox.Session) -> None:
    """Run all tests but the slow ones with the release candidate of Hydra 1.4, in an environment of their own."""
    constraints = Path(session.create_tmp(), "constraints.txt")
    lines = Path("constraints.txt").read_text().splitlines()
    constraints.write_text("\n".join(line for line in lines if not line.startswith(OF_HYDRA)))
    session.install("-c", str(constraints), "-e", ".[dev]", *HYDRA_14)
    session.run("pytest", *session.posargs, env=COMPILED_ONCE)
