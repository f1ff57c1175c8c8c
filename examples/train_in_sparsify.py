"""Train a binary transcoder of one MLP in sparsify's own Trainer, then load it from its folder.

python examples/train_in_sparsify.py MODEL DATASET
    MODEL    a Hugging Face model or folder, for instance HuggingFaceTB/SmolLM2-135M-Instruct
    DATASET  a Hugging Face dataset or a local folder of text, with a column "text"
"""

import sys

from datasets import load_dataset
from sparsify import SparseCoder, TrainConfig, Trainer
from sparsify.data import chunk_and_tokenize
from transformers import AutoModel, AutoTokenizer

from sae_binary_ext.sparsify import BinarySparseCoderConfig

model_name, dataset_name = sys.argv[1:3]

model = AutoModel.from_pretrained(model_name)
tokens = chunk_and_tokenize(
    load_dataset(dataset_name, split="train"),
    AutoTokenizer.from_pretrained(model_name),
    max_seq_len=64,
    num_proc=1,
)
config = TrainConfig(
    BinarySparseCoderConfig(activation="topk_binary", k=32, expansion_factor=8, transcode=True),
    batch_size=8,
    hookpoints=["layers.9.mlp"],
    log_to_wandb=False,
    run_name="binary_transcoder",
)
Trainer(config, tokens.select(range(min(len(tokens), 80))), model).fit()

coder = SparseCoder.load_from_disk("checkpoints/binary_transcoder/layers.9.mlp")
print(f"{type(coder).__name__} with {coder.num_latents} latents, activation {coder.cfg.activation}")
print(f"entropy of its firing rates: {coder.entropy_bits():.0f} bits a token")
