"""Feedback alignment in PyTorch: a linear layer with separate weights for the backward pass."""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, feedback: Any) -> Any:
        ctx.save_for_backward(x, feedback)
        return torch.addmm(bias, x, weight.T)

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Any:
        x, feedback = ctx.saved_tensors
        (error,) = errors
        sent = error @ feedback if ctx.needs_input_grad[0] else None
        return sent, error.T @ x, error.sum(0), None


class FeedbackLinear(torch.nn.Linear):
    """Linear layer with fixed `feedback` weights for the backward pass."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("feedback", torch.randn(outputs, inputs) * 0.1)

    def forward(self, input: Any) -> Any:
        return _Product.apply(input, self.weight, self.bias, self.feedback)


def network(inputs: int, hidden: int, outputs: int) -> Any:
    """Returns a two-layer network with sigmoids on both layers."""
    layers = FeedbackLinear(inputs, hidden), FeedbackLinear(hidden, outputs)
    return torch.nn.Sequential(layers[0], torch.nn.Sigmoid(), layers[1], torch.nn.Sigmoid())


def update(net: Any, optimizer: Any, x: Any, y: Any) -> Any:
    """Performs a step on the mean of squared errors; returns the loss."""
    optimizer.zero_grad()
    loss = ((net(x) - y) ** 2).sum(1).mean()
    loss.backward()
    optimizer.step()
    return loss.detach()
