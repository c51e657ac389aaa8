import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tests run side by side; and the number of threads can change the last bits.
    torch.set_num_threads(1)
