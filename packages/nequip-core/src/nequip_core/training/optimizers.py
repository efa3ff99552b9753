"""The optimizers and learning-rate schedulers that come with core.

An optimizer's maker is called as ``make(parameters, lr=..., **args)``, a scheduler's as ``make(optimizer, **args)``;
classes of torch have these signatures too, so a dotted class name serves as well as a registered one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau, StepLR

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
