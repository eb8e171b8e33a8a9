"""The program that reads files through every function of the C reader, compiled once."""

import pytest

from tests.support.c_reader import SANITIZERS, build


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    return build(tmp_path_factory.mktemp("c") / "dump", *SANITIZERS)
