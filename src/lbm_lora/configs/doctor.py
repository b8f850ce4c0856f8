"""The options of the verb `doctor`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check the installation and the machine. The exit code is 1 if a problem was found."""
