"""Every block of the README and the docs runs by itself, with tiny models in place of the released ones."""

import argparse
import os
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from diffusers_flux_ext.cli.main import main
from tests.fixtures.documentation import (
    ROOT,
    Block,
    Command,
    blocks,
    commands,
    on_small_machine,
    small_models,
    write_images,
    write_repositories,
    written_folders,
)


def name_of(found: Block | Command) -> str:
    """How a test is called."""
    return found.name


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models under the names that the documentation uses."""
    folder = tmp_path_factory.mktemp("repositories")
    write_repositories(folder)
    return folder


@pytest.fixture
def sandbox(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a block, with everything it names, and models of a small machine."""
    for path in repositories.iterdir():
        if path.name == "runs":
            # Commands write into it.
            shutil.copytree(path, tmp_path / path.name)
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    small_models(monkeypatch)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=name_of)
def test_a_python_block_runs(block, sandbox):
    for name in written_folders(block.code):
        (sandbox / Path(name).parts[0]).unlink(missing_ok=True)
    write_images(block.code, sandbox)
    code = compile(on_small_machine(block.code), os.fspath(block.page), "exec")
    exec(code, {"__name__": "__main__"})


@pytest.fixture
def servers_that_stop(monkeypatch: pytest.MonkeyPatch, sandbox: Path) -> None:
    """Let `flux-ext serve` do everything but wait for requests."""
    from diffusers_flux_ext.server import launch

    open_socket = launch.open_socket
    # The port of a server that runs here already is none of this test's concern.
    monkeypatch.setattr(launch, "open_socket", lambda host, port: open_socket(host, 0))
    monkeypatch.setattr(launch, "serve", lambda app, service, listening, started: (started(), listening.close()))
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox / "state"))
    (sandbox / "tokens.txt").write_text("one\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", [found for found in commands() if found.words[0] == "flux-ext"], ids=name_of)
def test_a_command_of_the_package_runs(command, sandbox, servers_that_stop, capsys):
    if command.words[1] == "convert":
        # The tiny stand-ins need sizes that the released files do not: it is enough that the words are understood.
        assert main(command.words[1:]) != 2
        return
    for flag, name in zip(command.words, command.words[1:]):
        if flag == "--example-data":
            (sandbox / name).unlink(missing_ok=True)
    assert main(command.words[1:]) == 0
    assert capsys.readouterr().out


class Parsed(Exception):
    """The arguments are understood."""


@pytest.mark.parametrize("command", [found for found in commands() if found.words[0] == "python"], ids=name_of)
def test_a_script_understands_its_arguments(command, monkeypatch):
    is_module = command.words[1] == "-m"
    script, arguments = command.words[1 + is_module], command.words[2 + is_module :]
    path = ROOT / (f"{script.replace('.', '/')}.py" if is_module else script)
    if is_module and not path.exists():
        path = path.with_suffix("") / "__main__.py"
    assert path.is_file()
    if not arguments:
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *given):
        raise Parsed(parse(parser, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("block", [found for found in blocks("") if found.code.startswith("$ flux-ext ")], ids=name_of)
def test_shown_output_is_what_is_printed(block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command, _, shown = block.code.partition("\n")
    assert main(shlex.split(command)[2:]) == 0
    assert capsys.readouterr().out == shown
