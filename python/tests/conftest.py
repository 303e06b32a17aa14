import os
import pathlib

import pytest

from nibble import LLM

SOURCE = pathlib.Path(os.environ["NIBBLE_SOURCE_DIR"])
DEMO = SOURCE / "models" / "demo"


@pytest.fixture(scope="session")
def llm():
    with LLM(model=DEMO) as shared:
        yield shared
