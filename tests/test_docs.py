"""The code blocks of README and docs run as written; blocks of PyTorch code where torch is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from tests.support import FINDERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Document.parse(str(path), PythonCodeBlockParser(), SkipParser())
    document.namespace.update(has_torch=HAS_TORCH, has_compiler=FINDERS["compiler"]() is not None)
    examples = list(document)
    assert examples, f"{path.name} has no Python blocks"
    skipped = []
    for example in examples:
        try:
            example.evaluate()
        except SkipTest as skip:
            skipped.append(str(skip))
        except Exception as error:
            raise AssertionError(f"{path.name}:{example.line}: {error!r}") from error
    if skipped:  # the other blocks ran
        pytest.skip(skipped[0])
