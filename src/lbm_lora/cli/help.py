"""The texts of --help, of the signatures of verbs and their docstrings; 80 columns wide in a pipe."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from textwrap import fill, wrap

from rich.console import Console
from rich.text import Text

from lbm_lora import __version__
from lbm_lora.cli.arguments import alternatives
from lbm_lora.cli.flags import Bounds, Flag
from lbm_lora.cli.streams import named_stdout, write
from lbm_lora.verbs.verb import GROUPS, Verb

Sections = Mapping[str, Sequence[Flag]]
"""Heading -> the flags below it."""

NARROWEST, WIDEST = 40, 100  # columns: other lines are hard to read
_INDENT = 6


def print_help(text: Text) -> None:
    """Print a help text on stdout, in colour on a terminal.

    Raises:
        BrokenPipeError, OutputError: see `named_stdout`; where the reader is gone, rich itself would end the process.
    """
    console = Console(highlight=False)
    with named_stdout():
        with console.capture() as shown:  # its end writes too
            console.print(text, soft_wrap=True)
        write(sys.stdout, shown.get())


def columns() -> int:
    """Return the width of a help text: the terminal's width within limits; 80 columns in a pipe."""
    return max(NARROWEST, min(Console().width, WIDEST))


def overview(commands: Mapping[str, Verb]) -> Text:
    """Return the text of `lbm-lora --help`."""
    width = max(map(len, commands))
    text = Text(f"lbm-lora {__version__}: LoRA for Latent Bridge Matching\n\n")
    text.append("usage: lbm-lora COMMAND [--flag value ...]\n")
    for group in GROUPS:
        _heading(text, group)
        for name, command in commands.items():
            if command.group == group:
                text.append(f"  {name:<{width}}", "bold").append(f"  {command.what}\n")
    return text.append("\nlbm-lora COMMAND --help explains a command. New here? lbm-lora demo")


def family_help(word: str, commands: Mapping[str, Verb]) -> Text:
    """Return the text of `lbm-lora data --help`."""
    width = max(map(len, commands))
    text = Text(f"usage: lbm-lora {word} {'|'.join(name.removeprefix(f'{word} ') for name in commands)} ...\n\n")
    for name, command in commands.items():
        text.append(f"  {name:<{width}}", "bold").append(f"  {command.what}\n")
    return text.append(f"\nlbm-lora {word} COMMAND --help explains one of them.")


def command_help(name: str, command: Verb, sections: Sections, width: int) -> Text:
    """Return the text of `lbm-lora COMMAND --help`.

    Args:
        name: name of the command, as a user types it.
        width: width in columns.
    """
    flags = [flag for section in sections.values() for flag in section]
    needed = [flag.usage if flag.is_required else f"[{flag.usage}]" for flag in flags if _is_in_usage(flag)]
    text = Text("\n".join(_filled(["usage: lbm-lora", name, *needed, "[--flag value ...]"], width)))
    text.append(f"\n\n{fill(' '.join(command.summary.split()), width)}\n")
    for heading, section in sections.items():
        if section:
            _heading(text, heading)
            for flag in section:
                _entry(text, flag, width)
    _heading(text, "examples" if len(command.examples) > 1 else "example")
    for example in command.examples:
        text.append("\n".join(_continued(example, width)) + "\n")
    text.rstrip()
    return text


def sections_of(flags: Iterable[Flag], output: Iterable[Flag]) -> dict[str, list[Flag]]:
    """Return the flags of a command by heading: required, common, advanced, output."""
    flags = list(flags)
    options = [flag for flag in flags if not flag.is_required]
    advanced = [flag for flag in options if flag.is_advanced]
    return {
        "required": [flag for flag in flags if flag.is_required],
        "common" if advanced else "options": [flag for flag in options if flag not in advanced],
        "advanced": advanced,
        "output": list(output),
    }


def about(flag: Flag) -> str:
    """Return the effect of a flag, its range and its default."""
    notes = [_range(flag.bounds)] if flag.bounds is not None else []
    if flag.is_switch and flag.default is True:
        notes.append("default: on")
    elif not flag.is_switch and flag.default not in (None, (), MISSING, {}):
        notes.append(f"default: {spelt(flag.default)}")
    note = "; ".join(notes)
    return f"{flag.about} {note[:1].upper()}{note[1:]}." if note else flag.about


def _range(bounds: Bounds) -> str:
    """`at least 1`, or `0 to 1`."""
    return f"{bounds.least:g} to {bounds.most:g}" if math.isfinite(bounds.most) else f"at least {bounds.least:g}"


def spelt(value: object) -> str:
    """Return a default as a user would write it."""
    if isinstance(value, tuple):
        return " ".join(map(spelt, value))
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _heading(text: Text, heading: str) -> None:
    text.append("\n").append(f"{heading}:\n", "bold underline")


def _is_in_usage(flag: Flag) -> bool:
    return flag.is_required or flag.is_positional


def _entry(text: Text, flag: Flag, width: int) -> None:
    head = f"  {flag.usage}"
    if flag.is_switch and flag.default is True:
        head += f", --no_{flag.name}"
    is_long = bool(flag.choices) and len(head) > width
    lines = [f"  {flag.shown} WORD" if is_long else head]
    said = f"{alternatives(flag.choices)}. {about(flag)}" if is_long else about(flag)
    lines += wrap(said, width - _INDENT, break_on_hyphens=False)
    text.append(f"{lines[0]}\n", "bold cyan")
    for line in lines[1:]:
        text.append(f"{' ' * _INDENT}{line}\n")


def _filled(parts: Iterable[str], width: int) -> list[str]:
    """Parts, which stay whole, on lines of a width; all but the first line indented."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 1 + len(part) <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"{' ' * _INDENT if lines else ''}{part}")
    return lines


def _continued(example: str, width: int) -> list[str]:
    """An example on as many lines as it takes, each but the last one with a backslash at its end."""
    lines = _filled([f"  {part}" if not at else part for at, part in enumerate(_parts(example))], width - 2)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _parts(example: str) -> list[str]:
    """An example before each of its flags."""
    return example.replace(" --", "\n--").split("\n")
