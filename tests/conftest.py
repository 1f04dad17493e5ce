"""What all tests share: one seed, few threads, hypothesis without deadlines (the machine is shared)."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    """Two, or what OMP_NUM_THREADS says; one where several processes share the tests among them."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    torch.set_num_threads(1 if shared else int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def no_hooks_left():
    """Fails a test that leaves a global module hook behind."""
    from torch.nn.modules import module

    yield
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks
