"""Train a binary and a continuous transcoder on the same pairs in SAELens, and compare them.

python examples/train_transcoders.py MODEL DATASET [LAYER]
    MODEL    a Hugging Face model or folder, for instance HuggingFaceTB/SmolLM2-135M-Instruct
    DATASET  a Hugging Face dataset or a local folder of text, with a column "text"
    LAYER    the layer of the MLP, 9 if left out
"""

import sys

import torch
from sae_lens import SAE, LoggingConfig, SAETransformerBridge

from sae_binary_ext.measure import SplicedModel, measure, read_pairs
from sae_binary_ext.saelens import (
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
    TranscoderTrainingRunner,
)

model_name, dataset = sys.argv[1:3]
layer = int(sys.argv[3]) if len(sys.argv) > 3 else 9
model = SAETransformerBridge.boot_transformers(model_name, device="cpu")
width = model.cfg.d_model

shared = {"d_in": width, "d_sae": 4 * width, "normalize_activations": "covariance_whitening"}
config = TranscoderRunnerConfig(
    saes={
        "binary": BinaryTranscoderTrainingSAEConfig(k=32, **shared),
        "continuous": TopKTranscoderTrainingSAEConfig(k=32, **shared),
    },
    hook_name=f"blocks.{layer}.mlp.hook_in",
    hook_name_out=f"blocks.{layer}.hook_mlp_out",
    model_name=model_name,
    dataset_path=dataset,
    context_size=128,
    seqpos_slice=(1, None),  # skip position 0, an attention sink
    lr=3e-3,
    train_batch_size_tokens=512,
    training_tokens=12_000,
    store_batch_size_prompts=8,
    n_batches_for_norm_estimate=6,
    logger=LoggingConfig(log_to_wandb=False),
    checkpoint_path=None,
    output_path="transcoders",
)
runner = TranscoderTrainingRunner(config, override_model=model)
runner.run()

# The transcoders are measured on tokens that they were not trained on.
rows = torch.cat([runner.activations_store.get_batch_tokens() for _ in range(2)])
hooks = config.hook_name, config.hook_name_out
inputs, targets = read_pairs(model, rows, *hooks, first_position=1)
spliced = SplicedModel(model, rows, *hooks, first_position=1)
print("transcoder   FVU    L0  dead  dense >10%  CE recovered")
for name in config.saes:
    transcoder = SAE.load_from_disk(f"transcoders/{name}")
    figures = measure(transcoder, inputs, targets)
    recovered = spliced.losses(transcoder).recovered
    print(
        f"{name:10} {figures.fvu:5.3f} {figures.l0:5.1f} {figures.dead:5} "
        f"{figures.dense_10:11} {recovered:13.1%}"
    )
