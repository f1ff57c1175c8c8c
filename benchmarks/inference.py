"""Times of encoding with coders for inference, to indices and to packed codes, beside stock TopK.

Usage: python -m benchmarks.inference
"""

from collections.abc import Iterator

import torch
from sae_lens import TopKSAEConfig
from sae_lens.saes.topk_sae import TopKSAE
from sparsify import SparseCoder, SparseCoderConfig

from benchmarks.hosts import WIDTH
from benchmarks.measure import ceilings, compare, print_table, repeat
from benchmarks.steps import SIZES
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from sae_binary_ext.sparsify import BinarySparseCoderConfig

K = 32


@torch.no_grad()
def rows_of() -> Iterator[tuple[object, ...]]:
    for latents, tokens in SIZES:
        x = torch.randn(tokens, WIDTH)
        sizes = {"d_in": WIDTH, "d_sae": latents, "k": K}
        binary, stock = BinarySAE(BinarySAEConfig(**sizes)), TopKSAE(TopKSAEConfig(**sizes))
        sizes = {"num_latents": latents, "k": K}
        in_sparsify = SparseCoder(WIDTH, BinarySparseCoderConfig(**sizes))
        stock_in_sparsify = SparseCoder(WIDTH, SparseCoderConfig(**sizes))
        for coder in (stock, in_sparsify, stock_in_sparsify):
            encoder = coder.W_enc if isinstance(coder, TopKSAE) else coder.encoder.weight.T
            encoder.copy_(binary.W_enc.normal_(generator=torch.Generator().manual_seed(0)))
        host = {
            "SAELens": repeat(lambda coder=stock, x=x: coder.encode(x)),
            "sparsify": repeat(lambda coder=stock_in_sparsify, x=x: coder.encode(x)),
        }
        ours = {
            "indices": repeat(lambda coder=binary, x=x: coder.encode_indices(x)),
            "packed": repeat(lambda coder=binary, x=x: coder.encode_packed(x)),
        }
        floor = ceilings(tokens, WIDTH, latents)
        for name, stock_encode in host.items():
            for form, encode in ours.items():
                times = compare(encode, stock_encode)
                yield (
                    name,
                    latents,
                    tokens,
                    form,
                    *times.cells(),
                    f"{floor.product:.3f}",
                    f"{binary.encode_packed(x).numel() * 8 / tokens / latents:.2f}",
                )


def main() -> None:
    columns = (
        "host",
        "latents",
        "tokens",
        "form",
        "ours, s",
        "host's, s",
        "ratio",
        "encoder product, s",
        "packed bits a latent",
    )
    print_table(f"Encoding without gradient, k = {K}", columns, rows_of())


if __name__ == "__main__":
    main()
