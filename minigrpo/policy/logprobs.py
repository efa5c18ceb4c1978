"""Log-probs of finished completions under the model, in float32. Knows no loss.

Trunk and branches go through the model in one pass. The output head sees completion positions only, a chunk at a time, and
each chunk is recomputed in the backward pass: logits of all positions ([B, C, V]) never exist.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minigrpo.policy.model import CausalLM
from minigrpo.policy.tree import Prompts, scoring_tree
from minigrpo.shapes import check, check_boolean

Places = tuple[Tensor, Tensor, Tensor]          # of T tokens in [Q, K, C]: group_T, branch_T, depth_T


def completion_logprobs(model: CausalLM, prompts: Prompts, ids_QKC: Tensor, mask_QKC: Tensor, *,
                        temperature: float = 1.0, chunk: int = 512) -> Tensor:
    """logp_BC: the log-prob of each completion token given its prompt and the tokens before it; 0 where masked.

    ``mask_QKC`` (boolean) marks the completions' tokens, the stop token included. ``temperature`` is that of sampling, so
    that what is scored is what was drawn from. ``chunk``: positions a head pass holds; memory chunk × V × 4 bytes.
    Differentiable with respect to the model's adapters.
    """
    check(ids_QP=prompts.ids_QP, length_Q=prompts.length_Q, ids_QKC=ids_QKC, mask_QKC=mask_QKC)
    check_boolean(mask_QKC=mask_QKC)
    places = mask_QKC.nonzero(as_tuple=True)
    logp_T = logprobs_at(places, model, prompts, ids_QKC, mask_QKC, temperature=temperature, chunk=chunk)
    logp_QKC = torch.zeros(mask_QKC.shape, dtype=logp_T.dtype, device=logp_T.device)
    return logp_QKC.index_put(places, logp_T).flatten(0, 1)


def logprobs_at(places: Places, model: CausalLM, prompts: Prompts, ids_QKC: Tensor, mask_QKC: Tensor, *, temperature: float,
                chunk: int) -> Tensor:
    """logp_T of the tokens at ``places``; arguments as in ``completion_logprobs``."""
    tree = scoring_tree(prompts, ids_QKC, mask_QKC, window=model.architecture.window)
    hidden_QSD = model(tree.ids_QS, positions_QT=tree.positions_QS, visible_QTS=tree.visible)
    hidden_TD, ids_T = hidden_QSD[places[0], tree.predictor_QKC[places]], ids_QKC[places]
    return torch.cat([checkpoint(token_logprobs, model, hidden_TD[i:i + chunk], ids_T[i:i + chunk], temperature,
                                 use_reentrant=False, preserve_rng_state=False)
                      for i in range(0, max(1, len(ids_T)), chunk)])         # no live token at all: one empty chunk


def token_logprobs(model: CausalLM, hidden_TD: Tensor, ids_T: Tensor, temperature: float) -> Tensor:
    """logp_T = log softmax(logits / temperature)[id], in float32 (float64 for a float64 model)."""
    check(hidden_TD=hidden_TD, ids_T=ids_T)
    logits_TV = widened(model.logits(hidden_TD), temperature)
    return logits_TV.gather(1, ids_T[:, None])[:, 0] - logits_TV.logsumexp(dim=-1)


def widened(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits in float32 (float64 for a float64 model), divided by ``temperature``."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature       # it would be a pass over the widest tensor there is
