"""Completion scripts and the manual page follow from the parser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.cli import main


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "mptcp-proxy"
    script.write_text(capsys.readouterr().out)
    ask = f"""
        source {script}
        complete_words() {{
            COMP_WORDS=("$@")
            COMP_CWORD=$(($# - 1))
            _shtab_mptcp_proxy
            echo "${{COMPREPLY[@]}}"
        }}
        complete_words mptcp-proxy endp
        complete_words mptcp-proxy status --js
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["endpoint", "--json"]


def test_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "fish" in capsys.readouterr().err
