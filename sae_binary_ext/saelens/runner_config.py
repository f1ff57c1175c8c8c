"""Config of a run of TranscoderTrainingRunner: transcoders, their hooks, and layers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from sae_lens import TrainingSAEConfig
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig

from sae_binary_ext.saelens.pairs import HookPair
from sae_binary_ext.saelens.transcoder import TranscoderFields

# The place of a layer's number in the name of a hook.
LAYER = "{layer}"


@dataclass(kw_only=True)
class TranscoderRunnerConfig(MultiSAETrainingRunnerConfig):
    """Config of a run that trains transcoders on pairs of activations, at one layer or at several.

    The other fields are those of SAELens' MultiSAETrainingRunnerConfig.

    Args:
        saes: training configs of binary_transcoder or topk_transcoder, by names of your choice.
        hook_name: the hook of the inputs, a TransformerLens hook (blocks.9.mlp.hook_in). If
            model_class_name is AutoModelForCausalLM, give a module instead
            (model.layers.9.post_attention_layernorm), whose outputs are the inputs. With {layer}
            in place of the layer's number, each of saes is trained at several layers, and the
            transcoder "binary" of layer 9 is named "binary/layers.9". Or a hook for each name in
            saes.
        hook_name_out: the hook of the targets (blocks.9.hook_mlp_out, or model.layers.9.mlp), in
            the same form as hook_name.
        layers: numbers of the layers if the hooks have {layer}. None trains all layers.
        memory_gb: gigabytes of the device that transcoders, their optimizers and the activations
            store may take. If not all layers fit, the run reads the text once for each group of
            layers that does. None takes 0.8 of the free memory.
        lrs: learning rates by the names in saes. A transcoder that is not named takes lr.
    """

    saes: Mapping[str, TrainingSAEConfig]
    hook_name: str | Mapping[str, str]
    hook_name_out: str | Mapping[str, str]
    layers: Sequence[int] | None = None
    memory_gb: float | None = None
    lrs: Mapping[str, float] = field(default_factory=dict)
    # SAELens' name of hook_name. Transcoders read no single heads.
    hook_names: Mapping[str, str] | str = field(init=False, default="")
    hook_head_indices: dict[str, int | None] | int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.hook_names = self.hook_name
        super().__post_init__()
        for name, config in self.saes.items():
            if not isinstance(config, TranscoderFields):
                raise ValueError(
                    f"saes[{name!r}] is a {type(config).__name__}: give a training config of "
                    "binary_transcoder or topk_transcoder."
                )
        self._check_hooks()
        self._check_layers()
        unknown = sorted(set(self.lrs) - set(self.saes))
        if unknown:
            raise ValueError(f"lrs of {unknown}: no such name in saes, {sorted(self.saes)}.")

    @property
    def hook_pairs(self) -> dict[str, HookPair]:
        """The hooks of each transcoder, by its name in saes."""
        outs = self.hook_name_out
        return {
            name: HookPair(hook_name, outs if isinstance(outs, str) else outs[name])
            for name, hook_name in self.hook_names_per_sae.items()
        }

    def widths(self, name: str) -> tuple[int, int]:
        """d_in and d_out of a transcoder."""
        config = cast(TranscoderFields, self.saes[name])
        return config.d_in, config.d_out or config.d_in

    @property
    def has_layers(self) -> bool:
        """Whether the hooks have the place of a layer's number."""
        return isinstance(self.hook_name, str) and LAYER in self.hook_name

    def at_layers(self, layers: Iterable[int]) -> "TranscoderRunnerConfig":
        """This run with a transcoder, of its own name and hooks, for each of saes and layers."""
        names = {f"{name}/layers.{n}": (name, n) for n in layers for name in self.saes}
        pair = {key: self.hook_pairs[name] for key, (name, _) in names.items()}
        number = {key: str(n) for key, (_, n) in names.items()}
        run = replace(
            self,
            saes={key: self.saes[name] for key, (name, _) in names.items()},
            hook_name={key: pair[key].hook_name.replace(LAYER, number[key]) for key in names},
            hook_name_out={
                key: pair[key].hook_name_out.replace(LAYER, number[key]) for key in names
            },
            layers=None,
            lrs={key: self.lrs[name] for key, (name, _) in names.items() if name in self.lrs},
        )
        run.checkpoint_path = self.checkpoint_path  # which has its unique folder already
        return run

    def _check_hooks(self) -> None:
        outs = self.hook_name_out
        if not isinstance(outs, str) and set(outs) != set(self.saes):
            raise ValueError(
                f"hook_name_out has the names {sorted(outs)}, saes has {sorted(self.saes)}: they "
                "must be the same."
            )
        width_of: dict[str, int] = {}
        for name, hooks in self.hook_pairs.items():
            if hooks.hook_name == hooks.hook_name_out:
                raise ValueError(
                    f"hook_name_out={hooks.hook_name_out!r} is hook_name too: a coder of one "
                    "activation is an autoencoder. Train it with SAELens' own runners."
                )
            for hook, width in zip(hooks, self.widths(name), strict=True):
                if width_of.setdefault(hook, width) != width:
                    widths = sorted({self.widths(each) for each in self.saes})
                    raise ValueError(
                        f"saes have different (d_in, d_out), {widths}, at hook {hook!r}: all learn "
                        "from the same pairs. Give all the same d_in and d_out."
                    )

    def _check_layers(self) -> None:
        if self.layers is not None:
            self.layers = list(self.layers)  # a range is not JSON
        with_place = [LAYER in str(hook) for hook in (self.hook_name, self.hook_name_out)]
        if with_place[0] != with_place[1]:
            raise ValueError(
                f"hook_name={self.hook_name!r} and hook_name_out={self.hook_name_out!r}: only one "
                f"has {LAYER}. Give it to both, or to neither."
            )
        if self.layers is not None and not (self.layers and self.has_layers):
            raise ValueError(
                f"layers={self.layers!r} with hook_name={self.hook_name!r}: give at least one "
                f"layer, and hooks with {LAYER}, for example 'blocks.{LAYER}.mlp.hook_in'."
            )
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise ValueError(f"memory_gb={self.memory_gb!r}: give gigabytes above 0, or None.")
