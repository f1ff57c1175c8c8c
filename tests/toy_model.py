"""A tiny language model with hooks like those of SAELens' models."""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedTransformer import HookedRootModule

VOCABULARY, WIDTH, WIDTH_OUT = 7, 3, 5


class ToyLanguageModel(HookedRootModule):
    """A model that embeds tokens, passes them through one layer, and scores the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH_OUT)
        self.head = nn.Linear(WIDTH_OUT, VOCABULARY)
        self.hook_in, self.hook_out, self.hook_idle = HookPoint(), HookPoint(), HookPoint()
        self.setup()

    def forward(
        self, tokens: Tensor, return_type: str = "logits", loss_per_token: bool = False
    ) -> Any:
        logits = self.head(self.hook_out(self.layer(self.hook_in(self.embed(tokens)))))
        return logits, losses(logits, tokens)


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Next-token cross-entropies, [rows, context - 1]."""
    scores = torch.log_softmax(logits[:, :-1], dim=-1)
    return -scores.gather(-1, tokens[:, 1:, None]).squeeze(-1)
