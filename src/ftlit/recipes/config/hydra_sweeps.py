"""How Hydra composes a single run and runs the jobs of a sweep: the undocumented parts of it that choose, launch and compose them.

Tried with Hydra 1.3.8 and 1.4.0rc3. Each function has a contract test in tests/recipes/config/test_hydra_internals.py.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from ftlit.recipes.config.hydra_internals import use_hydra_config
from ftlit.recipes.config.literal_values import as_typed

Launch = Callable[..., Sequence[Any]]


@contextmanager
def composed_once() -> Iterator[None]:
    """Within a block, a program that makes a single run composes its config once. Hydra 1.3 composes it once to read `hydra.mode` (whether
    it is a sweep), and a second time for the run; later releases read the mode without composing.
    """
    original = Hydra.get_mode
    if "parsed_overrides" in inspect.signature(original).parameters:  # later than 1.3
        yield
        return

    def get_mode(program: Any, config_name: str | None, overrides: list[str]) -> Any:
        loader, given = program.config_loader, [*overrides]
        load = loader.load_configuration
        try:
            cfg = load(config_name=config_name, overrides=given, run_mode=RunMode.RUN)
        except Exception:  # a value for several runs, for instance; what is wrong is reported where the run is composed
            return original(program, config_name, overrides)

        def load_once(*, overrides: list[str], run_mode: RunMode, **options: Any) -> DictConfig:
            del loader.load_configuration
            if (overrides, run_mode) != ([*given, "hydra.mode=RUN"], RunMode.RUN):  # Hydra adds the word
                return load(overrides=overrides, run_mode=run_mode, **options)  # type: ignore[no-any-return]
            cfg.hydra.mode = RunMode.RUN
            cfg.hydra.overrides.hydra.append("hydra.mode=RUN")
            return cfg  # type: ignore[no-any-return]

        loader.load_configuration = load_once
        return cfg.hydra.mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Hydra.get_mode = original  # type: ignore[method-assign]


@contextmanager
def jobs_of_sweeps(plan: Callable[[DictConfig, list[list[str]]], list[list[str]]]) -> Iterator[None]:
    """Within a block, a sweep without a search runs the jobs that `plan` returns, in this order, and no launcher for none. The number of a
    job is its place.

    Args:
        plan: takes the config of the sweep and the overrides of each of its jobs, in Hydra's order.
    """
    original = Plugins.instantiate_sweeper

    def instantiate_sweeper(plugins: Any, *, config: DictConfig, **kwargs: Any) -> Any:
        sweeper: Any = original(plugins, config=config, **kwargs)
        if hasattr(sweeper, "split_arguments"):  # Hydra's basic sweeper; those of searches have none
            in_hydras_order = sweeper.split_arguments

            def split(overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:
                (all_jobs,) = in_hydras_order(overrides, None)
                planned = plan(config, [[as_typed(word) for word in words] for words in all_jobs])
                return list(sweeper.split_overrides_to_chunks(planned, max_batch_size)) if planned else []

            sweeper.split_arguments = split
        return sweeper

    Plugins.instantiate_sweeper = instantiate_sweeper  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Plugins.instantiate_sweeper = original  # type: ignore[method-assign]


@contextmanager
def launched_by(run: Callable[[DictConfig, Launch, list[list[str]], int], Sequence[Any]]) -> Iterator[None]:
    """Within a block, `run` launches the jobs of a sweep, whatever chose them.

    Args:
        run: takes the config of the sweep, the launcher (a function of the overrides of several jobs and the number of the first, which
            returns when they have ended), the overrides of each job and the number of the first; returns a `JobReturn` of each that ran.
    """
    original = Plugins.instantiate_launcher

    def instantiate_launcher(plugins: Any, *, config: DictConfig, **kwargs: Any) -> Any:
        launch = original(plugins, config=config, **kwargs).launch

        def launch_by(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
            return run(config, launch, [list(words) for words in job_overrides], initial_job_idx)

        return SimpleNamespace(launch=launch_by)  # all that a sweeper asks of it; submitit pickles the launcher itself

    Plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Plugins.instantiate_launcher = original  # type: ignore[method-assign]


def result_of_job(score: float | None) -> JobReturn:
    """What a launcher returns for a job that ended well with this score."""
    return JobReturn(_return_value=score, status=JobStatus.COMPLETED)


def compose_job(config: DictConfig, overrides: Sequence[str], number: int | None = None) -> DictConfig:
    """Compose a job of a sweep, with its `hydra` node.

    Args:
        config: of the sweep.
        overrides: of the job.
        number: of the job; `None`: its number and its folder are left open.
    """
    cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, list(overrides))
    if number is not None:
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        with use_hydra_config(cfg), read_write(cfg.hydra.runtime):  # it makes the node read-only
            cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.sweep.dir, str(cfg.hydra.sweep.subdir)).absolute())
    return cfg
