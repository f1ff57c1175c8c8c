"""Config of binary sparse coders: the fields of sparsify's config and those of binary codes."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

from simple_parsing import choice
from simple_parsing.helpers.serialization.serializable import from_dict as dataclass_from_dict
from sparsify import SparseCoderConfig, TrainConfig
from typing_extensions import override

from sae_binary_ext.checks import (
    check_at_least,
    check_choice,
    check_count,
    check_positive,
    check_rate,
)
from sae_binary_ext.coding import paper_names
from sae_binary_ext.coding.paper_names import ACTIVATIONS, SELECTION_OF_ACTIVATION, SURROGATE_OF_STE
from sae_binary_ext.coding.selection import SELECTIONS, SURROGATE_LATENTS, CodeRule, Selection
from sae_binary_ext.coding.surrogate import SURROGATES
from sae_binary_ext.saving import NOTES_KEY
from sae_binary_ext.training.fields import EntropyFields, FiniteFields, LearningFields

_PICKING_LARGEST = " and ".join(
    kind.activation for kind in SELECTIONS.values() if kind.picks_largest
)
_NOT_NEGATIVE = ("entropy_alpha", "covariance_alpha", "covariance_sample", "dense_alpha")
_COUNTS = ("entropy_start_step", "entropy_warm_up_steps", "refit_tokens", "dead_window_tokens")
# Fields that have no effect if refine_passes is 0, and are then not saved.
OF_REFINED = ("refine_passes", "training_passes", "cost_of_bit")
# Fields that exclude refine_passes, and why.
NOT_REFINED = {
    "transcode": "a transcoder does not see its target when it encodes",
    "tied_decoder": "encoder and decoder learn from losses of their own, which one weight cannot",
    "multi_topk": "codes are refined for one reconstruction, not for a second of 4k latents",
    "matryoshka": "codes are refined for the reconstruction from all groups, not from the first",
    "entropy_alpha": "the price of bits, cost_of_bit, takes the place of the entropy loss",
    "covariance_alpha": "refined codes have no gradient for the covariance loss",
}


@dataclass
class BinarySparseCoderConfig(FiniteFields, LearningFields, EntropyFields, SparseCoderConfig):
    """
    Configuration for training a binary sparse coder on a language model.

    The codes are those of Binary Sparse Coding for Interpretability (arXiv 2509.25596). The entropy
    and covariance losses are those of Binary Autoencoder for Mechanistic Interpretability of Large
    Language Models (arXiv 2509.20997).
    """

    activation: str = choice(*ACTIVATIONS, default="topk_binary")  # pyright: ignore[reportIncompatibleVariableOverride]
    """Activation function to use. Four of them give codes of 0 and 1. topk_binary: the k largest
    latents of a token fire. groupmax_binary: the largest of each of k groups. gumbel_binary: one of
    each of k groups, sampled in training. binary: each latent above its threshold. topk and
    groupmax are sparsify's own."""

    normalize_decoder: bool | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Scale decoder rows to unit norm. None does so only for sparsify's own activations. True is an
    error for binary activations: a latent's magnitude is the norm of its decoder row."""

    ste: str = choice(*SURROGATE_OF_STE, default="sigmoid")
    """Gradient that training uses for the 0/1 step."""

    ste_temperature: float = 2.0
    """Width of the gradient of ste, in units of the pre-activation."""

    ste_latents: Literal["selected", "near", "all"] | None = None
    """Which latents learn from a token. selected: those that the activation selects. topk_binary
    also takes near (the 2k latents nearest to firing) and all (each latent, in competition for the
    k places). None takes near for topk_binary and selected for the others."""

    entropy_alpha: float = 0.0
    """FVU that one bit of a batch's code entropy costs. 0 turns the loss off."""

    covariance_alpha: float = 0.0
    """FVU that one unit of summed absolute covariance costs. 0 turns the loss off."""

    dense_alpha: float = 0.0
    """FVU that a latent costs for each unit of its firing rate above dense_rate. With 4e-3, none of
    4608 latents fired on over a tenth of tokens like those of training. 0 turns the loss off."""

    initial_firing_rate: float | None = None
    """Firing rate of latents at the start, between 0 and 1. The first batch (its first part, with
    micro_acc_steps) sets the encoder biases to it. It also scales the encoder to pre-activations of
    unit variance. None takes 0.02 for binary, and for the others 0.05, or k / latents if that is
    more. 0 keeps sparsify's own start, as in the papers."""

    subtract_b_dec: bool = True
    """Subtract the decoder bias from an autoencoder's input. The first paper does so for each
    activation but binary."""

    tied_decoder: bool = False
    """Use the encoder's weight as the decoder, for autoencoders. Such coders start as sparsify's
    own (initial_firing_rate=0), because one weight cannot have the lengths that the first batch
    asks of two."""

    matryoshka: bool = False
    """Train nested groups of latents. The loss is then the mean FVU of the reconstructions from the
    first group, the first two, and so on up to all; so is the FVU that the Trainer logs. The codes
    of a trained coder are those of any other."""

    matryoshka_groups: int = 5
    """Number of groups for matryoshka, of latents / matryoshka_groups latents each. The last group
    also has the remaining latents."""

    refine_passes: int = 0
    """How often a code is looked at again. From 1 on, single latents are turned on or off after the
    linear encoder, as long as squared error and price of the bits fall together. Take 12: later
    passes look at few tokens. 0 keeps the codes of the linear encoder. Any activation may start the
    search. The decoder then learns from refined codes, and the encoder learns to tell them by a
    logistic of width ste_temperature; set that to 0.5. ste and ste_latents act on AuxK alone."""

    training_passes: int = 3
    """Passes of a training step, or refine_passes if that is less. The refit at the end and the
    saved coder make refine_passes."""

    cost_of_bit: float = 4e-4
    """Squared error that is worth a bit of a refined code, as a share of the variance. It sets how
    many bits a token takes: more cost, fewer bits."""

    # Class variables are not saved: the TrainConfig fields of a preset, and whether a loader of
    # sparsify has read this config from a coder's file.
    _training: ClassVar[dict[str, Any]] = {}
    read_from_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.activation in paper_names.STOCK_ACTIVATIONS:
            self._check_stock()
            return
        check_choice(ACTIVATIONS, activation=self.activation)
        if self.normalize_decoder:
            raise ValueError(
                f"normalize_decoder=True with activation={self.activation!r}: the magnitude of a "
                "binary latent lives in its decoder row, and unit rows would erase it. Leave it "
                "out or give False."
            )
        self.normalize_decoder = False
        if self.multi_topk and not self._kind().picks_largest:
            raise ValueError(
                f"multi_topk=True with activation={self.activation!r}: it takes the 4k largest "
                f"latents, which {_PICKING_LARGEST} alone selects. Leave it out."
            )
        self._check_surrogate()
        check_at_least(0, **{name: getattr(self, name) for name in _NOT_NEGATIVE})
        check_count(**{name: getattr(self, name) for name in _COUNTS})
        check_rate(dense_rate=self.dense_rate)
        if self.initial_firing_rate is not None and not 0 <= self.initial_firing_rate < 1:
            raise ValueError(
                f"initial_firing_rate={self.initial_firing_rate!r}: give a number between 0 and "
                "1, or None."
            )
        if self.encoder_trains_b_dec and not self.centres():
            raise ValueError(
                "encoder_trains_b_dec=True: transcoders, and coders with subtract_b_dec=False, do "
                "not subtract b_dec from the encoder's input. Leave it out."
            )
        self._check_tied()
        self._check_refining()
        check_at_least(1, matryoshka_groups=self.matryoshka_groups)
        self.code_rule()

    def check_groups(self, latents: int) -> None:
        """Raise ValueError if a group of matryoshka would have none of the latents."""
        if self.matryoshka and self.matryoshka_groups > latents:
            raise ValueError(
                f"matryoshka_groups={self.matryoshka_groups} with {latents} latents: each group "
                f"needs one. Give at most {latents}."
            )

    def centres(self) -> bool:
        """Whether b_dec is subtracted from the input."""
        return self.subtract_b_dec and not self.transcode

    def code_rule(self) -> CodeRule:
        """The selection and surrogate of this config. ValueError if k is out of range."""
        kind = self._kind()
        return CodeRule(
            kind.name,
            self.k,
            SURROGATE_OF_STE[self.ste],
            self.ste_temperature,
            self.ste_latents or kind.default_learners,
        )

    def is_binary(self) -> bool:
        """Whether the activation is a binary one, not sparsify's own."""
        return self.activation in SELECTION_OF_ACTIVATION

    def for_training(self) -> SparseCoderConfig:
        """This config, as sparsify's own SparseCoderConfig if the activation is sparsify's own."""
        kind = BinarySparseCoderConfig if self.is_binary() else SparseCoderConfig
        if type(self) is kind:
            return self
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})

    @override
    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The fields of this config. Those of refined codes are left out if refine_passes is 0.

        So the cfg.json of other coders has no new field, and earlier versions of this package read
        it.
        """
        found = super().to_dict(*args, **kwargs)
        if not self.refine_passes:
            for name in OF_REFINED:
                del found[name]
        return found

    @override
    @classmethod
    def from_dict(cls, obj: dict[str, Any], drop_extra_fields: bool | None = None) -> Self:
        """Make a config from a dict, which may be the config of a file of the first paper.

        sparsify's loaders pass drop_extra_fields=True for the config of a file. If that config has
        no subtract_b_dec, the value is the one that the first paper used for the activation.

        Raises:
            ValueError: a key is not a field, or this package does not implement its value.
        """
        check_choice(ACTIVATIONS, activation=obj.get("activation", cls.activation))
        known = {field.name for field in fields(cls)}
        settings = {key: value for key, value in obj.items() if key in known}
        for key, value in obj.items():
            if key not in known and key != NOTES_KEY:
                raise ValueError(f"{key}={value!r} is no field of {cls.__name__}: {sorted(known)}.")
        selection = SELECTION_OF_ACTIVATION.get(settings.get("activation", ""))
        if drop_extra_fields and selection:
            settings.setdefault("subtract_b_dec", SELECTIONS[selection].subtracts_b_dec)
            # The first paper's normalize_decoder is about training. Loaded rows keep their norms.
            settings.pop("normalize_decoder", None)
        if drop_extra_fields and not selection:
            # The first paper's files of sparsify's own coders have these fields of training too.
            for name in ("matryoshka", paper_names.PAPER_IDLE_FIELD):
                settings.pop(name, None)
        config = dataclass_from_dict(cls, settings, drop_extra_fields=False)
        vars(config)["read_from_file"] = bool(drop_extra_fields)
        return config

    @classmethod
    def quirke2025(cls, **changes: Any) -> Self:
        """The settings of Quirke et al. (arXiv 2509.25596). Arguments replace single fields.

        train_config adds the optimizer of the paper.
        """
        plain = cls(**changes)
        settings: dict[str, Any] = {
            "expansion_factor": 32,
            "k": 32,
            "ste_temperature": plain._kind().paper_temperature if plain.is_binary() else 2.0,
            "initial_firing_rate": 0.0,
            "ste_latents": "selected",
            "encoder_trains_b_dec": plain.centres(),
        }
        return cls._preset({**settings, **changes}, optimizer="signum")

    @classmethod
    def cho2025(cls, **changes: Any) -> Self:
        """The settings of Cho et al. (arXiv 2509.20997). Arguments replace single fields.

        train_config adds the optimizer of the paper. The paper's coefficients are in units of mean
        squared error. Coefficients in units of FVU are equal if inputs have unit variance in each
        dimension. The paper starts the entropy loss after a quarter of training: set
        entropy_start_step to a quarter of your steps.
        """
        settings: dict[str, Any] = {
            "activation": "binary",
            "expansion_factor": 4,
            "ste_temperature": 1.0,
            "entropy_alpha": 1e-7,
            "covariance_alpha": 1e-7,
            "initial_firing_rate": 0.0,
        }
        training = {"optimizer": "adam", "lr": 5e-4, "lr_warmup_steps": 0}
        return cls._preset({**settings, **changes}, **training)

    def train_config(self, **settings: Any) -> TrainConfig:
        """sparsify's TrainConfig with this config, its preset's optimizer and other settings."""
        return TrainConfig(sae=self, **{**self._training, **settings})

    @classmethod
    def _preset(cls, settings: dict[str, Any], **training: Any) -> Self:
        config = cls(**settings)
        vars(config)["_training"] = training
        return config

    def _kind(self) -> Selection:
        return SELECTIONS[SELECTION_OF_ACTIVATION[self.activation]]

    def _check_surrogate(self) -> None:
        # CodeRule checks these values too, but its errors name the fields of CodeRule.
        check_choice(SURROGATE_OF_STE, ste=self.ste)
        taken = self._kind().surrogates
        if taken is not None and SURROGATE_OF_STE[self.ste] not in taken:
            names = " or ".join(repr(SURROGATES[name].ste) for name in taken)
            raise ValueError(
                f"ste={self.ste!r}: activation {self.activation!r} takes only ste={names}."
            )
        check_positive(ste_temperature=self.ste_temperature)
        if self.ste_latents not in (None, "selected") and not self._kind().picks_largest:
            raise ValueError(
                f"ste_latents={self.ste_latents!r} with activation={self.activation!r}: "
                f"{_PICKING_LARGEST} alone takes it. Leave it out."
            )
        if self.ste_latents is not None:
            check_choice(SURROGATE_LATENTS, ste_latents=self.ste_latents)

    def _check_tied(self) -> None:
        if not self.tied_decoder:
            return
        if self.transcode:
            raise ValueError(
                "tied_decoder=True with transcode=True: a transcoder's decoder gives another "
                "activation than its encoder reads. Leave one of the two out."
            )
        if self.initial_firing_rate:
            raise ValueError(
                f"initial_firing_rate={self.initial_firing_rate!r} with tied_decoder=True: that "
                "start gives encoder and decoder lengths of their own. Leave one of the two out."
            )
        self.initial_firing_rate = 0.0

    def _check_refining(self) -> None:
        check_count(refine_passes=self.refine_passes)
        if not self.refine_passes:
            for name in OF_REFINED:
                if (value := getattr(self, name)) != getattr(type(self), name):
                    raise ValueError(
                        f"{name}={value!r} with refine_passes=0: this field is about refined "
                        f"codes alone. Set refine_passes=12, or leave {name} out."
                    )
            return
        check_at_least(1, training_passes=self.training_passes)
        check_at_least(0, cost_of_bit=self.cost_of_bit)
        for name, reason in NOT_REFINED.items():
            if value := getattr(self, name):
                raise ValueError(
                    f"{name}={value!r} with refine_passes={self.refine_passes}: {reason}. Leave "
                    "one of the two out."
                )

    def _check_stock(self) -> None:
        if self.normalize_decoder is None:
            stock = SparseCoderConfig.normalize_decoder
            self.normalize_decoder = stock  # pyright: ignore[reportIncompatibleVariableOverride]
        stock_fields = {field.name for field in fields(SparseCoderConfig)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in stock_fields and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} with activation={self.activation!r}: it has no effect "
                    "on sparsify's own coders. Leave it out or choose a binary activation."
                )


@dataclass
class CommandLineCoderConfig(BinarySparseCoderConfig):
    """
    The fields of sparsify's command line. By default it trains sparsify's own coder.
    """

    activation: str = choice(*ACTIVATIONS, default="topk")  # pyright: ignore[reportIncompatibleVariableOverride]
