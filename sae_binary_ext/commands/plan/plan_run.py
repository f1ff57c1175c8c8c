"""Plans a training run: what it takes, whether it fits, and settings for both hosts."""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from typing_extensions import override

from sae_binary_ext.commands.plan.config import PlanConfig
from sae_binary_ext.commands.plan.costs import (
    Memory,
    Run,
    disk_of,
    flops_of_step,
    flops_of_token,
    memory_of,
)
from sae_binary_ext.commands.plan.host_settings import saelens_settings, sparsify_settings
from sae_binary_ext.commands.plan.model_sizes import find_sizes

_GIGA, _TERA = 1e9, 1e12
# Most times that a setting is halved in search of a run that fits.
_HALVINGS = 8
# Settings to halve, in the order in which they cost the least, and the smallest value of each.
_SMALLER = {"n_batches_in_buffer": 16, "store_batch_size_prompts": 1, "batch_size": 256}
# Side of the square matrices whose product is timed, and how often.
_SIDE, _TIMES = 2048, 5


@dataclass(frozen=True)
class Change:
    """A setting that takes less memory.

    Attributes:
        setting: as an option of the command.
        peak: bytes with this setting and the others as they are.
        fits: whether that is within the device's memory.
    """

    setting: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a run takes on each rank.

    Attributes:
        memory: bytes by part.
        step_flops: FLOPs of a training step of the coder.
        token_flops: FLOPs of the model's forward pass for a token.
        rate: FLOP/s of a device, given or measured; None if there is no such device to measure.
        seconds: FLOPs of all tokens, divided by the rate of all ranks; None without a rate.
        disk: bytes by kind of file.
        changes: what takes less memory, if the run does not fit.
        settings: the text of a settings file by host. SAELens has none for several ranks.
    """

    run: Run
    memory: Memory
    step_flops: int
    token_flops: int
    rate: float | None
    seconds: float | None
    disk: dict[str, int]
    changes: tuple[Change, ...]
    settings: dict[str, str]

    @property
    def fits(self) -> bool | None:
        """Whether the run fits; None if device_memory is not given."""
        most = self.run.config.device_memory
        return None if most is None else self.memory.peak <= most * _GIGA

    def to_dict(self) -> dict[str, Any]:
        """All figures, as plan.json has them: bytes, FLOPs, seconds."""
        return {
            "settings": {**asdict(self.run.config), "output": str(self.run.config.output)},
            "layer": self.run.layer,
            "latents": self.run.latents,
            "memory": self.memory.parts() | {"peak": self.memory.peak},
            "fits": self.fits,
            "flops": {"coder_step": self.step_flops, "model_token": self.token_flops},
            "rate": self.rate,
            "seconds": self.seconds,
            "disk": self.disk,
            "changes": [asdict(change) for change in self.changes],
        }

    @override
    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        run, config = self.run, self.run.config
        kind = "transcoder" if config.transcoder else "autoencoder"
        yield (
            f"{config.architecture} {kind} of {run.latents} latents at layer {run.layer} of "
            f"{config.model}, in {config.host}"
        )
        yield f"\nmemory of each of {config.ranks} devices" if config.ranks > 1 else "\nmemory"
        for name, size in self.memory.parts().items():
            yield f"  {name:<24}{size / _GIGA:>10.3f} GB"
        yield f"  {'peak':<24}{self.memory.peak / _GIGA:>10.3f} GB{self._verdict()}"
        for change in self.changes:
            fits = "fits" if change.fits else "does not fit alone"
            yield f"    {change.setting:<36}{change.peak / _GIGA:>10.3f} GB, {fits}"
        steps = -(-config.tokens // (run.step_tokens * config.ranks))
        yield f"\ntime of {steps} steps of {run.step_tokens * config.ranks} tokens"
        yield f"  {'coder step':<24}{self.step_flops / _TERA:>10.3f} TFLOP"
        model = self.token_flops * run.step_tokens
        yield f"  {'model, as many tokens':<24}{model / _TERA:>10.3f} TFLOP"
        yield from self._time_lines()
        yield "\ndisk"
        for name, size in self.disk.items():
            yield f"  {name:<24}{size / _GIGA:>10.3f} GB"
        for host, text in self.settings.items():
            yield f"\n{host}: {config.output / (host + '.args')}\n{text.rstrip()}"

    def _time_lines(self) -> Iterator[str]:
        if self.rate is None or self.seconds is None:
            yield f"  no {self.run.config.device} here to measure: give --rate, its TFLOP/s"
            return
        measured = "given" if self.run.config.rate else "measured here: a product of matrices"
        yield f"  {'rate':<24}{self.rate / _TERA:>10.3f} TFLOP/s ({measured})"
        yield f"  {'at that rate':<24}{self.seconds / 3600:>10.2f} hours"

    def _verdict(self) -> str:
        if self.fits is None:
            return ""
        word = "fits" if self.fits else "does not fit"
        return f": {word} in {self.run.config.device_memory:g} GB"


def run_plan(config: PlanConfig) -> Plan:
    """Plan a run, and write plan.json, saelens.args and sparsify.args to config.output.

    Raises:
        ValueError: the model's sizes are not known, or the layer or k is out of range.
    """
    plan = make_plan(config)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "plan.json").write_text(json.dumps(plan.to_dict(), indent=2) + "\n")
    for host, text in plan.settings.items():
        (config.output / f"{host}.args").write_text(text)
    return plan


def make_plan(config: PlanConfig) -> Plan:
    """Plan a run without writing a file; ValueError as run_plan."""
    run = Run.of(config, find_sizes(config.model, config.sizes))
    memory, step_flops, token_flops = memory_of(run), flops_of_step(run), flops_of_token(run)
    rate = config.rate * _TERA if config.rate else measured_rate(config.device)
    flops = config.tokens * (step_flops / run.step_tokens + token_flops)
    most = config.device_memory
    too_large = most is not None and memory.peak > most * _GIGA
    where = (config, run.sizes, run.layer, run.latents)
    settings = {} if config.ranks > 1 else {"saelens": saelens_settings(*where)}
    return Plan(
        run=run,
        memory=memory,
        step_flops=step_flops,
        token_flops=token_flops,
        rate=rate,
        seconds=flops / (rate * config.ranks) if rate else None,
        disk=disk_of(run),
        changes=tuple(_changes(run)) if too_large else (),
        settings=settings | {"sparsify": sparsify_settings(*where)},
    )


def measured_rate(device: str) -> float | None:
    """FLOP/s of a product of float32 matrices on this machine, or None without such a device."""
    import torch  # only a measurement needs it

    if device == "cuda" and not torch.cuda.is_available():
        return None
    left, right = torch.randn(2, _SIDE, _SIDE, device=device)
    seconds: list[float] = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * _SIDE**3 / statistics.median(seconds)


def _changes(run: Run) -> Iterator[Change]:
    """Settings that take less memory than the run does, one at a time."""
    config, before = run.config, memory_of(run).peak
    most = (config.device_memory or 0) * _GIGA
    found: list[Change] = []
    for option, configs in _smaller(run):
        changed: Change | None = None
        for value, smaller in configs:
            peak = memory_of(Run.of(smaller, run.sizes)).peak
            changed = Change(f"--{option} {value}", peak, peak <= most)
            if changed.fits:
                break
        if changed is not None and changed.peak < before:
            found.append(changed)
    yield from sorted(found, key=lambda change: not change.fits)


def _smaller(run: Run) -> Iterator[tuple[str, list[tuple[Any, PlanConfig]]]]:
    """Each setting that may take less memory, with its values and the settings that have them."""
    config = run.config
    for name, least in _SMALLER.items():
        values = [getattr(config, name) >> n for n in range(1, _HALVINGS)]
        yield name, [(v, replace(config, **{name: v})) for v in values if v >= least]
    if config.host == "sparsify" and config.optimizer == "adam":
        yield "optimizer", [("signum", replace(config, optimizer="signum"))]
    if config.host == "saelens" and config.dtype == "float32":
        yield "dtype", [("bfloat16", replace(config, dtype="bfloat16"))]
    latents = [run.latents >> n for n in range(1, _HALVINGS)]
    yield "latents", [(v, replace(config, latents=v)) for v in latents if v >= config.k]
