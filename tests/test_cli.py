import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest

from sae_binary_ext import __version__, cli, commands
from sae_binary_ext.cli import main
from sae_binary_ext.commands.command import add_option, find_commands


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "demo" in printed
    assert "run" in printed


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["train"]) == 2
    assert "'train'" in capsys.readouterr().err


def test_demo_help_explains_the_knobs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for knob in ("--training_tokens", "--layer", "--k", "--expansion", "--output"):
        assert knob in printed


def test_a_wrong_demo_option_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--expansion", "3"])
    assert stop.value.code == 1
    assert "expansion=3" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run"], ["run", "-m"]])
def test_run_without_a_target_fails(arguments: list[str]):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize("name", find_commands())
def test_help_is_there_at_once(name: str):
    """--help imports no host and no torch, because importing torch alone takes seconds."""
    script = (
        "import sys; from sae_binary_ext.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sae_lens', 'sparsify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_each_public_name_of_a_room_is_found_in_commands():
    for room in commands.rooms():
        for name in getattr(room, "__all__", ()):
            if name != "COMMAND":
                assert getattr(commands, name) is getattr(room, name)
    with pytest.raises(AttributeError, match="no attribute 'run_nothing'"):
        _ = commands.run_nothing


def test_no_list_of_commands_grows_when_a_room_is_added():
    """A command's name occurs in no file of commands/ outside its own folder, and not in cli.py."""
    beside = [*Path(commands.__path__[0]).glob("*.py"), Path(cli.__file__)]
    text = "\n".join(path.read_text() for path in beside)
    rooms = [room.__name__.rpartition(".")[2] for room in commands.rooms()]
    assert [name for name in rooms if f"commands.{name}" in text or f'"{name}"' in text] == []


def test_options_take_dashes_and_underscores():
    parser = ArgumentParser()
    add_option(parser, "--training_tokens")
    assert parser.parse_args(["--training-tokens", "5"]).training_tokens == "5"
    assert parser.parse_args(["--training_tokens", "5"]).training_tokens == "5"


@pytest.mark.integration
def test_run_passes_arguments_and_registers_the_coders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "neighbour.py").write_text("NAME = 'next door'\n")
    (tmp_path / "script.py").write_text(
        "import sys, neighbour, sae_lens\n"
        "from sae_lens.registry import SAE_CLASS_REGISTRY\n"
        "assert __name__ == '__main__'\n"
        "print(sys.argv[1:], neighbour.NAME, 'binary' in SAE_CLASS_REGISTRY)\n"
    )
    assert main(["run", str(tmp_path / "script.py"), "--a", "b"]) == 0
    assert capsys.readouterr().out.strip() == "['--a', 'b'] next door True"


def test_run_takes_arguments_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])\n")
    recipe = tmp_path / "recipe.args"
    recipe.write_text(f"# a comment\n'{tmp_path / 'script.py'}'\n--a 'b c'\n")
    assert main(["run", f"@{recipe}", "--d"]) == 0
    assert capsys.readouterr().out == "['--a', 'b c', '--d']\n"
    with pytest.raises(SystemExit) as stop:
        main(["run", f"@{tmp_path / 'no.args'}"])
    assert stop.value.code == 2
    assert "no such file. Write one with `sae-binary plan`" in capsys.readouterr().err
