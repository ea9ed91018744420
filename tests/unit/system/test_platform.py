"""The settings of the C library's allocator, and every system on which they are left alone."""

from types import SimpleNamespace

import pytest

from diffusion_lit.system import platform


class Recorded(SimpleNamespace):
    """A C library that notes the calls of mallopt."""

    def __init__(self, largest: int = 2**40, glibc: bool = True):
        super().__init__(calls=[], mallopt=self.set, malloc_trim=lambda pad: 1)
        self.largest = largest
        if glibc:
            self.gnu_get_libc_version = lambda: b"2.36"

    def set(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(parameter != platform.M_MMAP_THRESHOLD or value <= self.largest)


@pytest.fixture
def library(monkeypatch):
    """Replace the C library of this process by one that notes calls."""
    for name in (platform.ALLOCATOR, *platform.OWN_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform.sys, "platform", "linux")

    def replace(library: Recorded) -> Recorded:
        monkeypatch.setattr(platform.ctypes, "CDLL", lambda name: library)
        return library

    return replace


def test_freed_memory_is_kept_under_glibc(library):
    libc = library(Recorded())
    assert platform.keep_freed_memory()
    assert libc.calls == [(-3, 2**30), (-1, 2**30)]  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


def test_an_older_glibc_gets_the_largest_threshold_that_it_takes(library):
    libc = library(Recorded(largest=32 * 2**20))
    assert platform.keep_freed_memory()
    assert libc.calls == [(-3, 2**30), (-3, 32 * 2**20), (-1, 2**30)]


@pytest.mark.parametrize("name", ["DIFFUSION_LIT_MALLOC", *platform.OWN_SETTINGS])
def test_the_environment_of_the_user_comes_first(library, monkeypatch, name):
    libc = library(Recorded())
    monkeypatch.setenv(name, "system")
    assert not platform.keep_freed_memory()
    assert libc.calls == []


def test_other_libraries_and_systems_are_left_alone(library, monkeypatch):
    musl = library(Recorded(glibc=False))
    assert not platform.keep_freed_memory()
    platform.return_freed_memory()
    libc = library(Recorded())
    monkeypatch.setattr(platform.sys, "platform", "darwin")
    assert not platform.keep_freed_memory()
    monkeypatch.setattr(platform.sys, "platform", "linux")
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda name: exec("raise OSError"))
    assert not platform.keep_freed_memory()
    assert musl.calls == libc.calls == []
