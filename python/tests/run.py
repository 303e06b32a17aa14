"""Runs the tests beside this file with pytest; exit code 77, skipped, where it or numpy is missing."""
import importlib.util
import os
import sys

missing = [name for name in ("pytest", "numpy") if importlib.util.find_spec(name) is None]
if missing:
    print(f"skipped: {sys.executable} has no {' and no '.join(missing)}")
    raise SystemExit(77)

import pytest

here = os.path.dirname(os.path.abspath(__file__))
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", here, *sys.argv[1:]]))
