"""README and docs against the program: every command line in them names commands and options that exist; links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from steval.cli.app import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(steval [^`]+)`")
FENCED_COMMAND = re.compile(r"(?:^\s*|&& |\$ )(steval .*)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def command_lines(text: str) -> list[str]:
    """Every `steval ...` in inline code and at the start of a line of a code block, continued lines joined."""
    text = text.replace("\\\n", " ")
    fenced = [line for block in FENCE.findall(text) for line in FENCED_COMMAND.findall(block)]
    return [" ".join(line.split()) for line in [*fenced, *INLINE.findall(FENCE.sub("", text))]]


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    return {
        option for parameter in group.commands[command].params for option in parameter.opts + parameter.secondary_opts
    }


def words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_docs_exist(page: Path):
    problems = []
    for line in command_lines(page.read_text(encoding="utf-8")):
        _, *rest = words(line)
        if not rest or rest[0].startswith("-") or not rest[0].isidentifier():
            continue
        if rest[0] not in COMMANDS:
            problems.append(f"{line!r}: no command {rest[0]!r}")
            continue
        known = options_of(rest[0]) | {"--help", "--debug"}
        asked = [word.split("=")[0] for word in rest[1:] if re.match(r"^--?[a-z]", word)]
        problems += [f"{line!r}: no option {option!r}" for option in asked if option not in known]
    assert problems == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_names_every_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [command for command in COMMANDS if f"`steval {command}" not in readme] == []


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, ending in (("demo-command", "&& steval demo"), ("test-command", "&& pytest")):
        block = re.search(rf"<!-- {marker} -->\n```sh\n(.+)\n```", readme)
        assert block is not None
        assert block.group(1).startswith("pip install -c constraints.txt") and block.group(1).endswith(ending)
