"""Optimizers and learning-rate schedulers by name, and the ones that come with core.

An optimizer's maker is called as ``make(parameters, lr=..., **args)``, a scheduler's as ``make(optimizer, **args)``;
classes of torch have these signatures too, so a dotted class name serves as well as a registered one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR

from nequip_core.errors import ConfigError
from nequip_core.plugins.manager import Registry, nearest

Parameters = Iterable[nn.Parameter]


def adam(
    parameters: Parameters,
    lr: float,
    *,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam (arXiv:1412.6980), or AMSGrad."""
    # fused: one call for all parameters; on the CPU torch's default is a loop over them.
    return torch.optim.Adam(
        parameters, lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=True
    )


def adamw(
    parameters: Parameters,
    lr: float,
    *,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""
    return torch.optim.AdamW(
        parameters, lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=True
    )


def sgd(
    parameters: Parameters, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> Optimizer:
    """Stochastic gradient descent."""
    return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True)


def none(optimizer: Optimizer) -> LRScheduler:
    """A constant learning rate."""
    return ConstantLR(optimizer, factor=1.0, total_iters=1)


def plateau(
    optimizer: Optimizer,
    *,
    factor: float = 0.5,
    patience: int = 10,
    threshold: float = 1e-4,
    cooldown: int = 0,
    min_lr: float = 0.0,
) -> LRScheduler:
    """Multiply the rate by ``factor`` after ``patience`` validations in which ``training.monitor`` got no better."""
    return ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=threshold, cooldown=cooldown, min_lr=min_lr
    )


def cosine(optimizer: Optimizer, *, T_max: int, eta_min: float = 0.0) -> LRScheduler:
    """Half a cosine from the learning rate to ``eta_min`` in ``T_max`` intervals."""
    return CosineAnnealingLR(optimizer, T_max=T_max, eta_min=eta_min)


def step(optimizer: Optimizer, *, step_size: int, gamma: float = 0.1) -> LRScheduler:
    """Multiply the rate by ``gamma`` every ``step_size`` intervals."""
    return StepLR(optimizer, step_size=step_size, gamma=gamma)


def maker(kind: Literal["optimizer", "scheduler"], name: str, registry: Registry) -> Callable[..., Any]:
    """What makes the optimizer or scheduler ``name``: a registered one, or the class of a dotted name.

    Raises:
        ConfigError: there is neither.
    """
    entry = registry.training.get((kind, name))
    if entry is not None:
        made: Callable[..., Any] = entry.make.load()
        return made
    known = [known for of_kind, known in registry.training if of_kind == kind]
    if "." not in name:
        raise ConfigError(
            f"training.{kind}.name: there is no {kind} {name!r}.{nearest(name, known)} Expected one of "
            f"{', '.join(known)}, or a dotted class name such as torch.optim.RAdam."
        )
    return import_class(f"training.{kind}.name", name)


def import_class(key: str, dotted: str) -> Callable[..., Any]:
    """The class of a dotted name. Only a training run imports what its config names; loading a file never does.

    Raises:
        ConfigError: it can not be imported, or is no class.
    """
    module, _, attribute = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {dotted!r} can not be imported: {error}.") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{key}: {dotted!r} is no class but {found!r}. Expected a dotted class name.")
    return found


def argument_mistake(make: Callable[..., Any], given: Sequence[str], args: Mapping[str, Any]) -> str | None:
    """Why ``make`` does not take ``args``, or None when it does.

    Args:
        make: a function or class.
        given: names of the arguments that we pass ourselves.
        args: the user's.
    """
    signature = inspect.signature(make)
    takes = [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD and name not in given]
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    for name in args:
        if name not in takes:
            return f"there is no argument {name!r}.{nearest(name, takes)} Expected: {', '.join(takes) or 'none'}"
    missing = [name for name in takes if signature.parameters[name].default is inspect.Parameter.empty]
    missing = [
        name
        for name in missing
        if name not in args and signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    return f"the argument {missing[0]!r} is missing" if missing else None
