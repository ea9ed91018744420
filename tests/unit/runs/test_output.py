"""Output folders: what stands in their place is named and left as it is."""

import os

import pytest

from diffusion_lit.runs.output import fill_folder
from diffusion_lit.system.errors import Exit, UserError


def test_files_pipes_and_dead_links_are_no_folders_and_stay(tmp_path):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dead").symlink_to("nowhere")
    before = sorted(os.listdir(tmp_path))
    for name in ("file", "pipe", "dead", "file/inside"):
        filling = fill_folder(tmp_path / name, "manifest.json")
        with (
            pytest.raises(UserError, match=f"{name} cannot be made: not a folder. Choose a new one") as caught,
            filling,
        ):
            pytest.fail("begun")
        assert caught.value.exit_code == Exit.OUTPUT
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"
