"""Fits without processes, for the tests that are not about the process."""

import pytest

from ado_megatron.mixer import rank_zero
from tests.kit.mixing import FitInPlace, stop_fits


@pytest.fixture
def fits_in_place(request, monkeypatch):
    if "real_fits" not in request.keywords:
        monkeypatch.setattr(rank_zero, "Fit", FitInPlace)
    yield
    stop_fits()
