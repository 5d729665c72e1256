"""A critic that tells symbolic functions from untrained networks, and studies of many critics at once."""

from lax_learning.symbolic.adam import adam_with_decay
from lax_learning.symbolic.critic import Critic, critic, embed, stack
from lax_learning.symbolic.critic_losses import (
    area_under_curve,
    critic_accuracy,
    critic_loss,
    gradient_penalty,
)
from lax_learning.symbolic.critic_training import (
    CriticMetrics,
    CriticState,
    critic_epoch,
    critic_step,
    init_critic,
    train_critic,
)
from lax_learning.symbolic.curves import Curves, curves_at
from lax_learning.symbolic.expressions import (
    Coefficients,
    Expression,
    ExpressionError,
    FunctionDraws,
    Library,
    draw_functions,
    function_gradients,
    function_values,
    load_library,
    parse_expression,
    parse_library,
)
from lax_learning.symbolic.generators import (
    Generator,
    dsn_generator,
    gaussian_process_generator,
    latent_jacobian,
    mlp_generator,
)
from lax_learning.symbolic.regularisation import RegularisedLoss, largest_correlations, regularised_loss
from lax_learning.symbolic.study import (
    Group,
    group_by_shape,
    random_configurations,
    run_group,
    run_study,
    study_dataset,
)

__all__ = [
    "Coefficients",
    "Critic",
    "CriticMetrics",
    "CriticState",
    "Curves",
    "Expression",
    "ExpressionError",
    "FunctionDraws",
    "Generator",
    "Group",
    "Library",
    "RegularisedLoss",
    "adam_with_decay",
    "area_under_curve",
    "critic",
    "critic_accuracy",
    "critic_epoch",
    "critic_loss",
    "critic_step",
    "curves_at",
    "draw_functions",
    "dsn_generator",
    "embed",
    "function_gradients",
    "function_values",
    "gaussian_process_generator",
    "gradient_penalty",
    "group_by_shape",
    "init_critic",
    "largest_correlations",
    "latent_jacobian",
    "load_library",
    "mlp_generator",
    "parse_expression",
    "parse_library",
    "random_configurations",
    "regularised_loss",
    "run_group",
    "run_study",
    "stack",
    "study_dataset",
    "train_critic",
]
