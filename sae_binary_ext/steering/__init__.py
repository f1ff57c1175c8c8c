"""Latents of a coder set, cleared or flipped while a model generates."""

from sae_binary_ext.steering.code_change import CodeChange
from sae_binary_ext.steering.rule import Rule, parse_rule
from sae_binary_ext.steering.steering import Steering

__all__ = ["CodeChange", "Rule", "Steering", "parse_rule"]
