"""Train a binary autoencoder in SAELens' own runner, then load it from its folder.

python examples/train_in_saelens.py MODEL DATASET
    MODEL    a Hugging Face model or folder, for instance HuggingFaceTB/SmolLM2-135M-Instruct
    DATASET  a Hugging Face dataset or a local folder of text, with a column "text"
"""

import sys

from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)

from sae_binary_ext.saelens import BinaryTrainingSAEConfig

model, dataset = sys.argv[1:3]

config = LanguageModelSAERunnerConfig(
    sae=BinaryTrainingSAEConfig(
        d_in=576, d_sae=2304, k=32, normalize_activations="expected_average_only_in"
    ),
    model_name=model,
    model_class_name="AutoModelForCausalLM",
    hook_name="model.layers.8",
    dataset_path=dataset,
    is_dataset_tokenized=False,
    context_size=128,
    seqpos_slice=(1, None),  # skip position 0, an attention sink
    lr=3e-3,
    train_batch_size_tokens=512,
    training_tokens=20_000,
    store_batch_size_prompts=8,
    n_batches_for_norm_estimate=10,
    logger=LoggingConfig(log_to_wandb=False),
    checkpoint_path=None,
    output_path="binary_sae",
)
LanguageModelSAETrainingRunner(config).run()

sae = SAE.load_from_disk("binary_sae")
print(f"{sae.cfg.architecture()} coder with {sae.cfg.d_sae} latents, in binary_sae")
print(f"active latents a token while training: {sae.cfg.metadata.l0:.1f}")
