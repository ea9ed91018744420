"""Print how many cases test files have: `python -m tests.count_cases tests/integration/test_odd_*.py`.

A case is a row of a table of `each` or of `parametrize`, or a test without one. Inputs in a loop inside a test are
not counted.
"""

import importlib
import math
import sys


def count_cases(file: str) -> int:
    module, count = importlib.import_module(file.removesuffix(".py").replace("/", ".")), 0
    for test in (value for name, value in vars(module).items() if name.startswith("test_")):
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        count += math.prod([getattr(test, "cases", 1), *(len(list(mark.args[1])) for mark in marks)])
    return count


if __name__ == "__main__":
    counts = {file: count_cases(file) for file in sys.argv[1:]}
    for file, count in (counts | {"in all": sum(counts.values())}).items():
        print(f"{count:5} {file}")
