"""Files that are whole or absent."""

import os
from pathlib import Path

import pytest

from diffusion_lit.system import platform
from diffusion_lit.system.errors import UserError
from diffusion_lit.system.files import is_unlocked, write_atomically, write_text_atomically


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, concurrent):
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")
    with write_atomically(path, concurrent) as beside:
        beside.write_text("ne")
        assert path.read_text() == "old"
        assert {*tmp_path.iterdir()} == {path, beside}
        beside.write_text("new")
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("concurrent", [False, True])
def test_what_fails_leaves_the_old_file_alone(tmp_path, concurrent):
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")
    with pytest.raises(ZeroDivisionError), write_atomically(path, concurrent) as beside:
        beside.write_text(f"half of {1 / 0}")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / ".result.json.tmp").write_text("half, and longer than the whole")
    write_text_atomically(tmp_path / "result.json", "whole")
    assert (tmp_path / "result.json").read_text() == "whole"
    assert len([*tmp_path.iterdir()]) == 1


def test_many_writers_of_one_file_are_not_in_each_others_way(tmp_path):
    path = tmp_path / "a.npy"
    with write_atomically(path, concurrent=True) as one, write_atomically(path, concurrent=True) as two:
        assert one != two
        assert not is_unlocked(one)
        assert not is_unlocked(two)
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the last to be whole
    assert [*tmp_path.iterdir()] == [path]


def test_where_open_files_cannot_be_renamed_it_is_closed_before(tmp_path, monkeypatch):
    """As on Windows."""
    renamed = os.replace

    def closed_only(source: Path, target: Path) -> None:
        held = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        assert os.path.realpath(source) not in held
        renamed(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "replace", closed_only)
    monkeypatch.setattr(platform, "RENAMES_OPEN_FILES", False)
    write_text_atomically(tmp_path / "result.json", "whole")
    assert (tmp_path / "result.json").read_text() == "whole"
    monkeypatch.setattr(platform, "RENAMES_OPEN_FILES", True)
    with pytest.raises(AssertionError):
        write_text_atomically(tmp_path / "result.json", "it is looked at")


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path):
    """Root may replace even /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, is_kept in (("pipe", Path.is_fifo), ("folder", Path.is_dir)):
        with pytest.raises(UserError, match="is not a regular file") as caught:
            write_text_atomically(tmp_path / name, "text")
        assert caught.value.exit_code == 5
        assert is_kept(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
