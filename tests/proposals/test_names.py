"""What a policy's cameras, states and actions are called."""

from __future__ import annotations

import pytest

from sparsewm.errors import UserError
from sparsewm.proposals.names import check_weights


def test_weights_of_a_grey_picture_are_checked() -> None:
    with pytest.raises(UserError, match="--grey must be three whole numbers from 0, 256 in all"):
        check_weights((100, 100, 100), "--grey")
