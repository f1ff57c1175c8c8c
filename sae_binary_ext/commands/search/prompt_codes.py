"""Codes of a prompt, by the coder and the model of an index."""

from torch import Tensor

from sae_binary_ext.commands.index.config import IndexConfig
from sae_binary_ext.commands.index.index_folder import IndexFolder
from sae_binary_ext.commands.index.index_run import check_same, header_of
from sae_binary_ext.commands.search.scopes import TOKEN
from sae_binary_ext.measure.documents import cut_rows
from sae_binary_ext.measure.in_model import ROWS_PER_FORWARD
from sae_binary_ext.measure.reading import open_coders


def latents_of_prompt(folder: IndexFolder, prompt: str, within: str) -> list[int]:
    """The latents that fire on the last token of a prompt, or if within="document", on any token.

    Loads the coder and the model from where the index was made. ValueError if they have changed, or
    if the prompt has no token with a code.
    """
    header, about = folder.header, folder.about
    config = IndexConfig(
        model=about["model"],
        hook=about["hook"],
        context_size=header.context_size,
        first_position=header.first_position,
        norm_limit=header.norm_limit,
        precision=header.precision,
    )
    opened = open_coders([about["coder"]], config, folder.path)
    check_same(header, header_of(opened, config), folder.path)
    opened.outliers.start(about["medians"])
    (candidate,) = opened.candidates
    codes: list[Tensor] = []
    for text in cut_rows([prompt], opened.tokenizer, opened.context_size, ROWS_PER_FORWARD):
        batch = opened.read(text)
        codes += list(batch.codes(candidate.coder, opened.hooks[candidate.site][0]))
    if not codes:
        raise ValueError(
            f"near={prompt!r}: has no token with a code; tokens before position "
            f"{header.first_position} and tokens of outlying norm have none. Give a longer prompt."
        )
    wanted = codes[-1:] if within == TOKEN else codes
    return sorted({int(latent) for code in wanted for latent in code.nonzero()[:, 0]})
