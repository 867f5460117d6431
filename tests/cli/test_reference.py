"""Every command has an example that it takes, in its help and on the page of all commands."""

import json
import shlex

import pytest

from churn_lib.cli.app import app
from churn_lib.cli.reference import EXAMPLES, commands, reference
from tests.conftest import ROOT

COMMANDS = dict(commands(app))


def test_every_command_has_an_example_and_no_example_is_of_none() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_command_takes_its_example_and_its_help_shows_it(name: str) -> None:
    command, example = COMMANDS[name], EXAMPLES[name]
    words = shlex.split(example)
    assert words[: 1 + len(name.split())] == ["churn", *name.split()]
    # raises for an option that there is not, and for a missing argument
    command.make_context(name, words[1 + len(name.split()) :])
    assert command.epilog == f"Example: {example}"


def test_the_page_is_what_the_commands_are() -> None:
    page = json.loads((ROOT / "nbs/reference/commands.ipynb").read_text())
    shown = [
        "".join(o["data"]["text/markdown"]) for c in page["cells"] for o in c.get("outputs", ())
    ]
    assert shown == [reference(app)]


def test_every_option_says_what_it_does() -> None:
    for name, command in COMMANDS.items():
        for each in command.params:
            is_option = each.param_type_name == "option"
            assert not is_option or each.help, f"churn {name} {each.opts}"
