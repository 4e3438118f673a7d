"""Versions of installed packages."""

import json
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

_names_by_package = cache(packages_distributions)  # it reads the files of all installed packages: a quarter of a second


@cache
def _distribution(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        names = _names_by_package().get(package, ())
    for name in names:
        with suppress(PackageNotFoundError):
            return distribution(name)
    return None


@cache
def package_version(package: str) -> str:
    """Version of the distribution that holds a top-level package; `?` without one."""
    found = _distribution(package)
    return found.version if found else "?"


@cache
def exact_version(package: str) -> str | None:
    """Version of an installed package, with the commit or the hash of what it was installed from, if that was not a package index.

    Returns:
        `None` where the version does not identify the code: a package that was installed from a folder (`pip install .`), or copied to the
        folder of the packages.
    """
    found = _distribution(package)
    origin = json.loads((found and found.read_text("direct_url.json")) or "{}")
    if found is None or not origin:
        return found.version if found else None
    exact = origin.get("vcs_info", {}).get("commit_id") or origin.get("archive_info", {}).get("hash")
    return f"{found.version} {exact}" if exact else None


@cache
def has_exact_version(module: str) -> bool:
    """Whether a module belongs to an installed package whose version identifies its code. ftlit itself does not count."""
    file, package = getattr(sys.modules.get(module), "__file__", None) or "", module.partition(".")[0]
    installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return installed and package != "ftlit" and exact_version(package) is not None
