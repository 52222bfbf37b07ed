"""The venue contract over the replay simulator, under every queue model."""

from __future__ import annotations

import pytest

from execution.simulation.queue import MODELS
from tests.execution.tape import Tape
from tests.execution.venue_contract import VenueContract


class TestSimulator(VenueContract):
    @pytest.fixture(params=list(MODELS))
    def tape(self, request: pytest.FixtureRequest) -> Tape:
        return Tape(queue=request.param).opens()
