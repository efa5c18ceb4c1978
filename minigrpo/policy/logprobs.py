"""Log-probs of finished completions under the model, in float32. Does not depend on a loss.

The root goes through the model once, then trunks and branches in one pass. The output head sees completion positions only, a
chunk at a time: the logits of all positions, [B, C, V], never exist.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minigrpo.common.shapes import check, check_boolean
from minigrpo.policy.fast.head import FrozenHead, log_softmax
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import Root
from minigrpo.policy.tree import Prompts, scoring_tree

Places = tuple[Tensor, ...]                     # of T tokens in [Q, K, C]: group_T, branch_T, depth_T


def completion_logprobs(model: CausalLM, prompts: Prompts, ids_QKC: Tensor, mask_QKC: Tensor, *, temperature: float = 1.0,
                        chunk: int = 512, root: Root | None = None) -> Tensor:
    """logp_BC: the log-prob of each completion token given its prompt and the tokens before it; 0 where masked.

    ``mask_QKC`` (boolean) marks the completions' tokens, the stop token included. ``temperature`` is that of sampling: what is
    scored is the distribution that was drawn from. ``chunk``: positions that go through the head at once; memory chunk × V × 4
    bytes. ``root``: what ``roots.with_roots`` gives for these prompts; without it their root is computed here.
    Differentiable with respect to the model's adapters.
    """
    check(ids_QP=prompts.ids_QP, length_Q=prompts.length_Q, ids_QKC=ids_QKC, mask_QKC=mask_QKC)
    check_boolean(mask_QKC=mask_QKC)
    places = mask_QKC.nonzero(as_tuple=True)
    logp_T = logprobs_at(places, model, prompts, ids_QKC, mask_QKC, temperature=temperature, chunk=chunk, root=root)
    logp_QKC = torch.zeros(mask_QKC.shape, dtype=logp_T.dtype, device=logp_T.device)
    return logp_QKC.index_put(places, logp_T).flatten(0, 1)


def logprobs_at(places: Places, model: CausalLM, prompts: Prompts, ids_QKC: Tensor, mask_QKC: Tensor, *, temperature: float,
                chunk: int, root: Root | None = None) -> Tensor:
    """logp_T of the tokens at ``places``; arguments as in ``completion_logprobs``."""
    if root is None:
        root = model.read(prompts.root)
    tree = scoring_tree(prompts, ids_QKC, mask_QKC, window=model.architecture.window)
    hidden_1SD = model(tree.ids_1S, positions_QT=tree.positions_1S, visible_QTS=tree.visible, root=root)
    hidden_TD, ids_T = hidden_1SD[0, tree.predictor_QKC[places]], ids_QKC[places]
    return torch.cat([token_logprobs(model, hidden_TD[i:i + chunk], ids_T[i:i + chunk], temperature)
                      for i in range(0, max(1, len(ids_T)), chunk)])         # no live token at all: one empty chunk


def token_logprobs(model: CausalLM, hidden_TD: Tensor, ids_T: Tensor, temperature: float) -> Tensor:
    """logp_T = log softmax(logits / temperature)[id], in float32 (float64 for a float64 model)."""
    check(hidden_TD=hidden_TD, ids_T=ids_T)
    if any(parameter.requires_grad for parameter in model.head.parameters()):
        return checkpoint(_plainly, model, hidden_TD, ids_T, temperature, use_reentrant=False, preserve_rng_state=False)
    return FrozenHead.apply(hidden_TD, ids_T, model.head.weight, temperature)


def _plainly(model: CausalLM, hidden_TD: Tensor, ids_T: Tensor, temperature: float) -> Tensor:
    return log_softmax(model.logits(hidden_TD), temperature).gather(1, ids_T[:, None])[:, 0]
