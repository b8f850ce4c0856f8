"""`lbm-lora COMMAND ...`: the flags of each command are the parameters of its verb.

Results go to stdout, progress, notes and other lines to stderr. Exit codes: 0 done, 1 quality limit
missed or some images failed, 2 bad usage or input, 3 a defect. Help and usage errors load no heavy library such as
torch.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from lbm_lora import __version__
from lbm_lora.cli.arguments import is_asked_for_help, values_of
from lbm_lora.cli.flags import flags_of
from lbm_lora.cli.streams import BROKEN_PIPE, leave_stdout, prepare_streams, write_result
from lbm_lora.errors import ConfigError, InputError, OutputError, spelled
from lbm_lora.runtime import chosen_threads, sleep_while_waiting, use_large_pages
from lbm_lora.verbs import SHARDS, VERBS, verb_named
from lbm_lora.verbs.options import CommandDefault
from lbm_lora.verbs.verb import Verb, as_flag, parameters

if TYPE_CHECKING:
    from rich.text import Text


COMMANDS = tuple(name for name in VERBS if name != SHARDS)
"""Words that a user types, in the order of the help."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options for the output of a command.

    Args:
        json: Print the result as JSON on stdout.
        verbose: Report every layer, not only totals.
        debug: Show the traceback of an error.
        threads: Use this many CPU threads per process. Default: OMP_NUM_THREADS if it is set, else 1 for a model of
            under 100 million parameters and every usable core for a larger one.
    """

    json: bool = False
    verbose: bool = False
    debug: bool = False
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    prepare_streams()
    sleep_while_waiting()
    use_large_pages()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] == ["--version"]:
        return _show(f"lbm-lora {__version__}\n")
    name, rest = _name_of(words)
    try:
        if name not in COMMANDS:
            return _no_command(name, rest)
        if is_asked_for_help(rest):
            return _show(help_of(name, rest))
        _check_current_folder()
        values, output = parse(name, rest)
    except ConfigError as error:
        return _refuse(error)
    return _run(name, rest, values, output)


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed. Change to another one, and run the command again.") from None


def command_for(name: str, words: Sequence[str]) -> Verb:
    """Return the verb behind a name; images and shards have different flags."""
    flags = {word.partition("=")[0].replace("-", "_") for word in words}
    return verb_named(SHARDS if name == "infer" and "__source_shards" in flags else name)


def parse(name: str, words: Sequence[str]) -> tuple[dict[str, Any], Output]:
    """Return the values of a verb's parameters and the output settings.

    Raises:
        ConfigError: the words cannot be read as flags of the command; see `lbm_lora.cli.arguments`.
    """
    verb = command_for(name, words)
    flags, output = flags_of(verb.function), flags_of(Output)
    keys: dict[str, Any] = {}
    if name == "train":
        from lbm_lora.cli.training_keys import split_keys

        words, keys = split_keys(words, [*flags, *output])
    values = values_of([*flags, *output], words, command=name)
    own = {flag.name: values.pop(flag.name) for flag in output if flag.name in values}
    known = parameters(verb.function)
    defaults = {
        one.name: mark.value for one in known.values() for mark in one.marks if isinstance(mark, CommandDefault)
    }
    given = {flag.parameter: values[flag.name] for flag in flags if flag.name in values}
    return {**defaults, **given, **keys}, Output(**own)


def help_of(name: str, words: Sequence[str], width: int | None = None) -> "Text":
    """Return the text of `lbm-lora COMMAND --help`.

    Args:
        width: width in columns. Default: that of the terminal.
    """
    from lbm_lora.cli.help import columns, command_help, sections_of

    command = command_for(name, words)
    sections = sections_of(flags_of(command.function), flags_of(Output))
    if name == "train":
        from lbm_lora.cli.training_keys import training_sections

        output = sections.pop("output")
        sections = {**sections, **training_sections(), "output": output}
    return command_help(name, command, sections, width or columns())


def _run(name: str, words: Sequence[str], values: dict[str, Any], output: Output) -> int:
    from lbm_lora.cli.console import session

    with session(debug=output.debug) as console, chosen_threads(output.threads, console.progress.note):
        verb = command_for(name, words)
        console.progress.start(0, "loading libraries")
        _, result = verb.function(**values, progress=console.progress)
        if getattr(result, "process", 0):
            return console.exit_code  # only the first of several processes reports
        console.print_result(verb.text(result, output.verbose), result, as_json=output.json)
        for failure in getattr(result, "failures", ()):
            console.fail(failure)
    return console.exit_code


def _name_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split words into the command, of one or two words, and its arguments."""
    two = " ".join(words[:2])
    return (two, list(words[2:])) if two in COMMANDS else (" ".join(words[:1]), list(words[1:]))


def _no_command(word: str, rest: Sequence[str]) -> int:
    """Print help on all commands or on those that begin with a word, or name the nearest command."""
    from lbm_lora.cli.help import family_help, overview

    if word in ("", "-h", "--help"):
        return _show(overview({name: verb_named(name) for name in COMMANDS})) or (0 if word else 2)
    family = {name: verb_named(name) for name in COMMANDS if name.startswith(f"{word} ")}
    if family and (not rest or is_asked_for_help(rest[:1])):
        return _show(family_help(word, family)) or (0 if rest else 2)
    typed = " ".join([word, *rest[:1]]) if family else word
    raise _unknown(typed)


def _unknown(typed: str) -> ConfigError:
    """Return the error for an unknown command, with the nearest one."""
    near = get_close_matches(typed, COMMANDS, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'?" if near else f"A command line begins with one of {', '.join(COMMANDS)}."
    return ConfigError(f"'{typed}' is not a command of lbm-lora. {hint}")


def _show(text: "Text | str") -> int:
    """Print a help text or a line."""
    try:
        if isinstance(text, str):
            write_result(text)
        else:
            from lbm_lora.cli.help import print_help

            print_help(text)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        leave_stdout()
        return BROKEN_PIPE
    except OutputError as error:
        leave_stdout()
        return _refuse(error)
    return 0


def _refuse(error: InputError) -> int:
    """Report an error in one line."""
    from rich.console import Console

    from lbm_lora.cli.spelling import line

    Console(stderr=True).print(line("error", spelled(error.args, as_flag)), highlight=False, soft_wrap=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
