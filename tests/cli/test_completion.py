"""The completion scripts, and what bash makes of them."""

import subprocess
import sys

import pytest

from diffusers_flux_ext.cli.completion import SHELLS
from diffusers_flux_ext.cli.main import main


ASK = """
source ./completion.bash
COMP_WORDS=({words} "$1")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
$(complete -p flux-ext | sed -E 's/.*-F ([^ ]+).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def ask(tmp_path, capsys):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)

    def run(words, begun):
        done = subprocess.run(
            ["bash", "-c", ASK.format(words=words), "bash", begun],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


def test_bash_completes_commands_flags_and_choices(ask):
    assert ask("flux-ext", "ge") == ["generate"]
    assert ask("flux-ext", "r") == ["run"]
    assert set(ask("flux-ext generate", "--control")) == {"--control", "--controlnet", "--control-scale"}
    assert ask("flux-ext generate --offload", "mo") == ["model"]
    assert ask("flux-ext job", "sch") == ["schema"]
    assert ask("flux-ext completion", "") == list(SHELLS)


def test_bash_completes_files_where_a_path_belongs(ask, tmp_path):
    (tmp_path / "outlines.png").touch()
    for words in ("flux-ext generate --control", "flux-ext generate --lora", "flux-ext run", "flux-ext job show"):
        assert ask(words, "out") == ["outlines.png"]
    assert ask("flux-ext generate --prompt", "out") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_with_all_commands(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("generate", "describe", "ip-adapter-scale"))


def test_a_missing_library_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'diffusers-flux-ext[jobs]'" in capsys.readouterr().err
