import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sae_binary_ext.coding.finite import FiniteWatch, check_finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_step_is_named(bad: float):
    watch = FiniteWatch()
    watch.check(torch.zeros(3, 4), 0)
    values = torch.zeros(3, 4)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="step 17"):
        watch.check(values, 17)


@pytest.mark.gpu
def test_on_a_gpu_the_error_comes_late_and_names_its_step():
    watch = FiniteWatch()
    values = torch.zeros(3, 4, device="cuda")
    watch.check(values, 0)
    watch.check(values / 0, 1)
    torch.cuda.synchronize()
    watch.check(values, 2)  # sees the flag of step 0 and sends that of step 1 on its way
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="step 1 "):
        watch.check(values, 3)
    with pytest.raises(ValueError, match="step 1 "):
        watch.check_now()


class UnfinishedEvent:
    """A CUDA event whose copy has not ended yet."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


def test_on_a_gpu_no_step_reads_a_value_back(monkeypatch: pytest.MonkeyPatch):
    """Fake CUDA tensors refuse whatever would make the host wait for the device's values."""
    monkeypatch.setattr(torch.cuda, "Event", UnfinishedEvent)
    watch = FiniteWatch()
    with FakeTensorMode():
        for step in range(4):
            watch.check(torch.zeros(3, 4, device="cuda"), step)
        with pytest.raises(DataDependentOutputException):
            watch.check_now()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_check_names_the_remedy(bad: float):
    check_finite(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"NaN or infinite.*dtype"):
        check_finite(torch.tensor([0.0, bad]))
