"""A hook of MkDocs (mkdocs.yml): the pages of the site that are made, and the links that lead out of docs/.

- A page for each command, of its verb: what it does, examples, and a table of its flags.
- Files outside docs/ that a page links to, such as CONTRIBUTING.md or a YAML file of lora/, become part of the site
  under `project/`.
- The navigation of commands and decisions.
"""

import os.path
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lbm_lora.cli.arguments import range_of
from lbm_lora.cli.flags import Flag, flags_of
from lbm_lora.cli.help import sections_of, spelt
from lbm_lora.cli.main import Output
from lbm_lora.cli.training_keys import training_sections
from lbm_lora.verbs import SHARDS, VERBS, verb_named
from lbm_lora.verbs.verb import GROUPS, Verb

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOME = PurePosixPath("README.md")
"""Its place in the site is the home page, which says the same."""
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
WIDEST = 74  # columns of an example on one line


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the navigation of what is made or counted."""
    decisions = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("0*.md"))]
    made = {"commands/": commands_nav(), "decisions/": ["decisions/README.md", *decisions]}
    config.nav = _filled_in(config.nav, made)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the commands, and the files outside docs/ that pages link to."""
    files.append(File.generated(config, "commands/index.md", content=commands_index()))
    for name, command in _in_order():
        files.append(File.generated(config, f"commands/{slug(name)}.md", content=command_page(name, command)))
    for path in linked_outside(sorted(DOCS.rglob("*.md"))):
        place = {"content": (ROOT / path).read_bytes()} if path.suffix != ".md" else {"content": _page(path)}
        files.append(File.generated(config, site_uri(path), **place))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page of docs/ that leave the folder to their places in the site."""
    if page.file.generated_by is not None:
        return markdown
    return rewritten(markdown, PurePosixPath("docs", page.file.src_uri))


# links


def linked_outside(pages: Sequence[Path]) -> list[PurePosixPath]:
    """Files of the repository outside docs/ that pages link to, or that such pages link to in turn."""
    found: dict[PurePosixPath, None] = {}
    waiting = [PurePosixPath(page.relative_to(ROOT).as_posix()) for page in pages]
    while waiting:
        page = waiting.pop()
        for link, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = target(page, link)
            if path is None or path == HOME or path.parts[0] == "docs" or path in found:
                continue
            found[path] = None
            if path.suffix == ".md":
                waiting.append(path)
    return list(found)


def target(page: PurePosixPath, link: str) -> PurePosixPath | None:
    """The file that a link of a page means, from the top of the repository; of a folder its README.

    None: there is no such file, or it lies outside of the repository.
    """
    path = PurePosixPath(os.path.normpath(page.parent / link))
    if (ROOT / path).is_dir():
        path /= "README.md"
    return path if path.parts[0] != ".." and (ROOT / path).is_file() else None


def site_uri(path: PurePosixPath) -> str:
    """The place of a file of the repository in the site's sources."""
    if path == HOME:
        return "index.md"
    return path.relative_to("docs").as_posix() if path.parts[0] == "docs" else f"project/{path}"


def rewritten(markdown: str, page: PurePosixPath) -> str:
    """A page of the repository with its links as they are in the site. What is not there is left to MkDocs to find."""
    here = PurePosixPath(site_uri(page)).parent

    def _led(found: re.Match[str]) -> str:
        path = target(page, found[1])
        if path is None or (path.parts[0] == "docs" == page.parts[0]):
            return found[0]
        return os.path.relpath(site_uri(path), here) + found[2]

    return LINK.sub(_led, markdown)


def _page(path: PurePosixPath) -> str:
    return rewritten((ROOT / path).read_text(encoding="utf-8"), path)


def _filled_in(nav: Any, made: dict[str, Any]) -> Any:
    if isinstance(nav, list):
        return [_filled_in(entry, made) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled_in(entry, made) for title, entry in nav.items()}
    return made.get(nav, nav)


# commands


def slug(name: str) -> str:
    """`data pack` -> `data-pack`."""
    return re.sub(r"[\s_-]+", "-", name)


