"""One check, as a value."""

from dataclasses import dataclass, field
from typing import Literal

from lbm_lora.errors import LbmLoraError, Option, Spelling, spelled

Level = Literal["ok", "note", "problem"]


class Message:
    """Text in which options are data, for a front end to spell; `str` spells them as Python arguments."""

    def __init__(self, *parts: object) -> None:
        self.parts: tuple[str | Option, ...] = tuple(
            part if isinstance(part, Option) else str(part) for part in parts if part != ""
        )

    @classmethod
    def of(cls, error: Exception) -> "Message":
        """The text of an error: of ours with its options, of others on one line."""
        if isinstance(error, LbmLoraError):
            return cls(*error.args)
        if isinstance(error, OSError) and error.strerror:
            return cls(f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}.")
        return cls(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def spelled(self, spelling: Spelling) -> str:
        """The text with options as a front end spells them."""
        return spelled(self.parts, spelling)

    def __str__(self) -> str:
        return spelled(self.parts)

    def __repr__(self) -> str:
        return f"Message({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        subject: its name: `memory`, an option.
        level: `note` for what a user may want to change, `problem` for what keeps a command from running.
        found: what is there.
        remedy: what to do; empty for `ok`.
    """

    subject: Message
    level: Level
    found: Message
    remedy: Message = field(default_factory=Message)


def check(subject: str | Option, found: object = "", *, level: Level = "ok", remedy: object = "") -> Check:
    """A check of plain texts."""
    return Check(
        subject=Message(subject),
        level=level,
        found=found if isinstance(found, Message) else Message(found),
        remedy=remedy if isinstance(remedy, Message) else Message(remedy),
    )
