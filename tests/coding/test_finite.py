import pytest
import torch

from sae_binary_ext.coding.finite import FiniteWatch


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
