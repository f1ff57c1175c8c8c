"""Lets torch's Adam update weights in one pass."""

from torch.optim import Adam

# Device types for which torch 2.4 and later have such a pass.
DEVICES = {"cpu", "cuda"}


def update_in_one_pass(optimizer: object) -> None:
    """Set `fused` of torch's Adam: the same update to rounding, with no arrays beyond its state.

    Without it, Adam makes three arrays of a weight's size in each step. They are the peak of memory
    of a wide coder. Other optimizers, a group for which the user has chosen, and other devices stay
    as they are.
    """
    if not isinstance(optimizer, Adam):
        return
    for group in optimizer.param_groups:
        chosen = any(group[name] for name in ("foreach", "capturable", "differentiable"))
        places = {weight.device.type for weight in group["params"]}
        if group["fused"] is None and not chosen and places <= DEVICES:
            group["fused"] = True
