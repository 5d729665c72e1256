"""Every rule of the library and each of its variants: `RULES[name](network, loss) -> Rule`.

A rule that is added here is held to the whole contract; nothing else in the tests lists rules.
"""

from collections.abc import Callable
from functools import partial

import lax_learning as ll

Factory = Callable[[ll.Network, ll.Loss], ll.Rule]

RULES: dict[str, Factory] = {
    "backprop": ll.backprop,
    "backprop-tutorial": partial(ll.backprop, scale="tutorial"),
    "wp": partial(ll.weight_perturbation, sigma=0.1),
    "wp-central": partial(ll.weight_perturbation, sigma=0.1, difference="central"),
    "wp-rademacher": partial(ll.weight_perturbation, sigma=0.1, noise="rademacher"),
    "wp-3": partial(ll.weight_perturbation, sigma=0.1, num_samples=3),
    "np": partial(ll.node_perturbation, sigma=0.1),
    "np-tutorial": partial(ll.node_perturbation, sigma=0.1, variant="tutorial"),
    "np-activity": partial(ll.node_perturbation, sigma=0.1, variant="activity"),
    "np-antithetic": partial(ll.node_perturbation, sigma=0.1, antithetic=True),
    "np-layerwise": partial(ll.node_perturbation, sigma=0.1, layerwise=True),
    "np-shared": partial(ll.node_perturbation, sigma=0.1, share_noise=True),
    "np-rademacher": partial(ll.node_perturbation, sigma=0.1, noise="rademacher"),
    "np-3": partial(ll.node_perturbation, sigma=0.1, num_samples=3),
    "fg-weights": ll.forward_gradient,
    "fg-weights-3": partial(ll.forward_gradient, num_samples=3),
    "fg-activities": partial(ll.forward_gradient, perturb="activities"),
    "fa": ll.feedback_alignment,
    "fa-tutorial": partial(ll.feedback_alignment, scale="tutorial"),
    "dfa": ll.direct_feedback_alignment,
    "dfa-tutorial": partial(ll.direct_feedback_alignment, scale="tutorial"),
    "usf": ll.sign_symmetry,
    "usf-tutorial": partial(ll.sign_symmetry, scale="tutorial"),
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "brsf": partial(ll.sign_symmetry, magnitude="redrawn"),
    "kp": ll.kolen_pollack,
    "kp-tutorial": partial(ll.kolen_pollack, decay_bias=True, scale="tutorial"),
}

RULES_WITH_SCALE: dict[str, Callable[..., ll.Rule]] = {
    "backprop": ll.backprop,
    "fa": ll.feedback_alignment,
    "dfa": ll.direct_feedback_alignment,
    "usf": ll.sign_symmetry,
    "frsf": partial(ll.sign_symmetry, magnitude="fixed"),
    "brsf": partial(ll.sign_symmetry, magnitude="redrawn"),
    "kp": partial(ll.kolen_pollack, decay=0.0),
}
