"""Whether the packages of an optional extra are there."""

from importlib.util import find_spec

from lbm_lora.errors import MissingExtraError


def need_packages(what: str, packages: tuple[str, ...], extra: str) -> None:
    """Raises:
    MissingExtraError: one of the packages that `what` needs is not installed; all such are named, and the extra.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f'{what} needs {", ".join(missing)}, which is not installed: pip install "lbm-lora[{extra}]".'
        )
