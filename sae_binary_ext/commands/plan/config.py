"""The settings of `sae-binary plan`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice, check_positive

HOSTS = ("saelens", "sparsify")
ARCHITECTURES = ("binary", "binary_entropy", "binary_refined", "topk")
# Architectures of the hosts themselves, and those that pick k latents.
STOCK = ("topk",)
WITH_K = ("binary", *STOCK)
# Optimizers by host; the first is the host's default.
OPTIMIZERS = {"saelens": ("adam",), "sparsify": ("signum", "adam")}


@dataclass
class PlanConfig:
    """
    Say what a training run takes, before it starts: memory by part, FLOPs, time and disk, and what
    to change if it does not fit. Writes settings for both hosts, ready for `sae-binary run`.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M"
    """Hub id or folder of the model. The sizes of six models are built in; those of others are
    read from a config.json on disk, or given by sizes."""
    sizes: list[str] = field(default_factory=list)
    """Sizes of a model that is not known, by the names of transformers, as hidden_size=2048
    num_hidden_layers=16."""
    layer: int | None = None
    """Number of the layer, counted from 0. If left out, the layer in the middle."""
    transcoder: bool = False
    """Whether the coder maps the layer's MLP input to its output. If not, an autoencoder of the
    layer's output."""
    host: str = "saelens"
    """Host whose memory and time are told: saelens or sparsify."""
    architecture: str = "binary"
    """binary, binary_entropy, binary_refined, or topk (the host's own). In sparsify these are
    topk_binary, binary with entropy_alpha, binary with refine_passes, and topk."""
    latents: int | None = None
    """Number of latents. If left out, 8 times the model's width."""
    k: int = 32
    """Active latents of a token, for binary and topk."""
    tokens: int = 100_000_000
    """Training tokens, over all ranks."""
    batch_size: int = 4096
    """Tokens of a training step, on each rank."""
    context_size: int = 256
    """Tokens of a row of text."""
    store_batch_size_prompts: int = 32
    """Rows that the model reads at once, in SAELens. sparsify reads a training step's rows."""
    n_batches_in_buffer: int = 128
    """Rows of text in SAELens' shuffle buffer."""
    optimizer: str | None = None
    """adam, or signum in sparsify. If left out, the host's default."""
    dtype: str = "float32"
    """Number format of the coder: float32, or bfloat16 in SAELens."""
    device: str = "cuda"
    """Device of the model and the coder: cuda or cpu."""
    device_memory: float | None = None
    """Gigabytes of each device. If given, the plan says whether the run fits, and what does."""
    ranks: int = 1
    """Number of processes, one for each device. Only sparsify takes more than one."""
    rate: float | None = None
    """Speed of one device in TFLOP/s. If left out, that of a product of matrices, measured on this
    machine."""
    dataset: str = "EleutherAI/SmolLM2-135M-10B"
    """Hub id or folder of the training text, for the settings that are written."""
    output: Path = Path("runs/plan")
    """Folder for plan.json, and for saelens.args and sparsify.args."""

    def __post_init__(self) -> None:
        check_choice(HOSTS, host=self.host)
        check_choice(ARCHITECTURES, architecture=self.architecture)
        check_choice(("float32", "bfloat16"), dtype=self.dtype)
        check_choice(("cpu", "cuda"), device=self.device)
        self._check_numbers()
        self._check_host()

    def _check_numbers(self) -> None:
        least = {"layer": 0, "context_size": 2}
        names = ("layer", "latents", "k", "tokens", "batch_size", "context_size", "ranks")
        for name in (*names, "store_batch_size_prompts", "n_batches_in_buffer"):
            if (value := getattr(self, name)) is not None:
                check_at_least(least.get(name, 1), **{name: value})
        for name in ("device_memory", "rate"):
            if (value := getattr(self, name)) is not None:
                check_positive(**{name: value})

    def _check_host(self) -> None:
        if self.optimizer is not None:
            check_choice(OPTIMIZERS[self.host], optimizer=self.optimizer)
        if self.host == "saelens" and self.ranks > 1:
            raise ValueError(
                f"ranks={self.ranks} with host='saelens': SAELens trains in one process. "
                "Set host='sparsify'."
            )
        if self.host == "sparsify" and self.dtype != "float32":
            raise ValueError(
                f"dtype={self.dtype!r} with host='sparsify': it trains in float32. "
                "Set dtype='float32'."
            )
        if self.transcoder and self.architecture == "binary_refined":
            raise ValueError(
                "architecture='binary_refined' with transcoder=True: refined coders are "
                "autoencoders. Set transcoder=False."
            )
