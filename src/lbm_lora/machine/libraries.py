"""The installed libraries, compared with the ranges in the package's own metadata."""

import platform
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from lbm_lora import __version__
from lbm_lora.errors import listing
from lbm_lora.machine.check import Check, check

PACKAGE = "lbm-lora"
_NOT_FOR_USERS = {"all", "test", "docs", "dev"}


def library_checks() -> list[Check]:
    """Check Python, the libraries and the extras; everything that fits is on one line."""
    checks = [check(PACKAGE, __version__)]
    try:
        wanted = metadata.requires(PACKAGE) or []
        about = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        python = check("Python", platform.python_version())
        unknown = "run from its sources: the tried versions of its libraries are not recorded"
        return [*checks, python, check("libraries", unknown, level="note", remedy="Run: pip install lbm-lora")]
    checks.append(_python((about.get_all("Requires-Python") or [""])[0]))
    parsed = _parsed(wanted)
    core = [one for one in parsed if _applies(one)]
    checks += _set("libraries", core, extra="")
    for extra in sorted(set(about.get_all("Provides-Extra") or ()) - _NOT_FOR_USERS):
        own = [one for one in parsed if _applies(one, extra) and not _applies(one)]
        if own:
            checks += _set(f"extra {extra}", own, extra=extra)
    return checks


def _python(wanted: str) -> Check:
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return check("Python", found)
    return check("Python", f"{found} (needs {wanted})", level="problem", remedy="Install lbm-lora in a newer Python.")


def _set(subject: str, wanted: list[Requirement], *, extra: str) -> list[Check]:
    """One line for what fits, and one each for the packages that are missing or out of their range."""
    found = {one.name: _installed(one.name) for one in wanted}
    there = [f"{name} {version}" for name, version in found.items() if version is not None]
    missing = [name for name, version in found.items() if version is None]
    install = f'pip install "{PACKAGE}[{extra}]"' if extra else f"pip install {PACKAGE}"
    checks: list[Check] = []
    if missing and extra:
        lacking = "not installed" if not there else f"not complete, {listing(missing)} missing"
        checks.append(check(subject, lacking, level="note", remedy=f"If a command needs it: {install}"))
    elif missing:
        checks.append(check(subject, f"missing: {listing(missing)}", level="problem", remedy=f"Run: {install}"))
    if there and not (missing and extra):
        checks.append(check(subject, ", ".join(there)))
    for one in wanted:
        version = found[one.name]
        if version is not None and not one.specifier.contains(version, prereleases=True):
            text = f"{version} is not in the tried range {one.specifier}"
            checks.append(
                check(one.name, text, level="problem", remedy=f'Run: pip install "{one.name}{one.specifier}"')
            )
    return checks


def _parsed(texts: Iterable[str]) -> list[Requirement]:
    parsed: list[Requirement] = []
    for text in texts:
        try:
            parsed.append(Requirement(text))
        except InvalidRequirement:  # written by a newer tool
            continue
    return [one for one in parsed if one.name != PACKAGE]


def _applies(one: Requirement, extra: str = "") -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
