"""Write a dashboard page of a stock SAE, and the batches that Neuronpedia takes, by SAEDashboard.

python examples/make_dashboard.py CODER MODEL TEXT OUT PROMPTS LATENT...
    CODER    a folder from `sae-binary convert SOURCE CODER --host stock`
    MODEL    a folder with a Llama model, the one that the coder was trained on
    TEXT     a Hugging Face dataset or a folder; a row of it gives one prompt of 128 tokens
    OUT      a new folder for page.html and for the batches, which have all latents
    PROMPTS  number of prompts
    LATENT   the latents that the page shows

It needs sae-dashboard 0.8 and 'pyarrow<22', in an environment without sae_binary_ext.
"""

import sys
from pathlib import Path

from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_runner import NeuronpediaRunner
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import HookedSAETransformer
from transformer_lens import loading_from_pretrained as loading
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

coder, model_folder, text, out = sys.argv[1:5]
prompts, latents = int(sys.argv[5]), [int(latent) for latent in sys.argv[6:]]
if Path(text).is_dir():
    text += "/"  # datasets takes the name "text" alone for all files of the working directory
CONTEXT_SIZE = 128
# A binary latent has two values, so two intervals: random tokens where it fires, and where not.
INTERVALS = 2


def load_llama(folder: str) -> HookedSAETransformer:
    """Load a Llama into TransformerLens 2, whose from_pretrained takes only names that it knows."""
    hf_config = AutoConfig.from_pretrained(folder)
    # transformers 5 saves the rotary base here. transformers 4 ignores it and takes 10,000.
    rope = getattr(hf_config, "rope_parameters", None) or {"rope_theta": hf_config.rope_theta}
    hf_config.rope_theta = rope["rope_theta"]
    hf_model = AutoModelForCausalLM.from_pretrained(folder, config=hf_config)
    config = loading.get_pretrained_model_config(folder, n_ctx=CONTEXT_SIZE, device="cpu")
    config.rotary_base = int(hf_config.rope_theta)  # TransformerLens 2 does not read it either
    model = HookedSAETransformer(config, PreTrainedTokenizerFast.from_pretrained(folder))
    weights = loading.get_pretrained_state_dict(folder, config, hf_model)
    # Nothing is folded or centred, because the coder was trained on the model as it is.
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return model


class Runner(NeuronpediaRunner):
    """SAEDashboard's runner with MODEL, and with an id that Neuronpedia takes for it."""

    def _initialize_model(self) -> None:
        self.model = load_llama(model_folder)
        self.hook_name = self.sae.cfg.metadata.hook_name
        self.model_id = Path(self.model_id).name.lower()


runner = Runner(
    NeuronpediaRunnerConfig(
        sae_set="stock",
        sae_path=coder,
        from_local_sae=True,
        outputs_dir=out,
        huggingface_dataset_path=text,
        n_prompts_total=prompts,
        n_tokens_in_prompt=CONTEXT_SIZE,
        n_quantiles=INTERVALS,
    )
)
# By default, activations of another coder or text would be read from the working directory.
runner.cached_activations_dir = Path(out, "activations")
runner.run()

layout = SaeVisLayoutConfig.default_feature_centric_layout()
layout.seq_cfg.n_quantiles = INTERVALS
tokenizer = runner.model.tokenizer
page = SaeVisConfig(
    hook_point=runner.hook_name,
    features=latents,
    feature_centric_layout=layout,
    minibatch_size_tokens=runner.cfg.n_prompts_in_forward_pass,
    cache_dir=runner.cached_activations_dir,
    ignore_tokens={tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id},
)
data = SaeVisRunner(page).run(encoder=runner.sae, model=runner.model, tokens=runner.get_tokens())
save_feature_centric_vis(data, Path(out, "page.html"))
