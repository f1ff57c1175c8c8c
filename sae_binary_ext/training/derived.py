"""Settings that a config leaves at None: they follow from the coder and the size of its run."""

import logging
from dataclasses import dataclass
from typing import Any

from sae_binary_ext.coding.initialization import starting_rate
from sae_binary_ext.coding.selection import CodeRule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSize:
    """Tokens of a whole training run and of one optimizer step. 0: no trainer has told them."""

    tokens: int = 0
    batch: int = 0


# Times that a latent of the mean firing rate fires in the window after which a silent one is dead.
FIRINGS_IN_WINDOW = 32
# In runs of fewer steps few latents die, so that the window stays the host's (docs/derived.md).
FEWEST_STEPS = 600


def derived_settings(
    run: RunSize, rule: CodeRule, latents: int, raises_dead: bool
) -> dict[str, Any]:
    """The value of each field that a config may leave at None, by the field's name.

    raises_dead says whether a loss raises the biases of dead latents. docs/derived.md has the
    table. Change a rule here and there, and nowhere else.
    """
    is_long = run.tokens >= FEWEST_STEPS * run.batch > 0
    # Firing rates of thresholds differ too much for one window. Groups were not measured.
    has_window = raises_dead and is_long and rule.kind.picks_largest
    return {
        "initial_firing_rate": starting_rate(rule, latents),
        "entropy_start_step": 0,
        "entropy_warm_up_steps": 0,
        "dead_window_tokens": round(FIRINGS_IN_WINDOW * latents / rule.k) if has_window else 0,
        "lr_decay_share": 0.0,
        "refit_tokens": 0,
    }


class DerivesSettings:
    """A coder in training that reads its settings through setting().

    The config keeps None, so that a saved config says what the user set, and a later run of another
    size derives its own values.
    """

    cfg: Any
    rule: Any
    log_threshold: Any
    run: RunSize = RunSize()

    def setting(self, name: str) -> Any:
        """A field of the config, or its derived value if the field is None."""
        value = getattr(self.cfg, name)
        return self._derived()[name] if value is None else value

    def log_derived(self, name: str) -> None:
        """Log the derived values of this run under the coder's name."""
        unset = {key: v for key, v in self._derived().items() if getattr(self.cfg, key, 0) is None}
        listed = ", ".join(f"{field}={value}" for field, value in unset.items())
        text = "%s: derived for %d training tokens in steps of %d tokens: %s."
        logger.info(text, name, self.run.tokens, self.run.batch, listed or "nothing")

    def _derived(self) -> dict[str, Any]:
        # The AuxK loss reads the same window. It was not measured with one as short.
        auxk = getattr(self.cfg, "aux_loss_coefficient", 0.0)
        raises_dead = getattr(self.cfg, "pre_act_loss_coefficient", 0.0) > 0 and not auxk
        return derived_settings(self.run, self.rule, len(self.log_threshold), raises_dead)
