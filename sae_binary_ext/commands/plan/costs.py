"""The arithmetic of a plan: bytes by part, FLOPs and disk. It needs no torch and no host."""

import math
from dataclasses import dataclass, fields

from sae_binary_ext.commands.plan.config import OPTIMIZERS, STOCK, PlanConfig
from sae_binary_ext.commands.plan.host_settings import sequences
from sae_binary_ext.commands.plan.model_sizes import ModelSizes
from sae_binary_ext.commands.plan.step_costs import (
    BLOCK,
    ON_GPU,
    START,
    STEPS,
    UPDATE,
    Arrays,
    StepCost,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Arrays of the weights' size that an optimizer keeps.
_STATES = {"adam": 2, "signum": 1}
_FLOAT = 4


@dataclass(frozen=True)
class Run:
    """A run whose open settings are filled in.

    Attributes:
        layer, latents: those of the settings, or their defaults.
    """

    config: PlanConfig
    sizes: ModelSizes
    layer: int
    latents: int

    @classmethod
    def of(cls, config: PlanConfig, sizes: ModelSizes) -> "Run":
        """Fill in the layer in the middle and 8 latents a dimension; ValueError if k is larger."""
        layer = sizes.layers // 2 if config.layer is None else config.layer
        if layer >= sizes.layers:
            raise ValueError(f"layer={layer}: give a number from 0 to {sizes.layers - 1}.")
        latents = 8 * sizes.width if config.latents is None else config.latents
        if config.k > latents:
            raise ValueError(f"k={config.k} with {latents} latents: give at most {latents}.")
        return cls(config, sizes, layer, latents)

    @property
    def step(self) -> StepCost:
        """What a training step of this architecture makes on this device."""
        kind = self.config.host, self.config.architecture, self.config.transcoder
        cost = STEPS[kind]
        if self.config.device == "cuda" and kind in ON_GPU:
            backward, update = ON_GPU[kind]
            return cost._replace(backward=backward, update=update)
        return cost

    @property
    def step_tokens(self) -> int:
        """Tokens of a training step on each rank."""
        config = self.config
        if config.host == "saelens":
            return config.batch_size
        return sequences(config) * config.context_size

    def weights(self) -> int:
        """Numbers in the coder: two matrices, and a bias, a threshold and b_dec."""
        thresholds = self.config.architecture not in STOCK
        return self.latents * (2 * self.sizes.width + 1 + thresholds) + self.sizes.width


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by part. Not all parts are in memory at the same moment.

    Attributes:
        coder, gradients, optimizer: the coder's weights, their gradients, and the states.
        buckets: copies of gradients that ranks exchange.
        step: everything else that a training step makes.
        kept: output of the last step, which SAELens' trainer keeps until the next step is done.
        model: weights of the language model.
        reading: what the model's forward pass makes.
        store: SAELens' shuffle buffer between refills.
        refill: copies of the buffer while it is refilled.
    """

    coder: int
    gradients: int
    optimizer: int
    buckets: int
    step: int
    kept: int
    model: int
    reading: int
    store: int
    refill: int

    @property
    def training(self) -> int:
        """Peak of a training step without model and text, which benchmarks/plan.py measures."""
        return self.coder + self.gradients + self.optimizer + self.step + self.kept

    @property
    def peak(self) -> int:
        """The larger of two moments: a training step, and reading text."""
        always = self.coder + self.optimizer + self.buckets + self.kept + self.model + self.store
        if self.store:  # SAELens reads text between steps, and sparsify during a step
            return always + max(self.gradients + self.step, self.reading + self.refill)
        return always + self.gradients + max(self.step, self.reading)

    def parts(self) -> dict[str, int]:
        """Bytes by the names of the parts, without those that are 0."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value}


def memory_of(run: Run) -> Memory:
    """Bytes that a run takes on one device."""
    config, sizes, step = run.config, run.sizes, run.step
    coder = run.weights() * BYTES[config.dtype]
    optimizer = config.optimizer or OPTIMIZERS[config.host][0]
    output = _bytes(run, step.update, coder)
    update = round(_copies_in_update(config, optimizer) * coder) + output
    states = _STATES[optimizer] * coder
    is_saelens = config.host == "saelens"
    kept = output if is_saelens else 0
    # Nothing is kept, and there are no states, before the first step.
    start = _start(run, coder) - coder - states - kept
    return Memory(
        coder=coder,
        gradients=coder,
        optimizer=states,
        buckets=coder if config.ranks > 1 else 0,
        step=max(_bytes(run, step.backward, coder), update, start),
        kept=kept,
        model=sizes.weights(with_output_layer=is_saelens) * _model_bytes(run),
        reading=_reading(run),
        store=_store_rows(run) * _row_bytes(run) if is_saelens else 0,
        refill=2 * _store_rows(run) * _row_bytes(run) if is_saelens else 0,
    )


def _copies_in_update(config: PlanConfig, optimizer: str) -> float:
    """Copies of all weights that the optimizer's update makes."""
    # SAELens has no transcoder to train, so its topk transcoder is this package's.
    is_ours = config.architecture not in STOCK or (config.host == "saelens" and config.transcoder)
    return 0 if is_ours and optimizer == "adam" else UPDATE[config.host, optimizer]


def _bytes(run: Run, arrays: Arrays, coder: int, most_tokens: float = math.inf) -> int:
    """Bytes of a step's arrays; `coder` is the coder's own.

    Arrays [tokens, latents] have at most `most_tokens` tokens.
    """
    k, width = run.config.k, run.sizes.width
    of_token = arrays.widths * width + arrays.actives * k + arrays.rows * k * width
    of_latent = arrays.latents * min(run.step_tokens, most_tokens)
    of_latent += arrays.blocks * min(run.step_tokens, BLOCK)
    numbers = run.step_tokens * of_token + run.latents * of_latent
    return round(arrays.weights * coder + numbers * BYTES[run.config.dtype])


def _start(run: Run, coder: int) -> int:
    """Bytes beside the coder while the first batch initialises it; 0 if steps take more."""
    if run.config.architecture != "binary":
        return 0
    moments = START if run.config.transcoder else START[:-1]
    return max(_bytes(run, arrays, coder, most) for most, arrays in moments)


def _model_bytes(run: Run) -> int:
    """Bytes of each number of the model: sparsify loads it in bfloat16 on a GPU."""
    on_gpu = run.config.host == "sparsify" and run.config.device == "cuda"
    return BYTES.get("bfloat16" if on_gpu else run.sizes.dtype, _FLOAT)


def layers_read(run: Run) -> int:
    """Layers that the model computes: SAELens stops at the coder's layer, sparsify does not."""
    return run.layer + 1 if run.config.host == "saelens" else run.sizes.layers


def _tokens_read(run: Run) -> int:
    config = run.config
    rows = config.store_batch_size_prompts
    return rows * config.context_size if config.host == "saelens" else run.step_tokens


def _reading(run: Run) -> int:
    """Keys and values of all layers, and the hidden states and the arrays of one MLP."""
    sizes = run.sizes
    cached = 2 * sizes.key_width * layers_read(run)
    return (cached + 3 * sizes.width + 3 * sizes.mlp_width) * _tokens_read(run) * _model_bytes(run)


def _row_bytes(run: Run) -> int:
    """Bytes of a token in SAELens' store: pairs in the model's dtype, else float32."""
    if run.config.transcoder:
        return 2 * run.sizes.width * _model_bytes(run)
    return run.sizes.width * _FLOAT


def _store_rows(run: Run) -> int:
    """Tokens in SAELens' buffer when it is full. Position 0 of each row is left out."""
    config = run.config
    row = config.context_size - 1
    read, buffer = config.store_batch_size_prompts * row, config.n_batches_in_buffer * row
    return -(-buffer // read) * read


def flops_of_step(run: Run) -> int:
    """FLOPs of a training step on one rank: products of matrices, and sums of single rows."""
    products = 2 * run.step_tokens * run.sizes.width
    return round(products * (run.step.products * run.latents + run.step.sums * run.config.k))


def flops_of_token(run: Run) -> int:
    """FLOPs of the model's forward pass for one token, to the layer where its host stops."""
    sizes = run.sizes
    attention = 4 * run.config.context_size * sizes.attention_width
    return layers_read(run) * (2 * sizes.layer_weights() + attention)


def disk_of(run: Run) -> dict[str, int]:
    """Bytes of the coder's file, of a checkpoint with optimizer, and of all activations."""
    memory = memory_of(run)
    width = run.sizes.width * (1 + run.config.transcoder)
    return {
        "coder": memory.coder,
        "checkpoint": memory.coder + memory.optimizer,
        "activations, if cached": run.config.tokens * width * _FLOAT,
    }
