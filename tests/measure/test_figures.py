import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_binary_ext.coding import reference
from sae_binary_ext.measure.documents import TextBatch, document_weights
from sae_binary_ext.measure.figures import RunningFigures, RunningVariance, TokenBatch, nearest_rows
from sae_binary_ext.measure.metrics import measure
from sae_binary_ext.measure.samples import CONTEXT_RADIUS, CONTEXTS
from tests.measure.test_metrics import coder_with_known_codes

ROWS, LENGTH, WIDTH = 30, 20, 3


def activations() -> Tensor:
    """Activations [ROWS * LENGTH, WIDTH] far from zero, with a different mean in each row."""
    generator = torch.Generator().manual_seed(0)
    of_row = torch.rand(ROWS, 1, WIDTH, generator=generator)
    drawn = torch.rand(ROWS, LENGTH, WIDTH, generator=generator)
    return (of_row + drawn).flatten(0, 1) / 1.5 + torch.tensor([0.0, 0.0, 50.0])


def run(
    coder: TopKSAE, x: Tensor, rows_at_once: int, rows_a_document: int = 2
) -> tuple[RunningFigures, RunningVariance]:
    figures, variance = RunningFigures(coder, samples=4), RunningVariance(WIDTH)
    for rows in torch.arange(ROWS).split(rows_at_once):
        tokens = x.view(ROWS, LENGTH, WIDTH)[rows].flatten(0, 1)
        documents = [row // rows_a_document for row in rows.tolist()]
        ids = torch.arange(LENGTH) + LENGTH * rows[:, None]
        text = TextBatch(ids, torch.full((len(rows),), LENGTH), documents)
        where = text.positions(0)
        batch = TokenBatch(tokens, tokens, text, where, document_weights(documents))
        variance.add(batch)
        figures.add(batch)
    return figures, variance


def coders() -> dict[str, TopKSAE]:
    stock = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=6, k=2))
    with torch.no_grad():
        stock.W_dec[1] = 2 * stock.W_dec[0]
        stock.W_enc[:, 1] = stock.W_enc[:, 0]
    return {"binary": coder_with_known_codes(), "stock": stock}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["binary", "stock"])
def test_figures_are_those_of_all_tokens_at_once(name: str):
    coder, x = coders()[name], activations()
    running, variance = run(coder, x, 4)
    found = running.figures(variance)
    expected = measure(coder, x)
    codes = coder.encode(x)
    assert found.tokens == len(x)
    assert found.fvu.value == pytest.approx(expected.fvu, rel=1e-6)
    assert found.l0.value == pytest.approx(expected.l0)
    assert found.l0_deviation.value == pytest.approx(
        (codes != 0).sum(1).double().std(correction=0).item()
    )
    cosine = torch.cosine_similarity(coder.decode(codes), x).double().mean().item()
    assert found.cosine.value == pytest.approx(cosine)
    assert torch.equal(found.rates, expected.rates)
    bits = reference.entropy_bits((codes != 0).float())
    assert found.entropy_bits.value == pytest.approx(bits)
    assert found.stores_values == (name == "stock")
    assert found.bits.value == pytest.approx(bits + 8 * expected.l0 * (name == "stock"))
    assert found.tokens_per_second > 0


def test_figures_do_not_depend_on_the_batches_and_survive_saving():
    coder, x = coders()["stock"], activations()
    whole, variance = run(coder, x, ROWS)
    parts, part_variance = run(coder, x, 7)
    torch.testing.assert_close(parts.sums.sums, whole.sums.sums)
    torch.testing.assert_close(part_variance.totals(), variance.totals())
    torch.testing.assert_close(part_variance.mean(), x.double().mean(0))
    again = RunningFigures(coder, samples=4)
    again.load_state_dict(whole.state_dict())
    assert again.figures(variance).fvu == whole.figures(variance).fvu


def test_the_interval_is_of_resampled_documents():
    coder, x = coders()["stock"], activations()
    running, variance = run(coder, x, 4)
    found = running.figures(variance).fvu
    weights = document_weights(list(range(ROWS // 2)))[:, 1:]
    documents = x.view(ROWS // 2, 2 * LENGTH, WIDTH).double()
    error = (coder(x).view_as(documents) - documents).square().sum((1, 2))
    replicates: list[float] = []
    for weight in weights.T:
        mean = (weight[:, None] * documents.sum(1)).sum(0) / (weight.sum() * 2 * LENGTH)
        total = (weight * (documents - mean).square().sum((1, 2))).sum()
        replicates.append(((weight * error).sum() / total).item())
    total = (documents - documents.mean((0, 1))).square().sum((1, 2))
    torch.testing.assert_close(running.figures(variance).document_fvu, error.double() / total)
    ends = torch.tensor(replicates).quantile(torch.tensor([0.025, 0.975]))
    assert [found.low, found.high] == pytest.approx(ends.tolist(), rel=1e-4)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("name", ["binary", "stock"])
def test_one_document_has_no_intervals(name: str):
    running, variance = run(coders()[name], activations(), 4, ROWS)
    found = running.figures(variance)
    for figure in (found.fvu, found.cosine, found.l0, found.entropy_bits, found.bits):
        assert figure.value == figure.value
        assert figure.low != figure.low
        assert figure.high != figure.high


def test_duplicates_are_found_by_direction_and_firing():
    coder, x = coders()["stock"], activations()
    running, variance = run(coder, x, 4)
    found = running.figures(variance)
    codes = (coder.encode(x) != 0).double()
    _, nearest = nearest_rows(coder.W_dec)
    assert nearest[:2].tolist() == [1, 0]
    assert found.neighbour_cosines[:2].tolist() == pytest.approx([1, 1])
    for latent, other in enumerate(nearest.tolist()):
        correlation = torch.corrcoef(codes[:, [latent, other]].T)[0, 1]
        ours = found.neighbour_correlations[latent]
        torch.testing.assert_close(ours, correlation, equal_nan=True, rtol=1e-6, atol=1e-9)


def test_nearest_rows_are_those_of_the_largest_cosine():
    weight = torch.randn(2500, 8)
    weight[7] = 0
    cosines, nearest = nearest_rows(weight)
    for row in (0, 1023, 1024, 2499):
        others = torch.cosine_similarity(weight[row], weight, dim=1)
        others[row] = -2
        assert nearest[row] == others.argmax()
        assert cosines[row].item() == pytest.approx(others.max().item(), abs=1e-5)
    assert cosines[7] == 0


def test_sampled_latents_fire_in_the_middle_of_their_contexts():
    coder, x = coders()["stock"], activations()
    running, _ = run(coder, x, 4)
    active = coder.encode(x) != 0
    samples = running.samples
    assert len(samples.latents) == 4
    for place, latent in enumerate(samples.latents.tolist()):
        fires = active[:, latent]
        contexts = samples.contexts(place)
        assert len(contexts) == min(CONTEXTS, int(fires.sum()))
        for context in contexts:
            # Token ids are positions in the text, so they say where the latent fires.
            assert context.fired == fires[context.tokens].tolist()
            (middle,) = {token // LENGTH for token in context.tokens}
            assert middle in range(ROWS)
            ends = (middle * LENGTH, middle * LENGTH + LENGTH - 1)
            reach = (context.tokens[0] == ends[0]) + (context.tokens[-1] == ends[1])
            assert len(context.tokens) == 2 * CONTEXT_RADIUS + 1 or reach > 0
