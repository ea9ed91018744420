"""Many cases in one test: each of them runs, and all that fail are reported by name."""

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable

import pytest


def each(names: str | tuple[str, ...], cases: Iterable, ids: Callable | Iterable | None = None) -> Callable:
    """Run a test for every case, like `pytest.mark.parametrize`, but as one test.

    A case has its own subfolder of `tmp_path` and its own `monkeypatch`; what `caplog` and `capsys` hold is cleared.

    Args:
        names: Arguments of the test, "a, b" or ("a", "b").
        cases: One value per name for each case; bare values where there is one name.
        ids: Names for the report, as in pytest: a list of them, or a function of one value.
    """
    names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
    values = [case if len(names) > 1 else (case,) for case in cases]
    if callable(ids):
        labels = ["-".join(str(ids(value)) for value in case) for case in values]
    else:
        labels = list(ids) if ids else ["-".join(str(value) for value in case) for case in values]

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run_all(**fixtures):
            failures = []
            for k, case in enumerate(values):
                own = dict(fixtures)
                if "tmp_path" in own:
                    own["tmp_path"] = fixtures["tmp_path"] / f"case{k}"
                    own["tmp_path"].mkdir()
                for name in set(own) & {"caplog", "capsys"}:
                    getattr(own[name], "clear", getattr(own[name], "readouterr", None))()
                with pytest.MonkeyPatch.context() as patch:
                    if "monkeypatch" in own:
                        own["monkeypatch"] = patch
                    try:
                        test(**own, **dict(zip(names, case, strict=True)))
                    except (Exception, pytest.fail.Exception):
                        failures.append(f"{labels[k][:200]}:\n{traceback.format_exc(limit=-2)}")
            if failures:
                pytest.fail(f"{len(failures)} of {len(values)} cases failed\n\n" + "\n".join(failures), pytrace=False)

        del run_all.__wrapped__
        run_all.cases = len(values) * getattr(test, "cases", 1)  # for tests/count_cases.py
        signature = inspect.signature(test)
        rest = [parameter for name, parameter in signature.parameters.items() if name not in names]
        run_all.__signature__ = signature.replace(parameters=rest)
        return run_all

    return decorate
