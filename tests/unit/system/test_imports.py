"""Imports without garbage collections."""

import gc

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
