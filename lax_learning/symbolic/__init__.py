"""Critics that distinguish curves of symbolic functions from those of untrained networks.

After symrep and its public notebooks, https://github.com/fabxy/symrep, 2022.
"""

from lax_learning.symbolic.critics import Critic, Curves, critic, curves_at
from lax_learning.symbolic.formulas import Coefficients, Expression, ExpressionError, parse_expression
from lax_learning.symbolic.generators import (
    Generator,
    dsn_generator,
    gaussian_process_generator,
    mlp_generator,
)
from lax_learning.symbolic.libraries import (
    FunctionDraws,
    Library,
    draw_functions,
    function_values,
    load_library,
    parse_library,
)
from lax_learning.symbolic.losses import (
    area_under_curve,
    critic_accuracy,
    critic_cost,
    critic_loss,
    gradient_penalty,
)
from lax_learning.symbolic.training import CriticMetrics, CriticState, critic_step, init_critic, train_critic

__all__ = ["Coefficients", "Expression", "ExpressionError", "parse_expression"]
__all__ += ["FunctionDraws", "Library", "draw_functions", "function_values", "load_library", "parse_library"]
__all__ += ["Curves", "Generator", "dsn_generator", "gaussian_process_generator", "mlp_generator"]
__all__ += ["Critic", "CriticMetrics", "CriticState", "critic", "critic_step", "curves_at"]
__all__ += ["area_under_curve", "critic_accuracy", "critic_cost", "critic_loss"]
__all__ += ["gradient_penalty", "init_critic", "train_critic"]
