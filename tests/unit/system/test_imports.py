"""Imports without garbage collections."""

import gc
import sys
from importlib import import_module

import pytest

from diffusion_lit.system.imports import pause_garbage_collection


def test_collection_is_off_inside_of_the_block_and_as_before_afterwards():
    assert gc.isenabled()
    with pause_garbage_collection():
        with pause_garbage_collection():
            pass
        assert not gc.isenabled()  # it was off before the inner block
    assert gc.isenabled()


def test_collection_is_on_again_after_an_import_that_fails():
    def import_nothing():
        with pause_garbage_collection():
            raise ImportError

    with pytest.raises(ImportError):
        import_nothing()
    assert gc.isenabled()


@pytest.fixture
def import_thousand(tmp_path, monkeypatch):
    """Return a function that imports a thousand lists in a pause and returns how many objects that froze."""
    (tmp_path / "thousand_lists.py").write_text("objects = [[k] for k in range(1000)]")
    monkeypatch.syspath_prepend(tmp_path)

    def import_them() -> int:
        before = gc.get_freeze_count()
        with pause_garbage_collection():
            import_module("thousand_lists")
        return gc.get_freeze_count() - before

    yield import_them
    sys.modules.pop("thousand_lists", None)


def test_what_was_imported_is_never_searched_for_garbage(import_thousand, monkeypatch):
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert import_thousand() >= 1000
    assert import_thousand() <= 0  # nothing new, so that the garbage of a job is still found


def test_triton_is_never_frozen_because_it_would_print_its_objects_at_the_end(import_thousand, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", sys)
    assert import_thousand() <= 0
