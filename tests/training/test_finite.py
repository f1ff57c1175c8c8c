import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sae_binary_ext.training.finite import FiniteRows, FiniteWatch, check_finite


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
    watch.check(values, 2)  # reads the flag of step 0 and starts to copy that of step 1
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="step 1 "):
        watch.check(values, 3)
    with pytest.raises(ValueError, match="step 1 "):
        watch.check_now()


class UnfinishedEvent:
    """A stand-in for a CUDA event whose copy has not ended yet."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


def test_on_a_gpu_no_step_reads_a_value_back(monkeypatch: pytest.MonkeyPatch):
    """Fake CUDA tensors raise an error if an operation makes the host wait for device values."""
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


def test_finite_rows_are_found_and_the_others_counted(caplog: pytest.LogCaptureFixture):
    rows = FiniteRows()
    assert rows.of(torch.zeros(4, 3), torch.zeros(4, 2, 2), step=0) is None
    x, y = torch.zeros(4, 3), torch.zeros(4, 2, 2)
    x[1, 2], y[3, 0, 1] = float("nan"), -float("inf")
    for step in range(1, 5):
        assert rows.of(x, y, step=step).tolist() == [True, False, True, False]
    assert rows.skipped == 8
    # A warning comes each time the number of skipped tokens has doubled, not in every step.
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == [
        f"Training step {step}" for step in (1, 2, 4)
    ]
    assert ": 8 tokens with NaN" in messages[-1]


def test_a_batch_without_a_finite_row_is_refused():
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    x[0], y[1] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="step 5 "):
        FiniteRows().of(x, y, step=5)
