import pytest
import torch

from sae_binary_ext.measure import matching
from sae_binary_ext.measure.matching import JointCounts


@pytest.mark.parametrize("most", [0, 1000])  # 0 takes a matrix product, 1000 takes sums of rows
def test_matches_are_the_largest_correlations(most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matching, "MOST_FIRINGS_A_TOKEN", most)
    monkeypatch.setattr(matching, "FIRINGS_AT_ONCE", 7)
    ones = torch.rand(400, 5) < 0.2
    others = torch.rand(400, 9) < 0.3
    others[:, 6] = ones[:, 2] ^ (torch.rand(400) < 0.05)
    ones[:, 4], others[:, 1] = False, True
    joint = JointCounts(5, 9)
    for part in torch.arange(400).split(90):
        joint.add(ones[part], others[part])
    assert torch.equal(joint.counts, ones.T.double() @ others.double())
    found = joint.matches(ones.double().mean(0), others.double().mean(0), 400)
    kept = [0, 1, 2, 3]
    correlations = torch.corrcoef(torch.cat([ones, others], dim=1).T.double())[:5, 5:]
    expected = correlations[kept].nan_to_num(-2).max(dim=1)
    assert torch.equal(found.latents[kept], expected.indices)
    torch.testing.assert_close(found.correlations[kept], expected.values)
    assert found.latents[2] == 6
    assert found.correlations[2] > 0.7
    assert found.correlations[4] == -torch.inf
