"""What the tests of `culux.testing`'s checks share: the failed checks of a report by name."""

from __future__ import annotations

import re

import pytest

from culux.errors import CheckError


def failures(check, *args, **kwargs):
    """The problems that a check reports, by the name of the single check that found them."""
    with pytest.raises(CheckError) as caught:
        check(*args, **kwargs)
    assert isinstance(caught.value, AssertionError)
    head, *lines = str(caught.value).split("\n")
    found = {}
    for line in lines:
        name, _, problem = line.removeprefix("- ").partition(": ")
        found.setdefault(name, []).append(problem)
    assert f": {len(found)} of " in head
    return found


def assert_named(found, name, message):
    """That one check alone failed, and said this."""
    assert list(found) == [name], found
    assert any(re.search(message, line) for line in found[name]), found
