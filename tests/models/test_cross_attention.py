"""Cross-attention whose few queries are taken to the tokens, against keys and values as the textbook has them."""

import pytest
import torch
from transformers import ViTConfig

from cca_hf.models.cross_attention import CrossAttention, eager_attention_forward

QUERIES, TOKENS, WIDTH, HEADS = 3, 19, 32, 4


def make(bias: bool, dropout: float) -> CrossAttention:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, qkv_bias=bias, attention_probs_dropout_prob=dropout
    )
    config._attn_implementation = "eager"
    return CrossAttention(config).double()


def textbook(module: CrossAttention, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = (
        projection(states).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
        for projection, states in ((module.q_proj, queries), (module.k_proj, tokens), (module.v_proj, tokens))
    )
    dropout = module.attention_dropout if module.training else 0.0
    answers, weights = eager_attention_forward(module, query, key, value, None, module.scaling, dropout)
    return module.o_proj(answers.flatten(2)), weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_answers_weights_and_gradients(bias, dropout):
    module = make(bias, dropout)
    queries, tokens = torch.randn(2, QUERIES, WIDTH).double(), torch.randn(2, TOKENS, WIDTH).double()
    found = []
    for attend in (lambda *given: module(*given, output_attentions=True), lambda *given: textbook(module, *given)):
        torch.manual_seed(1)  # the same weights are dropped
        asked, asking = tokens.clone().requires_grad_(), queries.clone().requires_grad_()
        answers, weights = attend(asking, asked)
        gradients = torch.autograd.grad((answers**3).sum(), [asking, asked, *module.parameters()])
        found.append((answers, weights, *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-6, rtol=1e-5)


def test_it_makes_keys_where_that_is_cheaper_or_where_they_were_changed():
    module = make(True, 0.0)
    made = []
    module.k_proj.register_forward_hook(lambda *_: made.append("keys"))
    tokens = torch.randn(1, TOKENS, WIDTH).double()
    module(torch.randn(1, WIDTH // HEADS - 1, WIDTH).double(), tokens)
    assert not made
    module(torch.randn(1, WIDTH // HEADS, WIDTH).double(), tokens)
    assert made == ["keys"]

    class Adapted(torch.nn.Linear):
        """As a library of adapters or of quantisation puts in a layer's place: its weight is not all there is."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) + 1

    adapted = Adapted(WIDTH, WIDTH).double()
    adapted.load_state_dict(module.v_proj.state_dict())
    queries = torch.randn(1, QUERIES, WIDTH).double()
    before = module(queries, tokens)[0]
    module.v_proj = adapted
    torch.testing.assert_close(module(queries, tokens)[0] - before, module.o_proj.weight.sum(1).expand_as(before))
