"""k-cap networks that learn by plasticity tables, in eager PyTorch.

`a_l = cap_l(relu(a_{l-1} (w_l * mask_l)'))`, with softmax outputs and no biases. After every sample, each
weight after the first layer changes by `0.01 table[pre fired?, post fired?]`, and each output weight by
`0.01 table[pre fired?, is the label?]`, of another table. Weights and masks are `[out, in]`, in float64.

As in the public code, weights are masked again for every sample, `ravel_multi_index` computes a table index
for every synapse, every sample runs a second time for its loss, and autograd traverses every weight change.
Unlike there, index arrays are broadcast instead of repeated, and nothing is recorded where no gradient is
needed.

Source: Cristian et al., 2020, https://openreview.net/forum?id=XEyElxd9zji
"""

from typing import NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor  # pyright: ignore[reportMissingImports]
from torch.nn.functional import cross_entropy, softmax  # pyright: ignore[reportMissingImports]

STEP_SIZE = 0.01
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 1e-2


class Network(NamedTuple):
    """Weights `[out, in]` and masks of zeros and ones by layer, and the maximum number of firing units."""

    weights: list[Tensor]
    masks: list[Tensor]
    cap: int


class Tables(NamedTuple):
    """Tables `[2, 2]` for the hidden layers and for the output."""

    hidden: Tensor
    output: Tensor


def forward(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns softmax outputs `[batch, labels]`, and by hidden layer which units fired, `[batch, units]`."""
    *hidden, last = zip(network.weights, network.masks, strict=True)
    fired = []
    for w, mask in hidden:
        values, places = torch.topk(torch.relu(x @ (w * mask).T), network.cap, dim=1)
        x = torch.zeros(len(x), len(w), dtype=x.dtype).scatter(1, places, values)
        fired.append(x > 0)
    return softmax(x @ (last[0] * last[1]).T, dim=1), fired


def read(table: Tensor, pre: Tensor, post: Tensor) -> Tensor:
    """Returns table entries by synapse, `[out, in]`, given which units on either side fired."""
    of_synapses = np.broadcast_arrays(pre.numpy()[None, :], post.numpy()[:, None])
    entries = np.ravel_multi_index([codes.astype(np.int64) for codes in of_synapses], tuple(table.shape))
    return table.flatten()[torch.from_numpy(entries)]


def change(network: Network, tables: Tables, fired: list[Tensor], label: Tensor) -> None:
    """Updates weights in place for one sample; `fired` is `[units]` by layer."""
    is_label = torch.arange(len(network.weights[-1])) == label
    table_of = [*(tables.hidden for _ in fired[1:]), tables.output]
    plastic = zip(
        table_of, fired, [*fired[1:], is_label], network.weights[1:], network.masks[1:], strict=True
    )
    for table, pre, post, w, mask in plastic:
        w += STEP_SIZE * (read(table, pre, post) * mask)


def one_pass(network: Network, tables: Tables, x: Tensor, labels: Tensor) -> Tensor:
    """Learns from every sample once, in order, and returns the loss on all samples afterwards.

    As published, the cross-entropy applies softmax to outputs that are already softmax outputs.
    """
    for sample, label in zip(x, labels, strict=True):
        _, fired = forward(network, sample[None])
        change(network, tables, [each[0] for each in fired], label)
    return cross_entropy(forward(network, x)[0], labels)


def optimizer(network: Network, tables: Tables) -> torch.optim.Optimizer:
    """Returns Adam for the tables and the first layer, with L2 decay; all must require gradients."""
    learned = [*tables, network.weights[0]]
    return torch.optim.Adam(learned, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def meta_update(
    network: Network, tables: Tables, adam: torch.optim.Optimizer, x: Tensor, labels: Tensor
) -> float:
    """Updates tables and first layer on the loss of a pass over a batch, starting at zero plastic weights."""
    first, *plastic = network.weights
    start = network._replace(weights=[first, *(torch.zeros_like(w) for w in plastic)])
    adam.zero_grad()
    loss = one_pass(start, tables, x, labels)
    loss.backward()
    adam.step()
    return loss.item()
