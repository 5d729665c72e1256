"""k-cap networks and plasticity tables that are meta-learned and transferred."""

from lax_learning.plasticity._k_cap import k_cap, top_k_mask
from lax_learning.plasticity.factories import k_cap_mlp, k_cap_recurrent
from lax_learning.plasticity.meta_learning import (
    MetaParams,
    learn_episode,
    meta_init,
    meta_learn,
    meta_rule,
    with_params,
)
from lax_learning.plasticity.networks import KCapNetwork, Response, State, transfer
from lax_learning.plasticity.passes import Diagnostics, plastic_pass, table_plasticity
from lax_learning.plasticity.tables import (
    Bins,
    Scheme,
    TableRule,
    Tables,
    post_count,
    pre_post,
    pre_post_count,
    pre_post_percent,
)

__all__ = ["KCapNetwork", "Response", "State", "k_cap", "k_cap_mlp", "k_cap_recurrent", "top_k_mask"]
__all__ += ["Bins", "TableRule", "Tables", "post_count", "pre_post", "pre_post_count", "pre_post_percent"]
__all__ += ["Diagnostics", "Scheme", "plastic_pass", "table_plasticity"]
__all__ += ["MetaParams", "learn_episode", "meta_init", "meta_learn", "meta_rule", "transfer", "with_params"]