def commands_nav() -> list[Any]:
    """The pages of the commands, by group."""
    return ["commands/index.md", *({name: f"commands/{slug(name)}.md"} for name, _ in _in_order())]


def commands_index() -> str:
    """The list of all commands."""
    lines = ["# Commands", "", "`lbm-lora COMMAND --help` shows what these pages show.", ""]
    for group in GROUPS:
        lines += [f"## {group.capitalize()}", "", "| command | what it does |", "| --- | --- |"]
        lines += [f"| [`{name}`]({slug(name)}.md) | {one.what} |" for name, one in _in_order() if one.group == group]
        lines.append("")
    return "\n".join(lines)


def command_page(name: str, command: Verb) -> str:
    """The page of a command."""
    flags = flags_of(command.function)
    sections = sections_of(flags, flags_of(Output))
    if name == "train":
        output = sections.pop("output")
        sections = {**sections, **training_sections(), "output": output}
    needed = [flag.usage if flag.is_required else f"[{flag.usage}]" for flag in flags if _is_in_usage(flag)]
    usage = " ".join(["lbm-lora", name.partition(" --")[0], *needed, "[--flag value ...]"])
    examples = "\n".join(broken(example) for example in command.examples)
    lines = [f"# lbm-lora {name}", "", prose(command.summary), ""]
    lines += ['```text title="Usage"', broken(usage), "```", "", f'```bash title="Examples"\n{examples}\n```', ""]
    for heading, section in sections.items():
        if section:
            lines += [
                f"## {_heading(heading)}",
                "",
                '<div class="flags" markdown>',
                "",
                *table(section),
                "",
                "</div>",
                "",
            ]
    return "\n".join(lines)


def table(flags: Sequence[Flag]) -> list[str]:
    """The table of some flags."""
    rows = (f"| {_name(flag)} | {_value(flag)} | {_default(flag)} | {prose(flag.about)} |" for flag in flags)
    return ["| flag | value | default | meaning |", "| --- | --- | --- | --- |", *rows]


def prose(text: str) -> str:
    """A docstring as Markdown: flags and file names in code, signs of Markdown as they are."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if at % 2 else _marked(part) for at, part in enumerate(parts))


def broken(line: str) -> str:
    """A command line on as many lines as it takes, broken before flags."""
    lines: list[str] = []
    for part in re.split(r" (?=\[?--)", line):
        if lines and len(lines[-1]) + 1 + len(part) <= WIDEST:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return " \\\n".join(lines)


def _in_order() -> Iterator[tuple[str, Verb]]:
    """Every page, by group; the second one of `infer` behind the first."""
    for group in GROUPS:
        for name in VERBS:
            if name != SHARDS and verb_named(name).group == group:
                yield name, verb_named(name)
                if name == "infer":
                    yield SHARDS, verb_named(SHARDS)


def _is_in_usage(flag: Flag) -> bool:
    return flag.is_required or flag.is_positional


def _heading(heading: str) -> str:
    first, colon, rest = heading.partition(": ")
    return f"{first[:1].upper()}{first[1:]}{colon}{rest}"


def _name(flag: Flag) -> str:
    both = f"`--{flag.name}`, `--no_{flag.name}`" if flag.is_switch and flag.default is True else f"`{flag.shown}`"
    return f'<span id="flag-{flag.name}">{both}</span>'


def _value(flag: Flag) -> str:
    if flag.is_switch:
        return ""
    words = ", ".join(f"`{one}`" for one in flag.choices or flag.word.split("|"))
    return f"{words}{' ...' if flag.takes_several else ''}{range_of(flag)}"


def _default(flag: Flag) -> str:
    if flag.is_switch:
        return "on" if flag.default is True else "off"
    if flag.default is MISSING:
        return "required"
    return "" if flag.default in (None, (), {}) else f"`{spelt(flag.default)}`"


def _marked(text: str) -> str:
    text = re.sub(r"([*<\[\]])", r"\\\1", text)
    return re.sub(
        r"(?<![\w`-])(--[a-z][a-z_]*|[\w*]+_[\w*.]+|[\w-]+\.(?:safetensors|yaml|txt|json|html|ckpt))", r"`\1`", text
    )
