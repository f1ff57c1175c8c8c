"""`sae-binary entropy`: bounds the entropy of hidden states by the codes of coders."""

import torch

from sae_binary_ext.commands.entropy.config import EntropyConfig
from sae_binary_ext.commands.entropy.entropy_page import EntropyOfCoder, entropy_page
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.reading import OpenedModel, RunningCoders, read_text
from sae_binary_ext.report.analysis import Analysis, analyse_coders


def run_entropy(coders: list[str], config: EntropyConfig) -> Analysis:
    """Measure the entropy of coders' codes; arguments and errors as for analyse_coders."""
    return analyse_coders(coders, config, _measure, entropy_page)


def _measure(opened: OpenedModel, config: EntropyConfig) -> list[EntropyOfCoder]:
    running = RunningCoders(opened)
    codes = {each.name: GatheredCodes(each.coder.cfg.d_sae) for each in opened.candidates}
    for batch in read_text(opened, config):
        for candidate, tokens, active in running.add(batch):
            documents = torch.tensor(batch.text.documents)[tokens.row_of_token]
            codes[candidate.name].add(active, documents)
    return [
        EntropyOfCoder(candidate, figures, codes[candidate.name].entropy())
        for candidate, figures in zip(opened.candidates, running.figures(), strict=True)
    ]
